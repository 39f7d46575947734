"""Links to the delivery core, two for each beamtime that somebody asks about."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Final

from asapo.ask import Asker
from asapo.wire.events import Query, Rows

MAX_BEAMTIMES: Final = 64
"""Beamtimes with open links; whose turn is longest ago makes room."""
QUERY_TIMEOUT_S: Final = 30.0


class Cores:
    """Asks the delivery core; safe from several threads.

    Queries have a link of their own: what is quick does not wait for them.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._links: OrderedDict[str, tuple[Asker, Asker]] = OrderedDict()

    def ask(self, beamtime: str, kind: type[Any], /, **fields: Any) -> dict[Any, Any]:
        """Return the answer to a request that is answered by a map. Raises as `Asker.ask`."""
        answer = self._link(beamtime, kind).ask(kind, **fields)
        assert isinstance(answer, dict), f"{kind.__name__} was answered by rows"
        return answer

    def rows(self, beamtime: str, kind: type[Any], /, **fields: Any) -> Rows:
        """Return the answer to a request for messages. Raises as `Asker.ask`."""
        answer = self._link(beamtime, kind).ask(kind, **fields)
        assert isinstance(answer, Rows), f"{kind.__name__} was not answered by rows"
        return answer

    def tell(self, beamtime: str, kind: type[Any], /, **fields: Any) -> None:
        """Send a request that nobody waits for. Raises as `Asker.tell`."""
        self._link(beamtime, kind).tell(kind, **fields)

    def _link(self, beamtime: str, kind: type[Any]) -> Asker:
        with self._lock:
            found = self._links.pop(beamtime, None)
            if found is None:
                found = (
                    Asker(self._url, beamtime=beamtime),
                    Asker(self._url, beamtime=beamtime, timeout_s=QUERY_TIMEOUT_S),
                )
            self._links[beamtime] = found
            dropped = self._links.popitem(last=False)[1] if len(self._links) > MAX_BEAMTIMES else ()
        for asker in dropped:
            asker.close()  # waits for the answer that somebody may be about to get
        return found[kind is Query]

    def close(self) -> None:
        """End all links."""
        with self._lock:
            links = [asker for pair in self._links.values() for asker in pair]
            self._links.clear()
        for asker in links:
            asker.close()
