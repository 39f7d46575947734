"""The rooms as they are packaged: the front door is light, typed and says what is missing."""

import importlib
import importlib.util
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("asapo", "asapo_produce", "asapo_receive", "asapo_broker", "asapo_work")
SDK_MODULES = ("asapo", "asapo.errors", "asapo.models", "asapo.wire", "asapo.transport", "asapo.reader") + (
    "asapo_produce",
    "asapo_work",
)
HEAVY_OR_POSIX = (
    "extra_data",
    "fabio",
    "fastapi",
    "fcntl",
    "grp",
    "h5py",
    "hdf5plugin",
    "imagecodecs",
    "lark",
    "prometheus_client",
    "pwd",
    "pydantic",
    "re2",
    "resource",
    "rich",
    "structlog",
    "termios",
    "uvicorn",
    "uvloop",
)

# The standard library's own users of POSIX modules come first: they are not what is tested.
HIDE = f"""
import asyncio, multiprocessing, shutil, subprocess, sys, tempfile

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY_OR_POSIX!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

for name in {HEAVY_OR_POSIX!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
"""


def _python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter and return what it said."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True, timeout=30
    )


def _when_written(room: str, name: str) -> pytest.MarkDecorator:
    """Skip while `room` lacks `name`; a run that forbids skips fails then."""
    found = importlib.util.find_spec(room) is not None and hasattr(importlib.import_module(room), name)
    return pytest.mark.skipif(not found, reason=f"{room} has no {name} yet")


def _project() -> dict[str, dict[str, object]]:
    project: dict[str, dict[str, object]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_typed(room: str) -> None:
    spec = importlib.util.find_spec(room)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).with_name("py.typed").exists()


@pytest.mark.parametrize(
    "module", [pytest.param(module, marks=_when_written(module, "__name__")) for module in SDK_MODULES]
)
def test_the_sdk_imports_without_heavy_or_posix_modules(module: str) -> None:
    result = _python(f"{HIDE}\nimport {module}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("room", "name"),
    [
        pytest.param(room, name, marks=_when_written(room, name))
        for room, name in [
            ("asapo_produce", "Producer"),
            ("asapo_work", "AsyncConsumer"),
            ("asapo_work", "Consumer"),
            ("asapo_work", "Stage"),
        ]
    ],
)
def test_the_front_door_opens_in_the_base_install(room: str, name: str) -> None:
    result = _python(f"{HIDE}\nfrom asapo import {name}\nimport {room}\nprint({name} is {room}.{name})")
    assert result.stdout == "True\n", result.stderr


@_when_written("asapo_produce", "Producer")
def test_importing_the_producer_leaves_numpy_alone() -> None:
    result = _python("import sys\nfrom asapo import Producer\nprint('numpy' in sys.modules)")
    assert result.stdout == "False\n", result.stderr


def test_importing_asapo_loads_no_room() -> None:
    result = _python("import sys, asapo\nprint([name for name in sys.modules if name.startswith('asapo_')])")
    assert result.stdout == "[]\n", result.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    asapo = importlib.import_module("asapo")
    with pytest.raises(AttributeError, match="no attribute 'Consummer'"):
        _ = asapo.Consummer


def test_a_missing_module_names_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.joinpath("room_in_need.py").write_text("import h5py.nowhere\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    asapo = importlib.import_module("asapo")
    monkeypatch.setitem(asapo._HOMES, "Stage", "room_in_need")
    monkeypatch.delitem(asapo.__dict__, "Stage", raising=False)
    with pytest.raises(ImportError, match=r"asapo\.Stage needs .*h5py\.nowhere.*pip install 'asapo\[hdf5\]'"):
        _ = asapo.Stage


def test_every_extra_the_front_door_advises_exists() -> None:
    asapo = importlib.import_module("asapo")
    extras = _project()["project"]["optional-dependencies"]
    assert isinstance(extras, dict)
    assert set(asapo._EXTRAS.values()) <= set(extras)


PINNED = re.compile(r"[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?==[A-Za-z0-9.+!]+( ; [^/@]+)? \\")
"""One version of one package, for some platforms or all, and a hash behind it."""
WHO = r"[A-Za-z0-9._-]+( \(pyproject\.toml(:[a-z-]+)?\))?"
BELOW = re.compile(rf"    --hash=sha256:[0-9a-f]{{64}}( \\)?|    # {{1,3}}(via)?( ?{WHO})?")
"""A hash, or who asked for the package: no address of any kind."""


@pytest.mark.parametrize("lock", ["asapo-clients.txt", "dev.txt", "lock.txt"])
def test_the_locks_carry_hashes_and_no_addresses(lock: str) -> None:
    lines = (ROOT / "requirements" / lock).read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if PINNED.fullmatch(line)]
    assert pinned
    assert [line for line in lines if not (PINNED.fullmatch(line) or BELOW.fullmatch(line))] == []
    for line, following in itertools.pairwise(lines):
        assert "--hash" in following or line not in pinned, line


@_when_written("asapo.cli", "__name__")
def test_the_console_script_exists() -> None:
    cli = importlib.import_module("asapo.cli")
    assert callable(cli.main)


def test_one_command_alone_comes_from_the_tools_for_tests() -> None:
    """Import contracts do not see modules that the command imports by name."""
    cli = importlib.import_module("asapo.cli")
    from_tools = {name for name, (module, _) in cli.COMMANDS.items() if module.startswith("asapo.testing")}
    assert from_tools == {"selfcheck"}


def test_the_checker_and_its_model_need_the_base_install_only() -> None:
    code = """
from asapo.testing.checker import check
from asapo.testing.checker.simulation import simulate
import asapo.testing.checker.cli, asapo.testing.checker.programs
print(check(simulate(1)).violations)
"""
    result = _python(HIDE + code)
    assert result.stdout == "[]\n", result.stderr
