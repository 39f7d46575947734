"""`asapo ls`, `tail`, `get` and `query` against running services, as processes."""

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asapo import Consumer, Producer
from asapo.testing.launch import LocalServices

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]
WAIT_S = 30.0
ODD_SOURCE, ODD_STREAM = "a/b ü", "run 1%2F"
FRAMES = np.arange(10 * 6, dtype="<u2").reshape(10, 2, 3)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """Services with a finished stream, an open one of bytes, odd names, a dataset, and results with origin."""
    with LocalServices(tmp_path_factory.mktemp("cli")) as running:
        with Producer(running.native, beamtime="bt", source="det") as producer:
            for number, frame in enumerate(FRAMES, 1):
                producer.send(frame, id=number, meta={"score": number / 10, "esc": "\x7f"}, acquired_ns=10**18)
            producer.finish_stream(next_stream="later")
            producer.send(b"plain bytes", id=7, stream="bytes")
            for part in (1, 2):
                producer.send(FRAMES[part], id=3, stream="modules", substream=part, dataset_size=2)
        with Producer(running.native, beamtime="bt", source=ODD_SOURCE) as producer:
            producer.send(FRAMES[0], id=1, stream=ODD_STREAM)
        with (
            Consumer(running.native, beamtime="bt", source="det") as consumer,
            Producer(running.native, beamtime="bt", source="hits") as producer,
        ):
            for message in consumer.get_by_id([2, 5]):
                producer.send(None, id=message.id, meta={"lit": message.id}, origin=message)
        yield running


class Asapo:
    """Runs the command with the services' address in the environment."""

    def __init__(self, url: str, cwd: Path) -> None:
        self.env = os.environ | {"ASAPO_URL": url, "COLUMNS": "100"}
        self.cwd = cwd

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "asapo", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.argv(*words), capture_output=True, env=self.env, cwd=self.cwd, timeout=WAIT_S, check=False
        )

    def __call__(self, *words: str) -> str:
        result = self.run(*words)
        assert result.returncode == 0, result.stderr.decode()
        return result.stdout.decode()

    def json(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self(*words, "--json").splitlines()]

    def fails(self, status: int, *words: str) -> str:
        result = self.run(*words)
        said = result.stderr.decode()
        assert result.returncode == status, said
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1 or said.startswith("usage:")
        return said


@pytest.fixture
def asapo(services: LocalServices, tmp_path: Path) -> Asapo:
    return Asapo(services.native, tmp_path)


# -- ls ----------------------------------------------------------------------------------------------------------------


def test_ls_goes_down_from_beamtimes_to_one_stream(asapo: Asapo) -> None:
    (beamtime,) = asapo.json("ls")
    assert beamtime["kind"] == "beamtime"
    assert (beamtime["beamtime"], beamtime["n_sources"], beamtime["n_streams"]) == ("bt", 3, 5)
    sources = asapo.json("ls", "bt")
    assert {s["source"]: s["n_messages"] for s in sources} == {"det": 13, "hits": 2, ODD_SOURCE: 1}
    streams = {s["stream"]: s for s in asapo.json("ls", "bt/det")}
    assert set(streams) == {"default", "bytes", "modules"}
    assert streams["default"] == {
        "kind": "stream", "beamtime": "bt", "source": "det", "stream": "default", "n_messages": 10,
        "n_bytes": FRAMES.nbytes, "id_max": 10, "watermark": 11, "finished": True, "last_id": 10,
        "next_stream": "later", "meta": {},
    }  # fmt: skip
    text = asapo("ls", "bt/det/default")
    assert "finished, next later" in text
    assert "(120 bytes)" in text


def test_what_ls_shows_can_be_given_back_to_it(asapo: Asapo) -> None:
    lines = asapo("ls", "bt", "-r").splitlines()
    path = next(line for line in lines if "ü" in line).partition("  ")[0]
    assert path == "bt/a%2Fb ü/run 1%252F"
    (entry,) = asapo.json("ls", path)
    assert (entry["source"], entry["stream"]) == (ODD_SOURCE, ODD_STREAM)
    (again,) = asapo.json("ls", "--beamtime", "bt", "--source", ODD_SOURCE, "--stream", ODD_STREAM)
    assert again == entry


# -- wrong calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words", "expected"),
    [
        (1, ["ls", "b"], "no beamtime 'b'"),
        (1, ["ls", "bt/dett"], "did you mean det? there is a%2Fb ü, det, hits"),
        (1, ["tail", "det/defualt"], "did you mean default?"),
        (1, ["get", "det/nothing", "1"], "no stream 'nothing' in bt/det: there is bytes, default, modules"),
        (1, ["query", "xyz", "_id > 0"], "no source 'xyz' in beamtime bt"),
        (1, ["tail", "bt/det"], "a path that begins with a beamtime has all three"),
        (1, ["get", "det", "99"], "the stream is finished at id 10"),
        (1, ["get", "det", "50-60"], "no message from 50 to 60"),
        (2, ["get", "det"], "no message named"),
        (2, ["get", "det", "nine"], "'nine': expected a message id such as 5"),
        (2, ["get", "det", "0"], "message id 0"),
        (2, ["get", "det", "9-5"], "expected the lower id first"),
        (2, ["get", "det", "1", "--format", "tiff"], "invalid choice: 'tiff'"),
        (2, ["get", "det", "1", "2", "-o", "-"], "expected one message, found 2"),
        (2, ["query", "det", "score >"], "query, character 8: found the end of the query"),
        (2, ["query", "det"], "expected SOURCE/STREAM and a query"),
        (2, ["query", "det", "score REGEXP '('"], "query, character 14"),
        (2, ["query", "det", "score > 0", "--keys", "a,_id"], "key '_id': every message comes with it"),
        (2, ["query", "det", "score > 0", "--limit", "0"], "0 messages: expected an integer"),
        (2, ["tail", "det", "-n", "-1"], "-n -1: expected 0 to 10000"),
        (2, ["tail", "det", "--where", "score >"], "query, character 8: found the end of the query"),
        (2, ["tail", "det", "--where", "score > 0 LIMIT 1"], "leave ORDER BY and LIMIT out"),
        (2, ["tail", "det", "--source", "det"], "two sources"),
        (2, ["tail", "a/b/c/d"], "write %2F for a slash within a name"),
        (2, ["tail"], "no data source named"),
        (2, ["ls", "http://127.0.0.1:1"], "expected asapo://host:port"),
        (1, ["ls", "asapo://127.0.0.1:9"], "no services at asapo://127.0.0.1:9"),
        (1, ["tail", "asapo://127.0.0.1:9", "bt/det/default", "-f"], "start them with `asapo up`"),
        (2, ["nosuch"], "invalid choice: 'nosuch'"),
        (2, ["ls", "--nosuch"], "unrecognized arguments: --nosuch"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_and_what_there_is(
    asapo: Asapo, status: int, words: list[str], expected: str
) -> None:
    assert expected in asapo.fails(status, *words)


def test_with_json_an_error_is_an_object_too(asapo: Asapo) -> None:
    result = asapo.run("ls", "nowhere", "--json")
    assert result.returncode == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "unknown_stream"
    assert error["fields"]["there"] == ["bt"]


# -- tail --------------------------------------------------------------------------------------------------------------


def test_tail_shows_the_newest_and_nothing_that_moves_the_cursor(asapo: Asapo) -> None:
    lines = asapo("tail", "det", "-n", "3").splitlines()
    assert [line.split()[0] for line in lines] == ["8", "9", "10"]
    assert "u2 2x3" in lines[0]
    assert "12 B" in lines[0]
    assert all(line.isprintable() for line in lines)
    assert [m["id"] for m in asapo.json("tail", "det", "--where", "score < 0.5", "-n", "2")] == [3, 4]


def test_tail_disturbs_no_group(asapo: Asapo, services: LocalServices) -> None:
    asapo("tail", "det", "-n", "10")
    with Consumer(services.native, beamtime="bt", source="det") as consumer:
        message = consumer.get_next("undisturbed")
        assert (message.id, message.attempt) == (1, 1)


def test_json_keys_of_a_message_stay_as_documented(asapo: Asapo) -> None:
    (message,) = asapo.json("tail", "hits", "-n", "1")
    assert message.pop("stored_ns") > 0
    assert message.pop("acquired_ns") > 0
    assert message == {
        "id": 5, "seq": 2, "substream": 0, "dataset_size": 0, "beamtime": "bt", "source": "hits", "stream": "default",
        "size": 0, "dtype": "", "shape": [], "codec": "raw", "meta": {"lit": 5},
        "origin": {"source": "det", "stream": "default", "id": 5},
    }  # fmt: skip


class Following:
    """A running `asapo tail -f`, its lines read as they come."""

    def __init__(self, asapo: Asapo, *words: str) -> None:
        self.process = subprocess.Popen(
            asapo.argv("tail", "-f", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=asapo.env
        )
        self._watchdog = threading.Timer(WAIT_S, self.process.kill)  # a tail that hangs ends the test, not the run
        self._watchdog.start()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def remark(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def __enter__(self) -> "Following":
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()

    def end(self, how: signal.Signals | None = None) -> tuple[int, str, str]:
        if how is not None:
            self.process.send_signal(how)
        out, errors = self.process.communicate()
        return self.process.returncode, out, errors


def test_tail_follows_a_stream_that_is_not_there_yet_to_its_end_and_into_the_next(
    asapo: Asapo, services: LocalServices
) -> None:
    with (
        Following(asapo, "live/one", "--json") as tail,
        Producer(services.native, beamtime="bt", source="live") as producer,
        Producer(services.native, beamtime="bt", source="live") as other,
    ):
        assert "waiting for it" in tail.remark()
        # Two senders, their ids out of order and with holes: each is shown once, whenever it comes.
        for sender, message_id in ((producer, 1), (other, 9), (producer, 5), (other, 12), (producer, 7)):
            sender.send(b"x", id=message_id, stream="one").result(WAIT_S)
            assert json.loads(tail.line())["id"] == message_id
        producer.send(b"y", id=1, stream="two").result(WAIT_S)
        producer.finish_stream("two")
        other.finish_stream("one", next_stream="two")
        assert json.loads(tail.line())["stream"] == "two"
        status, out, errors = tail.end()
    assert (status, out) == (0, "")
    assert "bt/live/two is finished at id 1" in errors


def test_ctrl_c_ends_tail_silently_with_status_130(asapo: Asapo) -> None:
    with Following(asapo, "det/bytes") as tail:
        assert tail.line().split()[0] == "7"
        assert tail.end(signal.SIGINT) == (130, "", "")


def test_tail_goes_on_after_the_broker_was_restarted(tmp_path: Path) -> None:
    with LocalServices(tmp_path / "data") as services:
        asapo = Asapo(services.native, tmp_path)
        with (
            Producer(services.native, beamtime="bt", source="det") as producer,
            Following(asapo, "--beamtime", "bt", "det", "--json", "--timeout", "0.5", "-n", "1") as tail,
        ):
            assert "waiting for it" in tail.remark()
            producer.send(b"x", id=1).result(WAIT_S)
            assert json.loads(tail.line())["id"] == 1
            services.kill("broker")
            assert "trying on" in tail.remark()
            services.restart("broker")
            producer.send(b"y", id=2).result(WAIT_S)
            assert json.loads(tail.line())["id"] == 2
            assert tail.end(signal.SIGINT)[0] == 130


def test_a_reader_that_leaves_early_is_no_failure(asapo: Asapo) -> None:
    process = subprocess.Popen(
        asapo.argv("query", "det", "_id > 0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=asapo.env
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (0, b"")


# -- get ---------------------------------------------------------------------------------------------------------------


def test_get_writes_arrays_and_refuses_to_write_over_them(asapo: Asapo) -> None:
    paths = asapo("get", "det", "1", "-o", "out", "4-6", "--last").split()
    assert paths == [f"out/det-default-{n}.npy" for n in (1, 4, 5, 6, 10)]
    for n in (1, 4, 5, 6, 10):
        assert np.array_equal(np.load(asapo.cwd / f"out/det-default-{n}.npy"), FRAMES[n - 1])
    target = asapo.cwd / "out/det-default-4.npy"
    target.write_text("mine", encoding="utf-8")
    assert "is there already" in asapo.fails(2, "get", "det", "3-4", "-o", "out")
    assert target.read_text(encoding="utf-8") == "mine"
    assert not (asapo.cwd / "out/det-default-3.npy").exists()
    asapo("get", "det", "3-4", "-o", "out", "--force")
    assert np.array_equal(np.load(target), FRAMES[3])
    assert not [path for path in (asapo.cwd / "out").iterdir() if path.suffix == ".part"]


@pytest.mark.parametrize("access", ["map", "fetch"])
def test_get_reads_mapped_and_fetched_alike(asapo: Asapo, access: str) -> None:
    asapo("get", "det", "2", "-o", "out", "--access", access, "--verify", "--format", "raw", "--meta")
    assert (asapo.cwd / "out/det-default-2.raw").read_bytes() == FRAMES[1].tobytes()
    facts = json.loads((asapo.cwd / "out/det-default-2.raw.json").read_text(encoding="utf-8"))
    assert (facts["id"], facts["dtype"], facts["shape"], facts["meta"]["score"]) == (2, "<u2", [2, 3], 0.2)


def test_get_takes_bytes_datasets_and_odd_names(asapo: Asapo) -> None:
    assert asapo("get", "det/bytes", "7", "-o", "out").split() == ["out/det-bytes-7.bin"]
    assert (asapo.cwd / "out/det-bytes-7.bin").read_bytes() == b"plain bytes"
    assert asapo("get", "det/modules", "3", "-o", "out").split() == [f"out/det-modules-3.{n}.npy" for n in (1, 2)]
    assert np.array_equal(np.load(asapo.cwd / "out/det-modules-3.2.npy"), FRAMES[2])
    (path,) = asapo("get", "--source", ODD_SOURCE, "--stream", ODD_STREAM, "1", "-o", "out").splitlines()
    assert np.array_equal(np.load(asapo.cwd / path), FRAMES[0])
    assert Path(path).parent == Path("out")


def test_get_without_a_folder_tells_about_the_message(asapo: Asapo) -> None:
    text = asapo("get", "det", "2")
    assert "u2 2x3, 12 B" in text
    assert "min 6, max 11, mean 8.5" in text
    assert "70 6c 61 69 6e" in asapo("get", "det/bytes", "--last")
    (message,) = asapo.json("get", "det", "2")
    assert message["values"] == {"min": 6, "max": 11, "mean": 8.5}


def test_bytes_go_into_a_pipe_and_never_to_a_terminal(asapo: Asapo) -> None:
    assert asapo.run("get", "det/bytes", "7", "-o", "-").stdout == b"plain bytes"
    ours, theirs = pty.openpty()
    try:
        result = subprocess.run(
            asapo.argv("get", "det/bytes", "7", "-o", "-"), stdout=theirs, stderr=subprocess.PIPE, env=asapo.env,
            check=False, timeout=WAIT_S,
        )  # fmt: skip
        assert result.returncode == 2
        assert b"bytes are not written to a terminal" in result.stderr
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        os.close(theirs)
        os.close(ours)


def test_lines_are_cut_to_the_terminal(asapo: Asapo) -> None:
    ours, theirs = pty.openpty()
    try:
        subprocess.run(asapo.argv("tail", "det", "-n", "1"), stdout=theirs, env=asapo.env, check=True, timeout=WAIT_S)
        line = os.read(ours, 10_000).decode().rstrip()
    finally:
        os.close(theirs)
        os.close(ours)
    assert len(line) <= 100
    assert line.split()[0] == "10"


# -- query -------------------------------------------------------------------------------------------------------------


def test_query_orders_limits_and_writes_what_it_found(asapo: Asapo) -> None:
    found = asapo.json("query", "det/default", "score > 0.5 ORDER BY score DESC LIMIT 3")
    assert [m["id"] for m in found] == [10, 9, 8]
    written = asapo.json("query", "det", "score < 0.3", "--get", "out")
    assert [m["file"] for m in written] == ["out/det-default-1.npy", "out/det-default-2.npy"]
    assert np.array_equal(np.load(asapo.cwd / "out/det-default-2.npy"), FRAMES[1])


def test_query_counts_explains_and_chooses_keys(asapo: Asapo) -> None:
    assert asapo("query", "det", "score > 0.5", "--count") == "5\n"
    assert asapo.json("query", "det", "score > 0.5 LIMIT 2", "--count") == [{"count": 2}]
    (facts,) = asapo.json("query", "det", "_id < 4", "--explain")
    assert (facts["index"], facts["scans"], facts["rows"], facts["rows_total"]) == ("id", False, 3, 10)
    shown = asapo("query", "det", "score > 0.5", "--explain")
    assert shown.startswith("index: none serves this query")
    assert "looks at: 10 of 10 messages at most" in shown
    found = asapo.json("query", "det", "score > 0.5", "--keys", "score, nothing")
    assert {tuple(m["meta"]) for m in found} == {("score",)}


def test_query_returns_the_origins_of_results(asapo: Asapo) -> None:
    found = asapo.json("query", "hits", "lit > 2", "--origin")
    assert [(m["source"], m["id"]) for m in found] == [("det", 5)]


def test_query_says_when_there_may_be_more_and_when_there_is_nothing(asapo: Asapo) -> None:
    assert b"there may be more" in asapo.run("query", "det", "_id > 0", "--limit", "2").stderr
    nothing = asapo.run("query", "det", "score > 5")
    assert (nothing.returncode, nothing.stdout) == (0, b"")
    assert b"nothing in bt/det/default fulfils the query" in nothing.stderr
