"""The delivery core as a process of its own, over its socket, on an index that the test writes."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from asapo.errors import LinkLost
from asapo.models import Origin, StreamRef
from asapo.transport import Waiter, connect
from asapo.wire.codec import MAGIC, PREFIX, decode, encode
from asapo.wire.events import (
    Acknowledge,
    Announce,
    Beat,
    Bye,
    Describe,
    Done,
    Failed,
    GetById,
    GetLast,
    GetNext,
    Goodbye,
    Hello,
    ListReceivers,
    ListStreams,
    Nack,
    Query,
    Register,
    Rows,
    Welcome,
)
from asapo.wire.put import Put
from asapo_broker.store import CursorStore
from tests.integration.core_world import ANSWER_S, REF, SESSION, Client, World

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "state")
    yield made
    made.close()


def test_a_group_reads_a_stream_in_order(world: World) -> None:
    world.put(*range(1, 8), meta=lambda one: f'{{"n":{one}}}')
    client = world.client()
    assert type(client.first) is Welcome
    answer = client.next(n=3)
    assert [(row[0], row[9]) for row in answer.rows] == [(1, '{"n":1}'), (2, '{"n":2}'), (3, '{"n":3}')]
    assert answer.segments == {1: ["/tier/a.seg", "r1", "boot", "tier", ""]}
    assert answer.formats == {1: ["", [], "raw"]}
    assert client.ids(n=100, done=[[1, 3]]) == [4, 5, 6, 7]
    assert client.ids(group="other", n=2) == [1, 2]


def test_a_waiting_worker_is_woken_by_the_first_commit_of_a_beamtime(world: World) -> None:
    client = world.client()
    client.send(GetNext(1, REF.source, REF.stream, "g", wait_s=ANSWER_S))
    assert client.ask(Describe)  # answered while the other waits
    world.put(1)
    assert [row[0] for row in client.receive().rows] == [1]


def test_what_was_committed_is_seen_by_who_does_not_wait(world: World) -> None:
    client = world.client()
    for one in range(1, 30):
        world.put(one)
        assert client.ids(wait_s=0.0, done=[[one - 1, one - 1]] if one > 1 else []) == [one]


def test_the_four_answers(world: World) -> None:
    client = world.client()
    codes = [client.next(stream="never", wait_s=0.0).error["code"]]
    world.put(1, 2, 5, closed_below=6)
    assert client.ids(n=9) == [1, 2, 5]
    codes.append(client.next(wait_s=0.0).error["code"])
    codes.append(client.ask(GetById, ids=[3]).error["code"])
    world.index.close_session(SESSION)
    world.index.finish_stream(REF, 9, "scan 2")
    finished = client.next(wait_s=10.0, done=[[1, 5]])
    codes.append(finished.error["code"])
    assert codes == ["unknown_stream", "nothing_yet", "gap", "stream_finished"]
    assert finished.error["fields"] == {"id_max": 5, "next_stream": "scan 2"}


def test_last_by_id_and_queries(world: World) -> None:
    client = world.client()
    assert client.ask(GetLast).error["code"] == "unknown_stream"
    world.put(*range(1, 11), closed_below=5, meta=lambda one: f'{{"score":{one / 10}}}')
    assert [row[0] for row in client.ask(GetLast).rows] == [10], "the last message ignores the watermark"
    found = client.ask(GetById, ids=[3, 99, 4])
    assert [row[0] for row in found.rows] == [3, 4]
    assert {one: error["code"] for one, error in found.missing.items()} == {99: "nothing_yet"}
    assert [row[0] for row in client.ask(Query, text="score > 0.75 ORDER BY score DESC").rows] == [10, 9, 8]
    assert client.ask(Query, text="score >").error["code"] == "wrong_input"
    assert client.ask(Query, text="score > 0", limit=0).error["code"] == "wrong_input"
    assert len(client.ask(Query, text="", limit=4).rows) == 4


def test_a_query_is_bounded_by_what_the_facility_allows(tmp_path: Path) -> None:
    world = World(tmp_path / "state", query_limit_s=0.001, query_rows=50, query_threads=1)
    try:
        client = world.client()
        world.put(*range(1, 40_001), meta=lambda one: f'{{"score":{one}, "name":"frame {one}"}}')
        for want in ("", "count"):
            late = client.ask(Query, text="name REGEXP '9{5}$'", limit=50, want=want).error
            assert (late["code"], late["fields"]) == ("deadline_exceeded", {"after_s": 0.001, "limit": "query_limit_s"})
        assert client.ask(Query, text="", limit=51).error["fields"] == {"limit": "query_rows"}
        assert [row[0] for row in client.ask(Query, text="_id < 3 AND name REGEXP 'frame'", limit=50).rows] == [1, 2]
        assert client.ids(n=2, where="name REGEXP '[37]$'") == [3, 7], "a group's filter is the same language"
        assert client.next(group="other", where="name REGEXP '('").error["code"] == "wrong_input"
    finally:
        world.close()


def test_streams_and_statistics_are_told(world: World) -> None:
    client = world.client()
    assert client.ask(ListStreams).result == {"streams": []}
    world.put(1, 2)
    world.index.set_stream_meta(REF, '{"sample":"x"}')
    told = client.ask(Describe).result
    assert (told["n_messages"], told["id_max"], told["meta"], told["finished"]) == (2, 2, {"sample": "x"}, False)
    assert [one["stream"] for one in client.ask(ListStreams).result["streams"]] == [REF.stream]
    assert client.ask(ListStreams, source=REF.source, after=REF.stream).result == {"streams": []}
    earlier = told["number"]
    world.index.set_stream_meta(StreamRef(REF.beamtime, REF.source, "a later one"), "{}")
    numbers = {one["stream"]: one["number"] for one in client.ask(ListStreams).result["streams"]}
    assert list(numbers) == ["a later one", REF.stream], "the listing is ordered by name"
    assert numbers["a later one"] > numbers[REF.stream] == earlier, "numbers tell which was made first"
    client.ids(n=2)
    numbers = client.ask(Describe, source="", stream="").result
    assert (numbers["delivered"], numbers["sessions"], numbers["groups"], numbers["defects"]) == (2, 1, 1, 0)
    assert ["asapo_broker_delivered_total", {}, 2] in numbers["metrics"]


def test_the_metadata_of_a_beamtime_are_told(world: World) -> None:
    client = world.client()
    about = {"source": "", "stream": "", "beamtime": True}
    assert client.ask(Describe, **about).result == {"beamtime": REF.beamtime, "meta": {}}
    world.index.set_beamtime_meta('{"user":"x"}')
    assert client.ask(Describe, **about).result == {"beamtime": REF.beamtime, "meta": {"user": "x"}}
    wrong = client.ask(Describe, source="det", stream="", beamtime=True)
    assert wrong.error["code"] == "wrong_input"


def test_an_ack_for_a_core_that_died_counts_in_the_next_one(world: World) -> None:
    world.put(1, 2, 3)
    client = world.client(b"w" * 16)
    assert client.ids(n=2) == [1, 2]
    world.kill()
    again = world.client(b"w" * 16)
    again.send(GetNext(101, REF.source, REF.stream, "g", n=9, wait_s=10.0))
    again.send(Acknowledge(102, REF.source, REF.stream, "g", ranges=[[1, 2]]))
    answers = {event.request: event for event in (again.receive(), again.receive())}
    assert answers[102] == Done(102, {"lost": []})
    assert [row[0] for row in answers[101].rows] in ([3], [1, 2, 3]), "the read may be served before the ack is there"


def test_results_name_their_origin(world: World) -> None:
    world.put(1, 2, origins=[Origin("raw", "scan", 7), None])
    answer = world.client().next(n=2)
    numbers = [(row[12], row[13]) for row in answer.rows]
    assert numbers[1] == (0, 0)
    assert (answer.origins[numbers[0][0]], numbers[0][1]) == (["raw", "scan"], 7)


def test_a_dataset_is_given_whole(world: World) -> None:
    world.put(1, 2, substream=1, dataset_size=2)
    client = world.client()
    assert client.next(wait_s=0.0).error["code"] == "nothing_yet"
    assert client.ask(GetById, ids=[1]).error["code"] == "partial_dataset"
    world.put(1, substream=2, dataset_size=2)
    assert [(row[0], row[2]) for row in client.next(n=5).rows] == [(1, 1), (1, 2)]
    assert [(row[0], row[2]) for row in client.ask(GetLast).rows] == [(1, 1), (1, 2)]


def test_a_filter_is_worked_out_for_old_and_new_messages(world: World) -> None:
    def meta(one: int) -> str:
        return f'{{"hit":{one % 3}}}'

    world.put(*range(1, 10), meta=meta)
    client = world.client()
    assert client.ids(group="all", n=9) == list(range(1, 10))
    assert client.ids(n=2, where="hit = 1") == [1, 4]
    world.put(*range(10, 20), meta=meta)
    got = client.ids(n=9, where="hit = 1")
    while len(got) < 5:
        got += client.ids(n=9, where="hit = 1")
    assert got == [7, 10, 13, 16, 19]
    assert client.next(where="hit = ").error["code"] == "group_mismatch"
    assert client.next(group="new", where="hit = ").error["code"] == "wrong_input"
    assert client.ids(group="new", where="hit = 2") == [2]


def test_a_long_stream_is_read_from_its_beginning_while_it_grows(world: World) -> None:
    total = 25_000
    for first in range(1, total + 1, 1000):
        world.put(*range(first, first + 1000))
    client = world.client()
    got = client.ids(n=1000)
    world.put(total + 1, total + 2)
    while len(got) < total + 2:
        got += client.ids(n=5000, done=[[got[-1], got[-1]]])
    assert got == list(range(1, total + 3))
    unordered = client.ids(group="u", n=5000, ordered=False)
    while len(unordered) < total + 2:
        unordered += client.ids(group="u", n=5000, ordered=False)
    assert unordered == got


def test_a_dead_worker_s_messages_go_to_its_neighbour(world: World) -> None:
    world.put(1, 2, 3)
    gone, stays = world.client(b"g" * 16), world.client(b"t" * 16)
    assert gone.ids(n=2) == [1, 2]
    gone.close()
    world.clients.remove(gone)
    got: list[int] = []
    until_s = time.monotonic() + ANSWER_S
    while len(got) < 3 and time.monotonic() < until_s:
        stays.send(Beat())
        answer = stays.next(n=3, wait_s=0.5)
        got += [row[0] for row in answer.rows] if type(answer) is Rows else []
    assert sorted(got) == [1, 2, 3]


def test_leaving_gives_messages_back_at_once(world: World) -> None:
    world.put(1, 2)
    leaves, stays = world.client(b"g" * 16), world.client(b"t" * 16)
    assert leaves.ids(n=2) == [1, 2]
    stays.send(GetNext(50, REF.source, REF.stream, "g", n=5, wait_s=ANSWER_S))
    leaves.send(Bye())
    assert [row[0] for row in stays.receive(2.0).rows] == [1, 2]


def test_a_reply_lost_with_its_link_is_sent_again(world: World) -> None:
    world.put(1, 2, 3)
    first = world.client()
    assert first.ids(n=2) == [1, 2]
    again = world.client()
    assert again.ids(n=2) == [1, 2], "the same request number of the same session"
    assert again.ids(n=2) == [3]


def test_nack_and_acknowledge(world: World) -> None:
    world.put(1, 2, 3)
    client, other = world.client(), world.client(b"o" * 16)
    assert client.ids(n=3) == [1, 2, 3]
    assert client.ask(Nack, group="g", ids=[2]).result == {"lost": []}
    answer = other.next()
    assert ([row[0] for row in answer.rows], answer.attempts) == ([2], {2: 2})
    assert client.ask(Acknowledge, group="g", ranges=[[1, 3]]).result == {"lost": []}
    assert client.ask(Acknowledge, group="g", ranges=[[2, 2]]).result == {"lost": [2]}


def test_a_killed_core_goes_on_where_it_was(world: World) -> None:
    world.put(*range(1, 101))
    client = world.client()
    assert client.ids(n=60) == list(range(1, 61))
    assert client.ask(Acknowledge, group="g", ranges=[[1, 50]]).result == {"lost": []}
    stored = CursorStore(world.directory.state_dir, save_s=1.0)
    until_s = time.monotonic() + ANSWER_S
    while (state := stored.load(REF, "g")) is None or state.state.floor < 50:
        assert time.monotonic() < until_s
    stored.stop()
    stored.run()
    killed_s = time.monotonic()
    world.kill()
    after = world.client()
    assert after.ask(Acknowledge, group="g", ranges=[[51, 55]]).result == {"lost": []}
    assert after.ids(n=100) == list(range(56, 101)), "neither what is done nor less than what is not"
    assert time.monotonic() - killed_s < ANSWER_S


def test_a_stopped_core_says_goodbye_and_forgets_nothing(world: World) -> None:
    world.put(1, 2, 3)
    client = world.client()
    assert client.ids(n=2) == [1, 2]
    client.send(Acknowledge(99, REF.source, REF.stream, "g", [[1, 2]]))
    assert type(client.receive()) is Done
    process = world.service.process
    assert process is not None
    process.terminate()
    with contextlib.suppress(LinkLost):
        assert type(client.receive()) is Goodbye
    assert process.wait(ANSWER_S) == 0
    world.service.stop()
    world.service.start()
    assert world.client().ids(n=5) == [3]


def test_receivers_are_listed_and_their_announcements_wake_waiters(world: World) -> None:
    world.put(1)
    receiver = Client.__new__(Client)
    receiver.link = connect(world.address)
    world.clients.append(receiver)
    receiver.send(Hello("receiver", b"r" * 16))
    receiver.send(Register("r1", 3, ["tcp://127.0.0.1:9"], "tcp://127.0.0.1:10", "boot", {"tier": {"free_bytes": 1}}))
    asks = world.client(b"p" * 16, beamtime="")
    until_s = time.monotonic() + ANSWER_S
    while not (told := asks.ask(ListReceivers).result)["receivers"]:
        assert time.monotonic() < until_s
    assert told["beamtimes"] == [REF.beamtime]
    assert told["receivers"][0]["addresses"] == ["tcp://127.0.0.1:9"]
    client = world.client()
    assert client.next().segments[1][4] == "tcp://127.0.0.1:10"
    client.send(GetNext(9, REF.source, REF.stream, "g", wait_s=ANSWER_S))
    head = world.put(2)
    receiver.send(Announce(REF.beamtime, [[REF.source, REF.stream, head]]))
    assert [row[0] for row in client.receive().rows] == [2]
    assert client.ask(Describe, source="", stream="").result["announcements"] == 1


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        PREFIX.pack(MAGIC, 9, 0, 1) + b"\x80",
        PREFIX.pack(MAGIC, 1, 0, 99) + b"\x80",
        PREFIX.pack(MAGIC, 1, 0, 32) + b"\xc1",
        encode(GetNext(1, "det", "s", "g")),
        encode(Hello("producer", b"p" * 16)),
        encode(Hello("consumer", b"short", "bt")),
        encode(Register("r", 1, [], "", "", {})),
        encode(Put(unit=1, stream="s", ids=[1], sizes=[0], checksums=bytes(8), metas=["{}"], acquired_ns=bytes(8))),
    ],
    ids=["empty", "http", "version", "kind", "msgpack", "no hello", "role", "session", "early register", "put"],
)
def test_who_breaks_the_protocol_is_told_and_others_are_served(world: World, header: bytes) -> None:
    world.put(1)
    good = world.client()
    bad = connect(world.address)
    bad.send(header)
    waiter, until_s = Waiter(bad), time.monotonic() + ANSWER_S
    while (message := bad.receive()) is None and time.monotonic() < until_s:
        waiter.wait(0.05)
    assert message is not None
    said = decode(message.header)
    assert type(said) is Goodbye
    assert said.error["code"] in {"remote_protocol_error", "unsupported_version", "wrong_input"}
    assert good.ids() == [1]
    numbers = good.ask(Describe, source="", stream="").result
    assert (numbers["refused_peers"], numbers["defects"]) == (1, 0)
    bad.close()


def test_a_session_that_asks_too_much_at_once_is_told(world: World) -> None:
    client = world.client()
    for number in range(1, 66):
        client.send(GetNext(number, REF.source, REF.stream, "g", wait_s=ANSWER_S))
    refused = client.receive()
    assert (type(refused), refused.request, refused.error["code"]) == (Failed, 65, "queue_full")


def test_a_second_core_on_the_same_state_is_refused(world: World, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asapo", "broker", "--listen", "tcp://127.0.0.1:*", "--state"]
    second = subprocess.run(
        [*command, str(tmp_path / "state")], capture_output=True, text=True, timeout=30, check=False, env=os.environ
    )
    assert second.returncode == 2
    assert "core.lock" in second.stderr
    assert second.stdout == ""
    world.put(1)
    assert world.client().ids() == [1]


def test_a_crowd_of_workers_shares_a_stream_without_loss(world: World) -> None:
    workers = [world.client(bytes([65 + k]) * 16) for k in range(8)]
    for worker in workers:
        worker.send(GetNext(1000, REF.source, REF.stream, "g", n=7, wait_s=ANSWER_S))
    total = 500
    for first in range(1, total + 1, 50):
        world.put(*range(first, first + 50))
    got: list[int] = []
    for worker in workers:
        got += [row[0] for row in worker.receive().rows]
    while len(got) < total:
        for worker in workers:
            answer = worker.next(n=7, wait_s=0.0, done=[[1, total]])
            if type(answer) is Rows:
                got += [row[0] for row in answer.rows]
    assert sorted(got) == list(range(1, total + 1))
