"""Which receivers there are: asked of the broker, or given by the caller (R34, record 0005)."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, Protocol

from asapo.errors import AsapoError, LinkLost, WrongInput
from asapo.transport import Link, Waiter, connect, resolve
from asapo.wire.codec import decode, encode
from asapo.wire.events import Beat, Bye, Done, Failed, Goodbye, Hello, ListReceivers, Welcome
from asapo_produce.link_session import error_of, is_fatal

log = logging.getLogger(__name__)

REFRESH_S: Final = 5.0
"""How often the broker is asked."""
SEARCH_S: Final = 0.5
"""How often it is asked while it knows no receiver."""
SILENT_S: Final = 10.0
"""A broker that says nothing for this long is lost."""
TRANSPORTS: Final = ("auto", "tcp", "ipc")


class Discovery(Protocol):
    """Tells the I/O thread which receivers to use."""

    targets: dict[str, tuple[str, ...]]
    """Receiver id to its addresses, the preferred one first."""
    link: Link | None
    """To be listened to: `step` when something is there to read."""

    def step(self, now_s: float, waiter: Waiter) -> float:
        """Do what is due; return when to be called again at the latest. Raises AsapoError when refused for good."""

    def close(self, waiter: Waiter, *, final: bool) -> None:
        """Leave."""


class Fixed:
    """Receivers named by the caller."""

    def __init__(self, urls: Iterable[str]) -> None:
        addresses = [resolve(url) for url in urls]
        if not addresses:
            raise WrongInput("receivers: expected at least one address, for example tcp://127.0.0.1:4000")
        self.targets: dict[str, tuple[str, ...]] = {address: (address,) for address in addresses}
        self.link: Link | None = None

    def step(self, now_s: float, waiter: Waiter) -> float:
        """Nothing ever changes."""
        return now_s + REFRESH_S

    def close(self, waiter: Waiter, *, final: bool) -> None:
        """Nothing to leave."""


def preferred(addresses: Iterable[str], *, same_host: bool, transport: str) -> tuple[str, ...]:
    """Return the addresses to try, in order: ipc first on the same host, where it is the faster one below 8 MB."""
    usable: list[str] = []
    for address in addresses:
        scheme = address.partition("://")[0]
        if scheme == "ipc" and transport != "tcp" and same_host and os.path.exists(address[6:]):
            usable.insert(0, address)
        elif scheme == "tcp" and transport != "ipc":
            usable.append(address)
    return tuple(usable)


class Asking:
    """Asks the broker, keeps the last answer while it is away."""

    def __init__(self, url: str, hello: Hello, transport: str) -> None:
        self.targets: dict[str, tuple[str, ...]] = {}
        self._url = resolve(url)
        self._hello = replace(hello, role="consumer")
        self._transport = transport
        self.link: Link | None = None
        self._welcome: Welcome | None = None
        self._numbers = itertools.count(1)
        self._ask_s = 0.0
        self._connect_s = 0.0
        self._backoff_s = 0.05
        self._heard_s = 0.0
        self._beat_s = 0.0

    def step(self, now_s: float, waiter: Waiter) -> float:
        """Connect, listen and ask as due."""
        try:
            if self.link is None:
                if now_s < self._connect_s:
                    return self._connect_s
                self._connect(now_s, waiter)
            self._listen(now_s)
            self._speak(now_s)
        except AsapoError as exc:
            self._lost(exc, now_s, waiter)
            return self._connect_s
        return min(self._ask_s, now_s + 1.0)

    def _connect(self, now_s: float, waiter: Waiter) -> None:
        self.link = connect(self._url)
        waiter.add(self.link)
        self._welcome = None
        self._heard_s = self._beat_s = now_s
        self.link.send(encode(self._hello))

    def _listen(self, now_s: float) -> None:
        link = self.link
        while link is not None and (message := link.receive()) is not None:
            event = decode(message.header, len(message.payload))
            self._heard_s = now_s
            if type(event) is Welcome:
                self._welcome = event
                self._ask_s = now_s
            elif type(event) is Done:
                self._learn(event.result, now_s)
            elif type(event) in (Goodbye, Failed):
                raise error_of(event.error)  # type: ignore[union-attr]
        if now_s - self._heard_s > SILENT_S:
            raise LinkLost(f"broker {self._url} is silent for {SILENT_S} s", address=self._url)

    def _speak(self, now_s: float) -> None:
        if self.link is None or self._welcome is None:
            return
        self._backoff_s = 0.05
        if now_s >= self._ask_s:
            self.link.send(encode(ListReceivers(next(self._numbers))))
            self._ask_s = now_s + (REFRESH_S if self.targets else SEARCH_S)
        if now_s - self._beat_s >= self._welcome.heartbeat_s:
            self.link.send(encode(Beat()))
            self._beat_s = now_s

    def _learn(self, result: dict[Any, Any], now_s: float) -> None:
        found: dict[str, tuple[str, ...]] = {}
        for entry in result.get("receivers", ()):
            same_host = bool(self._hello.boot_id) and entry.get("boot_id") == self._hello.boot_id
            addresses = preferred(entry.get("addresses", ()), same_host=same_host, transport=self._transport)
            if addresses:
                found[str(entry.get("receiver_id"))] = addresses
        # An empty answer may come from a broker that has just started: what we have still works, or its links say so.
        if found:
            self.targets = found
            self._ask_s = now_s + REFRESH_S

    def _lost(self, error: AsapoError, now_s: float, waiter: Waiter) -> None:
        self.close(waiter, final=False)
        self._connect_s = now_s + self._backoff_s
        self._backoff_s = min(1.0, 2 * self._backoff_s)
        refused = is_fatal(error)
        if refused and not self.targets:
            raise error
        log.log(logging.WARNING if refused else logging.DEBUG, "broker %s: %s", self._url, error)

    def close(self, waiter: Waiter, *, final: bool) -> None:
        """End the link to the broker."""
        if self.link is not None:
            if final and self._welcome is not None:
                self.link.send(encode(Bye()))
            waiter.remove(self.link)
            self.link.close(linger_s=0.2 if final else 0.0)
            self.link = None
