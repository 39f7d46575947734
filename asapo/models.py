"""Frozen records that all rooms share: what a stream, a message and its place on disk are."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from asapo.errors import WrongInput

MAX_ID: Final = 2**63 - 1
"""Largest message id: a signed 64-bit integer in every store we use."""
MAX_NAME_BYTES: Final = 255
"""Longest name of a beamtime, source, stream or group in UTF-8 bytes (R5)."""
DTYPES: Final = frozenset(
    f"{order}{kind}"
    for order, kinds in {"|": ("b1", "i1", "u1"), "<": (), ">": ()}.items()
    for kind in (kinds or ("i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
)
"""Allowed element types of a payload, NumPy's array-protocol strings with explicit byte order."""
CODECS: Final = frozenset({"raw", "bslz4", "lz4", "zstd"})
"""How payload bytes are compressed; `raw` means not at all."""


def check_name(kind: str, name: object) -> str:
    """Return `name` when it may name a `kind` (beamtime, source, stream, group).

    Raises
    ------
    WrongInput
        If it is not text, is empty, has a NUL or unpaired surrogate, or is longer than 255 UTF-8 bytes.
    """
    if not isinstance(name, str) or not name:
        raise WrongInput(f"{kind} name {name!r}: expected non-empty text; give the {kind} a name")
    return _checked_name(kind, name)


@functools.lru_cache(maxsize=16384)
def _checked_name(kind: str, name: str) -> str:
    """Check a text once: the same few names come with every wire unit."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise WrongInput(f"{kind} name {name!r}: expected text that can be written as UTF-8") from None
    if length > MAX_NAME_BYTES or "\0" in name:
        raise WrongInput(
            f"{kind} name {name[:40]!r} ({length} bytes): expected at most {MAX_NAME_BYTES} bytes of UTF-8 without NUL"
        )
    return name


def check_id(message_id: object) -> int:
    """Return `message_id` when it is an integer from 1 to 2**63 - 1, else raise WrongInput."""
    if type(message_id) is not int or not 1 <= message_id <= MAX_ID:
        raise WrongInput(f"message id {message_id!r}: expected an integer from 1 to 2**63 - 1", message_id=message_id)
    return message_id


@dataclass(frozen=True, slots=True, order=True)
class StreamRef:
    """Names one stream."""

    beamtime: str
    source: str
    stream: str

    def __post_init__(self) -> None:
        check_name("beamtime", self.beamtime)
        check_name("source", self.source)
        check_name("stream", self.stream)

    def __str__(self) -> str:
        return f"{self.beamtime}/{self.source}/{self.stream}"


@dataclass(frozen=True, slots=True)
class Format:
    """How payload bytes become an array.

    `dtype` is "" for plain bytes, else one of `DTYPES`; `shape` is the array's shape (empty for plain bytes).
    """

    dtype: str = ""
    shape: tuple[int, ...] = ()
    codec: str = "raw"

    def __post_init__(self) -> None:
        if self.dtype and self.dtype not in DTYPES:
            raise WrongInput(f"dtype {self.dtype!r}: expected one of {', '.join(sorted(DTYPES))}")
        if self.codec not in CODECS:
            raise WrongInput(f"codec {self.codec!r}: expected one of {', '.join(sorted(CODECS))}")
        if len(self.shape) > 32 or any(type(n) is not int or not 0 <= n <= MAX_ID for n in self.shape):
            raise WrongInput(f"shape {self.shape!r}: expected at most 32 non-negative integers")


PLAIN: Final = Format()


@functools.lru_cache(maxsize=4096)
def format_of(dtype: str, shape: tuple[int, ...], codec: str) -> Format:
    """Return the one `Format` of these values: it is checked when it comes first, not with every wire unit."""
    return Format(dtype, shape, codec)


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is known of a stream now."""

    ref: StreamRef
    n_messages: int
    """Messages visible in the index (each substream part counts)."""
    n_bytes: int
    """Payload bytes of those messages."""
    id_max: int
    """Highest visible id; 0 when there is none."""
    head_seq: int
    """Arrival number of the newest message; 0 when there is none (R6)."""
    closed_below: int
    """Every id under this is visible or will never come (R7)."""
    finished: bool = False
    last_id: int = 0
    """Last id as declared by `finish_stream`; 0 when not finished."""
    next_stream: str = ""
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """Where a segment file lies and who can read it for you."""

    path: str
    """Absolute path on the receiver's host."""
    receiver_id: str
    boot_id: str
    """Boot id of the receiver's host: equal to ours means that the path may be mapped (R22)."""
    tier_uuid: str
    """Contents of the tier's `.asapo-tier` file."""
    data_address: str = ""
    """Data server that reads for others, for example tcp://127.0.0.1:4001; empty when none is alive."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The message a result was computed from (R28)."""

    source: str
    stream: str
    message_id: int


class Row(NamedTuple):
    """One indexed message, in the order in which the index selects it and the core passes it on.

    Rows travel as plain tuples; `Row._make(t)` names the columns where that helps.
    """

    id: int
    seq: int
    """Arrival number in the stream, from 1, without holes (R6)."""
    substream: int
    """Module of a dataset, from 1; 0 for a message that is no dataset part."""
    dataset_size: int
    """Parts of the dataset; 0 for a message that is no dataset part."""
    segment: int
    """Number of the segment in the beamtime's index; below 0 when the bytes are in a receiver's memory only, which has
    that number without the sign."""
    offset: int
    """First byte of the payload in the segment."""
    size: int
    """Stored bytes of the payload."""
    checksum: int
    """xxh3_64 of the stored bytes as a *signed* 64-bit integer (databases); `checksum & 2**64 - 1` is the digest."""
    format: int
    """Number of the payload's `Format` in the beamtime's index."""
    meta: str
    """Metadata: one JSON object as text, as the producer wrote it."""
    t_acq_ns: int
    """Acquisition time as the producer gave it, ns since the Unix epoch."""
    t_ingest_ns: int
    """When the receiver took it in, ns since the Unix epoch; orders nothing."""
    origin: int
    """Number of the stream this result was computed from (R28); 0 when there is none."""
    origin_id: int
    """Id of the message in the origin stream; 0 when there is none."""
