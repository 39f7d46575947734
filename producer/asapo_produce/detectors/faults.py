"""Which ids a simulated detector skips, repeats and reorders. Pure: the same settings give the same faults."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from asapo.errors import WrongInput


@dataclass(frozen=True, slots=True)
class Share:
    """`count` of every `of` ids; which ones is drawn from the seed. (0, 1) is none."""

    count: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if self.of < 1 or not 0 <= self.count <= self.of:
            raise WrongInput(f"share {self.count}/{self.of}: expected n/m with 0 <= n <= m, for example 1/100")

    def __str__(self) -> str:
        return f"{self.count}/{self.of}"


def parse_share(text: str) -> Share:
    """Return the share that a text such as "1/100" or "0" names.

    >>> parse_share("3/1000")
    Share(count=3, of=1000)
    """
    count, _, of = text.partition("/")
    if not count.isdecimal() or (of and not of.isdecimal()):
        raise WrongInput(f"share {text!r}: expected n/m, for example 1/100")
    return Share(int(count), int(of or 1))


class Kind(StrEnum):
    """What happens to an id."""

    SEND = "send"
    SKIP = "skip"
    REPEAT = "repeat"
    CONFLICT = "conflict"


class Run(NamedTuple):
    """Neighbouring ids with one fate; repetitions follow what they repeat, one by one."""

    kind: Kind
    first: int
    n: int
    tick: int
    """Frames that the detector has made before this one, from 0."""


MOST_OF: Final = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, in shares of all ids from 1 on."""

    skip: Share = Share()
    repeat: Share = Share()
    """The same id with the same content once more."""
    conflict: Share = Share()
    """The same id with other content once more."""
    reorder: int = 1
    """Ids are shuffled within groups of this many; 1 keeps them in order."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reorder < 1:
            raise WrongInput(f"reorder {self.reorder}: expected at least 1, which keeps the order")
        for share in (self.skip, self.repeat, self.conflict):
            if share.of > MOST_OF:
                raise WrongInput(f"share {share}: expected a second number of at most {MOST_OF}")

    @property
    def none(self) -> bool:
        """Whether nothing goes wrong."""
        return not (self.skip.count or self.repeat.count or self.conflict.count) and self.reorder == 1

    def runs(self, n_frames: int, block: int) -> Iterator[Run]:
        """Yield what happens to ids 1 to `n_frames`; no run crosses a border between blocks of `block` ids."""
        if self.none:
            for first in range(1, n_frames + 1, block):
                yield Run(Kind.SEND, first, min(block, n_frames + 1 - first), first - 1)
        else:
            yield from _joined(self._fates(n_frames), block)

    def _fates(self, n_frames: int) -> Iterator[Run]:
        skipped = _Chosen(self.skip, self.seed, "skip")
        repeated = _Chosen(self.repeat, self.seed, "repeat")
        conflicting = _Chosen(self.conflict, self.seed, "conflict")
        for tick, i in enumerate(self._order(n_frames)):
            if i in skipped:
                yield Run(Kind.SKIP, i, 1, tick)
                continue
            yield Run(Kind.SEND, i, 1, tick)
            if i in repeated:
                yield Run(Kind.REPEAT, i, 1, tick)
            if i in conflicting:
                yield Run(Kind.CONFLICT, i, 1, tick)

    def _order(self, n_frames: int) -> Iterator[int]:
        if self.reorder == 1:
            yield from range(1, n_frames + 1)
            return
        for first in range(1, n_frames + 1, self.reorder):
            group = list(range(first, min(first + self.reorder, n_frames + 1)))
            random.Random(f"{self.seed}/reorder/{first}").shuffle(group)
            yield from group


class _Chosen:
    """The ids of a share: `count` of ids 1 to `of`, as many of the next `of`, and so on."""

    def __init__(self, share: Share, seed: int, what: str) -> None:
        self._share = share
        self._name = f"{seed}/{what}"
        self._groups: dict[int, frozenset[int]] = {}

    def __contains__(self, i: int) -> bool:
        if not self._share.count:
            return False
        group, place = divmod(i - 1, self._share.of)
        places = self._groups.get(group)
        if places is None:
            while len(self._groups) >= 16:  # more than reordering can mix, unless the groups are tiny: then drawn again
                del self._groups[next(iter(self._groups))]
            draw = random.Random(f"{self._name}/{group}").sample(range(self._share.of), self._share.count)
            places = self._groups[group] = frozenset(draw)
        return place in places


def _joined(fates: Iterable[Run], block: int) -> Iterator[Run]:
    """Join neighbours that are sent in ascending order within one block."""
    waiting: Run | None = None
    for fate in fates:
        if waiting is not None:
            follows = fate.kind is Kind.SEND and fate.first == waiting.first + waiting.n
            if follows and (fate.first - 1) // block == (waiting.first - 1) // block:
                waiting = waiting._replace(n=waiting.n + 1)
                continue
            yield waiting
            waiting = None
        if fate.kind is Kind.SEND:
            waiting = fate
        else:
            yield fate
    if waiting is not None:
        yield waiting
