"""Checks of the services: are they there, can they be reached from here, where would payloads be read from."""

from __future__ import annotations

import http.client
import os
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, Final

from asapo.doctor import FAILED, GIB, OK, SKIPPED, WARNING, Check
from asapo.errors import AsapoError, DeadlineExceeded, RemoteProtocolError, from_wire
from asapo.hostinfo import boot_id, who_am_i
from asapo.storage.tier import read_tier_uuid
from asapo.transport import Waiter, connect
from asapo.wire.codec import decode, encode
from asapo.wire.events import SESSION_BYTES, Bye, Goodbye, Hello, Welcome
from asapo_work.cli.place import Site

REQUESTS: Final = 20
SLOW_S: Final = 0.05
LITTLE_SPACE: Final = 10 * GIB
NO_SPACE: Final = GIB // 4
NOBODY: Final = "asapo-doctor"
"""Beamtime and source named in greetings; nothing is sent, so nothing of that name comes to be."""

Receiver = dict[str, Any]


def service_checks(url: str, http_url: str, timeout_s: float) -> Iterator[Check]:
    """Check the broker, then everything it knows of."""
    site = Site(url, timeout_s)
    try:
        receivers = site.listing().get("receivers", [])
        yield _latency(site)
    except AsapoError as exc:
        yield Check("broker", FAILED, exc.message, "see there")
        yield from _not_checked("no broker", "receivers", "mapping", "space")
        yield _http(http_url, timeout_s)
        return
    finally:
        site.close()
    yield _registered(receivers)
    for receiver in receivers:
        yield from _reachable(receiver, timeout_s)
        yield _mapping(receiver)
        yield from _space(receiver)
    yield _hosts(receivers)
    yield _http(http_url, timeout_s)


def _not_checked(why: str, *names: str) -> Iterator[Check]:
    for name in names:
        yield Check(name, SKIPPED, f"not checked: {why}")


def _latency(site: Site) -> Check:
    times_s = []
    for _ in range(REQUESTS):
        began_s = time.perf_counter()
        site.listing()
        times_s.append(time.perf_counter() - began_s)
    middle_s = statistics.median(times_s)
    found = f"{site.url} answers in {middle_s * 1e3:.2f} ms ({REQUESTS} requests, slowest {max(times_s) * 1e3:.2f} ms)"
    if middle_s > SLOW_S:
        return Check("broker", WARNING, found, "look at the load of its host and at the network between")
    return Check("broker", OK, found)


def _registered(receivers: list[Receiver]) -> Check:
    if not receivers:
        return Check(
            "receivers", FAILED, "none is registered", "start one: `asapo up`, or `asapo receiver --broker URL`"
        )
    return Check("receivers", OK, f"{len(receivers)} registered: {', '.join(r['receiver_id'] for r in receivers)}")


def _reachable(receiver: Receiver, timeout_s: float) -> Iterator[Check]:
    """Greet every address as those who use it do, and leave again."""
    name, here = receiver["receiver_id"], receiver["boot_id"] == boot_id() != ""
    for role, addresses in (("producer", receiver["addresses"]), ("reader", [receiver["data_address"]])):
        for address in filter(None, addresses):
            check = f"{name} {'ingest' if role == 'producer' else 'data server'}"
            if address.startswith("ipc://") and not here:
                yield Check(check, SKIPPED, f"{address} is for producers on its own host")
                continue
            try:
                seconds = greet(address, role, timeout_s)
            except AsapoError as exc:
                step = f"is {name} running, and does a firewall let {address} through?"
                yield Check(check, FAILED, f"{address}: {exc.message}", step)
            else:
                yield Check(check, OK, f"{address} welcomes in {seconds * 1e3:.1f} ms")


def greet(address: str, role: str, timeout_s: float) -> float:
    """Say Hello in a role and Bye; return the seconds to the Welcome. Leaves no trace: nothing is opened or sent.

    Raises
    ------
    AsapoError
        If nobody is there, or we are not welcome.
    """
    hello = Hello(role, os.urandom(SESSION_BYTES), NOBODY, NOBODY, who_am_i(), boot_id())
    began_s = time.monotonic()
    deadline_s = began_s + timeout_s
    link = connect(address)
    try:
        link.send(encode(hello))
        waiter = Waiter(link)
        while (left_s := deadline_s - time.monotonic()) > 0:
            message = link.receive()
            if message is None:
                waiter.wait(left_s)
                continue
            event = decode(message.header, len(message.payload))
            if isinstance(event, Goodbye):
                raise from_wire(event.error["code"], event.error["message"], event.error["fields"])
            if not isinstance(event, Welcome):
                raise RemoteProtocolError(f"answered {type(event).__name__}: expected Welcome")
            link.send(encode(Bye(final=False)))
            return time.monotonic() - began_s
        raise DeadlineExceeded(f"no answer within {timeout_s:g} s", after_s=timeout_s)
    finally:
        link.close(linger_s=0.2)


def _mapping(receiver: Receiver) -> Check:
    name = f"{receiver['receiver_id']} mapping"
    if not boot_id() or receiver["boot_id"] != boot_id():
        return Check(name, OK, "on another host: payloads are fetched from its data server")
    unseen = [tier["root"] for uuid, tier in receiver["tiers"].items() if read_tier_uuid(tier["root"]) != uuid]
    if unseen:
        step = "make the folder readable here (a container needs it mounted at the same path) to map instead"
        return Check(name, WARNING, f"{', '.join(unseen)} cannot be seen: payloads are fetched", step)
    return Check(name, OK, "on this host: payloads are mapped")


def _space(receiver: Receiver) -> Iterator[Check]:
    for tier in receiver["tiers"].values():
        free = tier["free_bytes"]
        found = f"{tier['root']} has {free / GIB:.1f} GiB free"
        name = f"{receiver['receiver_id']} space"
        if free < NO_SPACE:
            yield Check(name, FAILED, found, "free some space: producers are told that the disk is full")
        elif free < LITTLE_SPACE:
            yield Check(name, WARNING, found, "free some space")
        else:
            yield Check(name, OK, found)


def _hosts(receivers: list[Receiver]) -> Check:
    away = [r["receiver_id"] for r in receivers if r["boot_id"] != boot_id()]
    if away:
        return Check("time", SKIPPED, f"{', '.join(away)} on other hosts: --selftest compares their clocks with ours")
    return Check("time", OK, "all receivers share this host's clock")


def _http(url: str, timeout_s: float) -> Check:
    if not url:
        return Check("http", SKIPPED, "not checked: give the address of the HTTP front by --http or in ASAPO_HTTP")
    health = f"{url.rstrip('/')}/health"
    try:
        # Our own services, never by way of a proxy.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(health, timeout=timeout_s) as answer:
            return Check("http", OK, f"{health} says {answer.status}: {answer.read(200).decode(errors='replace')}")
    except urllib.error.HTTPError as exc:
        text = exc.read(200).decode(errors="replace")
        return Check("http", FAILED, f"{health} says {exc.code}: {text}", "look at the services' log lines")
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return Check("http", FAILED, f"{health}: {exc}", "is this the address of the HTTP front, and does it run?")
