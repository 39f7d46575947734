"""Settings of one receiver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asapo.errors import ConfigError
from asapo.wire import limits

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverSettings:
    """Everything a receiver needs to know; sizes in bytes, times in seconds."""

    receiver_id: str
    """Unique among the receivers of a broker; part of segment names."""
    data_dir: Path
    """Root of the tier that payloads are written to."""
    state_dir: Path
    """Local directory of indexes and epochs."""
    listen: tuple[str, ...] = ("tcp://127.0.0.1:*",)
    """Where producers connect to; several transports may be given."""
    data_listen: str = "tcp://127.0.0.1:*"
    """Where readers on other hosts fetch payloads."""
    broker: str = ""
    """Address of the delivery core; empty: serve without being registered."""
    window_bytes: int = limits.WINDOW_BYTES
    """Most credit of one producer."""
    ingest_bytes: int = 1024 * MIB
    """Credit of all producers together: bounds the memory of frames in flight."""
    beamtime_bytes_per_s: int = 0
    """What all producers of one beamtime may have stored by this receiver in a second; 0 for no limit."""
    beamtime_bytes: int = 0
    """Most that the folder of one beamtime may hold; 0 for no limit."""
    cache_bytes: int = 64 * MIB
    """Recent payloads kept for remote readers."""
    memory_bytes: int = 256 * MIB
    """Payloads of level `memory` kept; the oldest are forgotten."""
    segment_bytes: int = 1024 * MIB
    """A segment is closed when it reaches this size."""
    max_unit_bytes: int = limits.MAX_UNIT_BYTES
    declared_keys: tuple[str, ...] = ()
    """Metadata keys that get an index of their own in beamtimes that have declared none (R14)."""
    sorted_keys: tuple[str, ...] = ()
    """Further keys by which finished streams are sorted; none: as each beamtime has it."""
    session_timeout_s: float = limits.SESSION_TIMEOUT_S

    def __post_init__(self) -> None:
        for name in ("window_bytes", "ingest_bytes", "segment_bytes", "max_unit_bytes"):
            value = getattr(self, name)
            if value < MIB:
                raise ConfigError(f"receiver {name} = {value}: expected at least {MIB} bytes", key=name)
        if not self.receiver_id or not all(c.isalnum() or c in "._" for c in self.receiver_id):
            raise ConfigError(
                f"receiver_id = {self.receiver_id!r}: expected letters, digits, '.' and '_' only", key="receiver_id"
            )
