"""The whole path on this machine: `make demo`.

Starts all services on free ports, replays a European XFEL run as the detector, lets two workers score the frames, asks
for the best raw frames by their scores, and counts what came through.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asapo import Consumer, Producer
from asapo.storage.journal import JournalRecord, Kind, read_journal
from asapo.storage.withdrawn import KINDS, Withdrawn
from asapo.wire.codec import decode_put
from asapo_produce.detectors.euxfel_example import ExampleRun, write_example_run
from asapo_produce.detectors.ledger import Ledger
from asapo_produce.detectors.pacing import Pacer
from asapo_produce.detectors.readers.choose import ReadSettings, open_recordings
from asapo_produce.detectors.replay import Replay, ReplaySettings
from asapo_work import Message

BEAMTIME = "demo"
STREAM = "run1"
WORKERS = 2
RATE_HZ = 500.0
BEST = 10


class TimedProducer:
    """A producer that remembers when each message was handed to `send`."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.sent_ns: dict[int, int] = {}
        self.finish_stream = producer.finish_stream
        self.set_stream_meta = producer.set_stream_meta

    def send(self, data: Any, *, id: int, **more: Any) -> Any:
        """Send one message."""
        self.sent_ns[id] = time.monotonic_ns()
        return self._producer.send(data, id=id, **more)

    def send_batch(self, frames: Any, *, ids: Sequence[int], **more: Any) -> Any:
        """Send one message for each frame."""
        self.sent_ns.update(dict.fromkeys(ids, time.monotonic_ns()))
        return self._producer.send_batch(frames, ids=ids, **more)


def start_services(data_dir: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    """Start `asapo up` on free ports and wait for its line."""
    argv = [sys.executable, "-m", "asapo", "up", "--port", "0", "--json", "--data", str(data_dir)]
    services = subprocess.Popen([*argv, "--log-level", "warning"], stdout=subprocess.PIPE, text=True)
    assert services.stdout is not None
    line = services.stdout.readline()
    if not line:
        raise SystemExit(f"the services did not start (exit status {services.wait()}); the lines above say why")
    return services, json.loads(line)


def start_worker(url: str) -> subprocess.Popen[str]:
    """Start one of the workers that share the group."""
    script = Path(__file__).with_name("hit_worker.py")
    argv = [sys.executable, str(script), url, "--beamtime", BEAMTIME, "--stream", STREAM]
    worker = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    assert worker.stdout.readline(), "the worker did not start; the lines above say why"
    return worker


def replay(url: str, run: ExampleRun) -> tuple[TimedProducer, Ledger, float]:
    """Send the run train by train; return what was sent and the seconds it took."""
    with Producer(url, beamtime=BEAMTIME, source="detector") as producer:
        timed, ledger = TimedProducer(producer), Ledger()
        settings = ReplaySettings(stream=STREAM, rate_hz=RATE_HZ)
        started_s = time.monotonic()
        Replay(timed, settings, ledger=ledger, pacer=Pacer()).run(open_recordings([run.folder], ReadSettings()))
        producer.flush(60.0)
        return timed, ledger, time.monotonic() - started_s


def stored_messages(data_dir: Path) -> int:
    """Count the raw messages that the journals on disk tell of, without asking any service."""
    count, gone = 0, Withdrawn()
    for journal in (data_dir / "beamline" / BEAMTIME / "detector" / STREAM).glob("*.idx"):
        for record in read_journal(journal):
            if isinstance(record, JournalRecord) and record.kind == Kind.PUT:
                count += len(decode_put(record.fields["put"]).ids) - len(record.fields.get("skip", ()))
            elif isinstance(record, JournalRecord) and record.kind in KINDS:
                gone.note(record.fields)
    return count - len(gone)


def origin_id(result: Message) -> int:
    """Return the id of the raw frame that a result was computed from."""
    assert result.origin is not None
    return result.origin.message_id


def check_best(consumer: Consumer, run: ExampleRun) -> int:
    """Ask for the frames with the most lit pixels and compare each raw frame with what the run holds."""
    scores = consumer.query(f"lit_pixels > 0 ORDER BY lit_pixels DESC LIMIT {BEST}", source="hits", stream=STREAM)
    raw = consumer.get_by_id([origin_id(score) for score in scores], source="detector", stream=STREAM)
    for message in raw:
        train_id, pulse_id = message.meta["train_id"], message.meta["pulse_id"]
        if not np.array_equal(message.data, run.frame(train_id, pulse_id)):
            raise SystemExit(f"frame {message.id} (train {train_id}, pulse {pulse_id}) is not what the run holds")
    return sum((m.meta["train_id"], m.meta["pulse_id"]) in run.hits for m in raw)


def percentile(values: list[float], percent: float) -> float:
    """Return the value below which `percent` of all lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def show(facts: dict[str, Any]) -> None:
    """Print the table."""
    width = max(map(len, facts))
    print("\n" + "-" * 64)
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    print("-" * 64)


def run_demo(data_dir: Path, trains: int, pulses: int) -> bool:
    """Do all of it in `data_dir`; True when every count agrees."""
    print(f"writing a European XFEL run: {trains} trains of {pulses} pulses")
    run = write_example_run(data_dir / "euxfel-run", trains=trains, pulses=pulses)
    services, where = start_services(data_dir / "asapo")
    print(f"services are up: {where['native']}, {where['http']}")
    try:
        workers = [start_worker(where["native"]) for _ in range(WORKERS)]
        timed, ledger, seconds = replay(where["native"], run)
        shares = [int(worker.communicate(timeout=60)[0].split()[-1]) for worker in workers]
        with urllib.request.urlopen(f"{where['http']}/health") as answer:
            healthy = answer.status == 200
        with Consumer(where["native"], beamtime=BEAMTIME) as consumer:
            indexed = consumer.stream_info(stream=STREAM, source="detector")["n_messages"]
            results = {
                origin_id(m): m for m in consumer.query("lit_pixels >= 0", source="hits", stream=STREAM, limit=10_000)
            }
            hits_in_best = check_best(consumer, run)
    finally:
        services.terminate()
        services.wait(30)
    stored = stored_messages(data_dir / "asapo")
    delays_ms = [(results[i].meta["taken_ns"] - sent) / 1e6 for i, sent in timed.sent_ns.items() if i in results]
    counts = [ledger.sent, ledger.acked, stored, indexed, len(results)]
    agree = len(set(counts)) == 1 and sum(shares) >= run.n_frames and healthy
    show(
        {
            "produced = received = stored = indexed = processed": " = ".join(map(str, counts)),
            "frames of each worker": " + ".join(map(str, shares)),
            "rate (paced like a detector)": f"{ledger.nbytes / seconds / 1e6:.0f} MB/s, {ledger.sent / seconds:.0f}/s",
            "send -> user code": f"p50 {percentile(delays_ms, 50):.1f} ms, p99 {percentile(delays_ms, 99):.1f} ms",
            f"hits among the {BEST} best frames": f"{hits_in_best}, each equal to the run bit for bit",
            "files": f"{where['data']}/beamline",
        }
    )
    print("every frame came through once" if agree else "THE COUNTS DO NOT AGREE")
    return agree and hits_in_best == BEST


def main() -> int:
    """Read options and run."""
    parser = argparse.ArgumentParser(description="The whole path on this machine.")
    parser.add_argument("--data", type=Path, help="folder to work in (default: a new temporary one, which is kept)")
    parser.add_argument("--trains", type=int, default=60)
    parser.add_argument("--pulses", type=int, default=32)
    args = parser.parse_args()
    data_dir = args.data or Path(tempfile.mkdtemp(prefix="asapo-demo-"))
    return 0 if run_demo(data_dir, args.trains, args.pulses) else 1


if __name__ == "__main__":
    sys.exit(main())
