"""The code that README and guides show runs as it stands there, against real services."""

import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from asapo.testing.launch import LocalServices

pytestmark = [pytest.mark.needs_server, pytest.mark.needs_linux]

ROOT = Path(__file__).parents[2]
SHOWN_URL = "asapo://127.0.0.1:8400"
SHOWN_HTTP = "http://127.0.0.1:8401"
"""Addresses in all examples; tests put the real ones there."""
SHOWN_DATA = "asapo-data"
"""Data folder in all examples."""
GUIDES = [
    path.relative_to(ROOT)
    for folder in ("docs/tutorial", "docs/how-to")
    for path in sorted((ROOT / folder).glob("*.md"))
    if "```python" in path.read_text()
]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def start(program: str, url: str, folder: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", program.replace(SHOWN_URL, url)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a program and return what it printed."""
    try:
        output, errors = process.communicate(timeout=45)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, errors
    return output


@pytest.fixture
def services(tmp_path: Path) -> Iterator[LocalServices]:
    with LocalServices(tmp_path / "services", receivers=2, http=True) as running:
        yield running


def test_the_code_in_the_readme_is_the_code_in_examples() -> None:
    files = [ROOT / "examples" / f"first_{name}.py" for name in ("producer", "worker")]
    assert python_blocks(ROOT / "README.md") == [path.read_text() for path in files]


def test_producer_and_worker_of_the_readme_work_together(services: LocalServices, tmp_path: Path) -> None:
    producer, worker = python_blocks(ROOT / "README.md")
    early = start(worker, services.native, tmp_path)
    assert finish(start(producer, services.native, tmp_path)) == "100 of 100 frames stored\n"
    lines = finish(early).splitlines()
    assert re.fullmatch(r"100 frames, [1-9]\d* lit pixels", lines[0])
    assert lines[1] == "largest angles at messages [100, 99]"
    again = finish(start(producer, services.native, tmp_path))
    assert again == "100 of 100 frames stored\n", "the same content under the same ids is taken as one"


@pytest.mark.parametrize("page", GUIDES, ids=str)
def test_the_code_of_a_guide_runs_from_top_to_bottom(page: Path, services: LocalServices, tmp_path: Path) -> None:
    program = "\n".join(python_blocks(ROOT / page)).replace(SHOWN_HTTP, services.http)
    program = program.replace(SHOWN_DATA, str(services.data_dir))
    finish(start(program, services.native, tmp_path))


def test_every_metric_the_services_show_is_documented(services: LocalServices, tmp_path: Path) -> None:
    for program in python_blocks(ROOT / "README.md"):
        finish(start(program, services.native, tmp_path))
    documented = set(re.findall(r"`(asapo_\w+)`", (ROOT / "docs/reference/metrics.md").read_text()))
    with urllib.request.urlopen(f"{services.http}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    shown = {re.split(r"[{ ]", line)[0] for line in lines if line and not line.startswith("#")}
    assert shown <= documented
    assert "asapo_receiver_messages_total" in shown or "asapo_receiver_up" in shown
