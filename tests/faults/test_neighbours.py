"""Detectors beside each other: the same one twice, a change of beamtime, two beamtimes at once (F24, F26)."""

import itertools
from collections.abc import Iterator

import pytest

import asapo
from asapo import Producer
from asapo.errors import DuplicateId
from asapo.storage.layout import encode_name
from asapo.testing.launch import LocalServices
from tests.e2e.ledger import BEAMTIME, PATIENCE_S, Ledger, consumer_of, indexed_ids, producer_of, under_load

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(180)]

BEAMTIMES = ("first", "second/ä")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("services"), receivers=2, log_level="error") as found:
        yield found


# -- F24: the same detector twice -------------------------------------------------------------------------------------


def _send_both(producers: list[Producer], ledgers: list[Ledger], n: int) -> None:
    for message_id in range(1, n + 1):
        for producer, ledger in zip(producers, ledgers, strict=True):
            ledger.send(producer, message_id)
    for producer in producers:
        producer.flush(PATIENCE_S)


def test_a_detector_that_was_started_twice_and_sends_the_same_is_stored_once(services: LocalServices) -> None:
    ledgers = [Ledger("same"), Ledger("same")]
    with producer_of(services) as one, producer_of(services) as other:
        _send_both([one, other], ledgers, 150)
        one.finish_stream("same")
        other.finish_stream("same")
    assert not ledgers[0].failed
    assert ledgers[1].acked == ledgers[0].acked == set(range(1, 151))
    assert ledgers[0].check_all(services) == list(range(1, 151))


def test_of_two_detectors_with_the_same_ids_each_id_is_wholly_of_one(services: LocalServices) -> None:
    ledgers = [Ledger("clash", seed=seed, sizes=(100, 5_000, 300_000)) for seed in (1, 2)]
    with producer_of(services) as one, producer_of(services) as other:
        _send_both([one, other], ledgers, 150)
        one.finish_stream("clash")
    first, second = ledgers
    assert all(isinstance(error, DuplicateId) for ledger in ledgers for error in ledger.failed.values())
    assert first.acked | second.acked == set(range(1, 151))
    assert not first.acked & second.acked
    assert set(first.failed) == second.acked
    with consumer_of(services) as consumer:
        for ledger in ledgers:
            ledger.check_by_id(consumer)  # the bytes of the one that was told so


# -- F26: beamtimes ---------------------------------------------------------------------------------------------------


def _check_apart(services: LocalServices, ledgers: dict[str, Ledger]) -> None:
    """Read each beamtime in every way: its own messages, and the bytes of no other."""
    for beamtime, ledger in ledgers.items():
        assert not ledger.failed
        ledger.check_whole(indexed_ids(services.data_dir, ledger.stream, beamtime=beamtime), f"index of {beamtime}")
        with consumer_of(services, beamtime=beamtime) as consumer:
            ledger.check_by_id(consumer)
            lists = consumer.stream(group="g", stream=ledger.stream, batch=100, timeout_s=PATIENCE_S, follow=None)
            ledger.check_ordered((message for some in lists for message in some), f"group of {beamtime}")
        folder = services.data_dir / "beamline" / encode_name(beamtime)
        with asapo.open(folder, source="det") as offline:
            found = offline.get_by_id(sorted(ledger.acked), stream=ledger.stream)
            for message in found:
                ledger.check_content(message.id, message.raw, f"folder of {beamtime}")
    folders = {encode_name(beamtime) for beamtime in (BEAMTIME, *BEAMTIMES)}
    assert {path.name for path in (services.data_dir / "beamline").iterdir() if path.is_dir()} <= folders


def _change_beamtimes(services: LocalServices, stream: str, rounds: int) -> None:
    """Send to one beamtime after the other, large frames being under way at each change."""
    sizes = (700, 5_000, 300_000, 4_000_000)
    ledgers = {beamtime: Ledger(stream, seed=seed, sizes=sizes) for seed, beamtime in enumerate(BEAMTIMES)}
    numbers = {beamtime: itertools.count(1) for beamtime in BEAMTIMES}
    before: Producer | None = None
    for beamtime in itertools.islice(itertools.cycle(BEAMTIMES), 2 * rounds):
        producer = producer_of(services, beamtime=beamtime)
        for message_id in itertools.islice(numbers[beamtime], 15):
            ledgers[beamtime].send(producer, message_id)
        if before is not None:
            before.close()  # its last frames are under way beside the first ones of the next
        before = producer
    assert before is not None
    before.close()
    for beamtime in BEAMTIMES:
        with producer_of(services, beamtime=beamtime) as producer:
            producer.finish_stream(stream)
        assert len(ledgers[beamtime].acked) == 15 * rounds
    _check_apart(services, ledgers)


def test_frames_lie_wholly_in_the_beamtime_they_were_sent_to(services: LocalServices) -> None:
    _change_beamtimes(services, "changed", 3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_frames_lie_in_their_beamtime_after_many_changes(services: LocalServices, soak_share: float) -> None:
    _change_beamtimes(services, "changed often", max(5, round(50 * soak_share)))


def test_two_beamtimes_at_once_see_nothing_of_each_other(services: LocalServices) -> None:
    ledgers = {beamtime: Ledger("at once", seed=seed) for seed, beamtime in enumerate(BEAMTIMES)}
    one, other = (producer_of(services, beamtime=beamtime) for beamtime in BEAMTIMES)
    with (
        one,
        other,
        under_load(one, ledgers[BEAMTIMES[0]], itertools.count(1)) as load,
        under_load(other, ledgers[BEAMTIMES[1]], itertools.count(1)) as beside,
    ):
        load.wait_for_more(150)
        beside.wait_for_more(50)
        load.stop()
        beside.stop()
        one.finish_stream("at once")
        other.finish_stream("at once")
    _check_apart(services, ledgers)
