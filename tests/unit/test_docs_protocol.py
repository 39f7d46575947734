"""The protocol page names every event with its kind and every field, and states the limits and bytes as they are."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from asapo.models import MAX_NAME_BYTES, Row
from asapo.wire import limits
from asapo.wire.codec import PUT_KIND, encode
from asapo.wire.events import KINDS, Beat, Event
from asapo.wire.put import Put
from asapo.wire.session import SPOKEN

PAGE = (Path(__file__).parents[2] / "docs/reference/protocol.md").read_text()
ALL: dict[int, type[Event] | type[Put]] = {**KINDS, PUT_KIND: Put}


def section(kind: int, name: str) -> str:
    found = re.search(rf"^### {name} \(kind {kind}\)\n(.*?)(?=^##)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{name} (kind {kind}) has no section"
    return found[1]


@pytest.mark.parametrize(("kind", "event"), ALL.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_every_event_is_documented_with_all_its_fields(kind: int, event: type) -> None:
    text = section(kind, event.__name__)
    assert {item.name for item in fields(event)} <= set(re.findall(r"`(\w+)`", text)) | {"count"}


def test_no_event_is_documented_that_does_not_exist() -> None:
    documented = {(int(kind), name) for name, kind in re.findall(r"^### (\w+) \(kind (\d+)\)$", PAGE, re.MULTILINE)}
    assert documented == {(kind, event.__name__) for kind, event in ALL.items()}


def test_the_table_of_who_may_say_what_is_that_of_the_code() -> None:
    table = PAGE.partition("| role | may say |")[2].partition("\n\n")[0]
    rows = [set(line.split("|")[2].replace(" ", "").split(",")) for line in table.splitlines() if "Beat" in line]
    assert rows == [{event.__name__ for event in spoken} for spoken in SPOKEN.values()]


def test_the_columns_of_a_row_are_documented_in_their_order() -> None:
    found = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE, re.MULTILINE)
    assert [name for number, name in found if number != "offset"][-14:] == list(Row._fields)


def test_the_example_bytes_are_those_of_an_empty_beat() -> None:
    assert f"`{encode(Beat()).hex(' ')}`" in PAGE


def test_the_stated_limits_are_those_of_the_code() -> None:
    stated = [
        (f"| header part | {limits.MAX_HEADER_BYTES // limits.MIB} MiB |"),
        (f"| payload part of a Put | {limits.MAX_UNIT_BYTES // limits.MIB // 1024} GiB |"),
        (f"| messages in one unit | {limits.MAX_UNIT_MESSAGES} |"),
        (f"| names of beamtime, source, stream, group | 1 to {MAX_NAME_BYTES} bytes"),
        (f"| messages in one answer | {limits.MAX_ROWS:,} |".replace(",", " ")),
        (f"| query text | {limits.MAX_QUERY_BYTES // 1024} KiB |"),
        (f"| ranges in one acknowledgement | {limits.MAX_RANGES:,} |".replace(",", " ")),
        (f"| default credit | {limits.WINDOW_BYTES // limits.MIB} MiB and {limits.WINDOW_MESSAGES} messages |"),
    ]
    assert [line for line in stated if line not in PAGE] == []
    assert f"version {'.'.join(map(str, limits.VERSION))}" in PAGE
