"""How a group reads its stream: fixed by its first read, the same in all later ones."""

from __future__ import annotations

from typing import NamedTuple

from asapo.errors import WrongInput
from asapo.wire.events import GetNext
from asapo.wire.limits import MAX_ROWS


class Terms(NamedTuple):
    """What a group's first read fixes."""

    ordered: bool = True
    """By id below the watermark; False: by arrival."""
    where: str = ""
    """Text of the filter; empty: no filter."""
    min_parts: int = 0
    """Datasets are given as soon as so many parts are there; 0: not before they are complete."""
    dataset_timeout_s: float = 0.0
    """Datasets are given so long after their first part, as they are then; 0: not before they are complete."""
    aligned: int = 0
    """Messages are given in chunks of so many, each chunk to one session; 0: as many as a session asks for."""

    def check(self) -> Terms:
        """Return the terms.

        Raises
        ------
        WrongInput
            If they do not go together.
        """
        if self.aligned > MAX_ROWS:
            raise WrongInput(f"chunks of {self.aligned} messages: expected at most {MAX_ROWS}")
        if not self.ordered and (self.min_parts or self.dataset_timeout_s or self.aligned):
            raise WrongInput(
                f"{self}: min_parts, dataset_timeout_s and aligned need ordered=True, as they count ids in their order"
            )
        return self

    def __str__(self) -> str:
        words = [f"{'ordered' if self.ordered else 'arrival'} delivery", f"filter {self.where!r}"]
        words += [f"{name} {value}" for name, value in zip(self._fields[2:], self[2:], strict=True) if value]
        return ", ".join(words)


def terms_of(event: GetNext) -> Terms:
    """Return the terms that a read names."""
    return Terms(event.ordered, event.where, event.min_parts, event.dataset_timeout_s, event.n if event.aligned else 0)
