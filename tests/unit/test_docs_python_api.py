"""The API page lists every public member of the SDK's classes, and its signatures are those of the code."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import asapo
from asapo import AsyncConsumer, Consumer, Producer, Stage
from asapo_produce import BatchHandle, ProducerStats, SendHandle
from asapo_work import DeadLetter, Found, GroupInfo, Message, OfflineConsumer, OpenReport

PAGE = (Path(__file__).parents[2] / "docs/reference/python-api.md").read_text()
CLASSES = [Producer, SendHandle, BatchHandle, Consumer, AsyncConsumer, Message, Stage]
INTERNAL = {SendHandle: {"complete", "callbacks", "later"}, BatchHandle: {"complete", "callbacks", "later"}}
"""Members that other rooms of the SDK use and users do not."""


def section(kind: type) -> str:
    found = re.search(rf"^## {kind.__name__}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")} - INTERNAL.get(kind, set())


def parameters(function: Any) -> list[tuple[str, str]]:
    """Return name and default of each parameter, as the page writes them."""
    found = [p for name, p in inspect.signature(function).parameters.items() if name != "self"]
    return [(p.name, "" if p.default is p.empty else repr(p.default).replace("'", '"')) for p in found]


def stated(text: str) -> list[tuple[str, str]]:
    """Return name and default of each parameter of a signature on the page."""
    inside = text.partition("(")[2].removesuffix(")").replace("\\|", "|")
    items = [item.strip() for item in inside.split(", ") if item.strip() not in ("", "*")]
    return [(name.lstrip("*"), default) for name, _, default in (item.partition("=") for item in items)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_public_member_is_listed_and_no_other(kind: type) -> None:
    listed = set(re.findall(r"^\| `(\w+)[(`]", section(kind), re.MULTILINE))
    assert listed == public(kind)


@pytest.mark.parametrize("kind", [Producer, SendHandle, BatchHandle, Consumer, Stage], ids=lambda kind: kind.__name__)
def test_signatures_are_those_of_the_code(kind: type) -> None:
    shown = re.findall(r"^\| `(\w+\(.*?\))` \|", section(kind), re.MULTILINE)
    assert shown
    for text in shown:
        assert stated(text) == parameters(getattr(kind, text.partition("(")[0])), text


@pytest.mark.parametrize(
    "kind", [Producer, Consumer, OfflineConsumer, AsyncConsumer, Found, Stage], ids=lambda kind: kind.__name__
)
def test_constructors_are_those_of_the_code(kind: type) -> None:
    text = re.search(rf"^`({kind.__name__}\(.*\))`$", section(kind), re.MULTILINE)
    assert text is not None
    assert stated(text[1]) == parameters(kind)


def test_open_and_its_report_are_those_of_the_code() -> None:
    text = re.search(r"^`(asapo\.open\(.*\))`$", PAGE, re.MULTILINE)
    assert text is not None
    assert stated(text[1]) == parameters(asapo.open)
    assert all(f"`{name}`" in section(OfflineConsumer) for name in OpenReport.__dataclass_fields__)


def test_the_attributes_of_what_a_query_returns_are_listed() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section(Found), re.MULTILINE)) == set(vars(Found()))


@pytest.mark.parametrize("kind", [GroupInfo, DeadLetter], ids=lambda kind: kind.__name__)
def test_the_attributes_of_records_are_listed_in_their_order(kind: Any) -> None:
    assert re.findall(r"^\| `(\w+)` \|", section(kind), re.MULTILINE) == list(kind.__dataclass_fields__)


def test_the_counts_of_a_producer_are_listed() -> None:
    assert all(f"`{name}`" in section(Producer) for name in ProducerStats.__dataclass_fields__)
