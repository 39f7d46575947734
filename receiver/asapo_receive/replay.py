"""At restart: what an older life of this receiver stored but did not index is indexed, before links are taken."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from asapo.errors import AsapoError
from asapo.failpoints import failpoint
from asapo.index.interface import MetadataIndex, UnitRecord
from asapo.index.records import own_file, record_from_put
from asapo.models import StreamRef
from asapo.storage.journal import Damage, JournalRecord, Kind, Where, read_journal
from asapo.storage.layout import JOURNAL_SUFFIX
from asapo.storage.withdrawn import KINDS, Withdrawn
from asapo.wire.codec import decode_put
from asapo.wire.put import Put
from asapo_receive.indexer import BATCH_MESSAGES, MEMORY_PREFIX
from asapo_receive.units import Closing, Note, notes_of

log = logging.getLogger(__name__)

BATCH_UNITS: Final = 256


def replay_segment(
    index: MetadataIndex, segment_no: int, segment_path: str, ref: StreamRef, todo: list[Note | Closing], begun: int
) -> int:
    """Index what the journal of one segment has beyond the index; return how many messages were new to it.

    Nothing, if the stream was deleted after `begun`, by another receiver: then the journal is gone, too.

    Notes on what the index does not take are appended to `todo`, for the journal of this life.
    The journal is in the order of storing, and indexing keeps that order: the records that are missing are at its end.
    """
    journal = Path(segment_path).with_suffix(JOURNAL_SUFFIX)
    puts: list[JournalRecord] = []
    gone = Withdrawn()
    for item in read_journal(journal):
        if isinstance(item, Damage):
            level = logging.INFO if item.torn else logging.WARNING
            log.log(
                level, "journal %s: %s at byte %d (%d bytes skipped)", item.path, item.reason, item.offset, item.size
            )
        elif item.kind == Kind.PUT:
            puts.append(item)
        elif item.kind in KINDS:
            gone.note(item.fields)
    name = Path(segment_path).name
    stream_no = index.stream_no(ref)
    first = _with_doubtful(puts, _first_missing(index, stream_no, segment_no, ref, puts))
    count = 0
    for start in range(first, len(puts), BATCH_UNITS):
        batch = [_left(record, gone, name) for record in puts[start : start + BATCH_UNITS]]
        units = [_unit(ref, segment_no, *each, segment_path=segment_path, begun=begun) for each in batch]
        failpoint("replay.before-commit")
        for (record, put, skip), outcome in zip(batch, index.commit(units), strict=True):
            if outcome.void:
                index.withdraw_segment(segment_no)
                return count
            count += outcome.head_seq - outcome.first_seq + 1 if outcome.first_seq else 0
            todo += notes_of(
                put, outcome, ref=ref, segment=segment_path, offset=record.fields["offset"],
                ingest_ns=record.fields["t"], skip=skip,
            )  # fmt: skip
            for _, error in outcome.errors:
                log.info("journal %s: %s", journal, error)
    return count


def _left(record: JournalRecord, gone: Withdrawn, segment: str) -> tuple[JournalRecord, Put, set[int]]:
    """Return a PUT record, its Put, and the indices of messages that do not count."""
    put = decode_put(record.fields["put"])
    return record, put, gone.left_out(segment, record.fields, put.ids)


def _first_missing(
    index: MetadataIndex, stream_no: int | None, segment_no: int, ref: StreamRef, puts: Sequence[JournalRecord]
) -> int:
    """Return the position of the first PUT that is not in the index, found by bisection."""
    if stream_no is None:
        return 0
    low, high = 0, len(puts)
    while low < high:
        middle = (low + high) // 2
        unit = _unit(ref, segment_no, *_left(puts[middle], Withdrawn(), ""), segment_path="")
        if not unit.ids or index.row(stream_no, unit.ids[-1], unit.substream) is not None:
            low = middle + 1
        else:
            high = middle
    return low


def _with_doubtful(puts: Sequence[JournalRecord], first: int) -> int:
    """Go back from the first record that is missing: the last ones that are there may be spare, and not noted as such.

    The life that died may have been told so by the index, of one transaction, without coming to write it down.
    """
    messages = 0
    while first > 0 and messages < BATCH_MESSAGES:
        first -= 1
        messages += len(decode_put(puts[first].fields["put"]).ids)
    return first


def _unit(
    ref: StreamRef,
    segment_no: int,
    record: JournalRecord,
    put: Put,
    skip: set[int],
    *,
    segment_path: str,
    begun: int | None = None,
) -> UnitRecord:
    fields = record.fields
    in_file = fields["at"] == Where.FILE and segment_path
    return record_from_put(
        ref, put, base=fields["offset"], segment=segment_no, skip=sorted(skip), received_ns=fields["t"],
        file=own_file(segment_path, put.path) if in_file else None, begun=begun,
    )  # fmt: skip


def replay_all(
    index: MetadataIndex, receiver_id: str, todo: list[Note | Closing], begun: int, stuck: Collection[StreamRef] = ()
) -> int:
    """Replay every segment that an older life of this receiver left open; return how many messages were indexed.

    `begun` is the last deletion of a stream that was known before the segments were looked for. Of deleted streams that
    are `stuck`, since their files cannot be moved away, nothing is taken.
    What is then to be done by the writer is appended to `todo`: notes, then to have the segment closed.
    """
    count = 0
    for segment in index.open_segments(receiver_id):
        if segment.ref in stuck:
            continue
        try:
            # A memory ends with its process: its payloads are gone, and there is no journal.
            if not segment.path.startswith(MEMORY_PREFIX):
                count += replay_segment(index, segment.no, segment.path, segment.ref, todo, begun)
        except AsapoError as exc:
            log.warning("segment %s cannot be replayed now: %s", segment.path, exc)
            continue
        failpoint("replay.after-commit")
        todo.append(Closing(segment.ref.beamtime, segment.no))
    return count
