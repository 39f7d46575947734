"""Networks that hold, cut or lose what is on its way: everything arrives, in order, once (F15 to F17)."""

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asapo import Producer
from asapo.testing.checker import Content, Invariant, check
from asapo.testing.checker.content import SMALL_SIZES
from asapo.testing.checker.run import Run
from asapo.testing.launch import LocalServices
from asapo.testing.proxy import TcpProxy, Way
from asapo.wire.limits import SESSION_TIMEOUT_S
from tests.e2e.ledger import (
    PATIENCE_S,
    Ledger,
    consumer_of,
    indexed_ids,
    producer_of,
    wait_until,
)

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

HEALED_S = 3.0
"""After a partition everything goes on within this."""
BUSY_S = 7.0
"""What the same takes on a machine that does other things, too."""


class Proxied(NamedTuple):
    """Services that are reached through proxies."""

    services: LocalServices
    ingest: TcpProxy
    core: TcpProxy

    def producer(self, **options: Any) -> Producer:
        """Return a producer that reaches its receiver by the proxy."""
        return producer_of(self.services, receivers=[self.ingest.address], **options)


@contextmanager
def proxied(folder: Path, **options: Any) -> Iterator[Proxied]:
    """Run a core and a receiver, each behind a proxy."""
    with ExitStack() as stack:
        services = stack.enter_context(LocalServices(folder, log_level="error", **options))
        addresses = services.ready("r1")["addresses"]
        ingest = TcpProxy(next(url for url in addresses if url.startswith("tcp")))
        core = TcpProxy(services.native)
        yield Proxied(services, stack.enter_context(ingest), stack.enter_context(core))


# -- links that are slow -----------------------------------------------------------------------------------------------


def test_a_frame_that_takes_longer_than_a_session_may_be_silent_is_sent_once(tmp_path: Path) -> None:
    with (
        proxied(tmp_path, session_timeout_s=2.5) as found,
        found.producer() as producer,
        consumer_of(found.services) as consumer,
    ):
        producer.send(b"first", id=1).result(PATIENCE_S)
        found.ingest.slow_down(Way.UP, 1.5e6)
        frame = random.Random(1).randbytes(10_000_000)
        producer.send(frame, id=2).result(PATIENCE_S)
        assert found.ingest.n_connections == 1
        assert producer.stats.resent == 0
        assert consumer.get_by_id(2).raw == frame


# -- F15: partitions -------------------------------------------------------------------------------------------------


def _partitions(folder: Path, plan: list[tuple[str, float]], *, rate_hz: float, **options: Any) -> None:
    """Hold one of the two ways after the other, each for its time, while frames come; then check everything."""
    timeout_s = options.get("session_timeout_s", SESSION_TIMEOUT_S)
    total_s = sum(length_s for _, length_s in plan)
    longest_s = max(length_s for _, length_s in plan)
    with (
        proxied(folder / "data", **options) as found,
        Run(found.core.address, folder / "run", Content(15, "partitions", SMALL_SIZES), rate_hz=rate_hz,
            messages=round(rate_hz * (total_s + 2)) + 40 * len(plan), patience_s=PATIENCE_S + longest_s, under_way=5000,
            receivers=(found.ingest.address,)) as run,
    ):  # fmt: skip
        run.start()
        for name, length_s in plan:
            run.wait_acked(40)
            assert run.sending
            proxy: TcpProxy = getattr(found, name)
            proxy.hold()
            threading.Event().wait(length_s)
            run.timed(f"ingest after {name} was held for {length_s:g} s", HEALED_S + BUSY_S, proxy.release)
        run.finish()
        # A producer that was away for longer than its session lasts is no longer waited for.
        late_is_fine = max(length_s for name, length_s in plan if name == "ingest") >= timeout_s
        evidence = run.evidence(tiers=[found.services.data_dir / "beamline"], late_is_fine=late_is_fine)
    check(evidence).require(*set(Invariant) - {Invariant.I9})
    assert set(evidence.book.outcomes().values()) == {"ACK"}


def test_silent_partitions_delay_and_lose_nothing(tmp_path: Path) -> None:
    _partitions(tmp_path, [("ingest", 1.0), ("core", 2.5)], rate_hz=60, session_timeout_s=2.0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["ingest", "core"])
def test_long_silent_partitions_delay_and_lose_nothing(tmp_path: Path, name: str, soak_share: float) -> None:
    plan = [(name, 1.0), (name, 10.0), (name, max(15.0, 600 * soak_share))]
    _partitions(tmp_path, [("ingest", 1.0), *plan], rate_hz=20)


# -- F16: cuts -------------------------------------------------------------------------------------------------------


def _send_over_cuts(found: Proxied, producer: Producer, ledger: Ledger, way: Way, cuts: list[int]) -> None:
    """Send a message over a connection that is cut at each of these places."""
    for number, nbytes in enumerate(cuts, start=len(ledger.invoked) + 1):
        before = found.ingest.n_cut
        found.ingest.cut_next(way, nbytes)
        found.ingest.reset_all()
        ledger.send(producer, number).result(PATIENCE_S)
        assert found.ingest.n_cut == before + 1, f"not cut after {nbytes} bytes {way.value}"


def _length_of_exchange(found: Proxied, producer: Producer, ledger: Ledger) -> dict[Way, int]:
    """Return how many bytes one message takes over a new connection, greeting included."""
    connections = found.ingest.n_connections
    found.ingest.reset_all()
    wait_until(lambda: found.ingest.n_connections > connections, "the producer has connected again")
    ledger.send(producer, len(ledger.invoked) + 1).result(PATIENCE_S)
    return {way: found.ingest.passed(way) for way in Way}


def _cut_everywhere(folder: Path, step: int, bodies: int) -> None:
    small, large = Ledger("small", sizes=(40,)), Ledger("large", sizes=(300_000,))
    chance = random.Random(16)
    with proxied(folder) as found, found.producer(pack=False) as producer:
        small.send(producer, 1).result(PATIENCE_S)
        length = _length_of_exchange(found, producer, small)
        assert 200 < length[Way.UP] < 2000
        for way in Way:
            # The last byte is left out: with it the exchange is whole.
            _send_over_cuts(found, producer, small, way, [*range(0, length[way] - 40, step)])
        whole = _length_of_exchange(found, producer, large)[Way.UP]
        places = [whole - 300_000 + chance.randrange(-20, 299_000) for _ in range(bodies)]
        _send_over_cuts(found, producer, large, Way.UP, places)
        for ledger in (small, large):
            producer.finish_stream(ledger.stream)
            assert not ledger.failed
            assert ledger.check_all(found.services) == sorted(ledger.invoked)


def test_a_connection_cut_within_a_message_stores_no_part_of_it(tmp_path: Path) -> None:
    _cut_everywhere(tmp_path, step=31, bodies=4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_connection_cut_at_each_byte_of_a_message_stores_no_part_of_it(tmp_path: Path, soak_share: float) -> None:
    _cut_everywhere(tmp_path, step=max(1, round(0.2 / soak_share)), bodies=round(max(10, 300 * soak_share)))


# -- F17: acknowledgements are lost ----------------------------------------------------------------------------------


def _lose_acks(folder: Path, rounds: int) -> None:
    ledger = Ledger("unheard")
    with proxied(folder, session_timeout_s=2.0) as found, found.producer() as producer:
        ledger.send(producer, 1).result(PATIENCE_S)
        for round_no in range(rounds):
            found.ingest.hold(Way.DOWN)
            ids = range(100 * round_no + 2, 100 * round_no + 42)
            handles = [ledger.send(producer, message_id) for message_id in ids]
            stored = set(ids)
            wait_until(lambda ids=stored: ids <= set(indexed_ids(found.services.data_dir, "unheard")), "all is stored")  # type: ignore[misc]
            wait_until(lambda: not producer.stats.links, "the producer has given its link up")
            assert not any(handle.done() for handle in handles)
            found.ingest.release()
            assert [handle.result(PATIENCE_S) for handle in handles] == list(ids)
        assert producer.stats.resent >= rounds * len(stored)
        producer.finish_stream(ledger.stream)
        assert not ledger.failed
        assert ledger.check_all(found.services) == sorted(ledger.invoked)


def test_what_is_sent_again_because_acknowledgements_are_lost_is_stored_once(tmp_path: Path) -> None:
    _lose_acks(tmp_path, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_whatever_is_sent_again_because_acknowledgements_are_lost_is_stored_once(
    tmp_path: Path, soak_share: float
) -> None:
    _lose_acks(tmp_path, max(2, round(20 * soak_share)))
