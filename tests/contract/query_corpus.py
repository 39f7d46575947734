"""Messages and queries that every back end must answer alike: the evaluator says what is right.

An index passes by `IndexContract`; what only asks the SQL or the text of a query is in `tests/property/test_query.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import strategies as st

from asapo.index.interface import UnitRecord
from asapo.models import StreamRef
from asapo.query import (
    And,
    Boolean,
    Builtin,
    Comparison,
    Expr,
    In,
    Instant,
    IsNull,
    Like,
    MetaKey,
    Not,
    Number,
    Or,
    Order,
    Query,
    Record,
    Regexp,
    Text,
)

INTS = [
    0,
    1,
    -1,
    2,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    2**63 - 1,
    2**63,
    2**63 + 2048,
    -(2**63),
    -(2**63) - 1,
    2**64,
    10**30,
]
BIG = 12345678901234567890
FLOATS = [0.5, -0.0, 1.0, 2.0**53, 2.0**63, -(2.0**63), 2.0**64, 1e30, -1e30, 5e-324, 1e308, float(BIG)]
TEXTS = [
    "",
    "a",
    "A",
    "ab",
    "1",
    "true",
    "é",
    "😀",
    "\uffff",
    "it's",
    'say "x"',
    "back\\slash",
    "100%",
    "\\u0000",
    "\n",
]
PLAIN = ["a", "b", "meta", "timestamp", "x y", "p.q", "it's", "$[0]", "order"]
ODD = ["é", 'q"t', "back\\slash", "", "tab\t"]

numbers = st.sampled_from([*INTS, BIG, *FLOATS]) | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.sampled_from(TEXTS) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=4
)
scalars = st.none() | st.booleans() | numbers | texts
parts = st.sampled_from(PLAIN + ODD)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(parts, inner, max_size=3), max_leaves=4
)
metas = st.dictionaries(parts, values, min_size=1, max_size=5)
times_ns = st.sampled_from([0, 1, 1_700_000_000_123_456_789, -5]) | st.integers(-(2**63), 2**63 - 1)


@st.composite
def records(draw: st.DrawFn) -> list[Record]:
    """Return the messages of one stream."""
    keys = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), unique=True, max_size=8))
    return [
        Record(
            id=message_id,
            meta=draw(metas),
            acquired_ns=draw(times_ns),
            stored_ns=draw(times_ns),
            size_bytes=draw(st.integers(0, 3)),
            substream=substream,
        )
        for message_id, substream in keys
    ]


plain_keys = st.lists(st.sampled_from(PLAIN), min_size=1, max_size=2).map(lambda path: MetaKey(tuple(path)))
odd_keys = st.tuples(st.sampled_from(ODD)).map(MetaKey) | st.tuples(parts, st.sampled_from(ODD)).map(MetaKey)
number_keys = st.sampled_from(["_id", "_size", "_substream"]).map(Builtin)
time_keys = st.sampled_from(["timestamp", "_stored"]).map(Builtin)
ops = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
literals = st.one_of(numbers.map(Number), texts.map(Text), st.booleans().map(Boolean))
small_literals = literals.filter(lambda value: not isinstance(value, Number) or -(2**63) < value.value < 2**63)
comparisons = st.one_of(
    st.builds(Comparison, plain_keys, ops, literals),
    st.builds(Comparison, st.sampled_from([MetaKey(("a",)), MetaKey(("b",))]), ops, literals),
    st.builds(Comparison, odd_keys, ops, small_literals),
    st.builds(Comparison, number_keys, ops, numbers.map(Number)),
    st.builds(Comparison, time_keys, ops, times_ns.map(Instant)),
)


REGEXPS = [
    "", "^$", "^a", "b$", "a.", "[ab]+", "(?i)^A", "é", "^.$", r"\d", "1|x", r"\pL", "😀", r"\\", "[^a]", "a{2,}",
    "(a|b)?'",
]  # fmt: skip
patterns = st.lists(st.sampled_from(["%", "_", "a", "b", "A", "é", "\\\\", "\\%", "*", "["]), max_size=5).map("".join)


def predicates_on(keys: st.SearchStrategy[MetaKey], values: st.SearchStrategy[Number]) -> st.SearchStrategy[Expr]:
    """Return what can be asked of a key beside comparing it with one value."""
    one_type = st.lists(values, min_size=1, max_size=3).map(tuple) | st.lists(
        texts.map(Text), min_size=1, max_size=3
    ).map(tuple)
    return st.one_of(
        st.builds(In, keys, one_type, st.booleans()),
        st.builds(Like, keys, patterns, st.booleans()),
        st.builds(Regexp, keys, st.sampled_from(REGEXPS), st.booleans()),
        st.builds(IsNull, keys),
    )


comparisons = st.one_of(
    comparisons,
    predicates_on(plain_keys, numbers.map(Number)),
    predicates_on(odd_keys, st.integers(-3, 3).map(Number)),
    st.builds(In, number_keys, st.lists(numbers.map(Number), min_size=1, max_size=3).map(tuple), st.booleans()),
)


def deeper(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    """Join conditions to larger ones."""
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return several.map(And) | several.map(Or) | inner.map(Not)


exprs = st.recursive(comparisons, deeper, max_leaves=8)
orders = st.lists(st.builds(Order, plain_keys | odd_keys | number_keys | time_keys, st.booleans()), max_size=3).map(
    tuple
)
queries = st.builds(Query, st.none() | exprs, orders, st.none() | st.integers(0, 5))


def nested(path: Sequence[str], value: object) -> dict[str, object]:
    """Return metadata with this value at this place."""
    return {path[0]: nested(path[1:], value) if len(path) > 1 else value}


@st.composite
def rows_with_one_key(draw: st.DrawFn) -> tuple[list[Record], Query]:
    """Return messages that all have the key that the query is about."""
    key = draw(plain_keys)
    values_of_key = draw(st.lists(values | literals.map(lambda value: value.value), min_size=1, max_size=8))
    rows = [Record(n, nested(key.path, value)) for n, value in enumerate(values_of_key, 1)]
    one = st.builds(Comparison, st.just(key), ops, literals) | predicates_on(st.just(key), numbers.map(Number))
    where = draw(st.recursive(one, deeper, max_leaves=4))
    return rows, Query(where, draw(st.sampled_from([(), (Order(key),), (Order(key, descending=True),)])))


DECLARED = [[], ["a"], ["a.b", "b"]]
"""Keys to declare: no answer may depend on them."""
SORTED = [[], ["a", "b", "x"], ["b", "a.b", "c", "score"]]
"""Keys by which the finished stream is sorted: nor on these."""


def units(rows: list[Record], to: StreamRef) -> list[UnitRecord]:
    """Return these messages as an index takes them, in this order of arrival."""
    return [
        UnitRecord(
            ref=to,
            ids=[row.id],
            offsets=[0],
            sizes=[row.size_bytes],
            checksums=[0],
            metas=[json.dumps(row.meta, allow_nan=False, ensure_ascii=n % 2 == 0)],
            t_acq_ns=[row.acquired_ns],
            t_ingest_ns=row.stored_ns,
            segment=1,
            substream=row.substream,
            dataset_size=2 if row.substream else 0,
        )
        for n, row in enumerate(rows)
    ]


MESSAGES = [
    Record(1, {"score": 0.5, "sample": {"name": "lysozyme", "n": 1}, "hit": True}, 10**18, 1, 100),
    Record(2, {"score": 1, "sample": {"name": "Lysozyme"}, "hit": False}, 10**18 + 1, 2, 200),
    Record(3, {"score": "high", "sample": {"name": "water"}, "note": "it's 100%"}, 10**18 + 2, 3, 0),
    Record(4, {"score": None, "sample": "none", "note": ""}, 0, 4, 50),
    Record(5, {"score": -3, "sample": {"name": None}, "note": "a\nb"}, -5, 5, 1),
    Record(6, {"score": [1], "note": "été 😀"}, 2 * 10**18, 6, 2),
    Record(7, {"score": 2**63, "sample": {"name": "lyso 2"}, "hit": 1}, 7, 7, 3),
    Record(9, {}, 9, 9, 4, 1),
    Record(9, {"score": 0.5}, 9, 9, 4, 2),
]
ANSWERS: list[tuple[str, list[int]]] = [
    ("", [1, 2, 3, 4, 5, 6, 7, 9, 9]),
    ("score = 0.5", [1, 9]),
    ("score != 0.5", [2, 5, 7]),
    ("NOT score = 0.5", [2, 3, 4, 5, 6, 7, 9]),
    ("score > 0", [1, 2, 7, 9]),
    ("score >= 9223372036854775808", [7]),
    ("score = 'high' OR hit = true", [1, 3]),
    ("hit = 1", [7]),
    ("score BETWEEN -3 AND 0.5", [1, 5, 9]),
    ("score NOT BETWEEN -3 AND 0.5", [2, 7]),
    ("score IN (1, 0.5)", [1, 2, 9]),
    ("score NOT IN (1, 0.5)", [5, 7]),
    ("sample.name LIKE 'lyso%'", [1, 7]),
    ("sample.name NOT LIKE 'lyso%'", [2, 3]),
    (r"note LIKE '%\%'", [3]),
    ("note LIKE 'a_b'", [5]),
    ("sample.name REGEXP '^lyso'", [1, 7]),
    ("sample.name NOT REGEXP '^lyso'", [2, 3]),
    ("sample.name REGEXP '(?i)^LYSO'", [1, 2, 7]),
    ("sample.name REGEXP 'z|e$'", [1, 2]),
    ("sample.name REGEXP '[0-9]'", [7]),
    ("note REGEXP '^.b$'", []),
    ("note REGEXP '(?s)^a.b$'", [5]),
    ("note REGEXP ''", [3, 4, 5, 6]),
    ("note NOT REGEXP ''", []),
    ("NOT note REGEXP 't'", [1, 2, 4, 5, 7, 9, 9]),
    ("note REGEXP '^.é .$'", []),
    ("note REGEXP '^ét. .$'", [6]),
    ("score REGEXP '.'", [3]),
    ("sample.name IS NULL", [4, 5, 6, 9, 9]),
    ("sample.name IS NOT NULL", [1, 2, 3, 7]),
    ("_id >= 7 AND _substream = 2", [9]),
    ("_size BETWEEN 3 AND 100", [1, 4, 7, 9, 9]),
    ("timestamp > '2001-09-09T01:46:40Z'", [2, 3, 6]),
    ("_stored < 0.000000004", [1, 2, 3]),
    ("score IS NOT NULL ORDER BY score", [5, 1, 9, 2, 7, 3, 6]),
    ("ORDER BY score DESC, _id DESC", [7, 2, 9, 1, 5, 3, 9, 6, 4]),
    ("ORDER BY sample.name LIMIT 3", [2, 7, 1]),
    ("score > 0 ORDER BY score DESC LIMIT 2", [7, 2]),
    ("LIMIT 0", []),
]
"""Query text to the ids that every back end must find in `MESSAGES`, in this order."""
