"""Metadata becomes compact JSON text, one by one or many at once, with the same result."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.errors import WrongInput
from asapo_produce.metas import meta_text, meta_texts

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("a},{\"\\\0é") | st.sampled_from(["},{", "}{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab},{", max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(st.lists(st.dictionaries(st.text("ab},{", max_size=3), JSON, max_size=3), min_size=1, max_size=5))
def test_many_at_once_are_what_they_are_one_by_one(metas: list[dict[str, Any]]) -> None:
    expected = [json.dumps(m, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for m in metas]
    assert meta_texts(metas, len(metas)) == [meta_text(m) for m in metas] == expected


def test_no_metadata_is_an_empty_object() -> None:
    assert meta_text(None) == "{}"
    assert meta_texts(None, 2) == ["{}", "{}"]


def test_text_passes_untouched() -> None:
    assert meta_text('{"a" : 1}') == '{"a" : 1}'


def test_numpy_values_are_numbers() -> None:
    assert meta_text({"i": np.uint64(2**63), "x": np.float32(0.5), "v": np.arange(3)}) == (
        '{"i":9223372036854775808,"x":0.5,"v":[0,1,2]}'
    )


@pytest.mark.parametrize(
    "meta",
    [
        {"a": float("nan")}, {"a": np.float64("inf")}, {"a": object()}, {"a": b"bytes"}, "[1]", "", "{",
        {"a": "\ud800"}, {"a": "x" * 2**20}, {"a": "é" * 2**19},
    ],
)  # fmt: skip
def test_what_is_no_json_object_is_refused(meta: Any) -> None:
    with pytest.raises(WrongInput, match="metadata"):
        meta_text(meta)
    with pytest.raises(WrongInput, match="metadata"):
        meta_texts([{}, meta], 2)


def test_a_dict_that_holds_itself_is_refused() -> None:
    meta: dict[str, Any] = {}
    meta["self"] = meta
    with pytest.raises(WrongInput, match="JSON"):
        meta_text(meta)


def test_each_frame_needs_its_metadata() -> None:
    with pytest.raises(WrongInput, match="1 metadata objects for 2 frames"):
        meta_texts([{}], 2)
