"""Metadata documents of beamtimes and streams: what a producer of ASAP::O can do to them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

from asapo.errors import WrongInput

UPSERT: Final = 10
"""Added to the operation on the wire: make the document when there is none."""


class MetadataOperation(enum.IntEnum):
    """What to do with the document that is there."""

    INSERT = 1
    REPLACE = 2
    UPDATE = 3
    """Set the keys of the outermost level."""


@dataclass(frozen=True, slots=True)
class MetadataMode:
    """An operation, and whether a missing document is made."""

    operation: MetadataOperation
    upsert: bool

    @property
    def number(self) -> int:
        """As it travels: 1, 11, 2, 12, 3, 13."""
        return self.operation + UPSERT * self.upsert


def metadata_mode(number: int) -> MetadataMode:
    """Read a mode from the wire.

    Raises
    ------
    WrongInput
        If it is none of 1, 2, 3, 11, 12, 13.
    """
    upsert, operation = divmod(number, UPSERT)
    if upsert not in (0, 1) or operation not in (1, 2, 3):
        raise WrongInput(f"metadata mode {number}: expected 1, 2, 3 (insert, replace, update) or 10 more for upsert")
    return MetadataMode(MetadataOperation(operation), bool(upsert))


def changed(mode: MetadataMode, there: dict[str, Any] | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the document that follows.

    Parameters
    ----------
    there : dict or None
        The document now; None when there is none.

    Raises
    ------
    WrongInput
        If the operation does not allow that a document is there, or that none is.
    """
    if there is None:
        if mode.operation is not MetadataOperation.INSERT and not mode.upsert:
            raise WrongInput(
                f"{mode.operation.name.lower()} metadata: there are none yet; insert them, or allow it by upsert"
            )
        return dict(given)
    if mode.operation is MetadataOperation.INSERT:
        # As in the original: insert with upsert is no other than insert.
        raise WrongInput("insert metadata: there are some already; replace or update them")
    return {**there, **given} if mode.operation is MetadataOperation.UPDATE else dict(given)
