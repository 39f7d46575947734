"""The reader that needs no service: journals and segments of a stream, as they lie on the disk."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asapo.errors import DamagedFile
from asapo.models import StreamRef
from asapo.reader.payloads import pread_payload
from asapo.storage.journal import Damage, Kind, Where, read_journal
from asapo.storage.layout import SEGMENT_SUFFIX, find_journals, message_file, stream_dir
from asapo.storage.withdrawn import KINDS, Withdrawn
from asapo.testing.checker.evidence import Event, Reading, Seen, Way
from asapo.wire.codec import decode_put
from asapo.wire.put import Put, unit_offsets

DAMAGED: Final = "damaged_file"


@dataclass(frozen=True, slots=True)
class JournaledUnit:
    """One PUT of a journal."""

    segment: Path
    fields: dict[str, Any]
    put: Put

    def counting(self, gone: Withdrawn) -> list[int]:
        """Return the indices of its messages that count."""
        left_out = gone.left_out(self.segment.name, self.fields, self.put.ids)
        return [index for index in range(len(self.put.ids)) if index not in left_out]


def read_offline(tier: str | Path, ref: StreamRef, *, final: bool = True) -> Reading:
    """Read every message of a stream from the files of a tier alone: of each id the first record that counts.

    A record damaged in the middle of a journal is an error of id 0.
    """
    units, gone, damages = scan(stream_dir(tier, ref))
    seen: list[Seen] = []
    errors = [Event(0, 0, f"{damage.path} at {damage.offset}: {damage.reason}") for damage in damages]
    known: set[int] = set()
    for unit in units:
        for message_id, found in _messages(unit, gone):
            if message_id in known:
                continue
            known.add(message_id)
            if isinstance(found, Seen):
                seen.append(found)
            else:
                errors.append(found)
    return Reading(Way.OFFLINE, "files", tuple(seen), complete=True, final=final, errors=tuple(errors))


def scan(folder: Path) -> tuple[list[JournaledUnit], Withdrawn, list[Damage]]:
    """Return the PUTs of a stream's journals by time, what of them does not count, and damage that is no torn end."""
    units, gone, damages = [], Withdrawn(), []
    for path in find_journals(folder):
        for record in read_journal(path):
            if isinstance(record, Damage):
                if not record.torn:
                    damages.append(record)
            elif record.kind == Kind.PUT:
                units.append(
                    JournaledUnit(path.with_suffix(SEGMENT_SUFFIX), record.fields, decode_put(record.fields["put"]))
                )
            elif record.kind in KINDS:
                gone.note(record.fields)
    units.sort(key=lambda unit: unit.fields["t"])
    return units, gone, damages


def _messages(unit: JournaledUnit, gone: Withdrawn) -> Iterator[tuple[int, Seen | Event]]:
    put, fields = unit.put, unit.fields
    path = str(unit.segment) if fields["at"] != Where.FILE else message_file(unit.segment.parent, put.path)
    starts = unit_offsets(put.sizes)
    for index in unit.counting(gone):
        message_id, start, size = put.ids[index], starts[index], put.sizes[index]
        now_ns = time.monotonic_ns()
        try:
            raw = pread_payload(path, fields["offset"] + start, size) if size else memoryview(b"")
        except DamagedFile as exc:
            raw, reason = None, exc.code
        else:
            reason = DAMAGED
        if raw is None:
            yield message_id, Event(message_id, now_ns, reason)
            continue
        named = json.loads(put.metas[index]).get("n", 0)
        yield message_id, Seen(message_id, size, hashlib.sha256(raw).hexdigest(), named, now_ns)
