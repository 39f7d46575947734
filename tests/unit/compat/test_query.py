"""Queries of ASAP::O: what they mean, and that our own text of them means the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from asapo.compat.query import parse_query
from asapo.errors import WrongInput
from asapo.query import Instant, Record, parse, select

pytestmark = pytest.mark.needs_server

NS = 1_795_253_903_461_393_570


def record(message_id: int, meta: dict[str, Any], *, size: int = 0, part: int = 0) -> Record:
    return Record(message_id, meta, 0, NS + message_id, size, part)


MESSAGES = [
    record(1, {"somevalue": 10, "condition": "condition #1", "a": {"b": 1}, "sample": "lysozyme"}, size=100),
    record(2, {"somevalue": 20.5, "condition": "condition #2", "a": {"b": 2}, "sample": "water"}, size=200),
    record(3, {"somevalue": -30, "condition": "Condition #7", "a": {"b": "2"}}),
    record(4, {"condition": "condition #7", "a": 1, "sample": None}),
    record(5, {"somevalue": 45, "order": 1, "meta": {"x": 1}}, part=2),
]
ANSWERS: list[tuple[str, list[int]]] = [
    ("_id = 1", [1]),
    ("_id >= 4", [4, 5]),
    ("_id != 2", [1, 3, 4, 5]),
    ("_id in (1, 5, 9)", [1, 5]),
    ("_id between 2 and 3", [2, 3]),
    ('meta.condition = "condition #7"', [4]),
    ("meta.somevalue > 15 AND meta.somevalue < 60", [2, 5]),
    ("meta.somevalue = 20.5", [2]),
    ("meta.somevalue <= -30", [3]),
    ("meta.a.b = 1", [1]),
    ("meta.a.b = '2'", [3]),
    ("meta.a.b > 0 or meta.sample = 'nothing'", [1, 2]),
    ("(meta.a.b = 1 or meta.a.b = 2) and meta.somevalue > 15", [2]),
    # What is negative is true of messages that do not have the key, too: `$ne`, `$nin`, `$not` of MongoDB.
    ("meta.a.b != 1", [2, 3, 4, 5]),
    ("meta.a.b <> 1", [2, 3, 4, 5]),
    ("meta.a.b not in (1, 2)", [3, 4, 5]),
    ("meta.sample not regexp '^lyso'", [2, 3, 4, 5]),
    ("meta.sample not like 'lyso%'", [2, 3, 4, 5]),
    # But not this one: it is "less or more".
    ("meta.somevalue not between 10 and 30", [3, 5]),
    ("meta.condition regexp '#[17]$'", [1, 3, 4]),
    ("meta.condition regexp '^condition'", [1, 2, 4]),
    ("meta.user_meta regexp 'test*' order by _id", []),
    ("meta.condition like 'condition%'", [1, 2, 4]),
    ("meta.somevalue between 10 and 30", [1, 2]),
    ("meta.order = 1", [5]),
    ("meta.meta.x = 1", [5]),
    ("size > 100", [2]),
    ("dataset_substream = 2", [5]),
    (f"timestamp > {NS + 3}", [4, 5]),
    (f"timestamp < {NS + 2} AND timestamp > {NS - 10**9}", [1]),
    # As scripts compute it: seconds as a float, times 10**9.
    (f"timestamp < {1.795253903461393570e18 + 2**20} AND timestamp > {1.79525300e18}", [1, 2, 3, 4, 5]),
    ("_id > 0 order by meta.somevalue", [3, 1, 2, 5, 4]),
    ("_id > 0 order by meta.somevalue desc", [5, 2, 1, 3, 4]),
    ("_id > 0 order by timestamp desc", [5, 4, 3, 2, 1]),
    ("meta.somevalue > 0 ORDER BY _id DESC", [5, 2, 1]),
    ("not meta.a.b = 1 limit 2", [2, 3]),
    ("meta.sample is null", [3, 4, 5]),
]


@pytest.mark.parametrize(("text", "ids"), ANSWERS)
def test_a_query_finds_what_the_original_finds(text: str, ids: list[int]) -> None:
    query = parse_query(text)
    assert [found.id for found in select(query, MESSAGES)] == ids
    # It travels to the delivery core as text of our own language.
    assert parse(str(query)) == query


def test_times_are_nanoseconds_and_exact() -> None:
    where: Any = parse_query(f"timestamp = {NS}").where
    assert where.value == Instant(NS)
    where = parse_query("timestamp > 1.5e3").where
    assert where.value == Instant(1500)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected a condition"),
        ("order by _id", "expected a condition"),
        ("bla", "the end of the query"),
        ("name = 'f1'", "'name'"),
        ("a.b = 1", "write meta.a.b"),
        ("meta = 1", "'meta'"),
        ("_size > 1", "'_size'"),
        ("timestamp > 'now'", "nanoseconds since 1970"),
        ("timestamp > 1e999999999", "nanoseconds since 1970"),
        ("timestamp > 9223372036854775808", "nanoseconds since 1970"),
        ("timestamp > true", "nanoseconds since 1970"),
        ("_id = 'a'", "a number"),
        ("_id > 0 order by _id, size", "ORDER BY has 2 keys"),
        ("meta.a regexp '('", "RE2"),
        ("meta.a = 1 and", "the end of the query"),
        ("meta." + ".".join("a" * 40) + " = 1", "shorten the key"),
        ("size regexp 'a'", "a metadata key"),
        ("meta.a = 'x", "never closed"),
        ("(" * 100 + "_id = 1" + ")" * 100, "nested deeper"),
        (" and ".join(["_id != 1"] * 300), "more than 256"),
    ],
)
def test_a_wrong_query_is_refused_and_says_why(text: str, named: str) -> None:
    with pytest.raises(WrongInput) as caught:
        parse_query(text)
    assert named in caught.value.message


def test_our_own_language_is_not_changed_by_the_other() -> None:
    parse_query("timestamp > 1")
    assert str(parse("timestamp > 1 and a != 2 and _size > 3")) == "timestamp > 1 AND a != 2 AND _size > 3"
    assert dataclasses.is_dataclass(parse("a = 1"))
