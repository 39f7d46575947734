"""The live view as a plan: what it asks, what it shows, when it ends. The test moves the clock."""

from collections.abc import Iterator
from typing import Any

import pytest

from asapo.errors import NothingYet, StreamFinished, UnknownStream, WrongInput
from asapo.testing.fake_broker import row
from asapo.wire.events import Done, GetLast, ListStreams, Rows
from asapo_work.live import POLL_S, LiveSettings, LiveView
from asapo_work.plans import Ask, Pause, Place, Show

NO_PAYLOADS: Any = None
PLACE = Place("bt", "cam", "a", NO_PAYLOADS)


class Stream:
    """A stream that the test lets grow: (id, arrival number) of its newest message."""

    def __init__(self, newest: int = 0, *, size: int = 0, grows: int = 0) -> None:
        self.newest = newest
        self.size = size
        self.grows = grows
        """By so much whenever somebody asks."""
        self.finished = False
        self.next_stream = ""


class World:
    """Streams by name, a clock, and what was asked."""

    def __init__(self, **settings: Any) -> None:
        self.streams = {"a": Stream()}
        self.now_s = 100.0
        self.asked = 0
        values: dict[str, Any] = {"rate_hz": 10.0, "every": 1, "follow": "next", "timeout_s": 5.0} | settings
        self.plan: Any = LiveView(PLACE, LiveSettings(**values), lambda: self.now_s).read()
        self.step: Any = next(self.plan)

    def answer(self, ask: Ask) -> Any:
        if ask.kind is ListStreams:
            entries = [
                {"stream": name, "number": number, "id_max": one.newest}
                for number, (name, one) in enumerate(self.streams.items(), 1)
            ]
            return self.plan.send(Done(1, {"streams": entries}))
        assert ask.kind is GetLast
        self.asked += 1
        stream = self.streams.get(ask.fields["stream"])
        if stream is None:
            return self.plan.throw(UnknownStream("unknown"))
        stream.newest += stream.grows
        if stream.newest > ask.fields["after"]:
            seq = stream.newest * max(1, stream.size)
            return self.plan.send(Rows(1, [row(stream.newest, seq=seq, dataset_size=stream.size)], {}, {}))
        if stream.finished:
            return self.plan.throw(StreamFinished("end", next_stream=stream.next_stream))
        return self.plan.throw(NothingYet("nothing"))

    def shown(self) -> Iterator[tuple[str, int, float]]:
        """Carry the plan out; yield stream, id and time of what is shown."""
        try:
            while True:
                if isinstance(self.step, Show):
                    yield self.step.value.stream, self.step.value.id, round(self.now_s, 6)
                    self.step = next(self.plan)
                elif isinstance(self.step, Pause):
                    self.now_s += self.step.seconds
                    self.step = self.plan.send(None)
                else:
                    self.step = self.answer(self.step)
        except StopIteration:
            return


def test_only_the_newest_is_shown_and_no_more_often_than_asked_for() -> None:
    world = World(rate_hz=4.0)
    stream = world.streams["a"]
    stream.newest = 7
    seen = []
    for _, message_id, now_s in world.shown():
        seen.append((message_id, now_s))
        stream.newest += 100
        if len(seen) == 3:
            break
    assert seen == [(7, 100.0), (107, 100.25), (207, 100.5)]


def test_a_slow_viewer_is_not_shown_what_came_meanwhile() -> None:
    world = World()
    stream = world.streams["a"]
    stream.newest = 1
    seen = []
    for _, message_id, _ in world.shown():
        seen.append(message_id)
        world.now_s += 60.0
        stream.newest += 50
        stream.finished = len(seen) == 2
        if stream.finished:
            stream.newest -= 50
    assert seen == [1, 51]


def test_one_in_so_many_is_counted_by_arrival_and_whole_datasets() -> None:
    for size in (0, 4):
        world = World(every=10)
        world.streams["a"] = Stream(0, size=size, grows=1)
        assert [message_id for (_, message_id, _), _ in zip(world.shown(), range(4), strict=False)] == [1, 11, 21, 31]


def test_it_waits_for_a_stream_that_does_not_exist_yet_and_gives_up_in_time() -> None:
    world = World()
    del world.streams["a"]
    with pytest.raises(UnknownStream):
        list(world.shown())
    assert world.now_s == pytest.approx(105.0)
    world = World()
    world.streams["a"].newest = 1
    with pytest.raises(NothingYet, match="nothing new in cam/a"):
        list(world.shown())
    assert world.now_s == pytest.approx(105.1, abs=2 * POLL_S)


@pytest.mark.parametrize(("follow", "expected"), [("next", [("a", 3), ("b", 5)]), (None, [("a", 3)])])
def test_at_the_end_it_goes_on_with_the_stream_that_follows(follow: Any, expected: list[tuple[str, int]]) -> None:
    world = World(follow=follow)
    world.streams = {"a": Stream(3), "b": Stream(5)}
    world.streams["a"].finished = world.streams["b"].finished = True
    world.streams["a"].next_stream = "b"
    assert [(stream, message_id) for stream, message_id, _ in world.shown()] == expected


def test_following_the_source_it_turns_to_the_newest_stream_that_has_something() -> None:
    world = World(follow="source")
    world.streams["a"].newest = 1
    shown = world.shown()
    assert next(shown)[:2] == ("a", 1)
    world.streams |= {"b": Stream(2), "c": Stream(4), "d": Stream(0)}
    assert next(shown)[:2] == ("c", 4)
    with pytest.raises(NothingYet):
        next(shown)


def test_while_the_present_stream_has_news_it_is_not_left() -> None:
    world = World(follow="source")
    world.streams = {"a": Stream(1), "b": Stream(1)}
    seen = []
    for stream, _, _ in world.shown():
        seen.append(stream)
        world.streams["a"].newest += 1
        if len(seen) == 50:
            break
    assert set(seen) == {"a"}


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in ({"rate_hz": 0.0}, {"rate_hz": float("inf")}, {"every": 0}, {"every": 1.5}, {"follow": "both"}):
        with pytest.raises(WrongInput, match=next(iter(wrong))):
            World(**wrong)
