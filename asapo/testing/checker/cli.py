"""`asapo selfcheck`: does this installation keep its promises? Sends, reads in every way, and checks the invariants."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from asapo.ask import Asker
from asapo.doctor import EXTRAS
from asapo.errors import ConfigError, ConnectFailed, TransportError, WrongInput
from asapo.hostinfo import boot_id
from asapo.storage.tier import read_tier_uuid
from asapo.testing.checker.content import Content, sizes_up_to
from asapo.testing.checker.invariants import check
from asapo.testing.checker.local import run_under_kills
from asapo.testing.checker.report import SHOWN, Report, Verdict
from asapo.testing.checker.run import Run
from asapo.testing.launch import LocalServices
from asapo.transport import resolve
from asapo.wire.events import ListReceivers

BEAMTIME: Final = "asapo-selfcheck"
MESSAGES: Final = 300
LARGEST: Final = 2_000_000
KILLS: Final = 3
RATE_HZ: Final = 100.0
"""Pace while services are killed, so that frames are under way at every kill."""
PATIENCE_S: Final = 60.0
ANSWER_S: Final = 5.0
SEEDS: Final = 2**31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "address", nargs="?", default="", metavar="URL",
        help="the services (default: $ASAPO_URL; without, own services are started, killed and removed again)",
    )  # fmt: skip
    parser.add_argument("--url", default="", help="the same")
    parser.add_argument("--seed", type=int, help="what is sent follows from it (default: another one each time)")
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"frames to send (default: {MESSAGES})")
    parser.add_argument("--largest", type=int, default=LARGEST, metavar="BYTES",
                        help=f"largest frame (default: {LARGEST})")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="workers that share a group (default: 2)")
    parser.add_argument("--kills", type=int, metavar="N",
                        help=f"kills of own services under load (default: {KILLS}; 0 with a URL)")  # fmt: skip
    parser.add_argument("--folder", type=Path, help="keep journal and logs here (default: removed when all is well)")
    parser.add_argument("--timeout", type=float, default=PATIENCE_S, metavar="S", dest="timeout_s",
                        help=f"how long the services may have nothing to say (default: {PATIENCE_S:g})")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object for each invariant, then one for the run")


def run(args: argparse.Namespace) -> int:
    """Check, and show the verdict on every invariant; 1 when one is violated."""
    url = _checked(args)
    seed = args.seed if args.seed is not None else int.from_bytes(os.urandom(4), "big") % SEEDS
    folder = Path(args.folder or tempfile.mkdtemp(prefix="asapo-selfcheck-")).absolute()
    facts = {
        "seed": seed, "messages": args.messages, "kills": args.kills, "beamtime": BEAMTIME, "source": "checker",
        "stream": f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(3).hex()}",
    }  # fmt: skip
    report: Report | None = None
    try:
        report = _check(args, url, folder, facts)
    finally:
        clean = report is None or not report.violations
        if args.folder is None and clean:
            shutil.rmtree(folder, ignore_errors=True)
    _show(report, {**facts, "folder": "" if args.folder is None and clean else str(folder)}, as_json=args.json)
    return 1 if report.violations or not report.checked else 0


def _checked(args: argparse.Namespace) -> str:
    """Return the services' address, "" for own ones."""
    if args.address and args.url:
        raise WrongInput(f"two addresses, {args.url!r} and {args.address!r}: expected one")
    url: str = args.address or args.url or os.environ.get("ASAPO_URL", "")
    for name, least in (("messages", 1), ("largest", 0), ("workers", 0), ("timeout_s", 1)):
        if getattr(args, name) < least:
            raise WrongInput(f"--{name.removesuffix('_s')} {getattr(args, name)}: expected {least} or more")
    if args.kills is None:
        args.kills = 0 if url else KILLS
    if args.kills < 0 or (args.kills and url):
        raise WrongInput(f"--kills {args.kills}: expected 0 or more, and no URL: only services of our own are killed")
    if url:
        resolve(url)
    elif missing := [name for name in EXTRAS["server"] if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"own services need the extra `server` ({', '.join(missing)} is missing): pip install 'asapo[server]'; "
            "or give the URL of running ones",
            extra="server",
        )
    return url


def _check(args: argparse.Namespace, url: str, folder: Path, facts: dict[str, Any]) -> Report:
    content = Content(facts["seed"], facts["stream"], sizes_up_to(args.largest))
    with contextlib.ExitStack() as stack:
        services = None if url else stack.enter_context(_own_services(folder / "services"))
        address = services.native if services else url
        tiers = _tiers(address)
        notes = {} if args.kills else {"I9": "nothing was killed: only services of our own are"}
        rate_hz = RATE_HZ if args.kills else 0.0
        checked = stack.enter_context(
            Run(address, folder / "run", content, messages=args.messages, workers=args.workers, beamtime=BEAMTIME,
                patience_s=args.timeout_s, rate_hz=rate_hz, conflict_every=max(1, args.messages // 10))
        )  # fmt: skip
        checked.start()
        if services:
            run_under_kills(checked, services, ["r1", "broker", "r2"], args.kills, seed=facts["seed"])
        else:
            checked.finish()
        return check(checked.evidence(tiers=tiers, notes=notes))


@contextlib.contextmanager
def _own_services(folder: Path) -> Iterator[LocalServices]:
    """Run two receivers and a core; what they leave in the folder goes with them."""
    with LocalServices(folder, receivers=2, log_level="error") as services:
        yield services


def _tiers(url: str) -> list[Path]:
    """Return the tiers whose files can be read here, none when one of them cannot.

    Raises
    ------
    ConnectFailed
        If there are no services, or no receiver.
    """
    asker = Asker(url, timeout_s=ANSWER_S)
    try:
        answer = asker.ask(ListReceivers)
    except TransportError as exc:
        raise ConnectFailed(
            f"no services at {url} ({exc.message}); start them with `asapo up`, or leave the address out to check "
            "with services of our own",
            address=url,
        ) from exc
    finally:
        asker.close()
    receivers = answer.get("receivers", ()) if isinstance(answer, dict) else ()
    if not receivers:
        raise ConnectFailed(f"the broker at {url} knows no receiver; `asapo doctor` says more", address=url)
    found: set[Path] = set()
    for receiver in receivers:
        for uuid, facts in receiver["tiers"].items():
            if receiver["boot_id"] != boot_id() or read_tier_uuid(facts["root"]) != uuid:
                return []
            found.add(Path(facts["root"]))
    return sorted(found)


def _show(report: Report, facts: dict[str, Any], *, as_json: bool) -> None:
    counts = {verdict: sum(one.verdict is verdict for one in report.findings) for verdict in Verdict}
    if as_json:
        for finding in report.findings:
            _say(json.dumps(finding.as_dict()))
        _say(json.dumps({**facts, **{verdict.name.lower(): n for verdict, n in counts.items()}}))
        return
    for finding in report.findings:
        _say(f"{finding.invariant.name}  {finding.invariant:<22}  {finding.verdict:<13}  {finding.reason}")
        for one in finding.violations[:SHOWN]:
            _say(f"{'':<4}→ id {one.id}, {one.where}: expected {one.expected}, saw {one.seen}")
    place = f"{facts['beamtime']}/{facts['source']}/{facts['stream']}"
    _say(f"{facts['messages']} frames in {place}, seed {facts['seed']}, {facts['kills']} kills: "
         + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n))  # fmt: skip
    if facts["folder"]:
        _say(f"journal and logs: {facts['folder']}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
