"""Projection: the keys that were asked for, nested as they were, and nothing else."""

from __future__ import annotations

import json

import pytest

from asapo.errors import WrongInput
from asapo.query import projector

META = {
    "score": 0.5, "n": 2**70, "sample": {"name": "x", "cell": {"a": 1, "b": None}}, "odd key": 1, "a.b": 2, "meta": 3,
    "list": [{"x": 1}], "timestamp": 4, "é": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["score"], {"score": 0.5}),
        (["n", "nothing", "score.x", "list.x"], {"n": 2**70}),
        (["sample.name", "sample.cell.b"], {"sample": {"name": "x", "cell": {"b": None}}}),
        (["sample.name", "sample"], {"sample": META["sample"]}),
        (["sample", "sample.name"], {"sample": META["sample"]}),
        (["`odd key`", "`a.b`", "`é`"], {"odd key": 1, "a.b": 2, "é": 5}),
        (
            ["meta.score", "meta.meta", "meta.timestamp", "list"],
            {"score": 0.5, "meta": 3, "timestamp": 4, "list": [{"x": 1}]},
        ),
        (["meta"], {"meta": 3}),
        (["``"], {}),
    ],
)
def test_chosen_keys_come_back_where_they_were(keys: list[str], expected: dict[str, object]) -> None:
    text = json.dumps(META)
    assert json.loads(projector(keys)(text)) == expected


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([], "0 keys"),
        (["a"] * 65, "65 keys"),
        (["a b"], "'a b'"),
        (["a."], "'a.'"),
        ([None], "None"),
        (["timestamp"], r"meta\.timestamp"),
        (["`never closed"], "never closed"),
        ([".".join("a" * 33)], "32 nested keys"),
    ],
)
def test_what_is_no_key_is_refused(keys: list[object], says: str) -> None:
    with pytest.raises(WrongInput, match=says):
        projector(keys)


@pytest.mark.parametrize(
    "text", ['{"a": 1e999, "b": 1}', '{"a": ' + "9" * 5000 + ', "b": 1}', '{"a": ' + "[" * 100_000]
)
def test_metadata_that_python_cannot_give_back_come_whole(text: str) -> None:
    assert projector(["a"])(text) == text
