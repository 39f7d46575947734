"""Names and journals under arbitrary input."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asapo.models import MAX_NAME_BYTES
from asapo.storage.files import FileOps
from asapo.storage.journal import Damage, JournalRecord, JournalWriter, decode_body, encode_record, read_journal
from asapo.storage.layout import decode_name, encode_name

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda name: len(name.encode()) <= MAX_NAME_BYTES
)
SAFE = set(string.ascii_letters + string.digits + "._-%~")


@given(NAMES)
@example(".")
@example("..")
@example("/" * 255)
@example("ä" * 127)
def test_an_encoded_name_is_a_safe_file_name_and_comes_back(name: str) -> None:
    text = encode_name(name)
    assert set(text) <= SAFE
    assert not text.startswith(".")
    assert 1 <= len(text) <= 255
    assert decode_name(text) in (name, None)
    assert (decode_name(text) is None) == (len(text) == 217 and "~" in text)


@given(NAMES, NAMES)
def test_two_names_never_share_a_file_name(one: str, two: str) -> None:
    assert (encode_name(one) == encode_name(two)) == (one == two)


FIELDS = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=20), st.binary(max_size=40), st.booleans(), st.none()),
    max_size=4,
)
RECORDS = st.lists(st.tuples(st.text(min_size=1, max_size=8), FIELDS), max_size=6)


def write(path: Path, records: list[tuple[str, dict[str, Any]]]) -> None:
    journal = JournalWriter(str(path), {"stream": "s"}, FileOps())
    for kind, fields in records:
        journal.append(kind, fields)
    journal.close()


def is_subsequence(some: list[Any], of: list[Any]) -> bool:
    rest = iter(of)
    return all(item in rest for item in some)


@pytest.fixture
def counter() -> list[int]:
    return [0]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS)
def test_what_is_appended_is_read_back(tmp_path: Path, counter: list[int], records: list[Any]) -> None:
    counter[0] += 1
    path = tmp_path / f"{counter[0]}.idx"
    write(path, records)
    found = list(read_journal(path))
    assert all(isinstance(item, JournalRecord) for item in found)
    assert [(item.kind, item.fields) for item in found[1:] if isinstance(item, JournalRecord)] == records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, start=st.floats(0, 1), junk=st.binary(min_size=1, max_size=60), insert=st.booleans())
def test_damage_anywhere_costs_only_the_records_it_touches(
    tmp_path: Path, counter: list[int], records: list[Any], start: float, junk: bytes, insert: bool
) -> None:
    counter[0] += 1
    path = tmp_path / f"{counter[0]}.idx"
    write(path, records)
    whole = path.read_bytes()
    before = [item for item in read_journal(path) if isinstance(item, JournalRecord)]
    at = 8 + int(start * (len(whole) - 8))
    after = at if insert else min(len(whole), at + len(junk))
    path.write_bytes(whole[:at] + junk + whole[after:])
    touched = [
        item
        for item in before
        if (item.offset < at < item.offset + item.size)
        or (not insert and item.offset < after and at < item.offset + item.size)
    ]
    items = list(read_journal(path))
    found = [(item.kind, item.fields) for item in items if isinstance(item, JournalRecord)]
    assert is_subsequence([(item.kind, item.fields) for item in before if item not in touched], found)
    assert is_subsequence(found, [(item.kind, item.fields) for item in before])
    changed = path.read_bytes() != whole
    assert changed == any(isinstance(item, Damage) for item in items)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_body_are_refused_without_an_exception(data: bytes) -> None:
    decoded = decode_body(data)
    assert decoded is None or encode_record(*decoded)
