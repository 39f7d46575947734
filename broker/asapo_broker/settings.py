"""Settings of the delivery core."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from asapo.errors import ConfigError
from asapo.wire.limits import MAX_HEADER_BYTES, MAX_ROWS, SESSION_TIMEOUT_S

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """Everything the delivery core needs to know; sizes in bytes, times in seconds."""

    state_dir: Path
    """Local directory of the indexes (written by receivers) and of the delivery state (written by this core)."""
    listen: str = "tcp://127.0.0.1:*"
    """Where consumers and receivers connect to; port * takes a free one."""
    session_timeout_s: float = SESSION_TIMEOUT_S
    """A session that was not heard for this long is dropped; its leases go back."""
    receiver_timeout_s: float = 5.0
    """A receiver that was not heard for this long is left out of answers."""
    poll_s: float = 0.05
    """A stream that somebody waits for is looked at in the index at least this often (announcements come sooner)."""
    save_s: float = 0.05
    """Cursors are written at least this often; a killed core redelivers what was acknowledged since."""
    request_limit_s: float = 5.0
    """How long a request waits for the index to tell whether there is such a stream."""
    request_threads: int = 2
    """Threads for requests that are answered at once: by id, the last one, streams."""
    query_threads: int = 2
    """Threads for queries; those of one session leave one to others."""
    query_limit_s: float = 5.0
    """Longest run of one query."""
    query_rows: int = MAX_ROWS
    """Most messages in one answer to a query."""
    max_sessions: int = 10_000
    max_waiting: int = 64
    """Unanswered get_next requests of one session."""
    max_queued_requests: int = 1000
    """Requests that wait for a thread of the pool, of all sessions together."""
    max_streams: int = 20_000
    """Streams that are in memory because somebody reads them."""
    max_groups: int = 20_000
    window_rows: int = 200_000
    """Most rows of one stream kept in memory; groups further back read the index, at twice the price of a row."""
    window_bytes: int = 160 * MIB
    """Most memory of the rows of one stream, estimated."""
    windows_bytes: int = 320 * MIB
    """Memory of the rows of all streams, which have equal shares of it."""
    max_part_bytes: int = MAX_HEADER_BYTES
    """Longest message part a peer may send."""
    idle_stream_s: float = 300.0
    """A stream nobody read for this long leaves the memory, its cursors being on disk."""
    idle_group_s: float = 60.0
    """A group nobody read for this long leaves the memory, its cursor being on disk."""
    switch_s: float = 0.0005
    """How long a busy thread may keep the interpreter from the poll thread (`sys.setswitchinterval`)."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and not value > 0:
                raise ConfigError(f"broker {item.name} = {value!r}: expected a number above 0", key=item.name)
