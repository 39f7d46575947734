"""Whose units are stored next."""

import pytest

from asapo.models import StreamRef
from asapo.storage.journal import Kind
from asapo.wire.put import Put, pack_column
from asapo_receive.turns import MESSAGE_COST, TURN_COST, UNIT_COST, Item, Turns
from asapo_receive.units import Note, Unit

MANY = 2**62


def unit(link: int, number: int, nbytes: int = 1000, beamtime: str = "bt") -> Unit:
    put = Put(
        unit=number, stream="s", ids=range(number, number + 1), sizes=[nbytes], checksums=pack_column([0]),
        metas=["{}"], acquired_ns=pack_column([0]),
    )  # fmt: skip
    ref = StreamRef(beamtime, "det", "s")
    return Unit((0, bytes([link])), b"x" * 16, ref, put, b"", b"", nbytes, 0)


def names(items: list[Item]) -> list[tuple[int, int]]:
    return [(item.peer[1][0], item.put.unit) for item in items if isinstance(item, Unit)]


def test_one_link_alone_is_served_in_its_order_up_to_the_bounds() -> None:
    turns = Turns()
    turns.add([unit(1, n, 10 * TURN_COST) for n in range(1, 6)])
    assert names(turns.take(1, MANY)) == [(1, 1)]
    assert names(turns.take(20 * TURN_COST, MANY)) == [(1, 2), (1, 3)]
    assert names(turns.take(MANY, 1)) == [(1, 4)]
    assert names(turns.take(MANY, MANY)) == [(1, 5)]
    assert not turns
    assert turns.take(MANY, MANY) == []


def test_a_quiet_link_comes_next_whatever_another_has_queued() -> None:
    turns = Turns()
    turns.add([unit(1, n, 8 * TURN_COST) for n in range(1, 100)])
    assert names(turns.take(1, MANY)) == [(1, 1)]
    turns.add([unit(2, 1), unit(2, 2)])
    assert names(turns.take(1000, MANY)) == [(2, 1)]
    assert names(turns.take(1000, MANY)) == [(2, 2)]


def test_links_with_units_of_different_size_get_the_same_bytes() -> None:
    turns = Turns()
    small = TURN_COST // 4 - UNIT_COST - MESSAGE_COST
    turns.add([unit(1, n, 4 * TURN_COST - UNIT_COST - MESSAGE_COST) for n in range(1, 50)])
    turns.add([unit(2, n, small) for n in range(1, 1000)])
    taken = [item for _ in range(200) for item in turns.take(1, MANY) if isinstance(item, Unit)]
    nbytes = {link: sum(item.nbytes for item in taken if item.peer[1][0] == link) for link in (1, 2)}
    assert 0.8 < nbytes[1] / nbytes[2] < 1.25, nbytes
    for link in (1, 2):
        assert [number for one, number in names(list(taken)) if one == link] == sorted(
            number for one, number in names(list(taken)) if one == link
        )


def test_notes_keep_their_order_beside_the_links() -> None:
    turns = Turns()
    notes = [Note(Kind.SUPERSEDED, StreamRef("bt", "det", "s"), "x", {"n": n}) for n in range(3)]
    turns.add([unit(1, 1), notes[0], unit(1, 2), notes[1], notes[2]])
    assert [item for item in turns.take(MANY, MANY) if isinstance(item, Note)] == notes


def test_a_beamtime_with_a_limited_rate_waits_and_others_do_not() -> None:
    turns = Turns(beamtime_bytes_per_s=1000)
    turns.add([unit(1, n, 1000, "slow") for n in range(1, 5)])
    turns.add([unit(2, 1, 1000, "other")])
    assert sorted(names(turns.take(MANY, MANY, 10.0))) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1)]
    turns.add([unit(1, 5, 1000, "slow"), unit(2, 2, 10, "other")])
    assert names(turns.take(MANY, MANY, 10.0)) == [(2, 2)]
    assert turns.take(MANY, MANY, 12.9) == []
    assert turns.next_s(12.9) == pytest.approx(0.1)
    assert names(turns.take(MANY, MANY, 13.0)) == [(1, 5)]
