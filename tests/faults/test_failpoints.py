"""A process dies at each named place, at its first passing, its second: nothing acknowledged is lost or comes twice."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from asapo.errors import ConfigError
from asapo.failpoints import NAMES
from asapo.supervise import ServiceFailed
from asapo.testing.faults import Deaths
from asapo.testing.launch import LocalServices
from asapo.wire.codec import encode
from asapo.wire.events import GetNext, Hello, Rows, Welcome
from tests.e2e.ledger import Ledger, OrderedReader, consumer_of, producer_of, wait_until
from tests.faults.target import replies

ROOT = Path(__file__).parents[2]
MESSAGES = 12
SIZES = (0, 700, 200_000, 300_000)
"""Some share wire units, and twelve of them fill more than one segment."""
PLACES = [name for name in NAMES if name.startswith(("ingest", "index", "rotate"))]
BEFORE_COMMIT, AFTER_COMMIT = "replay.before-commit", "replay.after-commit"


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    with LocalServices(tmp_path, segment_bytes=1024 * 1024, session_timeout_s=2.0, log_level="error") as found:
        yield found


def restart(services: LocalServices, name: str, faults: str = "") -> None:
    services.kill(name)
    services.inject(name, faults)
    services.restart(name)


def dies_and_comes_back(services: LocalServices, name: str) -> None:
    wait_until(lambda: services.ended(name), f"{name} has met its end")
    restart(services, name)


def die_at(services: LocalServices, place: str, at: int) -> bool:
    """Send a stream to a receiver that dies at the n-th passing of a place; True when it came to that."""
    ledger = Ledger(f"{place} {at}", sizes=SIZES)
    restart(services, "r1", f"{place}:{at}:kill")
    with producer_of(services, pack=False) as producer:
        handles = [ledger.send(producer, 3 * number) for number in range(1, MESSAGES + 1)]
        wait_until(lambda: services.ended("r1") or all(handle.done() for handle in handles), "death or success")
        if not services.ended("r1"):
            restart(services, "r1")  # it must not die later, at the end of the stream
            died = False
        else:
            dies_and_comes_back(services, "r1")
            died = True
        producer.flush(45.0)
        producer.finish_stream(ledger.stream)
    assert not ledger.failed
    assert len(ledger.acked) == MESSAGES
    assert ledger.check_all(services) == sorted(ledger.acked)
    return died


@pytest.mark.needs_server
@pytest.mark.needs_linux
@pytest.mark.parametrize("place", PLACES)
def test_a_receiver_that_dies_at_a_named_place_loses_nothing(services: LocalServices, place: str) -> None:
    assert die_at(services, place, 1), f"{place} was not passed"
    die_at(services, place, 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", PLACES)
def test_a_receiver_that_dies_at_any_passing_of_a_named_place_loses_nothing(
    services: LocalServices, place: str, soak_share: float
) -> None:
    at, most = 1, max(3, round(200 * soak_share))
    while die_at(services, place, at) and at < most:
        at += 1
    assert at > 1, f"{place} was not passed"


@pytest.mark.needs_server
@pytest.mark.needs_linux
@pytest.mark.timeout(120)
@pytest.mark.parametrize("places", [[BEFORE_COMMIT], [AFTER_COMMIT], [BEFORE_COMMIT, AFTER_COMMIT, AFTER_COMMIT]])
def test_a_receiver_that_dies_while_it_replays_its_journal_replays_it_again(
    services: LocalServices, places: list[str]
) -> None:
    ledger = Ledger("replayed", sizes=SIZES)
    restart(services, "r1", "ingest.after-journal:2:kill")  # what is journaled now is not in the index
    with producer_of(services, pack=False) as producer:
        for number in range(1, MESSAGES + 1):
            ledger.send(producer, number)
        wait_until(lambda: services.ended("r1"), "the receiver has met its end")
        for place in places:
            services.kill("r1")
            services.inject("r1", f"{place}:1:kill")
            with pytest.raises(ServiceFailed, match="did not become ready"):
                services.restart("r1")
            assert services.ended("r1"), f"{place} was not passed"
        restart(services, "r1")
        producer.flush(45.0)
        producer.finish_stream(ledger.stream)
    assert len(ledger.acked) == MESSAGES
    assert ledger.check_all(services) == sorted(ledger.acked)


@pytest.mark.needs_server
@pytest.mark.needs_linux
@pytest.mark.parametrize(
    "then",
    [
        ["ingest.after-index"],
        ["ingest.before-ack"],
        ["note.before-write"],  # told by the index
        ["ingest.after-index", "note.before-write", "note.before-write"],  # told by the replay
    ],
    ids=" ".join,
)
def test_what_is_sent_again_to_a_receiver_that_dies_again_is_noted_as_spare(
    services: LocalServices, then: list[str]
) -> None:
    ledger = Ledger("sent again", sizes=SIZES)
    with producer_of(services, pack=False) as producer:
        for place in ("ingest.before-ack", *then):
            services.kill("r1")
            services.inject("r1", f"{place}:1:kill")  # indexed, and the producer does not know
            with suppress(ServiceFailed):  # one that dies while it starts
                services.restart("r1")
            if not ledger.invoked:
                for number in range(1, MESSAGES + 1):
                    ledger.send(producer, number)
            wait_until(lambda: services.ended("r1"), "the receiver has met its end")
        restart(services, "r1")
        producer.flush(45.0)
        producer.finish_stream(ledger.stream)
    assert len(ledger.acked) == MESSAGES
    assert ledger.check_all(services) == sorted(ledger.acked)


@pytest.mark.needs_server
@pytest.mark.needs_linux
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("place", ["cursor.before-write", "cursor.after-write"])
def test_a_core_that_dies_around_the_writing_of_cursors_delivers_everything(
    services: LocalServices, place: str, at: int
) -> None:
    ledger = Ledger("cursors", sizes=(100,))
    with producer_of(services) as producer:
        restart(services, "broker", f"{place}:{at}:kill")
        reader = OrderedReader(services, ledger)
        reader.start()
        number = 0
        while not services.ended("broker"):
            number += 1
            ledger.send(producer, number).result(45.0)
        acked = set(ledger.acked)
        restart(services, "broker")
        for message_id in range(number + 1, number + 20):
            ledger.send(producer, message_id)
        producer.finish_stream(ledger.stream)
    ids = reader.finish()
    assert acked <= set(ids)
    assert list(dict.fromkeys(ids)) == sorted(ledger.acked) == ledger.check_all(services)


@pytest.mark.needs_server
@pytest.mark.needs_linux
def test_a_core_that_dies_when_a_lease_runs_out_gives_the_message_again(services: LocalServices) -> None:
    restart(services, "broker", "lease.after-expiry:1:kill")
    with producer_of(services) as producer:
        producer.send(b"x", id=1, stream="s").result(45.0)
        producer.finish_stream("s")
    # A worker that neither works nor beats any more.
    hello = encode(Hello("consumer", b"w" * 16, "bt"))
    ask = encode(GetNext(1, "det", "s", "g", wait_s=45.0, lease_s=0.5))
    answers = replies(services.native.replace("asapo", "tcp"), [(hello, b""), (ask, b"")], n=2)
    assert [type(answer.event) for answer in answers] == [Welcome, Rows]
    dies_and_comes_back(services, "broker")
    with consumer_of(services) as other:
        assert other.get_next("g", stream="s").id == 1


# -- the places themselves -------------------------------------------------------------------------------------------


def test_every_place_stands_once_in_the_code_and_in_the_list() -> None:
    calls: list[str] = []
    for room in ("asapo", "producer", "receiver", "broker", "worker_sdk"):
        for path in (ROOT / room).rglob("*.py"):
            calls += re.findall(r"failpoint\(([^)\n]*)\)", path.read_text())
    named = [call.strip('"') for call in calls if call.startswith('"')]
    assert sorted(named) == sorted(NAMES)
    assert len(calls) == len(named) + 1, "a failpoint without a literal name (beside the function itself)"


@pytest.mark.parametrize("text", ["ingest.nowhere:1:kill", "ingest.before-ack:x:kill", "ingest.before-ack:1:sleep"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=text.split(":")[0].replace(".", r"\.")):
        Deaths.parse([text])
