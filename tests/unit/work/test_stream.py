"""A `stream()` loop without links: what it asks, acknowledges and hands back at every way out."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from asapo.errors import LeaseLost, NothingYet, StreamFinished, UnknownStream, WrongInput
from asapo.testing.fake_broker import row
from asapo.wire.events import Acknowledge, Done, GetNext, ListStreams, Nack, Rows
from asapo_work.message import settle
from asapo_work.plans import Ask, Pause, Place, Reading
from asapo_work.stream import ACK_SOON_S, Await, Give, Glance, StreamReader, StreamSettings

END = StreamFinished("end", id_max=9)


class FakeChannel:
    """Records what was begun, posted and abandoned."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.posted: list[Any] = []
        self.abandoned: list[Any] = []
        self.answered = True

    def begin(self, kind: Any, fields: Any) -> Any:
        call = SimpleNamespace(kind=kind, fields=fields)
        self.begun.append(call)
        return call

    def check(self, call: Any) -> Any:
        return self.answered

    def post(self, kind: Any, fields: Any) -> None:
        self.posted.append((kind, fields))

    def abandon(self, call: Any) -> None:
        self.abandoned.append(call)

    def acked(self) -> Any:
        """Every range that was reported as done, whichever way."""
        carried = [r for call in self.begun if call.kind is GetNext for r in call.fields["done"]]
        asked = [r for call in self.begun if call.kind is Acknowledge for r in call.fields["ranges"]]
        return carried + asked + [r for kind, fields in self.posted if kind is Acknowledge for r in fields["ranges"]]

    def nacked(self) -> Any:
        return [(fields["ids"], fields["unstarted"]) for kind, fields in self.posted if kind is Nack]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> Any:
        return self.now_s


def make(
    *, batch: Any = None, follow: Any = "next", timeout_s: Any = 10.0, ack: Any = "auto", prefetch: Any = True
) -> Any:
    channel: Any = FakeChannel()
    clock, no_payloads = Clock(), cast(Any, None)
    settings = StreamSettings(batch=batch, follow=follow, timeout_s=timeout_s, ack=ack, prefetch=prefetch)
    reader = StreamReader(channel, Place("bt", "det", "run1", no_payloads), Reading(group="g"), settings, clock)
    return SimpleNamespace(channel=channel, clock=clock, reader=reader, plan=reader.read())


def rows(*ids: Any) -> Rows:
    return Rows(1, [row(i) for i in ids], {}, {})


def give(loop: Any, *ids: Any) -> Give:
    """Answer the request that the loop waits for and return what it gives to user code."""
    step = loop.plan.send(rows(*ids))
    assert isinstance(step, Give)
    return step


def finish(loop: Any, answer: Any = END) -> None:
    with pytest.raises(StopIteration):
        loop.plan.throw(answer)


def test_the_next_request_leaves_before_user_code_has_the_messages() -> None:
    loop = make(batch=10)
    assert isinstance(next(loop.plan), Await)
    give(loop, 1, 2)
    assert [call.kind for call in loop.channel.begun] == [GetNext, GetNext]


def quick_loop() -> Any:
    """A loop whose user code took no time for a full answer, and has the second one now."""
    loop = make(batch=2)
    next(loop.plan)
    give(loop, 1, 2).taken.started = 2
    assert len(loop.channel.begun) == 2
    next(loop.plan)
    give(loop, 3, 4).taken.started = 2
    return loop


def test_quick_user_code_has_two_requests_under_way_while_answers_are_full() -> None:
    loop = quick_loop()
    first, second, third, fourth = loop.channel.begun
    assert (first.fields["n"], third.fields["done"], fourth.fields["done"]) == (2, [(1, 2)], [])
    assert next(loop.plan).call is third  # answers are taken in the order of the requests
    give(loop, 5).taken.started = 1
    assert len(loop.channel.begun) == 5
    assert loop.channel.begun[4].fields["done"] == [(3, 4)]
    assert next(loop.plan).call is fourth
    give(loop, 6)
    assert len(loop.channel.begun) == 5, "the answer before was not full: one is enough"


def test_the_end_is_asked_for_again_when_requests_left_before_all_was_done() -> None:
    loop = quick_loop()
    next(loop.plan)
    step = loop.plan.throw(END)
    assert step.call.kind is Acknowledge
    assert step.call.fields["ranges"] == [(3, 4)]
    assert loop.plan.send(Done(1, {})).call is loop.channel.begun[3]
    step = loop.plan.throw(END)
    assert step.call is loop.channel.begun[5]
    finish(loop)
    assert loop.channel.abandoned == []


def test_leaving_gives_up_all_requests_under_way() -> None:
    loop = quick_loop()
    loop.plan.close()
    assert loop.channel.abandoned == loop.channel.begun[2:]


def test_without_prefetch_one_request_is_under_way_at_a_time() -> None:
    loop = make(batch=10, prefetch=False)
    next(loop.plan)
    give(loop, 1, 2)
    assert len(loop.channel.begun) == 1
    next(loop.plan)
    assert loop.channel.begun[1].fields["done"] == [(1, 2)]


def test_done_messages_travel_with_the_next_request() -> None:
    loop = make(batch=10)
    next(loop.plan)
    give(loop, 1, 2, 3).taken.started = 3
    next(loop.plan)
    give(loop, 4, 8)
    assert [call.fields["done"] for call in loop.channel.begun] == [[], [], [(1, 3)]]
    assert loop.channel.posted == []


def waiting_for_more() -> Any:
    """A loop that has done messages 1 to 3 and looks whether more come at once."""
    loop = make(batch=10)
    next(loop.plan)
    give(loop, 1, 2, 3).taken.started = 3
    loop.channel.answered = False
    step = next(loop.plan)
    assert step == Glance(loop.channel.begun[1], ACK_SOON_S)
    return loop


def test_done_messages_are_reported_soon_when_nothing_more_comes() -> None:
    loop = waiting_for_more()
    assert loop.channel.acked() == []
    assert isinstance(loop.plan.send(False), Await)
    assert loop.channel.acked() == [(1, 3)]


def test_done_messages_wait_for_the_next_request_when_more_comes_at_once() -> None:
    loop = waiting_for_more()
    assert isinstance(loop.plan.send(True), Await)
    give(loop, 4)
    assert loop.channel.posted == []
    assert loop.channel.begun[2].fields["done"] == [(1, 3)]


def test_a_loop_that_is_left_while_it_looks_for_more_reports_and_gives_the_request_up() -> None:
    loop = waiting_for_more()
    loop.plan.close()
    assert loop.channel.acked() == [(1, 3)]
    assert loop.channel.abandoned == [loop.channel.begun[1]]


def test_the_end_is_reached_after_the_last_messages_are_acknowledged() -> None:
    loop = make(batch=10)
    next(loop.plan)
    give(loop, 1, 2).taken.started = 2
    next(loop.plan)
    step = loop.plan.throw(END)  # of the request that left before 1 and 2 were done
    assert isinstance(step, Await)
    assert loop.channel.begun[-1].kind is Acknowledge
    loop.plan.send(Done(1))
    assert loop.channel.begun[-1].fields["done"] == []  # asks again: something may have come back meanwhile
    finish(loop)
    assert loop.channel.acked() == [(1, 2)]


def test_leaving_the_loop_hands_back_the_current_and_what_was_not_started() -> None:
    loop = make()
    next(loop.plan)
    give(loop, 1, 2, 3, 4).taken.started = 3
    loop.plan.close()
    assert loop.channel.acked() == [(1, 2)]
    assert loop.channel.nacked() == [([3], False), ([4], True)]
    assert loop.channel.abandoned == [loop.channel.begun[-1]]


def test_leaving_a_loop_over_lists_hands_the_whole_list_back() -> None:
    loop = make(batch=5)
    next(loop.plan)
    give(loop, 1, 2).taken.started = 2
    loop.plan.close()
    assert loop.channel.acked() == []
    assert loop.channel.nacked() == [([1, 2], False)]


def test_what_user_code_settled_itself_is_left_alone() -> None:
    loop = make()
    next(loop.plan)
    taken = give(loop, 1, 2, 3).taken
    taken.started = 2
    assert settle(taken.messages[:2]) == [1, 2]
    assert [message.settled for message in taken.messages] == [True, True, False]
    loop.plan.close()
    assert loop.channel.acked() == []
    assert loop.channel.nacked() == [([3], True)]


def test_messages_that_user_code_settled_are_not_acknowledged_by_the_loop() -> None:
    loop = make(batch=10)
    next(loop.plan)
    taken = give(loop, 1, 2, 3, 4).taken
    taken.started = 4
    settle(taken.messages[1:2])  # as `nack` does
    next(loop.plan)
    give(loop, 5)
    assert loop.channel.acked() == [(1, 1), (3, 4)]
    assert loop.channel.nacked() == []


def test_manual_acknowledgement_leaves_started_messages_to_user_code() -> None:
    loop = make(ack="manual")
    next(loop.plan)
    give(loop, 1, 2, 3).taken.started = 2
    loop.plan.close()
    assert loop.channel.acked() == []
    assert loop.channel.nacked() == [([3], True)]


def test_handing_back_twice_says_it_once() -> None:
    loop = make()
    next(loop.plan)
    give(loop, 1, 2).taken.started = 1
    loop.reader.give_back()
    loop.plan.close()
    assert loop.channel.nacked() == [([1], False), ([2], True)]


def test_slow_user_code_reports_what_is_done_meanwhile() -> None:
    loop = make()
    next(loop.plan)
    taken = give(loop, 1, 2, 3).taken
    assert not loop.reader.due()
    loop.clock.now_s += 1.0
    assert loop.reader.due()
    loop.reader.report(2)
    assert loop.channel.acked() == [(1, 2)]
    taken.started = 3
    loop.plan.close()
    assert loop.channel.acked() == [(1, 2)]


def test_the_next_stream_is_followed() -> None:
    loop = make()
    next(loop.plan)
    step = loop.plan.throw(StreamFinished("end", next_stream="run2"))
    assert isinstance(step, Await)
    assert loop.channel.begun[-1].fields["stream"] == "run2"
    finish(loop)


def test_no_stream_is_followed_when_told_so() -> None:
    loop = make(follow=None)
    next(loop.plan)
    finish(loop, StreamFinished("end", next_stream="run2"))


def test_streams_that_name_each_other_end() -> None:
    loop = make()
    next(loop.plan)
    loop.plan.throw(StreamFinished("end", next_stream="run2"))
    finish(loop, StreamFinished("end", next_stream="run1"))


def test_any_other_stream_of_the_source_is_followed_also_one_that_comes_later() -> None:
    loop = make(follow="source")
    next(loop.plan)
    step = loop.plan.throw(END)
    assert isinstance(step, Ask)
    assert step.kind is ListStreams
    assert isinstance(loop.plan.send(Done(1, {"streams": [{"source": "det", "stream": "run1"}]})), Pause)
    assert isinstance(loop.plan.send(None), Ask)
    streams = [{"source": "det", "stream": name} for name in ("run1", "scan7")]
    assert isinstance(loop.plan.send(Done(1, {"streams": streams})), Await)
    assert loop.channel.begun[-1].fields["stream"] == "scan7"


def test_further_streams_are_taken_in_the_order_in_which_they_were_made() -> None:
    loop = make(follow="source")
    listed = [("run1", 2), ("scan_10", 5), ("scan_2", 3), ("scan_9", 4)]
    streams = [{"source": "det", "stream": name, "number": number} for name, number in listed]
    next(loop.plan)
    for name in ("scan_2", "scan_9", "scan_10"):
        assert loop.plan.throw(END).kind is ListStreams
        loop.plan.send(Done(1, {"streams": streams}))
        assert loop.channel.begun[-1].fields["stream"] == name


@pytest.mark.parametrize("refused", [False, True])
def test_what_somebody_else_got_meanwhile_is_logged_and_the_loop_goes_on(
    caplog: pytest.LogCaptureFixture, refused: bool
) -> None:
    loop = make(batch=10)
    next(loop.plan)
    give(loop, 1, 2).taken.started = 2
    next(loop.plan)
    loop.plan.throw(END)
    assert loop.channel.begun[-1].kind is Acknowledge
    step = loop.plan.throw(LeaseLost("unknown group")) if refused else loop.plan.send(Done(1, {"lost": [1, 2]}))
    assert isinstance(step, Await)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "[1, 2]" in caplog.text
    finish(loop)


def test_waiting_for_a_further_stream_ends_with_the_time() -> None:
    loop = make(follow="source", timeout_s=5.0)
    next(loop.plan)
    loop.plan.throw(END)
    loop.clock.now_s += 5
    with pytest.raises(NothingYet, match="no further stream"):
        loop.plan.send(Done(1, {"streams": []}))


def test_silence_ends_the_loop_when_the_time_is_over() -> None:
    loop = make(timeout_s=60.0)
    assert next(loop.plan).timeout_s == 60.0
    loop.clock.now_s += 30
    assert loop.plan.throw(NothingYet("x")).timeout_s == 30.0
    loop.clock.now_s += 30
    with pytest.raises(NothingYet):
        loop.plan.throw(NothingYet("x"))


def test_the_broker_is_asked_to_answer_before_the_time_is_over() -> None:
    loop = make(timeout_s=70.0)
    next(loop.plan)
    loop.clock.now_s += 30.5  # the answer took its way
    loop.plan.throw(NothingYet("x"))
    loop.clock.now_s += 30.5
    loop.plan.throw(NothingYet("x"))
    assert [call.fields["wait_s"] for call in loop.channel.begun] == [30.0, 30.0, 9.0]


def test_the_time_counts_from_the_last_message() -> None:
    loop = make(timeout_s=60.0)
    next(loop.plan)
    loop.clock.now_s += 50
    give(loop, 1)
    assert next(loop.plan).timeout_s == 60.0


def test_a_stream_that_does_not_exist_yet_is_waited_for() -> None:
    loop = make()
    next(loop.plan)
    assert isinstance(loop.plan.throw(UnknownStream("x")), Pause)
    assert isinstance(loop.plan.send(None), Await)


@pytest.mark.parametrize("wrong", [{"follow": "all"}, {"ack": "never"}])
def test_unknown_ways_of_reading_are_refused(wrong: Any) -> None:
    with pytest.raises(WrongInput):
        make(**wrong)
