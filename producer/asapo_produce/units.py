"""Messages that wait, and the wire units they are sent in. Pure: no thread, no socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from asapo.errors import AsapoError
from asapo.models import Format, Origin
from asapo.wire.codec import encode_put
from asapo.wire.limits import ALIGN, MIB, PACK_BELOW_BYTES, PACK_UNIT_BYTES
from asapo.wire.put import aligned, pack_column, put_map
from asapo_produce.handles import BatchHandle, SendHandle
from asapo_produce.streams import StreamBook

ZEROS: Final = tuple(bytes(n) for n in range(ALIGN))
OVERHEAD_BYTES: Final = 512
"""What a waiting message costs beside payload and metadata: handle, record, its place in a header."""
UNIT_META_CHARS: Final = 3 * MIB
"""Most metadata characters in one unit: four bytes each still fit a header."""
BATCH_UNIT_BYTES: Final = 8 * MIB
"""A batch is cut into units of at most this size (R13)."""
PACK_MESSAGES: Final = 1024
"""Most single messages packed into one unit: a longer one would delay the first for the last."""


class Lane:
    """What messages must have in common to share a unit, and those of them that wait.

    Told apart by identity, because hashing its contents for every message costs more than the rest of queueing it: a
    queue makes one for each combination (`SendQueue.lane`).
    """

    __slots__ = ("dataset_size", "format", "level", "stream", "substream", "waiting")

    def __init__(self, stream: str, substream: int, dataset_size: int, form: Format, level: str) -> None:
        self.stream = stream
        self.substream = substream
        self.dataset_size = dataset_size
        self.format = form
        self.level = level
        self.waiting: deque[Item] = deque()


class Single:
    """One message from `send`, waiting."""

    __slots__ = (
        "acquired_ns", "book", "checksum", "cost", "first", "generation", "handle", "lane", "meta", "nbytes", "origin",
        "path", "settled", "view",
    )  # fmt: skip
    n: Final = 1

    def __init__(
        self, book: StreamBook, lane: Lane, first: int, view: memoryview, checksum: int, meta: str, acquired_ns: int,
        origin: Origin | None, handle: SendHandle, path: str = "",
    ) -> None:  # fmt: skip
        self.book = book
        self.lane = lane
        self.first = first
        """The message's id; 0 until it is numbered."""
        self.view = view
        self.nbytes = view.nbytes
        self.checksum = checksum
        self.meta = meta
        self.acquired_ns = acquired_ns
        self.origin = origin
        self.path = path
        """Where it is to lie as a file of its own."""
        self.handle = handle
        self.cost = self.nbytes + len(meta) + OVERHEAD_BYTES
        self.settled = False
        self.generation = 0

    def number(self, first: int) -> None:
        """Take the id."""
        self.first = first
        self.handle.id = first


class Block:
    """Messages from `send_batch` that make one unit, waiting."""

    __slots__ = (
        "acquired", "book", "checksums", "cost", "first", "generation", "handle", "ids", "lane", "metas", "n", "nbytes",
        "origins", "settled", "sizes", "view",
    )  # fmt: skip

    def __init__(
        self, book: StreamBook, lane: Lane, ids: Sequence[int], view: memoryview, sizes: Sequence[int],
        checksums: Sequence[int], metas: Sequence[str], acquired: bytes, origins: Sequence[Origin | None],
        handle: BatchHandle,
    ) -> None:  # fmt: skip
        self.book = book
        self.lane = lane
        self.n = len(sizes)
        self.ids = ids
        self.first = ids[0] if ids else 0
        self.view = view
        self.nbytes = view.nbytes
        self.sizes = sizes
        self.checksums = pack_column(checksums)
        self.metas = metas
        self.acquired = acquired
        self.origins = origins
        self.handle = handle
        self.cost = self.nbytes + sum(map(len, metas)) + OVERHEAD_BYTES * (1 + self.n // 4)
        self.settled = False
        self.generation = 0

    def number(self, first: int) -> None:
        """Take `n` ids from `first` on."""
        self.first = first
        self.ids = range(first, first + self.n)


Item = Single | Block


@dataclass(slots=True, eq=False)
class Unit:
    """One wire unit on its way: transmitted once or more, until it is settled."""

    items: Sequence[Item]
    lane: Lane
    ids: Sequence[int]
    sizes: Sequence[int]
    checksums: bytes
    metas: Sequence[str]
    acquired: bytes
    origins: Sequence[Origin | None]
    payload: memoryview | bytes
    nbytes: int
    n: int
    """Messages in it."""
    path: str = ""
    closed_below: int = 0
    """Watermark of the stream when it was taken for transmission."""
    trackers: list[Any] = field(default_factory=list)
    """The transport's, one for each uncopied transmission of a buffer of the caller."""
    failing_since_s: float = 0.0
    """When the receiver first refused it with an error that may pass; 0: never."""
    due_s: float = 0.0
    """Not to be transmitted before."""
    delay_s: float = 0.0
    losses: int = 0
    """Links that were lost while it was the oldest one under way."""

    @property
    def first(self) -> int:
        """Lowest id in it."""
        return self.ids[0]

    @property
    def book(self) -> StreamBook:
        """The stream's book."""
        return self.items[0].book

    def header(self, number: int) -> bytes:
        """Return the header part that carries it as unit `number` of a link.

        No column is checked again: names, ids, sizes, formats and metadata were when the caller gave them.
        """
        lane = self.lane
        return encode_put(put_map(
            unit=number, stream=lane.stream, ids=self.ids, sizes=self.sizes, checksums=self.checksums,
            metas=self.metas, acquired_ns=self.acquired, closed_below=self.closed_below, form=lane.format,
            substream=lane.substream, dataset_size=lane.dataset_size, level=lane.level, origins=self.origins,
            path=self.path,
        ))  # fmt: skip

    def errors_of_items(self, errors: Sequence[tuple[int, AsapoError]]) -> list[dict[int, AsapoError]]:
        """Sort errors by index in the unit into errors by id, for each item."""
        sorted_out: list[dict[int, AsapoError]] = [{} for _ in self.items]
        for index, error in errors:
            place = index if len(self.items) > 1 else 0
            sorted_out[place][self.ids[index]] = error
        return sorted_out


def fits(items: Sequence[Item], item: Item, nbytes: int, meta_chars: int) -> bool:
    """Whether `item` may join the singles of one unit that is `nbytes` long so far."""
    return (
        type(item) is Single
        and not item.path
        and not items[0].path  # type: ignore[union-attr]
        and item.nbytes < PACK_BELOW_BYTES
        and aligned(nbytes) + item.nbytes <= PACK_UNIT_BYTES
        and len(items) < PACK_MESSAGES
        and item.first > items[-1].first
        and meta_chars + len(item.meta) <= UNIT_META_CHARS
    )


def unit_of(items: Sequence[Item]) -> Unit:
    """Return the unit of one block, or of singles with ascending ids that share a lane."""
    head = items[0]
    if type(head) is Block:
        return Unit(
            items, head.lane, head.ids, head.sizes, head.checksums, head.metas, head.acquired, head.origins, head.view,
            head.nbytes, head.n,
        )  # fmt: skip
    singles: Sequence[Single] = items  # type: ignore[assignment]
    if len(items) == 1:
        head = singles[0]
        return Unit(
            items, head.lane, range(head.first, head.first + 1), (head.nbytes,), pack_column((head.checksum,)),
            [head.meta], pack_column((head.acquired_ns,), signed=True), (head.origin,) if head.origin else (),
            head.view, head.nbytes, 1, head.path,
        )  # fmt: skip
    ids = [item.first for item in singles]
    origins = [item.origin for item in singles]
    payload = join([item.view for item in singles])
    return Unit(
        items,
        head.lane,
        range(ids[0], ids[-1] + 1) if ids[-1] - ids[0] == len(ids) - 1 else ids,
        [item.nbytes for item in singles],
        pack_column([item.checksum for item in singles]),
        [item.meta for item in singles],
        pack_column([item.acquired_ns for item in singles], signed=True),
        origins if any(origins) else (),
        payload,
        len(payload),
        len(ids),
    )


def join(views: Sequence[memoryview]) -> bytes:
    """Return payloads in one buffer, each at the next multiple of the alignment (`asapo.wire.put.unit_offsets`)."""
    parts: list[memoryview | bytes] = []
    for view in views:
        parts.append(view)
        rest = -view.nbytes % ALIGN
        if rest:
            parts.append(ZEROS[rest])
    if views[-1].nbytes % ALIGN:
        parts.pop()
    return b"".join(parts)
