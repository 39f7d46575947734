"""Broken services: each is the sound model with one step done wrongly, and the invariants that must catch it.

A checker that never failed proves nothing. The first ten are those that a reliability claim rests on; the others see to
it that every invariant has been seen to fail.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

from asapo.testing.checker.model import Frame, Given, Group, Model, Row, UnderWay
from asapo.testing.checker.report import Invariant

I1, I2, I3, I4, I5, I6, I7, I8, I9 = Invariant
RARE: Final = 10_000


class AckBeforeWrite(Model):
    """Answers first, writes then: a kill in between loses what was acknowledged."""

    STEPS = ("answer", "write", "log", "sync", "insert")


class DropOne(Model):
    """Acknowledges one frame in ten thousand without storing it."""

    n_taken = 0

    def take(self, frame: Frame) -> None:
        """Forget every 10 000th frame, but for its answer."""
        super().take(frame)
        self.n_taken += 1
        if self.n_taken % RARE == 0 and self.under_way:
            self.under_way[-1].steps.clear()
            self.under_way[-1].steps.append("answer")


class SwapIds(Model):
    """Exchanges the frames of two ids now and then."""

    def add(self, row: Row) -> None:
        """Let every fifth row and the one before it change places in the files."""
        super().add(row)
        if len(self.rows) % 5 == 0:
            first, second = self.rows[-2:]
            self.rows[-2:] = [dataclasses.replace(second, id=first.id), dataclasses.replace(first, id=second.id)]


class DuplicateOnRetry(Model):
    """Stores a frame that is sent again as one more message."""

    def insert(self, item: UnderWay) -> None:
        """Add whatever comes."""
        assert item.record is not None
        place = self.place_of(item.record.id)
        same = place is not None and self.rows[place].checksum == item.record.checksum
        if same and (item.record.id, 1) not in self.by_key:
            self.add(self.row_of(item))
        else:
            super().insert(item)


class CutTail(Model):
    """Cuts 512 bytes too many off a segment that is closed."""

    def close_file(self, number: int) -> None:
        """Close and cut."""
        super().close_file(number)
        del self.files[number].data[-512:]


class FlipBit(Model):
    """Writes every seventh frame with one bit changed."""

    n_written = 0

    def stored_bytes(self, frame: Frame) -> bytes:
        """Return the payload, now and then changed."""
        self.n_written += 1
        if self.n_written % 7 or not frame.payload:
            return frame.payload
        at = len(frame.payload) // 2
        return frame.payload[:at] + bytes([frame.payload[at] ^ 1]) + frame.payload[at + 1 :]


class NoFolderSync(Model):
    """Syncs files, but not the folder that names them: after a power loss they are gone."""

    def sync_folder(self, file: object) -> None:
        """Forget it."""


class ReplayUnsynced(Model):
    """Indexes at a restart what was never synced; a second try is then acknowledged as known."""

    def before_replay(self, file: object) -> None:
        """Forget it."""


class ForgetPointer(Model):
    """A core that starts again begins every group anew."""

    def restart_core(self) -> None:
        """Start without what was saved."""
        self.saved.clear()
        super().restart_core()


class Overwrite(Model):
    """Takes other content under a known id in place of the first."""

    def conflict(self, place: int, item: UnderWay) -> str:
        """Replace the row and be content."""
        self.rows[place] = self.row_of(item)
        return ""


class PreviousBuffer(Model):
    """Gives the bytes of the frame before now and then: a buffer used again too early."""

    n_read = 0
    previous = b""

    def read(self, row: Row) -> bytes:
        """Return the bytes of this message or of the one before."""
        self.n_read += 1
        data = super().read(row)
        found = self.previous if self.n_read % 5 == 0 else data
        self.previous = data
        return found


class SwapOrder(Model):
    """Gives two neighbours in the wrong order now and then."""

    n_given = 0

    def lease(self, group: Group, key: tuple[int, int], worker: str) -> Given:
        """Give the one behind first."""
        self.n_given += 1
        behind = self.next_key(group.position) if self.n_given % 6 == 0 else None
        if behind is not None and behind not in group.done:
            group.position = (behind[0], behind[1] + 1)
            group.again.append(key)
            key = behind
        return super().lease(group, key, worker)


class Invent(Model):
    """Indexes a frame that nobody sent when the receiver starts again."""

    def restart_receiver(self) -> None:
        """Make one up."""
        super().restart_receiver()
        invented = max(row.id for row in self.rows) + 100_000 if self.rows else 0
        if invented and invented < 200_000:
            self.add(dataclasses.replace(self.rows[0], id=invented))


class Miscount(Model):
    """Counts a frame that is sent again once more."""

    def insert(self, item: UnderWay) -> None:
        """Count even what is known."""
        before = len(self.rows)
        super().insert(item)
        self.counted[0] += len(self.rows) == before


class IndexBeforeJournal(Model):
    """Indexes before the journal is written: a kill in between leaves a message that no file names."""

    STEPS = ("write", "insert", "log", "sync", "answer")


class StayDown(Model):
    """A receiver that takes no frames after its second start."""

    n_starts = 0

    def restart_receiver(self) -> None:
        """Start once only."""
        self.n_starts += 1
        if self.n_starts == 1:
            super().restart_receiver()


class LeakFiles(Model):
    """A receiver that leaves the segments of its last life open."""

    def restart_receiver(self) -> None:
        """Begin a new segment without closing the one before."""
        self.open = 0
        super().restart_receiver()


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken service, and who must find it."""

    name: str
    model: type[Model]
    caught_by: Invariant
    """Named in every run in which the defect did something."""
    also: frozenset[Invariant] = frozenset()
    """What may be named beside it, as a consequence; nothing else."""
    power: bool = False
    """It shows after a power loss only."""
    without: frozenset[str] = frozenset()
    """Actions of the simulation that would show it under another name, too."""


MUTANTS: Final = (
    Mutant("ack before write", AckBeforeWrite, I1, frozenset({I3, I6}), without=frozenset({"conflict"})),
    Mutant("drop one frame in 10^4", DropOne, I1, frozenset({I6})),
    Mutant("swap two ids", SwapIds, I5, frozenset({I6, I7})),
    Mutant("duplicate on retry", DuplicateOnRetry, I4, frozenset({I6, I7})),
    Mutant("truncate last 512 B", CutTail, I1, frozenset({I7})),
    Mutant("flip one bit", FlipBit, I5),
    Mutant("skip directory fsync", NoFolderSync, I1, frozenset({I6}), power=True),
    Mutant("forget the group pointer at restart", ForgetPointer, I4),
    Mutant("overwrite on id conflict", Overwrite, I5, frozenset({I6, I7})),
    Mutant("deliver the previous frame's buffer", PreviousBuffer, I5),
    Mutant("deliver out of order", SwapOrder, I3),
    Mutant("invent a frame", Invent, I2, frozenset({I6, I7})),
    Mutant("count a retry twice", Miscount, I6, frozenset({I7})),
    Mutant("index before journal", IndexBeforeJournal, I7, frozenset({I1})),
    Mutant("replay without sync", ReplayUnsynced, I1, frozenset({I6}), power=True),
    Mutant("stay down after the second start", StayDown, I8, frozenset({I6, I7})),
    Mutant("leave segments open", LeakFiles, I9),
)
"""The ten of the proof, then one more for each invariant that they do not reach."""
