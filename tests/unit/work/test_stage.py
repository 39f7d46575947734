"""A stage acknowledges its input only when its results are acknowledged."""

from types import SimpleNamespace
from typing import Any

import pytest

from asapo.errors import DuplicateId, WrongInput
from asapo_work.stage import Result, Stage, StageCounts, run_stage


class FakeConsumer:
    """Gives lists of messages; a list counts as done when the loop asks for the next."""

    def __init__(self, *batches: Any) -> None:
        self.batches = [[SimpleNamespace(id=i, source="det", stream="run") for i in ids] for ids in batches]
        self.done: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.back: list[int] = []
        self.settings: dict[str, Any] = {}

    def stream(self, **settings: Any) -> Any:
        self.settings = settings
        for messages in self.batches:
            yield messages
            self.done += [message.id for message in messages]

    def acknowledge(self, messages: Any, *, group: Any) -> None:
        self.done += [message.id for message in (messages if isinstance(messages, list) else [messages])]

    def nack(self, messages: Any, *, group: Any, reason: Any) -> None:
        self.failed += [(message.id, repr(reason)) for message in messages]

    def give_back(self, messages: Any, *, group: Any) -> None:
        self.back += [message.id for message in messages]


class FakeProducer:
    def __init__(self, log: Any, refuse: Any = None) -> None:
        self.log = log
        self.refuse = refuse

    def send(self, data: Any, *, id: Any, stream: Any, meta: Any, origin: Any) -> Any:
        self.log.append(("send", id, stream, data, origin.id))

        def result() -> Any:
            self.log.append(("stored", id))
            if id == self.refuse:
                raise DuplicateId("other content", message_id=id)

        return SimpleNamespace(result=result)


def producer(log: list[Any], refuse: int | None = None) -> Any:
    return FakeProducer(log, refuse)


def scores(messages: Any) -> Any:
    return [Result(message.id * 10, {"score": 1}) for message in messages]


def test_results_carry_the_id_and_the_origin_of_their_message() -> None:
    consumer: Any = FakeConsumer([1, 2], [3])
    log: list[Any] = []
    counts = run_stage(consumer, producer(log), scores, group="g", stream="run", out_stream="scores", batch=7)
    assert counts == StageCounts(taken=3, published=3)
    assert [entry for entry in log if entry[0] == "send"] == [
        ("send", 1, "scores", 10, 1),
        ("send", 2, "scores", 20, 2),
        ("send", 3, "scores", 30, 3),
    ]
    assert consumer.done == [1, 2, 3]
    assert (consumer.settings["batch"], consumer.settings["group"]) == (7, "g")


def test_the_input_is_not_done_before_the_results_are_stored() -> None:
    consumer: Any = FakeConsumer([1, 2], [3])
    log: list[Any] = []
    with pytest.raises(DuplicateId):
        run_stage(consumer, producer(log, refuse=2), scores, group="g")
    assert ("stored", 2) in log
    assert consumer.done == []
    assert [one for one, _ in consumer.failed] == [1, 2]


def test_none_publishes_nothing_but_counts_as_done() -> None:
    consumer: Any = FakeConsumer([1, 2], [3])
    log: list[Any] = []

    def odd_only(messages: Any) -> Any:
        return [Result() if message.id % 2 else None for message in messages] if len(messages) > 1 else None

    assert run_stage(consumer, producer(log), odd_only, group="g") == StageCounts(taken=3, published=1)
    assert [entry[1:3] for entry in log if entry[0] == "send"] == [(1, "run")]
    assert consumer.done == [1, 2, 3]


def test_another_number_of_results_than_messages_is_refused() -> None:
    consumer: Any = FakeConsumer([1, 2])
    with pytest.raises(WrongInput, match="3 results for 2 messages"):
        run_stage(consumer, producer([]), lambda _: [None] * 3, group="g")


def test_stop_ends_after_the_messages_at_work() -> None:
    consumer: Any = FakeConsumer([1], [2], [3])
    stages: list[Stage] = []

    def process(messages: Any) -> Any:
        stages[0].stop()

    stages.append(Stage(consumer, producer([]), process, group="g"))
    assert stages[0].run() == StageCounts(taken=1)
    assert consumer.done == [1]


def no_threes(messages: Any) -> Any:
    if any(message.id == 3 for message in messages):
        raise ValueError("no threes")


def test_with_bounded_attempts_only_the_message_that_fails_is_to_blame() -> None:
    consumer: Any = FakeConsumer([1, 2, 3, 4, 5])
    with pytest.raises(ValueError, match="no threes"):
        run_stage(consumer, producer([]), no_threes, group="g", max_attempts=3)
    assert consumer.failed == [(3, "ValueError('no threes')")]
    assert (consumer.done, consumer.back) == ([1, 2], [4, 5])
    assert consumer.settings["max_attempts"] == 3


def test_a_list_that_only_fails_together_is_done_one_by_one() -> None:
    consumer: Any = FakeConsumer([1, 2], [4])

    def few(messages: Any) -> Any:
        if len(messages) > 1:
            raise MemoryError
        return scores(messages)

    log: list[Any] = []
    assert run_stage(consumer, producer(log), few, group="g", max_attempts=3) == StageCounts(taken=3, published=3)
    assert consumer.failed == []
    assert set(consumer.done) == {1, 2, 4}
