"""Recorded beamtimes for tests: made by the parts of a receiver, one step after the other; and what an index holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from asapo.index import IndexDirectory, SqliteIndex
from asapo.index.interface import OwnFile
from asapo.index.records import record_from_put
from asapo.models import PLAIN, Format, Origin, StreamRef
from asapo.storage.journal import Kind
from asapo.storage.slots import PutRecord
from asapo.storage.store import SegmentHandle, StreamStore
from asapo.storage.tier import Tier
from asapo.wire.codec import encode
from asapo.wire.put import Put, aligned, pack_column, unpack_column
from asapo_receive.units import notes_of

BEAMTIME = "bt1"
START_NS = 1_700_000_000_000_000_000


class Recording:
    """A receiver without threads: stores, journals and indexes units in the order that decision 0002 lays down.

    Parameters
    ----------
    root : path
        Gets `beamline` (the tier) and `state`, as a data folder has them.
    """

    def __init__(
        self, root: Path, *, receiver: str = "r1", epoch: int = 1, tier: str = "beamline", segment_bytes: int = 2**20
    ) -> None:
        self.receiver = receiver
        self.tier = Tier.open(root / tier)
        self.state = root / "state"
        self.directory = IndexDirectory(self.state)
        self.store = StreamStore(self.tier, receiver, epoch, segment_bytes=segment_bytes, on_closed=self._closed)
        self.epoch = epoch
        self.now_ns = START_NS
        self.unit = 0

    @property
    def index(self) -> SqliteIndex:
        """The beamtime's index."""
        return self.directory.open(BEAMTIME)

    @property
    def folder(self) -> Path:
        """The beamtime's folder on the tier."""
        return self.tier.root / BEAMTIME

    def _closed(self, segment: SegmentHandle) -> None:
        if segment.index_no is not None:
            self.index.close_segment(segment.index_no)

    def tick(self) -> int:
        """Let a millisecond pass; return the time, ns since the Unix epoch."""
        self.now_ns += 1_000_000
        return self.now_ns

    def put(
        self,
        ids: Sequence[int],
        *,
        stream: str = "s",
        source: str = "det",
        payloads: Sequence[bytes] | None = None,
        metas: Sequence[str] | None = None,
        form: Format = PLAIN,
        origins: Sequence[Origin | None] = (),
        level: str = "written",
        path: str = "",
        **parts: int,
    ) -> list[int]:
        """Take a unit in and return the indices of messages that the index refused or knew."""
        self.unit += 1
        self.tick()
        payloads = payloads or [b"%d of %s" % (message_id, stream.encode()) for message_id in ids]
        put = Put(
            unit=self.unit, stream=stream, ids=list(ids), sizes=[len(one) for one in payloads],
            checksums=pack_column([xxh3_64_intdigest(one) for one in payloads]),
            metas=list(metas or [f'{{"n":{message_id}}}' for message_id in ids]),
            acquired_ns=pack_column([message_id % 1000 * 10 for message_id in ids], signed=True), format=form,
            origins=tuple(origins), level=level, path=path, **parts,
        )  # fmt: skip
        ref = StreamRef(BEAMTIME, source, stream)
        return self._keep_in_memory(ref, put) if level == "memory" else self._store(ref, put, payloads)

    def _keep_in_memory(self, ref: StreamRef, put: Put) -> list[int]:
        number = -self.index.register_segment(f"memory:{self.receiver}-{self.epoch}", self.receiver, 1, "", "", ref)
        self.index.close_segment(-number)
        self.index.commit([record_from_put(ref, put, base=64, segment=number, skip=(), received_ns=self.now_ns)])
        return []

    def _store(self, ref: StreamRef, put: Put, payloads: Sequence[bytes]) -> list[int]:
        slot = self.store.reserve(ref, 0 if put.path else put.nbytes)
        file = ""
        if put.path:
            file = self.store.write_file(slot, put.path, payloads[0], *unpack_column(put.checksums))
        else:
            self.store.write(slot, [one.ljust(aligned(len(one)), b"\0") for one in payloads[:-1]] + [payloads[-1]])
        self.store.journal_run([slot], [PutRecord(encode(put), self.now_ns, in_file=bool(file))])
        segment = slot.segment
        if segment.index_no is None:
            segment.index_no = self.index.register_segment(
                segment.path, self.receiver, self.epoch, self.tier.uuid, "boot", ref
            )
        record = record_from_put(
            ref, put, base=slot.offset, segment=segment.index_no, skip=(), received_ns=self.now_ns, session=b"s" * 16,
            file=OwnFile(file, self.receiver, self.epoch, self.tier.uuid, "boot") if file else None,
        )  # fmt: skip
        (outcome,) = self.index.commit([record])
        where = {"ref": ref, "segment": segment.path, "offset": slot.offset}
        for note in notes_of(put, outcome, **where, ingest_ns=self.now_ns, skip=()):  # type: ignore[arg-type]
            self.store.journal(ref, note.kind, {**note.fields, "segment": Path(note.segment).name})
        return sorted([*outcome.superseded, *(at for at, _ in outcome.errors)])

    def finish(self, last_id: int, *, stream: str = "s", source: str = "det", next_stream: str = "") -> None:
        """Finish a stream; raises what the index says."""
        ref = StreamRef(BEAMTIME, source, stream)
        self.store.journal(ref, Kind.FINISH, {"last_id": last_id, "next_stream": next_stream, "t": self.tick()})
        self.store.close_stream(ref)
        self.index.finish_stream(ref, last_id, next_stream)

    def meta(self, text: str, *, stream: str = "s", source: str = "det") -> None:
        """Set the metadata of a stream, or of the beamtime when the stream is empty."""
        if stream:
            ref = StreamRef(BEAMTIME, source, stream)
            self.store.journal(ref, Kind.META, {"meta": text, "t": self.tick()})
            self.index.set_stream_meta(ref, text)
        else:
            self.store.journal_beamtime(BEAMTIME, Kind.META, {"meta": text, "t": self.tick()})
            self.index.set_beamtime_meta(text)

    def close(self) -> None:
        """End this life in good order."""
        assert self.store.close()
        self.directory.close()

    def journals(self, stream: str = "s", source: str = "det") -> list[Path]:
        """Return the journals of a stream, oldest first."""
        return sorted((self.folder / source / stream).glob("*.idx"))


def dump(database: Path, *, seq: bool = True) -> dict[str, Any]:
    """Return everything that an index says of streams, messages and segments, by names instead of numbers.

    Left out is what no journal has: sessions, boots, and whether a segment is closed (after a rebuild all are).
    """
    with closing(sqlite3.connect(database)) as connection:
        read = connection.execute
        streams = {
            row[0]: row[1:]
            for row in read(
                "SELECT no, source, stream, known, head_seq * ?, n_messages, n_bytes, id_max, finished, last_id, "
                "next_stream, meta FROM stream",
                (seq,),
            )
        }
        segments = {row[0]: row[1:] for row in read("SELECT no, path, receiver_id, epoch, tier_uuid FROM segment")}
        formats = {row[0]: row[1:] for row in read("SELECT no, dtype, shape, codec FROM format")}
        messages = {}
        for row in read(
            "SELECT stream_no, id, substream, (key & ((1 << 40) - 1)) * ?, dataset_size, segment, offset, size, "
            "checksum, format, meta, t_acq_ns, t_ingest_ns, origin, origin_id FROM message",
            (seq,),
        ):
            no, message_id, substream, at, size_of_set, segment, *rest = row
            offset, size, checksum, form, meta, acquired, stored, origin, origin_id = rest
            messages[(*streams[no][:2], message_id, substream)] = (
                at, size_of_set, segments.get(segment, segment), offset, size, checksum, formats[form], meta, acquired,
                stored, streams[origin][:2] if origin else None, origin_id,
            )  # fmt: skip
        beamtime = read("SELECT name, value FROM info WHERE name != 'boot_id' ORDER BY name").fetchall()
    named = {path: facts for path, *facts in segments.values() if not path.startswith("memory:")}
    known = {facts[:2]: facts[2:] for facts in streams.values()}
    return {"info": beamtime, "streams": known, "segments": named, "messages": messages}
