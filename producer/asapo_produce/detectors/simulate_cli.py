"""`asapo simulate`: sends frames like a detector."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from asapo.errors import WrongInput
from asapo_produce.detectors.faults import Faults, Kind, parse_share
from asapo_produce.detectors.ledger import Ledger
from asapo_produce.detectors.pacing import Pacer
from asapo_produce.detectors.presets import PRESETS, Preset, preset

CEILING_S: Final = 0.3
"""How long the ceiling is measured beside a run."""
CEILING_ALONE_S: Final = 2.0
INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `asapo simulate`."""
    parser.add_argument("url", nargs="?", default="", metavar="URL", help="address of the services, asapo://HOST:PORT")
    parser.add_argument("--beamtime", default="test", help="beamtime to send to (default: test)")
    parser.add_argument("--source", default="", help="data source (default: the preset's name, or simulator)")
    parser.add_argument("--stream", default="default", help="stream (default: default)")
    parser.add_argument("--preset", default="", metavar="NAME", help=f"a detector: {', '.join(PRESETS)}")
    parser.add_argument("--shape", default="", metavar="NxM", help="frame shape, slow x fast (default: 512x1024)")
    parser.add_argument("--dtype", default="", help="element type, for example uint16 or >i4 (default: uint16)")
    parser.add_argument(
        "--frames", type=int, default=100, help="frames to send, skipped ones included; 0: until stopped"
    )
    parser.add_argument(
        "--rate-hz", type=float, help="frames per second; 0: as fast as possible (default: the preset's)"
    )
    parser.add_argument("--pulses", type=int, help="frames per train, sent together (default: the preset's, or 1)")
    parser.add_argument("--skip", default="0", metavar="n/m", help="leave out n of every m ids")
    parser.add_argument(
        "--repeat", default="0", metavar="n/m", help="send n of every m ids twice with the same content"
    )
    parser.add_argument("--conflict", default="0", metavar="n/m", help="send n of every m ids again with other content")
    parser.add_argument("--reorder", type=int, default=1, metavar="K", help="shuffle ids within groups of K")
    parser.add_argument(
        "--hit-fraction", type=float, default=0.5, help="share of frames with a particle (default: 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides frames and faults; the same seed gives the same")
    parser.add_argument("--no-finish", action="store_true", help="leave the stream open at the end")
    parser.add_argument("--ceiling", action="store_true", help="measure for longer how fast frames can be made at all; "
                        "without URL only that")  # fmt: skip
    parser.add_argument(
        "--timeout-s", type=float, default=30.0, help="give up when nothing moves for so long (default: 30)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")


def run(args: argparse.Namespace) -> int:
    """Run `asapo simulate`; 0 when every message was stored as it should be, 1 when one was not."""
    from asapo_produce.detectors.frames import FramePool
    from asapo_produce.detectors.simulate import block_of, measure_ceiling

    if not args.url and not args.ceiling:
        raise WrongInput(
            "no URL: expected the address of the services, asapo://HOST:PORT; or --ceiling to measure alone"
        )
    detector = detector_of(args)
    simulation = _simulation(args, detector)
    pool = FramePool(
        detector.shape,
        detector.dtype,
        seed=args.seed,
        block=block_of(detector.pulses, detector.frame_bytes),
        hit_fraction=args.hit_fraction,
    )
    ceiling = measure_ceiling(pool, simulation, for_s=CEILING_ALONE_S if args.ceiling else CEILING_S)
    summary: dict[str, Any] = {
        "detector": detector.name,
        "shape": list(detector.shape),
        "dtype": detector.dtype,
        "frame_bytes": detector.frame_bytes,
        "seed": args.seed,
        "asked_rate_hz": simulation.rate_hz,
        "ceiling": {"frames_per_s": round(ceiling.frames_per_s), "mb_per_s": round(ceiling.bytes_per_s / 1e6)},
    }
    status = _send(args, detector, simulation, pool, summary) if args.url else 0
    _show(summary, as_json=args.json)
    return status


def detector_of(args: argparse.Namespace) -> Preset:
    """Return what to simulate: the preset, changed by the options that were given.

    Raises
    ------
    WrongInput
        If preset, shape, dtype, rate or pulses are not acceptable.
    """
    from asapo_produce.payloads import dtype_name

    base = (
        preset(args.preset)
        if args.preset
        else Preset(name="simulator", shape=(512, 1024), dtype="<u2", rate_hz=0, source="none: chosen by hand")
    )
    rate_hz = base.rate_hz if args.rate_hz is None else args.rate_hz
    pulses = base.pulses if args.pulses is None else args.pulses
    if not (math.isfinite(rate_hz) and rate_hz >= 0):
        raise WrongInput(f"--rate-hz {rate_hz}: expected frames per second, or 0 for as fast as possible")
    if pulses < 1 or args.frames < 0 or args.seed < 0 or not 0 <= args.hit_fraction <= 1:
        raise WrongInput(
            f"--pulses {pulses}, --frames {args.frames}, --seed {args.seed}, --hit-fraction {args.hit_fraction}: "
            "expected at least 1, at least 0, at least 0, and 0 to 1"
        )
    return Preset(
        name=base.name,
        shape=_shape(args.shape) if args.shape else base.shape,
        dtype=dtype_name(args.dtype) if args.dtype else base.dtype,
        rate_hz=rate_hz,
        pulses=pulses,
        source=base.source,
    )


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise WrongInput(
            f"--shape {text!r}: expected numbers with x between them, slow axis first, for example 512x1024"
        )
    return tuple(map(int, parts))


def _simulation(args: argparse.Namespace, detector: Preset) -> Any:
    from asapo_produce.detectors.simulate import Simulation

    faults = Faults(
        skip=parse_share(args.skip),
        repeat=parse_share(args.repeat),
        conflict=parse_share(args.conflict),
        reorder=args.reorder,
        seed=args.seed,
    )
    return Simulation(
        stream=args.stream, n_frames=args.frames, rate_hz=detector.rate_hz, pulses=detector.pulses, faults=faults
    )


def _send(args: argparse.Namespace, detector: Preset, simulation: Any, pool: Any, summary: dict[str, Any]) -> int:
    """Send everything; add what happened to the summary and return the exit status."""
    from asapo.progress import Progress
    from asapo_produce.detectors.simulate import Simulator
    from asapo_produce.producer import Producer

    ledger, pacer, status = Ledger(), Pacer(), 0
    source = args.source or detector.name
    with Producer(args.url, beamtime=args.beamtime, source=source, queue_timeout_s=args.timeout_s) as producer:
        simulator = Simulator(producer, pool, simulation, ledger=ledger, pacer=pacer)
        began_s = time.monotonic()
        try:
            with Progress("simulate", simulation.n_frames) as progress:
                simulator.run(on_progress=progress.update)
        except KeyboardInterrupt:
            status = INTERRUPTED
        ledger.wait_settled(args.timeout_s)
        elapsed_s = time.monotonic() - began_s
        if not args.no_finish:
            producer.finish_stream(args.stream, timeout_s=args.timeout_s)
    summary.update({"beamtime": args.beamtime, "source": source, "stream": args.stream})
    summary.update(_outcome(simulator.report, ledger, pacer, elapsed_s))
    wrong = ledger.failed or ledger.duplicates != simulator.report.fates[Kind.CONFLICT]
    return status or (1 if wrong else 0)


def _outcome(report: Any, ledger: Ledger, pacer: Pacer, elapsed_s: float) -> dict[str, Any]:
    return {
        "sent": ledger.sent,
        "acked": ledger.acked,
        "refused_duplicates": ledger.duplicates,
        "failed": ledger.failed,
        "errors": dict(ledger.errors),
        "first_errors": ledger.first_errors,
        "skipped": report.fates[Kind.SKIP],
        "repeated": report.fates[Kind.REPEAT],
        "conflicts": report.fates[Kind.CONFLICT],
        "reordered": report.reordered,
        "id_max": report.highest,
        "bytes": ledger.nbytes,
        "seconds": round(elapsed_s, 3),
        "rate_hz": round(ledger.sent / elapsed_s, 1),
        "mb_per_s": round(ledger.nbytes / elapsed_s / 1e6, 1),
        "behind_max_s": round(pacer.behind_s, 4),
        "ack_ms": ledger.ack_ms(),
    }


def _show(summary: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    ceiling = summary["ceiling"]
    shape = " x ".join(map(str, summary["shape"]))
    lines = [f"{summary['detector']}: {shape} {summary['dtype']}, {summary['frame_bytes'] / 1e6:.3g} MB a frame"]
    if "sent" in summary:
        ack = summary["ack_ms"]
        asked = summary["asked_rate_hz"]
        lines += [
            f"sent {summary['sent']} to {summary['beamtime']}/{summary['source']}/{summary['stream']}, "
            f"acknowledged {summary['acked']}, failed {summary['failed']}",
            f"rate {summary['rate_hz']} Hz (asked: {asked or 'as fast as possible'}), {summary['mb_per_s']} MB/s, "
            f"acknowledged after {ack['p50']} ms (p50), {ack['p99']} ms (p99)",
            f"faults: {summary['skipped']} skipped, {summary['repeated']} repeated, {summary['conflicts']} conflicting "
            f"({summary['refused_duplicates']} refused), {summary['reordered']} out of order",
            *(f"error: {text}" for text in summary["first_errors"]),
        ]
    lines.append(f"ceiling without a receiver: {ceiling['frames_per_s']} frames/s, {ceiling['mb_per_s']} MB/s")
    sys.stdout.write("\n".join(lines) + "\n")
