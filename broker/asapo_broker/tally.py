"""What the core counts. Plain attributes: the poll thread is their only writer, and adding must cost nothing."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

PREFIX: Final = "asapo_broker_"


@dataclass(slots=True)
class Tally:
    """Numbers since the start of the core; each is shown to Prometheus as `asapo_broker_NAME_total`."""

    requests: int = 0
    """Events of consumers, heartbeats included."""
    delivered: int = 0
    """Messages given to groups, repeated deliveries included."""
    redelivered: int = 0
    """Messages given out more than once."""
    late: int = 0
    """Messages given out that had arrived below their group's position."""
    acked: int = 0
    """Ranges acknowledged."""
    lease_lost: int = 0
    """Acknowledged ids that somebody else had been given meanwhile."""
    leases_expired: int = 0
    dead_lettered: int = 0
    """Messages given up after `max_attempts` deliveries."""
    requeued: int = 0
    """Dead letters given out again because somebody asked for it."""
    rows_answered: int = 0
    """Messages given by id, as the last one, or by queries."""
    replies_repeated: int = 0
    """Replies sent again because the link broke before the client had them."""
    replies_undelivered: int = 0
    """Replies to a peer that was gone or did not read."""
    announcements: int = 0
    rows_loaded: int = 0
    """Rows taken into windows from the index."""
    rows_announced: int = 0
    """Rows taken into windows from receivers that told of them."""
    refused_peers: int = 0
    """Links ended because the peer broke the protocol or was not acceptable."""
    failed_requests: int = 0
    """Requests answered with an error other than a stream state."""
    defects: int = 0
    """Errors of this program while it served a request; the log says more."""

    def metrics(self) -> list[list[object]]:
        """Return [name, labels, value] of all numbers."""
        return [[f"{PREFIX}{item.name}_total", {}, getattr(self, item.name)] for item in fields(self)]

    def values(self) -> dict[str, int]:
        """Return the numbers by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
