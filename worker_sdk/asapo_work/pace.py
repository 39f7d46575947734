"""How many messages to ask for at once when user code takes them one by one, and by how many requests."""

from __future__ import annotations

from typing import Final

AHEAD_S: Final = 0.2
"""Work to have at hand: enough to hide a round trip, too little to keep other workers of the group waiting."""
GROWTH: Final = 4
MAX_AHEAD: Final = 512
QUICK_S: Final = 0.01
"""User code that needs less for a full answer is kept busy by two requests on their way: one alone leaves it waiting
while the core works on the next."""


class Pace:
    """Watches how fast messages are used up and says how many to fetch next."""

    def __init__(self) -> None:
        self._n = 1
        self.requests = 1
        """Requests to have on their way while user code works."""

    @property
    def n(self) -> int:
        """Messages to ask for now."""
        return self._n

    def used(self, n: int, took_s: float, *, full: bool = False) -> None:
        """Learn that user code took `took_s` for `n` messages; `full` when these were all that were asked for."""
        # When answers are not full, user code waits for the stream: a second request would only hoard messages.
        self.requests = 2 if full and took_s < QUICK_S else 1
        if n > 0:
            wanted = int(n * AHEAD_S / took_s) if took_s > 0 else MAX_AHEAD
            self._n = max(1, min(wanted, GROWTH * self._n, MAX_AHEAD))
