"""Named places at which a test lets a process die. Nothing happens there otherwise.

A place costs the call of a function that does nothing, and stands where work is done by the batch, never by the
message. `asapo.testing.faults` names them in the environment of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

NAMES: Final[Mapping[str, str]] = {
    "ingest.before-payload": "receiver: units are checked, nothing of them is written",
    "ingest.after-payload": "receiver: payloads are written, no journal record speaks of them",
    "ingest.after-journal": "receiver: journal records are written, the index knows nothing of them",
    "index.before-commit": "receiver: rows are in the transaction, which is not committed",
    "ingest.after-index": "receiver: the transaction is committed, nobody was told",
    "ingest.before-ack": "receiver: announced to the core, not acknowledged",
    "ingest.after-ack": "receiver: the acknowledgement was given to the transport",
    "file.before-link": "receiver: the file of a message is written, it does not have its name yet",
    "file.after-link": "receiver: it has its name, no journal record speaks of it; the draft is still there",
    "note.before-write": "receiver: the index has a message already, or refuses it; its journal does not say so yet",
    "rotate.between-files": "receiver: a new segment is there, its journal is not",
    "rotate.before-close": "receiver: a segment takes no more, its journal has no CLOSED record",
    "rotate.after-close": "receiver: the CLOSED record is written, the index calls the segment open",
    "replay.before-commit": "receiver at its start: units of an older life are read, not indexed",
    "replay.after-commit": "receiver at its start: they are indexed, the segment is not marked closed",
    "delete.before-commit": "receiver: a stream is deleted in the transaction, which is not committed",
    "delete.after-commit": "receiver: it is deleted, its files are where they were",
    "delete.before-rename": "receiver: its segments are forgotten in the transaction, its files are where they were",
    "delete.after-move": "receiver: its files are moved away, the transaction that says so is not committed",
    "delete.after-finish": "receiver: the deletion is finished, nobody was told; the files take room yet",
    "delete.before-forget": "core: the receiver has deleted the stream, its groups are stored yet",
    "cursor.before-write": "core: cursors are about to be written",
    "cursor.after-write": "core: cursors are written",
    "lease.after-expiry": "core: leases ran out, nobody has the messages again yet",
}
"""Name to where it is."""

_act: Callable[[str], None] | None = None


def failpoint(name: str) -> None:
    """Pass one of the places in `NAMES`."""
    if _act is not None:
        _act(name)


def install(act: Callable[[str], None] | None) -> None:
    """Have this called with the name of each place that this process passes; None: nothing."""
    global _act
    _act = act
