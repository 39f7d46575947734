"""What is answered when there is no message to give: which of the stream states, and why."""

from __future__ import annotations

from dataclasses import dataclass

from asapo.delivery.cursor import GroupCursor
from asapo.delivery.rows import Entry, row_dataset_size
from asapo.delivery.window import StreamWindow
from asapo.errors import Gap, NothingYet, PartialDataset, StreamFinished, StreamState, UnknownStream
from asapo.models import StreamRef


@dataclass(frozen=True, slots=True)
class NeedRows:
    """The window does not reach there: look these ids up in the index, and call `answer_missing` for absent ones."""

    ids: tuple[int, ...]


def unknown_stream(ref: StreamRef) -> UnknownStream:
    """Answer for a stream of which nothing was ever heard; a worker may start before the detector (R29)."""
    return UnknownStream(f"stream {ref} is not known (yet)", stream=ref.stream, source=ref.source)


def deleted_stream(ref: StreamRef) -> UnknownStream:
    """Answer for a stream that was deleted while somebody waited for it."""
    return UnknownStream(f"stream {ref} was deleted", stream=ref.stream, source=ref.source)


def nothing_yet(window: StreamWindow) -> NothingYet:
    """Answer that there is nothing to read now."""
    return NothingYet(f"nothing to read yet; highest id is {window.id_max}", id_max=window.id_max)


def stream_finished(window: StreamWindow) -> StreamFinished:
    """Answer that the stream has ended."""
    return StreamFinished(
        f"stream is finished at id {window.last_id}", id_max=window.id_max, next_stream=window.next_stream
    )


def answer_next(window: StreamWindow, cursor: GroupCursor, session: bytes) -> StreamState:
    """Decide what a session is told when its group has nothing to give it now.

    `StreamFinished` when the stream is finished, every id up to the last is settled, the group looked at all of them,
    nothing waits for redelivery and no *other* session holds a message. A message held by another session may come
    back, so that is `NothingYet`. What the asking session holds itself does not count: a worker that acknowledges
    only at the end must be told the end.
    """
    end = window.last_id if cursor.ordered else window.head_seq
    if window.complete and cursor.position > end and not cursor.unfinished_beside(session):
        return stream_finished(window)
    return nothing_yet(window)


def answer_by_id(window: StreamWindow, message_id: int) -> Entry | NeedRows | StreamState:
    """Answer a request for one id: the message, a look into the index, or why it is not there."""
    found = window.get(message_id)
    if found is not None:
        return found
    if message_id < window.low or message_id in window.orphans:
        return NeedRows((message_id,))
    return answer_missing(window, message_id)


def answer_missing(window: StreamWindow, message_id: int) -> StreamState:
    """Answer for an id that neither the window nor the index has as a message or complete dataset.

    `PartialDataset` when parts are there, `Gap` when the id is settled and will never come, `StreamFinished` when it is
    above the last id of a finished stream, else `NothingYet`.
    """
    parts = window.parts_of(message_id)
    if parts:
        size = row_dataset_size(parts[0])
        return PartialDataset(
            f"dataset {message_id} has {len(parts)} of {size} parts", have=len(parts), dataset_size=size
        )
    if window.finished and message_id > window.last_id:
        return stream_finished(window)
    if message_id < window.settled_below:
        return Gap(f"id {message_id} does not exist", message_id=message_id, id_max=window.id_max)
    return nothing_yet(window)


def answer_last(window: StreamWindow) -> Entry | NeedRows | StreamState:
    """Answer a request for the message with the highest id, which ignores the watermark (R9)."""
    found = window.last()
    if found is not None:
        return found
    if window.id_max:
        return NeedRows((window.id_max,))
    return stream_finished(window) if window.finished else nothing_yet(window)
