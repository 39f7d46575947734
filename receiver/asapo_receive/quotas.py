"""How much the folder of each beamtime holds, and whether more may be stored (R36).

The figure is the folder's own, since several receivers write there and people remove files: it is measured on a thread
of its own, when a beamtime is first heard of and from time to time. In between, what this receiver stores is counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from asapo.errors import QuotaExceeded
from asapo.metrics import Counters
from asapo.storage.layout import encode_name
from asapo.storage.usage import data_bytes

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
"""How often the thread looks which folders are to be measured."""
OFTEN_S: Final = 0.5
"""Time between two measurements of a folder that is nearly full or was found full just now."""
SELDOM_S: Final = 10.0
"""The same, of any other folder that something is stored in."""
SHARE: Final = 10
"""At least so many times as long as measuring took, nothing is measured: a folder of a million files takes seconds."""
NEARLY: Final = 0.9
REFUSED_S: Final = 60.0
"""A folder is looked at often for so long after something was refused."""


@dataclass(slots=True)
class _Account:
    """What is known of one beamtime's folder."""

    name: str
    counted: int = 0
    """What this receiver has stored there in all."""
    base: int = 0
    """What the folder held beside that."""
    seen: int = 0
    """`counted` when measuring began."""
    due_s: float = 0.0
    """When it may be measured again."""
    measured: bool = False
    measuring: bool = False
    """Somebody measures it for the first time now."""
    refused_s: float = float("-inf")

    @property
    def used(self) -> int:
        """Bytes in the folder."""
        return self.base + self.counted


class Quotas:
    """Keeps the folders of all beamtimes below a limit.

    Parameters
    ----------
    root : path
        Root of the tier.
    limit_bytes : int
        Most that the folder of one beamtime may hold.
    counters : Counters
        Are told what the folders hold.
    measure : callable, optional
        Returns the bytes in a folder.
    """

    def __init__(
        self, root: Path, limit_bytes: int, counters: Counters, *, measure: Callable[[Path], int] = data_bytes
    ) -> None:
        self._root = root
        self._limit = limit_bytes
        self._counters = counters
        self._measure = measure
        self._accounts: dict[str, _Account] = {}
        self._lock = threading.Lock()
        self._bell = threading.Event()
        self._new = threading.Event()
        self._stopping = False

    def ready(self, beamtime: str) -> bool:
        """Say whether a beamtime's folder was measured; if not, it will be soon. Never waits."""
        account = self._accounts.get(beamtime)
        if account is None:
            with self._lock:
                self._accounts[beamtime] = _Account(beamtime)
            self._new.set()
            return False
        return account.measured

    def take(self, beamtime: str, nbytes: int) -> None:
        """Count bytes that are about to be stored.

        Raises
        ------
        QuotaExceeded
            If the folder would hold more than the limit then; nothing was counted.
        """
        with self._lock:
            account = self._accounts.setdefault(beamtime, _Account(beamtime))
            used = account.used
            if used + nbytes <= self._limit:
                account.counted += nbytes
                return
            account.refused_s = time.monotonic()
        raise QuotaExceeded(
            f"beamtime {beamtime} holds {used} bytes on this tier, and {nbytes} more would exceed its limit "
            f"of {self._limit} (receiver.beamtime_bytes); remove data of it, or let the facility raise the limit",
            beamtime=beamtime,
            limit_bytes=self._limit,
            used_bytes=used,
            free_bytes=max(0, self._limit - used),
        )

    def run(self) -> None:
        """Measure what is due until `stop`; new beamtimes do not wait for the others, on a thread of their own."""
        new = threading.Thread(
            target=self._repeat, args=(self._new, self.look_at_new), name="asapo-quotas-new", daemon=True
        )
        new.start()
        self._repeat(self._bell, self.look)
        new.join()

    def _repeat(self, bell: threading.Event, look: Callable[[], None]) -> None:
        while not self._stopping:
            bell.wait(LOOK_S)
            bell.clear()
            look()

    def stop(self) -> None:
        """End `run`. Any thread."""
        self._stopping = True
        self._bell.set()
        self._new.set()

    def look(self) -> None:
        """Measure the folders that are due, and tell the counters of all that are in use."""
        self.look_at_new()
        with self._lock:
            accounts = [account for account in self._accounts.values() if account.measured]
        for account in accounts:
            now_s = time.monotonic()
            wanted = account.counted > account.seen or now_s - account.refused_s < REFUSED_S
            if wanted and now_s >= account.due_s:
                self._look_at(account, now_s)
            self._counters.set("asapo_receiver_beamtime_bytes", account.used, beamtime=account.name)
            self._counters.set("asapo_receiver_beamtime_limit_bytes", self._limit, beamtime=account.name)

    def look_at_new(self) -> None:
        """Measure folders that were not measured yet: the first frames of these beamtimes wait for it."""
        with self._lock:
            accounts = [account for account in self._accounts.values() if not (account.measured or account.measuring)]
            for account in accounts:
                account.measuring = True
        for account in accounts:
            self._look_at(account, time.monotonic())

    def _look_at(self, account: _Account, began_s: float) -> None:
        counted = account.counted
        try:
            found = self._measure(self._root / encode_name(account.name))
        except Exception:
            log.exception("the folder of beamtime %s could not be measured", account.name)
            found = account.base + counted
        with self._lock:
            # What was stored while it was measured may be in there already: it counts twice until the next time.
            account.base, account.seen = found - counted, counted
            account.measured = True
        now_s = time.monotonic()
        often = account.used >= NEARLY * self._limit or now_s - account.refused_s < REFUSED_S
        account.due_s = now_s + max(OFTEN_S if often else SELDOM_S, SHARE * (now_s - began_s))
