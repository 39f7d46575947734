"""A receiver, an index and a delivery core in memory, with a page cache, a disk and a power switch.

Small enough to be read at one sitting. It keeps the order of the real ingest path (payload, journal, sync, index,
answer), so that each mutant of `mutants.py` is one overridden step, and everything around the checker's core can be
tried in microseconds. One stream; time is counted in ticks.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import xxhash

Key = tuple[int, int]
"""(id, 0); a second message with the same id, which must never be, would have 1."""

SAVE_TICKS: Final = 3
"""The core writes its cursors down this often."""


class ModelError(Exception):
    """What the model answers instead of a frame; the code is the message."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it is sent."""

    id: int
    payload: bytes
    named: int
    """The id in its metadata."""
    level: str = "written"
    number: int = 0
    """Which try this is; the answer names it."""


@dataclass(slots=True)
class Record:
    """A journal record of one frame."""

    id: int
    offset: int
    size: int
    checksum: int
    named: int
    live: bool = True


@dataclass(slots=True)
class File:
    """A segment with its journal: what the page cache has, and how much of it the disk has."""

    data: bytearray = field(default_factory=bytearray)
    records: list[Record] = field(default_factory=list)
    synced_bytes: int = 0
    synced_records: int = 0
    name_synced: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A message in the index."""

    id: int
    file: int
    offset: int
    size: int
    checksum: int
    named: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the producer is told about a frame."""

    frame: Frame
    error: str = ""


@dataclass(slots=True)
class UnderWay:
    """A frame in the ingest path."""

    frame: Frame
    steps: deque[str]
    file: int = 0
    record: Record | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """A delivery."""

    key: Key
    row: Row
    attempt: int


@dataclass(slots=True)
class Group:
    """A group in the core's memory."""

    position: Key = (1, 0)
    done: set[Key] = field(default_factory=set)
    leased: dict[Key, str] = field(default_factory=dict)
    """Key to worker."""
    again: list[Key] = field(default_factory=list)
    attempts: dict[Key, int] = field(default_factory=dict)


class Model:
    """The sound services. A mutant overrides one method, or `STEPS`.

    Parameters
    ----------
    chance : random.Random
        Decides what a power loss leaves of what was not synced.
    segment_bytes : int
        A segment is closed when it reaches this.
    """

    STEPS: tuple[str, ...] = ("write", "log", "sync", "insert", "answer")

    def __init__(self, chance: random.Random, *, segment_bytes: int = 4096) -> None:
        self.chance = chance
        self.segment_bytes = segment_bytes
        self.tick = 0
        self.files: dict[int, File] = {}
        self.rows: list[Row] = []
        """The index, in the order of arrival."""
        self.by_key: dict[Key, int] = {}
        """Key to place in `rows`."""
        self.keys: list[Key] = []
        """All keys, ascending."""
        self.counted = [0, 0]
        """Messages and bytes that the index counts."""
        self.saved: dict[str, tuple[Key, frozenset[Key]]] = {}
        """Cursors on the disk: position and what is done beyond it."""
        self.closed_below = 1
        self.finished = False
        self.receiver_up = self.core_up = True
        self.under_way: deque[UnderWay] = deque()
        self.groups: dict[str, Group] = {}
        self.open = 0
        self.n_files = 0

    # -- ingest -----------------------------------------------------------------------------------------------------

    def take(self, frame: Frame) -> None:
        """Take a frame in; nothing happens while the receiver is down."""
        if self.receiver_up:
            self.under_way.append(UnderWay(frame, deque(self.STEPS)))

    def work(self) -> Answer | None:
        """Do one step of the oldest frame; return its answer when that was the step."""
        if not (self.receiver_up and self.under_way):
            return None
        item = self.under_way[0]
        step = item.steps.popleft()
        answer: Answer | None = getattr(self, step)(item)
        if not item.steps:
            self.under_way.popleft()
        return answer

    def write(self, item: UnderWay) -> None:
        """Append the payload to the open segment."""
        if self.open and len(self.files[self.open].data) >= self.segment_bytes:
            self.close_file(self.open)
        if not self.open:
            self.n_files += 1
            self.open = self.n_files
            self.files[self.open] = File()
        item.file = self.open
        data = self.files[self.open].data
        frame = item.frame
        checksum = xxhash.xxh3_64_intdigest(frame.payload)
        item.record = Record(frame.id, len(data), len(frame.payload), checksum, frame.named)
        data += self.stored_bytes(frame)

    def stored_bytes(self, frame: Frame) -> bytes:
        """Return what is written of a payload."""
        return frame.payload

    def close_file(self, number: int) -> None:
        """Take no more frames into a segment."""
        self.files[number].closed = True
        self.open = 0

    def log(self, item: UnderWay) -> None:
        """Append the journal record."""
        assert item.record is not None
        self.files[item.file].records.append(item.record)

    def sync(self, item: UnderWay) -> None:
        """Bring the frame to the disk when its level says so."""
        if item.frame.level == "synced":
            self.sync_file(self.files[item.file])

    def sync_file(self, file: File) -> None:
        """Bring a segment and its journal to the disk."""
        file.synced_bytes, file.synced_records = len(file.data), len(file.records)
        self.sync_folder(file)

    def sync_folder(self, file: File) -> None:
        """Bring the segment's name to the disk."""
        file.name_synced = True

    def insert(self, item: UnderWay) -> None:
        """Index the frame: the unique id decides."""
        assert item.record is not None
        record = item.record
        place = self.place_of(record.id)
        if place is None:
            self.add(self.row_of(item))
            return
        known = self.rows[place]
        record.live = False
        if (known.size, known.checksum, known.named) != (record.size, record.checksum, record.named):
            item.error = self.conflict(place, item)

    def place_of(self, message_id: int) -> int | None:
        """Return where the index has an id, None when it has not."""
        return self.by_key.get((message_id, 0))

    def conflict(self, place: int, item: UnderWay) -> str:
        """Return the error for other content under a known id."""
        return "duplicate_id"

    def row_of(self, item: UnderWay) -> Row:
        """Return the index row of a frame."""
        assert item.record is not None
        record = item.record
        return Row(record.id, item.file, record.offset, record.size, record.checksum, record.named)

    def add(self, row: Row) -> None:
        """Add a row and count it."""
        key = (row.id, int((row.id, 0) in self.by_key))
        self.by_key[key] = len(self.rows)
        insort(self.keys, key)
        self.rows.append(row)
        self.counted[0] += 1
        self.counted[1] += row.size

    def answer(self, item: UnderWay) -> Answer:
        """Tell the producer."""
        return Answer(item.frame, item.error)

    # -- faults -----------------------------------------------------------------------------------------------------

    def kill_receiver(self) -> None:
        """End the receiver: what is under way is forgotten, the page cache stays."""
        self.receiver_up = False
        self.under_way.clear()

    def restart_receiver(self) -> None:
        """Start it again: what the journals have and the index has not is indexed, into new segments from now on."""
        self.receiver_up = True
        if self.open:
            self.close_file(self.open)
        for number, file in self.files.items():
            new = [record for record in file.records if record.live and self.place_of(record.id) is None]
            if new:
                self.before_replay(file)
            for record in new:
                if self.place_of(record.id) is None:
                    row = Row(record.id, number, record.offset, record.size, record.checksum, record.named)
                    self.add(row)

    def before_replay(self, file: File) -> None:
        """Bring what is about to be indexed to the disk.

        A frame whose first try was journaled and not synced is acknowledged by its second try as known: the copy that
        counts is the first one.
        """
        self.sync_file(file)

    def kill_core(self) -> None:
        """End the core: leases are forgotten, what was saved stays."""
        self.core_up = False
        self.groups.clear()

    def restart_core(self) -> None:
        """Start it again: everything not known as done is to be given."""
        self.core_up = True
        for name, (position, done) in self.saved.items():
            self.groups[name] = Group(position, set(done))

    def lose_power(self) -> None:
        """End everything. Files without a synced name vanish; of what was not synced any first part may stay."""
        self.kill_receiver()
        self.kill_core()
        self.open = 0
        for number, file in list(self.files.items()):
            if not file.name_synced:
                del self.files[number]
                continue
            file.closed = True
            del file.data[self.chance.randint(file.synced_bytes, len(file.data)) :]
            del file.records[self.chance.randint(file.synced_records, len(file.records)) :]
            file.records = [record for record in file.records if self.checks(file, record)]
        self.rows.clear()
        self.by_key.clear()
        self.keys.clear()
        self.counted = [0, 0]

    @staticmethod
    def checks(file: File, record: Record) -> bool:
        """Say whether the bytes of a record are there and right: after a power loss each one is looked at."""
        data = bytes(file.data[record.offset : record.offset + record.size])
        return len(data) == record.size and xxhash.xxh3_64_intdigest(data) == record.checksum

    # -- delivery ---------------------------------------------------------------------------------------------------

    def pass_time(self) -> None:
        """Let a tick pass; cursors are saved now and then."""
        self.tick += 1
        if self.core_up and self.tick % SAVE_TICKS == 0:
            for name, group in self.groups.items():
                floor = min([group.position, *group.leased, *group.again])
                group.done = {key for key in group.done if key >= floor}
                self.saved[name] = (floor, frozenset(group.done))

    def next(self, name: str, worker: str) -> Given | None:
        """Give the next message of an ordered group."""
        group = self.groups.setdefault(name, Group())
        while group.again:
            key = group.again.pop(0)
            if key not in group.done and key in self.by_key:
                return self.lease(group, key, worker)
        while (found := self.next_key(group.position)) is not None:
            group.position = (found[0], found[1] + 1)
            if found not in group.done:
                return self.lease(group, found, worker)
        return None

    def next_key(self, position: Key) -> Key | None:
        """Return the next key that may be given: all below is settled."""
        at = bisect_left(self.keys, position)
        if at == len(self.keys) or not (self.finished or self.keys[at][0] < self.closed_below):
            return None
        return self.keys[at]

    def lease(self, group: Group, key: Key, worker: str) -> Given:
        """Note who holds a message."""
        group.leased[key] = worker
        group.attempts[key] = group.attempts.get(key, 0) + 1
        return Given(key, self.rows[self.by_key[key]], group.attempts[key])

    def acknowledge(self, name: str, worker: str, key: Key) -> bool:
        """Take an acknowledgement; False when somebody else was given the message meanwhile."""
        group = self.groups.setdefault(name, Group())
        if group.leased.get(key, worker) != worker:
            return False
        group.leased.pop(key, None)
        group.done.add(key)
        return True

    def drop_worker(self, worker: str) -> None:
        """Give what a dead worker held to others."""
        for group in self.groups.values():
            held = [key for key, holder in group.leased.items() if holder == worker]
            for key in held:
                del group.leased[key]
            group.again = sorted({*group.again, *held})

    # -- reading ----------------------------------------------------------------------------------------------------

    def read(self, row: Row) -> bytes:
        """Return the bytes of a message.

        Raises
        ------
        ModelError
            If the file ends before.
        """
        data = bytes(self.files[row.file].data[row.offset : row.offset + row.size])
        if len(data) != row.size:
            raise ModelError("damaged_file")
        return data

    def find(self, message_id: int) -> Row | None:
        """Return the row of an id, None when it is not there."""
        place = self.place_of(message_id)
        return None if place is None else self.rows[place]

    def resources(self) -> dict[str, int]:
        """Return what must come back to where it was."""
        held = sum(len(group.leased) for group in self.groups.values())
        open_files = sum(not file.closed for file in self.files.values())
        return {"open segments": open_files, "leases": held, "frames under way": len(self.under_way)}
