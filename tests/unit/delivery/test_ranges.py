from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asapo.delivery.ranges import RangeSet, complement

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(-2, 12)), max_size=40)


@given(STEPS)
def test_a_range_set_behaves_like_a_set(steps: list[tuple[bool, int, int]]) -> None:
    ours, plain = RangeSet(), set[int]()
    for adding, lo, length in steps:
        members = range(lo, lo + length + 1)
        if adding:
            ours.add(lo, lo + length)
            plain |= set(members)
        else:
            ours.remove(lo, lo + length)
            plain -= set(members)
        assert {value for a, b in ours for value in range(a, b + 1)} == plain
    assert [value in ours for value in range(-5, 60)] == [value in plain for value in range(-5, 60)]
    assert ours.count == len(plain)
    assert ours.last == max(plain, default=0)
    gaps = [(b + 1, c - 1) for (_, b), (c, _) in zip(list(ours), list(ours)[1:], strict=False)]
    assert all(a <= b for a, b in gaps), "ranges touch or overlap"
    assert ours == RangeSet(reversed(list(ours)))
    assert [value for a, b in ours.overlap(10, 20) for value in range(a, b + 1)] == sorted(
        value for value in plain if 10 <= value <= 20
    )


@given(st.sets(st.integers(1, 30)))
def test_floor_and_complement_agree_with_counting(members: set[int]) -> None:
    ours = RangeSet((one, one) for one in members)
    floor = 0
    while floor + 1 in members:
        floor += 1
    assert ours.floor() == floor
    missing = {value for a, b in complement(sorted(members), 1, 30) for value in range(a, b + 1)}
    assert missing == set(range(1, 31)) - members


def test_remove_below_cuts_through_a_range() -> None:
    ours = RangeSet([(1, 10), (20, 30)])
    ours.remove_below(25)
    assert list(ours) == [(25, 30)]
    ours.clear()
    assert not ours
    assert ours.count == 0


def test_no_ranges_are_false_and_some_are_true() -> None:
    assert not RangeSet()
    assert RangeSet([(3, 3)])
