"""User code that does not come back: what it was given goes to others, and it may go on when it does come back."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from asapo import AsyncConsumer, Consumer, Producer
from asapo.errors import StreamFinished, WrongInput
from asapo.testing.launch import LocalServices
from asapo_work import Message, Result, Stage
from tests.e2e.ledger import PATIENCE_S, wait_until

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]

LIMIT_S = 0.5


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    with LocalServices(tmp_path_factory.mktemp("overtime")) as running:
        yield running


def fill(services: LocalServices, stream: str, n: int) -> None:
    with Producer(services.native, beamtime="bt", source="det") as producer:
        producer.send_batch([b"x"] * n, stream=stream)
        producer.finish_stream(stream)


def connect(services: LocalServices) -> Consumer:
    return Consumer(services.native, beamtime="bt", source="det", timeout_s=PATIENCE_S)


def held(consumer: Consumer, stream: str) -> int:
    (group,) = consumer.groups(stream=stream)
    return group.held


def rest_of(consumer: Consumer, stream: str) -> dict[int, int]:
    """Do everything that a group still gives; return how often each message has been given."""
    found = {}
    with contextlib.suppress(StreamFinished):
        while True:
            message = consumer.get_next("g", stream=stream, max_attempts=3)
            found[message.id] = message.attempt
            consumer.acknowledge(message, group="g")
    return found


def test_what_a_loop_hangs_on_goes_to_others_and_the_loop_goes_on_behind_it(
    services: LocalServices, caplog: pytest.LogCaptureFixture
) -> None:
    fill(services, "hang", 20)
    done: list[int] = []
    with connect(services) as slow, connect(services) as other:
        messages = slow.stream(group="g", stream="hang", max_attempts=3, work_timeout_s=LIMIT_S, timeout_s=PATIENCE_S)
        for message in messages:
            if message.id == 3:
                wait_until(lambda: held(other, "hang") == 0, "everything is given up, also what was fetched ahead")
                found = other.get_next("g", n=20, stream="hang", max_attempts=3)
                assert {one.id: one.attempt for one in found} == {3: 2} | dict.fromkeys(range(4, 21), 1)
                other.acknowledge(3, group="g", stream="hang")
                other.give_back([one for one in found if one.id != 3], group="g")
                continue
            done.append(message.id)
        assert done == [1, 2, *range(4, 21)]
        assert not rest_of(other, "hang"), "all is done"
    assert "user code did not come back within 0.5 s: messages [3]" in caplog.text


def test_a_frame_that_every_worker_hangs_on_becomes_a_dead_letter_that_shows_where(services: LocalServices) -> None:
    fill(services, "dead", 3)

    def where_it_hangs(consumer: Consumer) -> None:
        wait_until(lambda: held(consumer, "dead") == 0, "given up")

    with connect(services) as slow, connect(services) as other:
        for message in slow.stream(
            group="g", stream="dead", max_attempts=1, work_timeout_s=LIMIT_S, timeout_s=PATIENCE_S
        ):
            if message.id == 2:
                where_it_hangs(other)
        (letter,) = other.dead_letters("g", stream="dead")
    assert (letter.id, letter.attempts, letter.reason) == (2, 1, "user code did not come back within 0.5 s")
    assert "in where_it_hangs\n" in letter.traceback


def test_of_a_list_that_hangs_each_message_comes_again_alone(services: LocalServices) -> None:
    fill(services, "list", 4)
    with connect(services) as slow, connect(services) as other:
        lists = slow.stream(
            group="g", stream="list", batch=4, max_attempts=3, work_timeout_s=LIMIT_S, timeout_s=PATIENCE_S
        )
        with contextlib.closing(lists):
            assert len(next(lists)) == 4
            wait_until(lambda: held(other, "list") == 0, "given up")
            assert [message.id for message in other.get_next("g", n=4, stream="list", max_attempts=3)] == [1]
            other.acknowledge(1, group="g", stream="list")
        assert rest_of(other, "list") == {2: 2, 3: 2, 4: 2}


def test_code_that_comes_back_in_time_keeps_what_it_has(services: LocalServices) -> None:
    fill(services, "busy", 40)
    with connect(services) as consumer, connect(services) as other:
        limit_s = 2.0
        began_s = time.monotonic()
        count = 0
        for _ in consumer.stream(
            group="g", stream="busy", max_attempts=3, work_timeout_s=limit_s, timeout_s=PATIENCE_S, ack="manual"
        ):
            count += 1
            threading.Event().wait(limit_s / 30)  # in all longer than the limit, which is one for each message
        assert time.monotonic() - began_s > limit_s
        assert count == 40
        assert held(other, "busy") == 40, "done with, not acknowledged: nobody hangs"


def test_coroutines_have_the_same_limit(services: LocalServices) -> None:
    fill(services, "async", 3)

    async def work() -> list[int]:
        done = []
        async with AsyncConsumer(services.native, beamtime="bt", source="det", timeout_s=PATIENCE_S) as consumer:
            with connect(services) as other:
                async for message in consumer.stream(
                    group="g", stream="async", max_attempts=3, work_timeout_s=LIMIT_S, timeout_s=PATIENCE_S
                ):
                    if message.id == 2 and message.attempt == 1:
                        while held(other, "async"):
                            await asyncio.sleep(0.01)
                        continue
                    done.append(message.id)
        return done

    assert sorted(asyncio.run(work())) == [1, 2, 3]


def test_a_stage_has_the_same_limit(services: LocalServices) -> None:
    fill(services, "stage", 3)
    with connect(services) as consumer, connect(services) as other:
        slow = iter([True])

        def process(messages: list[Message]) -> list[Result]:
            if next(slow, False):
                wait_until(lambda: held(other, "stage") == 0, "given up")
            return [Result(meta={"id": message.id}) for message in messages]

        with Producer(services.native, beamtime="bt", source="out") as producer:
            stage = Stage(
                consumer, producer, process, group="g", stream="stage", batch=3, max_attempts=3,
                work_timeout_s=LIMIT_S, timeout_s=PATIENCE_S,
            )  # fmt: skip
            stage.run()
        assert not rest_of(other, "stage")
        (letterless,) = other.groups(stream="stage")
        assert letterless.dead_letters == 0
        assert [message.id for message in other.query("", source="out", stream="stage")] == [1, 2, 3]


@pytest.mark.parametrize("limit", [-1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(services: LocalServices, limit: float) -> None:
    with connect(services) as consumer, pytest.raises(WrongInput, match="work_timeout_s"):
        consumer.stream(group="g", work_timeout_s=limit)
