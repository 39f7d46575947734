"""`python -m benchmarks [ID,ID...]`: measure, print a table, write `benchmarks/results.json`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


def main() -> int:
    """Run the benchmarks whose figure ids begin with one of the given names; all when none is given."""
    if len(sys.argv) > 1:
        os.environ["ASAPO_BENCH_ONLY"] = ",".join(sys.argv[1:])
    os.environ["ASAPO_BENCH_WARM"] = "1"
    # Times that pytest-benchmark prints are those of whole rounds; the table below them has the figures.
    return pytest.main(
        [
            str(Path(__file__).parent),
            "--benchmark-enable",
            "-m",
            "",
            "-q",
            "--timeout",
            "1800",
            "--benchmark-columns=rounds",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
