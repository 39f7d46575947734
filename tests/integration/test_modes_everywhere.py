"""A hit finder with chunks, filter and incomplete datasets: live, on a replay and on the folder the same results."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asapo import Producer
from asapo.testing.launch import LocalServices

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux, pytest.mark.timeout(120)]
SCRIPT = Path(__file__).with_name("hit_finder_script.py")
N = 40
LOST = {(6, 1), (13, 2), (40, 1)}
"""Parts that never come: (id, substream)."""


def run(*words: object) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def send_modules(url: str) -> None:
    """Send a scan of two modules, each by a producer of its own, some ids and some parts left out."""
    with (
        Producer(url, beamtime="bt1", source="modules") as left,
        Producer(url, beamtime="bt1", source="modules") as right,
    ):
        for message_id in [one for one in range(1, N + 1) if one % 9]:
            for part, module in ((1, left), (2, right)):
                if (message_id, part) in LOST:
                    continue
                image = np.full((2, 4), message_id % 5 + part, "<u2")
                module.send(
                    image, id=message_id, stream="scan", substream=part, dataset_size=2,
                    meta={"shutter": message_id % 4 > 0}, acquired_ns=(10**9 + message_id) * 10**9,
                )  # fmt: skip
        left.flush()
        right.flush()
        right.finish_stream("scan")


def test_a_hit_finder_prints_the_same_live_replayed_and_offline(tmp_path: Path) -> None:
    with LocalServices(tmp_path / "live", receivers=2) as services:
        send_modules(services.native)
        live = run(SCRIPT, services.native, "bt1", services.native)
    folder = tmp_path / "live" / "beamline" / "bt1"
    assert run(SCRIPT, folder, "bt1", "") == live
    with LocalServices(tmp_path / "again") as services:
        replay = ("-m", "asapo", "replay", services.native, folder, "--source-name", "modules", "--source", "modules")
        run(*replay, "--beamtime", "bt1", "--speed", 0)
        assert run(SCRIPT, services.native, "bt1", services.native) == live
    check_what_it_found(live)
    assert os.listdir(folder)


def check_what_it_found(printed: str) -> None:
    """The three runs agree; here is what they have to agree on."""
    lines = printed.splitlines()
    chunks = [eval(line.removeprefix("chunk ")) for line in lines if line.startswith("chunk ")]
    ids = [one for one in range(1, N + 1) if one % 9 and one % 4]
    assert [image[0] for chunk in chunks for image in chunk] == ids
    assert [len(chunk) for chunk in chunks] == [8] * (len(ids) // 8) + [len(ids) % 8] * bool(len(ids) % 8)
    incomplete = {image[0]: image[3] for chunk in chunks for image in chunk if not image[2]}
    assert incomplete == {6: (1,), 13: (2,)}
    complete = [one for one in range(1, N + 1) if one % 9 and one not in (6, 13, 40)]
    assert f"whole {complete}" in lines
    assert f"at least two {[(one, 2) for one in complete]}" in lines
    scores = {one: sum(8 * (one % 5 + part) for part in (1, 2) if one % 5 + part > 2 and (one, part) not in LOST)
              for one in ids}  # fmt: skip
    hits = [one for one in ids if scores[one] > 40]
    assert [int(line.split()[1]) for line in lines if line.startswith("hit ")] == hits
    raw = [one for line in lines if line.startswith("raw ") for one, _ in eval(line.removeprefix("raw "))]
    assert raw == hits
    assert f"range {[one for one in ids if 10 <= one <= 20]}" in lines
    assert f"times {[one for one in ids if 10 <= one < 35 and one != 13]}" in lines
    assert "live [(39, 2)]" in lines
    assert "part [1, 2]" in lines
    gaps = next(line for line in lines if line.startswith("Gaps("))
    assert "missing=((9, 9), (18, 18), (27, 27), (36, 36)), awaited=()" in gaps
    assert "incomplete=((6, 1, 2), (13, 1, 2), (40, 1, 2))" in gaps
