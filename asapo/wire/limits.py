"""Named limits of the native protocol: everything a peer can make us hold is bounded here, before memory is taken."""

from __future__ import annotations

from typing import Final

MIB: Final = 1024 * 1024

VERSION: Final = (1, 0)
"""Protocol version (major, minor): another major is refused, a newer minor is spoken with unknown keys ignored."""
MAX_HEADER_BYTES: Final = 16 * MIB
"""Longest header part."""
MAX_UNIT_BYTES: Final = 2048 * MIB
"""Longest payload part: one wire unit."""
MAX_META_BYTES: Final = MIB
"""Longest metadata text of one message, in UTF-8 bytes."""
MAX_UNIT_MESSAGES: Final = 4096
"""Most messages in one wire unit."""
MAX_ROWS: Final = 10_000
"""Most messages in one answer of the broker."""
MAX_QUERY_BYTES: Final = 16 * 1024
"""Longest query text."""
MAX_RANGES: Final = 100_000
"""Most id ranges in one acknowledgement."""
WINDOW_BYTES: Final = 128 * MIB
"""Default credit: bytes a producer may have unacknowledged on one link (R13)."""
WINDOW_MESSAGES: Final = 8192
"""Default credit in messages."""
PACK_BELOW_BYTES: Final = 200_000
"""Messages smaller than this are packed by the SDK into wire units (R13)."""
PACK_UNIT_BYTES: Final = MIB
"""A packed unit is closed when it reaches this size."""
ALIGN: Final = 64
"""Payloads within a unit start at multiples of this."""
HEARTBEAT_S: Final = 1.0
"""A side that sent nothing for this long sends a Beat."""
SESSION_TIMEOUT_S: Final = 10.0
"""A producer session that was not heard for this long is closed (R7)."""
LEASE_S: Final = 60.0
"""Default lease of a delivered message (R27)."""
