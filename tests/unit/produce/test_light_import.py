"""Importing the producer is quick, needs no NumPy, and nothing that only some systems have."""

import subprocess
import sys

SCRIPT = """
import sys
for name in ("numpy", "fcntl", "resource", "pwd", "grp", "uvloop", "asyncio"):
    sys.modules[name] = None
from asapo_produce import Producer
try:
    Producer("asapo://nowhere", beamtime="b", source="s")
except Exception as exc:
    print(type(exc).__name__)
"""


def test_the_producer_imports_without_numpy_and_posix_modules() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["WrongInput"]
