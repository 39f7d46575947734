"""`asapo.open`: groups in memory, and what does not end or is not there."""

import threading
import time

import pytest

from asapo.errors import (
    GroupMismatch,
    LeaseLost,
    LocalProtocolError,
    NothingYet,
    OfflineUnsupported,
    StreamFinished,
    UnknownStream,
)
from tests.recording import Recording
from tests.unit.offline.opening import frames, opened

# -- groups ----------------------------------------------------------------------------------------------------------


def test_what_is_nacked_comes_again_after_its_delay_which_nobody_waits_for(recording: Recording) -> None:
    frames(recording, 1, 2, 3)
    recording.finish(3)
    with opened(recording) as consumer:
        first = consumer.get_next("g", stream="s")
        started_s = time.monotonic()
        consumer.nack(first, group="g", delay_s=3600.0)
        found = [(m.id, m.attempt) for m in consumer.stream(group="g", stream="s", timeout_s=7200.0)]
        assert found == [(2, 1), (3, 1), (1, 2)]
        assert time.monotonic() - started_s < 60


def test_a_call_that_does_not_wait_that_long_finds_nothing_yet(recording: Recording) -> None:
    frames(recording, 1)
    recording.finish(1)
    with opened(recording) as consumer:
        consumer.nack(consumer.get_next("g", stream="s"), group="g", delay_s=100.0)
        with pytest.raises(NothingYet):
            consumer.get_next("g", stream="s", timeout_s=60.0)
        assert consumer.get_next("g", stream="s", timeout_s=60.0).id == 1


def test_what_is_given_back_counts_as_never_given(recording: Recording) -> None:
    frames(recording, 1, 2)
    recording.finish(2)
    with opened(recording) as consumer:
        consumer.give_back(consumer.get_next("g", stream="s"), group="g")
        for message in consumer.stream(group="g", stream="s"):
            assert (message.id, message.attempt) == (1, 1)
            break  # hands it back, and that counts
        # What was fetched ahead was never given, so it comes before what was.
        assert [(m.id, m.attempt) for m in consumer.stream(group="g", stream="s")] == [(2, 1), (1, 2)]
        with pytest.raises(LeaseLost):
            consumer.nack(1, group="g", stream="s")
        with pytest.raises(LeaseLost, match="were given to somebody else"):
            consumer.acknowledge(1, group="never", stream="s")


def test_attempts_are_bounded(recording: Recording) -> None:
    frames(recording, 1)
    recording.finish(1)
    with opened(recording) as consumer:
        for _ in range(2):
            consumer.nack(consumer.get_next("g", stream="s", max_attempts=2), group="g")
        with pytest.raises(StreamFinished):
            consumer.get_next("g", stream="s", max_attempts=2)
        for other in ({"max_attempts": 3}, {"ordered": False, "max_attempts": 2}):
            with pytest.raises(GroupMismatch):
                consumer.get_next("g", stream="s", **other)  # type: ignore[call-overload]


def test_groups_begin_anew_with_every_open(recording: Recording) -> None:
    frames(recording, 1)
    recording.finish(1)
    for _ in range(2):
        with opened(recording) as consumer:
            assert consumer.get_next("g", stream="s").id == 1


def test_threads_share_a_group_and_each_message_is_given_once(recording: Recording) -> None:
    recording.put(range(1, 2001), payloads=[b""] * 2000)
    recording.finish(2000)
    with opened(recording) as consumer:
        taken: list[list[int]] = [[] for _ in range(4)]

        def work(mine: list[int]) -> None:
            mine += [message.id for message in consumer.stream(group="g", stream="s")]

        threads = [threading.Thread(target=work, args=(mine,)) for mine in taken]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(sum(taken, [])) == list(range(1, 2001))


# -- what does not end, or is not there --------------------------------------------------------------------------------


def test_nothing_is_waited_for(recording: Recording) -> None:
    frames(recording, 1)
    frames(recording, 1, stream="t")
    started_s = time.monotonic()
    with opened(recording) as consumer:
        found = consumer.stream(group="g", stream="s", timeout_s=3600.0)
        assert next(found).id == 1
        with pytest.raises(NothingYet):
            next(found)
        with pytest.raises(UnknownStream):
            consumer.get_next("g", stream="none", timeout_s=3600.0)
        with pytest.raises(UnknownStream):
            next(consumer.stream(group="g", stream="none"))
        with pytest.raises(UnknownStream):
            consumer.get_last(stream="none")
    assert time.monotonic() - started_s < 60


def test_streams_are_followed(recording: Recording) -> None:
    frames(recording, 1, stream="s")
    frames(recording, 2, stream="named")
    frames(recording, 3, stream="later")
    recording.finish(1, stream="s", next_stream="named")
    recording.finish(2, stream="named")
    recording.finish(3, stream="later")
    with opened(recording) as consumer:
        assert [m.id for m in consumer.stream(group="g", stream="s")] == [1, 2]
        assert [m.id for m in consumer.stream(group="h", stream="s", follow=None)] == [1]
        every = consumer.stream(group="i", stream="s", follow="source", timeout_s=5.0)
        assert [next(every).id for _ in range(3)] == [1, 2, 3]
        with pytest.raises(NothingYet, match="no further stream"):
            next(every)


@pytest.mark.needs_server
def test_what_a_folder_lacks_says_so(recording: Recording) -> None:
    frames(recording, 1)
    with opened(recording) as consumer, pytest.raises(OfflineUnsupported, match="needs running services") as caught:
        consumer.receivers()
    assert caught.value.feature == "ListReceivers"
    with opened(recording) as consumer, pytest.raises(OfflineUnsupported, match="looks at every message"):
        consumer.explain("", stream="s")
    with pytest.raises(LocalProtocolError, match="open the folder again"):
        consumer.get_last(stream="s")
    assert repr(consumer) == "<OfflineConsumer of bt1/det: closed>"


def test_payloads_stay_readable_after_the_close(recording: Recording) -> None:
    frames(recording, 3)
    with opened(recording) as consumer:
        data = consumer.get_last(stream="s").data
    assert data.tolist() == [[3] * 3] * 2
