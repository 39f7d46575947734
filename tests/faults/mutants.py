"""Services with one defect each, as processes: `python -m tests.faults.mutants receiver ...` with ASAPO_MUTANT set.

The checker must find each of them through real sockets and files. They patch the real service in one place.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from asapo.errors import AsapoError

VARIABLE: Final = "ASAPO_MUTANT"
DROPPED_EVERY: Final = 10_000


def patch(owner: Any, **replacements: Any) -> None:
    """Replace attributes of a class or module."""
    for name, value in replacements.items():
        setattr(owner, name, value)


def ack_before_write() -> None:
    """Answer what has come in, store it a moment later."""
    from asapo_receive.network import Network
    from asapo_receive.units import Unit
    from asapo_receive.writer import Writer

    hand_over, finished, take_units = Network._hand_over, Network.finished, Writer._take_units

    def early(self: Any) -> None:
        self._done.extend([dataclasses.replace(item, payload=None) for item in self._burst if isinstance(item, Unit)])
        hand_over(self)

    def only_requests(self: Any, items: Sequence[Any]) -> None:
        finished(self, [item for item in items if not isinstance(item, Unit)])

    def slowly(self: Any, units: list[Unit]) -> None:
        time.sleep(0.1)
        take_units(self, units)

    patch(Network, _hand_over=early, finished=only_requests)
    patch(Writer, _take_units=slowly)


class _Dropped(AsapoError):
    code = "dropped"


def drop_one() -> None:
    """Acknowledge one message in ten thousand without storing it."""
    from asapo_receive import writer
    from asapo_receive.network import Network
    from asapo_receive.units import Unit, verify

    count = 0
    finished = Network.finished

    def forgetful(unit: Unit) -> None:
        nonlocal count
        verify(unit)
        for index in range(len(unit.put.ids)):
            count += 1
            if count % DROPPED_EVERY == 0:
                unit.errors.append((index, _Dropped("")))

    def silent(self: Any, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, Unit):
                item.errors = [each for each in item.errors if not isinstance(each[1], _Dropped)]
        finished(self, items)

    patch(writer, verify=forgetful)
    patch(Network, finished=silent)


def swap_ids() -> None:
    """Index the second and the third message of a unit under each other's id."""
    from asapo_receive import indexer
    from asapo_receive.units import record_of

    def swapped(*args: Any) -> Any:
        record = record_of(*args)
        if len(record.ids) < 3:
            return record
        columns: dict[str, Any] = {}
        for name in ("offsets", "sizes", "checksums", "metas"):
            first, second, third, *rest = getattr(record, name)
            columns[name] = [first, third, second, *rest]
        return dataclasses.replace(record, **columns)

    patch(indexer, record_of=swapped)


def duplicate_on_retry() -> None:
    """Take every unit in a second time, as from a producer whose link was lost, into an index that allows it."""
    from asapo.index import schema
    from asapo_receive.network import Network
    from asapo_receive.units import Unit

    hand_over = Network._hand_over
    patch(schema, TABLES=schema.TABLES.replace("CREATE UNIQUE INDEX message_id", "CREATE INDEX message_id"))

    def twice(self: Any) -> None:
        again = [dataclasses.replace(item, peer=(0, b"gone"), errors=[]) for item in self._burst
                 if isinstance(item, Unit)]  # fmt: skip
        self._burst += again
        hand_over(self)

    patch(Network, _hand_over=twice)


def cut_tail() -> None:
    """Cut a segment 512 bytes shorter than it is when it is closed."""
    from asapo.storage.segments import SegmentWriter

    release = SegmentWriter._release

    def shorter(self: Any) -> None:
        end = max(0, self.written_end - 512)
        release(self)
        os.truncate(self.path, end)

    patch(SegmentWriter, _release=shorter)


def flip_bit() -> None:
    """Write every fifth unit with one bit changed."""
    from asapo.storage.store import StreamStore

    write_run = StreamStore.write_run
    count = 0

    def flipped(self: Any, slots: Sequence[Any], payloads: Sequence[Any]) -> None:
        nonlocal count
        changed = []
        for payload in payloads:
            count += 1
            data = bytearray(payload)
            if data and count % 5 == 0:
                data[0] ^= 1
            changed.append(data)
        write_run(self, slots, changed)

    patch(StreamStore, write_run=flipped)


def forget_pointer() -> None:
    """Begin every group anew after a restart."""
    from asapo_broker.store import CursorStore

    patch(CursorStore, load=lambda *_: None)


def overwrite() -> None:
    """Take other content under a known id in place of the first."""
    from asapo.index import ingest

    update = ("UPDATE message SET segment = ?, offset = ?, size = ?, checksum = ?, format = ?, meta = ? "
              "WHERE stream_no = ? AND id = ? AND substream = ?")  # fmt: skip

    def replace(connection: Any, _unit: Any, _index: int, row: Sequence[Any], *_: Any) -> None:
        connection.execute(update, (*row[5:11], *row[1:4]))

    patch(ingest, _look_at=replace)


def previous_buffer() -> None:
    """Let the data server send the payload of the request before, when it has the same length."""
    from asapo_receive.data_server import DataServer

    read = DataServer._read
    before = b""
    count = 0

    def stale(self: Any, *args: Any) -> bytes:
        nonlocal before, count
        count += 1
        now = bytes(read(self, *args))
        found = before if count % 5 == 0 and len(before) == len(now) else now
        before = now
        return found

    patch(DataServer, _read=stale)


def out_of_order() -> None:
    """Give the first two messages of an answer in the wrong order."""
    from asapo.delivery.group import Group
    from asapo.delivery.needs import Granted

    next_rows = Group.next_rows

    def swapped(self: Any, *args: Any, **settings: Any) -> Any:
        answer = next_rows(self, *args, **settings)
        if not isinstance(answer, Granted) or len(answer.rows) < 2:
            return answer
        first, second, *rest = answer.rows
        return dataclasses.replace(answer, rows=[second, first, *rest])

    patch(Group, next_rows=swapped)


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    "ack before write": ack_before_write,
    "drop one frame in 10^4": drop_one,
    "swap two ids": swap_ids,
    "duplicate on retry": duplicate_on_retry,
    "truncate last 512 B": cut_tail,
    "flip one bit": flip_bit,
    "forget the group pointer at restart": forget_pointer,
    "overwrite on id conflict": overwrite,
    "deliver the previous frame's buffer": previous_buffer,
    "deliver out of order": out_of_order,
}
"""By the names that the model's mutants have; skipping the directory's fsync needs the level `synced`."""


def main() -> int:
    """Run an `asapo` command with the defect that the environment names."""
    from asapo.cli import main as command

    MUTANTS[os.environ[VARIABLE]]()
    return command(sys.argv[1:])


if __name__ == "__main__":
    raise SystemExit(main())
