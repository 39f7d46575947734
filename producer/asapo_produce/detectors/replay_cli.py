"""`asapo replay`: sends recorded data again."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from asapo.errors import WrongInput
from asapo_produce.detectors.ledger import Ledger
from asapo_produce.detectors.pacing import Pacer
from asapo_produce.detectors.readers import FORMATS, ReadSettings, Recording, open_recordings
from asapo_produce.detectors.replay import Replay, ReplaySettings

INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asapo replay`."""
    parser.add_argument("url", metavar="URL", help="address of the services, asapo://HOST:PORT")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files or folders: HDF5, NeXus, CXI, European XFEL "
                        "run, TIFF, CBF, EDF, recorded streams")  # fmt: skip
    parser.add_argument("--beamtime", default="test", help="beamtime to send to (default: test)")
    parser.add_argument("--source", default="replay", help="data source to send to (default: replay)")
    parser.add_argument("--stream", default="", metavar="NAME", help="stream to send to (default: named after file, "
                        "run or folder, and as recorded)")  # fmt: skip
    parser.add_argument("--format", default="auto", choices=FORMATS, help="what PATH is (default: found out)")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--speed", type=float, default=None, metavar="X", help="times as fast as recorded, where the "
                      "recording has times (default: 1); 0: as fast as possible")  # fmt: skip
    pace.add_argument(
        "--rate-hz", type=float, default=None, metavar="R", help="frames per second; 0: as fast as possible"
    )
    parser.add_argument(
        "--loop", type=int, default=1, metavar="N", help="send everything N times, ids go on (default: 1)"
    )
    parser.add_argument("--dataset", default="", metavar="PATH", help="HDF5: where the images are in the file")
    parser.add_argument("--source-name", default="", metavar="NAME", help="European XFEL: source, or a pattern for "
                        "several modules; recorded streams: which source")  # fmt: skip
    parser.add_argument("--key", default="", help="European XFEL: key of the images (default: found out)")
    parser.add_argument("--no-verify", action="store_true", help="recorded streams: do not check the checksums")
    parser.add_argument("--no-finish", action="store_true", help="leave streams open at the end")
    parser.add_argument(
        "--timeout-s", type=float, default=30.0, help="give up when nothing moves for so long (default: 30)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Run `asapo replay`; 0 when every message was stored, 1 when one was not."""
    speed = (1.0 if args.rate_hz is None else 0.0) if args.speed is None else args.speed
    rate_hz = args.rate_hz or 0.0
    if not all(math.isfinite(value) and value >= 0 for value in (speed, rate_hz)) or args.loop < 1:
        raise WrongInput(
            f"--speed {speed}, --rate-hz {rate_hz}, --loop {args.loop}: expected 0 or more, and at least 1 loop"
        )
    settings = ReplaySettings(
        stream=args.stream,
        speed=speed,
        rate_hz=rate_hz,
        loops=args.loop,
        finish=not args.no_finish,
        timeout_s=args.timeout_s,
    )
    reading = ReadSettings(
        format=args.format,
        dataset=args.dataset,
        source_name=args.source_name,
        key=args.key,
        verify=not args.no_verify,
    )
    try:
        return _replay(args, open_recordings(args.paths, reading), settings)
    except ModuleNotFoundError as exc:
        raise WrongInput(
            f"the Python module {exc.name!r} is missing; install it with: pip install 'asapo[replay]'"
        ) from exc


def _replay(args: argparse.Namespace, recordings: Sequence[Recording], settings: ReplaySettings) -> int:
    from asapo.progress import Progress
    from asapo_produce.producer import Producer

    total = sum(recording.n_frames() for recording in recordings) * args.loop
    ledger, pacer, status = Ledger(), Pacer(), 0
    with Producer(args.url, beamtime=args.beamtime, source=args.source, queue_timeout_s=args.timeout_s) as producer:
        replay = Replay(producer, settings, ledger=ledger, pacer=pacer)
        began_s = time.monotonic()
        try:
            with Progress("replay", total) as progress:
                replay.run(recordings, on_progress=progress.update)
        except KeyboardInterrupt:
            status = INTERRUPTED
        ledger.wait_settled(args.timeout_s)
        elapsed_s = time.monotonic() - began_s
    summary = {
        "beamtime": args.beamtime,
        "source": args.source,
        "recordings": [recording.name for recording in recordings],
        "streams": replay.report.streams,
        "sent": ledger.sent,
        "acked": ledger.acked,
        "refused_duplicates": ledger.duplicates,
        "failed": ledger.failed,
        "errors": dict(ledger.errors),
        "first_errors": ledger.first_errors,
        "bytes": ledger.nbytes,
        "seconds": round(elapsed_s, 3),
        "rate_hz": round(ledger.sent / elapsed_s, 1),
        "mb_per_s": round(ledger.nbytes / elapsed_s / 1e6, 1),
        "paced": replay.report.paced,
        "behind_max_s": round(pacer.behind_s, 4),
        "ack_ms": ledger.ack_ms(),
    }
    _show(summary, as_json=args.json)
    return status or (1 if ledger.failed or ledger.duplicates else 0)


def _show(summary: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    ack = summary["ack_ms"]
    lines = [
        *(f"{summary['beamtime']}/{summary['source']}/{name}: {n} messages" for name, n in summary["streams"].items()),
        f"sent {summary['sent']}, acknowledged {summary['acked']}, failed {summary['failed']}, refused because other "
        f"content has their id {summary['refused_duplicates']}",
        f"{summary['mb_per_s']} MB/s, {summary['rate_hz']} Hz"
        + ("" if summary["paced"] else " (as fast as possible)")
        + f", acknowledged after {ack['p50']} ms (p50), {ack['p99']} ms (p99)",
        *(f"error: {text}" for text in summary["first_errors"]),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
