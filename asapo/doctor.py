"""Checks of this installation and this host; what needs the services lies in `asapo_work.cli`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"

GIB: Final = 1024**3
FEW_FILES: Final = 1024
"""An open-files limit at or below this is soon reached: every connection and every segment takes one."""
LITTLE_MEMORY: Final = 2 * GIB
LITTLE_SHM: Final = 256 * 1024**2
COARSE_CLOCK_S: Final = 1e-4

EXTRAS: Final = {
    "server": ("fastapi", "lark", "prometheus_client", "re2", "structlog", "uvicorn"),
    "codecs": ("hdf5plugin", "imagecodecs"),
    "hdf5": ("h5py",),
    "replay": ("extra_data", "fabio", "h5py"),
    "tui": ("rich",),
}
"""Extra to the modules by which its presence shows."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    """Stable name."""
    verdict: str
    """ok, warning, failed, or skipped."""
    found: str
    next_step: str = ""
    """What to do; empty when all is well."""


def host_checks() -> list[Check]:
    """Check Python, packages, and what this host allows."""
    return [_python(), _packages(), _extras(), _malloc(), _open_files(), _shared_memory(), _memory(), _clock()]


def _python() -> Check:
    found = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    return Check("python", OK, found)


def _packages() -> Check:
    found, missing = [], []
    for name in ("asapo", "pyzmq", "numpy", "msgpack", "xxhash"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", FAILED, f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", OK, ", ".join(found))


def _extras() -> Check:
    there = [extra for extra, modules in EXTRAS.items() if all(map(_is_there, modules))]
    absent = [extra for extra in EXTRAS if extra not in there]
    found = f"present: {', '.join(there) or 'none'}; absent: {', '.join(absent) or 'none'}"
    return Check("extras", OK, found, f"if needed: pip install 'asapo[{','.join(absent)}]'" if absent else "")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _malloc() -> Check:
    library, number = platform.libc_ver()
    if library == "glibc":
        return Check("malloc", OK, f"glibc {number}, tuned by our services")
    step = "services run, but frames cost more CPU; run them where the C library is glibc"
    return Check("malloc", WARNING, f"{library or 'not glibc'} {number}".strip(), step)


def _open_files() -> Check:
    try:
        import resource
    except ImportError:
        return Check("open-files", SKIPPED, "this system has no such limit to ask for")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (may be raised to {hard})"
    if 0 <= soft <= FEW_FILES:
        return Check("open-files", WARNING, found, "raise it where services run, for example: ulimit -n 65536")
    return Check("open-files", OK, found)


def _shared_memory() -> Check:
    try:
        total, _, free = shutil.disk_usage("/dev/shm")
    except OSError:
        return Check("shared-memory", SKIPPED, "no /dev/shm here")
    found = f"/dev/shm has {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < LITTLE_SHM:
        return Check("shared-memory", WARNING, found, "free or enlarge it before placing data there")
    return Check("shared-memory", OK, found)


def _memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        facts = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
        total, free = facts["MemTotal"], facts["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return Check("memory", SKIPPED, "this system does not say")
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB available, {os.cpu_count()} CPUs"
    if free < LITTLE_MEMORY:
        return Check("memory", WARNING, found, "give receivers smaller budgets (ingest_bytes, cache_bytes)")
    return Check("memory", OK, found)


def _clock() -> Check:
    resolution_s = time.get_clock_info("monotonic").resolution
    try:
        source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text("ascii").strip()
    except OSError:
        source = "not named by this system"
    found = f"source {source}, resolution {resolution_s * 1e9:.0f} ns"
    slow = source in ("hpet", "acpi_pm", "jiffies")
    if slow or resolution_s > COARSE_CLOCK_S:
        return Check("clock", WARNING, found, "reading this clock is slow or coarse; use tsc or kvm-clock if there")
    return Check("clock", OK, found)
