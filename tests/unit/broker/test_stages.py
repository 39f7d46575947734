"""What clients tell of their stages: bounded, checked, listed and shown."""

from typing import Any

import pytest

from asapo.errors import WrongInput
from asapo_broker.sessions import Session
from asapo_broker.stages import MAX_STAGES, check_work, listing, metrics

ENTRY: dict[str, Any] = {"group": "g", "source": "det", "stream": "s", "taken": 5, "user_s": 0.5, "running": True}


def test_known_keys_are_taken_and_what_is_missing_counts_as_nothing() -> None:
    (found,) = check_work([{**ENTRY, "newer": "x"}])
    assert found == {**ENTRY, "published": 0, "bytes": 0, "errors": 0, "wall_s": 0}


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (["x"], "expected a map"),
        ([{**ENTRY, "group": 7}], "group name 7"),
        ([{**ENTRY, "stream": "x" * 300}], "stream name"),
        ([{**ENTRY, "taken": -1}], "taken -1"),
        ([{**ENTRY, "user_s": float("nan")}], "user_s nan"),
        ([{**ENTRY, "errors": "1"}], "errors '1'"),
        ([ENTRY] * (MAX_STAGES + 1), "expected at most"),
    ],
)
def test_what_is_no_work_is_refused(work: list[Any], reason: str) -> None:
    with pytest.raises(WrongInput, match=reason):
        check_work(work)


def test_stages_are_listed_with_who_they_are_and_shown_with_labels_of_their_own() -> None:
    sessions = [Session("bt", bytes([n]) * 16, b"p", 0.0, name=f"w{n}") for n in (1, 2, 3)]
    for session in sessions[:2]:
        session.work = check_work([ENTRY])
    found = listing(sessions)
    assert [(one["name"], one["session"], one["taken"]) for one in found] == [
        ("w1", "01010101", 5),
        ("w2", "02020202", 5),
    ]
    numbers = metrics(found)
    assert len({(name, tuple(sorted(labels.items()))) for name, labels, _ in numbers}) == len(numbers)
    assert [value for name, _, value in numbers if name == "asapo_stage_user_seconds_total"] == [0.5, 0.5]
