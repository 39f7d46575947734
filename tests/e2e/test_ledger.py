"""The ledger of these tests finds what it is there to find, each under its name."""

from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.ledger import Ledger

IDS = [1, 4, 9, 16, 25]


@dataclass(frozen=True)
class Given:
    """A message as a reader sees it."""

    id: int
    raw: bytes
    late: bool = False


@pytest.fixture
def ledger() -> Ledger:
    found = Ledger("s", sizes=(1, 50, 5000))
    found.invoked.update(IDS, [100])  # 100 was sent, but nobody knows what became of it
    found.acked.update(IDS)
    return found


def _given(ledger: Ledger, ids: list[int]) -> list[Any]:
    return [Given(message_id, ledger.payload(message_id)) for message_id in ids]


@pytest.mark.parametrize("ids", [IDS, [*IDS, 100]])
def test_what_was_promised_passes(ledger: Ledger, ids: list[int]) -> None:
    assert ledger.check_ordered(_given(ledger, ids), "a reader") == ids


@pytest.mark.parametrize(
    ("ids", "finding"),
    [
        ([1, 4, 16, 25], "loss"),
        ([], "loss"),
        ([1, 4, 9, 16, 25, 26], "invention"),
        ([1, 9, 4, 16, 25], "order"),
        ([1, 4, 4, 9, 16, 25], "order"),
    ],
)
def test_wrong_ids_are_found(ledger: Ledger, ids: list[int], finding: str) -> None:
    with pytest.raises(AssertionError, match=f"^{finding}:"):
        ledger.check_ordered(_given(ledger, ids), "a reader")


def test_an_id_that_came_twice_is_found_where_order_does_not_show_it(ledger: Ledger) -> None:
    with pytest.raises(AssertionError, match="^once:"):
        ledger.check_whole([*IDS, 9], "the index")


def _flipped(raw: bytes) -> bytes:
    return bytes([raw[0] ^ 1]) + raw[1:]


@pytest.mark.parametrize("change", [_flipped, lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda _: b""])
def test_wrong_bytes_are_found(ledger: Ledger, change: Any) -> None:
    messages = _given(ledger, IDS)
    messages[2] = Given(9, change(messages[2].raw))
    with pytest.raises(AssertionError, match="^torn:"):
        ledger.check_ordered(messages, "a reader")


def test_the_bytes_of_another_message_are_found(ledger: Ledger) -> None:
    messages = _given(ledger, IDS)
    messages[2] = Given(9, ledger.payload(4) + b"x")
    with pytest.raises(AssertionError, match="^torn:"):
        ledger.check_ordered(messages, "a reader")


def test_a_late_message_is_found(ledger: Ledger) -> None:
    messages = _given(ledger, IDS)
    messages[4] = Given(25, messages[4].raw, late=True)
    with pytest.raises(AssertionError, match="^late:"):
        ledger.check_ordered(messages, "a reader")
