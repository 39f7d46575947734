"""Names of messages that say which one they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.client_path import check_client_path
from asapo.compat.names import Named, exposed_name, read_name
from asapo.errors import WrongInput
from asapo.models import MAX_ID

words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=20)
named = st.builds(Named, words, words, st.integers(1, MAX_ID), st.integers(0, 2**31))


@given(named)
def test_a_name_means_the_message_it_was_made_of(found: Named) -> None:
    name = exposed_name(found)
    assert read_name(name) == found
    assert name.isascii()
    assert name.count("/") == 3


def test_an_ordinary_name_is_a_path_on_every_system() -> None:
    name = exposed_name(Named("det/1", "run1", 7, 2))
    assert name == "processed/det%2F1/run1/7_2"
    assert check_client_path(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "processed/f1", "raw/det/s/1", "processed/det/s/0", "processed/det/s/1_", "processed/det/s/x", "/etc/passwd",
     "processed/a/b/c/1", "processed/%ff/s/1", "processed/d%00/s/1", "processed/d/s/1\n"],
)  # fmt: skip
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(WrongInput):
        read_name(name)


def test_dots_are_a_name_like_others_because_nothing_is_opened_by_it() -> None:
    assert read_name("processed/det/../1") == Named("det", "..", 1, 0)


@given(st.text(max_size=40) | st.text(st.sampled_from("processed/%0123_."), max_size=40))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        found = read_name(text)
    except WrongInput:
        return
    assert read_name(exposed_name(found)) == found
