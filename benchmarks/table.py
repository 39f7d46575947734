"""Writes the figures of `results.json` into the documentation: `python -m benchmarks.table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.conftest import RESULTS

ROOT = Path(__file__).parent.parent


def load() -> dict[str, dict[str, Any]]:
    """Return the figures by id."""
    return {entry["id"]: entry for entry in json.loads(RESULTS.read_text())}


def figures(entries: dict[str, dict[str, Any]]) -> str:
    """Return the table of all figures."""
    lines = ["| id | value | baseline in the same run | ratio | more |", "|---|---|---|---|---|"]
    for name, entry in entries.items():
        baseline = "" if entry["baseline"] is None else f"{entry['baseline']:.4g}"
        ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
        lines.append(f"| {name} | {entry['value']:.4g} {entry['unit']} | {baseline} | {ratio} | {more(entry)} |")
    machine = next(iter(entries.values()))["params"]["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}, Python {machine['python']}"
    return "\n".join([f"Machine: {where} (virtual, shared). Measured on {machine['date']}.", "", *lines])


def more(entry: dict[str, Any]) -> str:
    """Return what else must be known of a figure, in few words."""
    params = entry["params"]
    if "cpu_ratio" in params:
        ours, theirs = params["cpu_s_per_gb_sum"], params["cpu_s_per_gb_baseline"]
        return f"CPU {ours:.2f} s/GB, baseline {theirs:.2f}, ratio {params['cpu_ratio']:.2f}"
    if "p99_ms" in params and "rate_hz" in params:
        return f"p99 {params['p99_ms']:.1f} ms at {params['rate_hz']} Hz"
    if "rate_ratio" in params:
        return f"p99 {params['p99_ms']:.2f} ms; rate {params['rate_ratio']:.2f} of the echo's"
    if "slowest_by_fastest" in params:
        fair, mb = params["slowest_by_fastest"], params["core_peak_mb"]
        return (
            f"10 groups, slowest {fair:.2f} of the fastest; p50 {params['p50_ms']:.0f}, p99 {params['p99_ms']:.0f} ms; "
            f"core {mb} MB"
        )
    if "load" in params:
        return f"p99 {params['p99_ms']:.1f} ms beside {params['load']}; without {params['baseline_p99_ms']:.1f}"
    if "cores" in params:
        return "cores: " + ", ".join(f"{who} {value:.2f}" for who, value in params["cores"].items())
    if "not_packed" in params:
        return f"receiver {params['not_packed']['receiver_us']:.0f} us CPU per unpacked message"
    return ""


def copies(entries: dict[str, dict[str, Any]]) -> str:
    """Return the CPU of each process and of each step, for frames of 2 MB."""
    params = entries["path-2MB"]["params"]
    lines = ["| process (2 MB frames) | CPU-s/GB |", "|---|---|"]
    lines += [f"| {who} | {value:.2f} |" for who, value in params["cpu_s_per_gb"].items()]
    lines += ["", "| step, measured alone in the same run | CPU-s/GB |", "|---|---|"]
    lines += [f"| {step} | {value:.2f} |" for step, value in params["unit_costs_cpu_s_per_gb"].items()]
    return "\n".join(lines)


def replace(path: Path, mark: str, text: str) -> None:
    """Put `text` between the marks of a page."""
    page = path.read_text()
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    head, rest = page.split(begin)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    found = load()
    replace(ROOT / "README.md", "benchmarks", figures(found))
    replace(ROOT / "docs" / "explanation" / "data-path.md", "figures", copies(found))
