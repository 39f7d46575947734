"""What every reader yields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from asapo.errors import WrongInput
from asapo.models import DTYPES, Format, Origin

Meta = Mapping[str, Any] | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Frames that were read together."""

    stream: str
    frames: Any
    """Array of shape (n, ...), one frame each; or n buffers, then `format` says what they are."""
    metas: Sequence[Meta]
    """Metadata of each frame, JSON-safe."""
    ids: Sequence[int] | None = None
    """Message ids as recorded, ascending; None: number them from 1."""
    acquired_ns: Sequence[int] | None = None
    """Acquisition time of each frame, ns since the Unix epoch; None when the recording does not say."""
    due_ns: int | None = None
    """When to send it at the speed of the recording; None: at the first acquisition time."""
    together: bool = False
    """Whether the frames are one unit, such as a train, and are never sent apart."""
    format: Format | None = None
    origins: Sequence[Origin | None] = ()
    """What each message was computed from (R28); empty when nothing says so."""
    substream: int = 0
    dataset_size: int = 0

    def __len__(self) -> int:
        return len(self.metas)


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """A stream that was finished in the recording."""

    stream: str
    next_stream: str = ""


@dataclass(frozen=True, slots=True)
class StreamMeta:
    """Metadata of a stream as a whole."""

    stream: str
    meta: Meta


class Recording(Protocol):
    """One or more recorded streams, read lazily and again on each call of `items`."""

    @property
    def name(self) -> str:
        """What it is, for messages and as the default name of the stream."""

    @property
    def ends_itself(self) -> bool:
        """Whether `items` yields a StreamEnd for each stream that is to be finished."""

    def n_frames(self) -> int:
        """Return how many frames will come, 0 when that is not known without reading them."""

    def items(self, stream: str) -> Iterator[Item | StreamMeta | StreamEnd]:
        """Yield what to send; `stream` replaces the names of the recording when it is not empty."""


def check_dtype(dtype: Any, where: str) -> None:
    """Raise WrongInput when an array of this type cannot be sent bit for bit."""
    name = getattr(dtype, "str", str(dtype))
    if name not in DTYPES:
        raise WrongInput(
            f"{where} has element type {dtype}: expected numbers or booleans ({', '.join(sorted(DTYPES))}); "
            "convert the data first"
        )
