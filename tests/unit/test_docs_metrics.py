"""The metrics page names every number that the code sets, and no other."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from asapo_broker.stages import NUMBERS as STAGE_NUMBERS
from asapo_broker.tally import PREFIX, Tally

ROOT = Path(__file__).parents[2]
DOCUMENTED = set(re.findall(r"^\| `(asapo_\w+)` \|", (ROOT / "docs/reference/metrics.md").read_text(), re.MULTILINE))


def trees(folder: str) -> Iterator[ast.AST]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield ast.parse(path.read_text())


def counted(tree: ast.AST) -> Iterator[str]:
    """Yield the names given to `Counters.add` and `Counters.set`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add" | "set"), args=[ast.Constant(value=str(name)), *_]):
                if name.startswith("asapo_"):
                    yield name


def keys_of(path: str, function: str) -> set[str]:
    """Return the text keys of the dicts that a function builds."""
    tree = ast.parse((ROOT / path).read_text())
    body = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function)
    dicts = [node for node in ast.walk(body) if isinstance(node, ast.Dict)]
    return {str(key.value) for found in dicts for key in found.keys if isinstance(key, ast.Constant)}


def set_by_the_code() -> set[str]:
    names = {name for folder in ("asapo", "broker", "receiver") for tree in trees(folder) for name in counted(tree)}
    core = keys_of("broker/asapo_broker/core.py", "statistics") - {"metrics"}
    core |= keys_of("broker/asapo_broker/bookkeeping.py", "numbers")
    names |= {f"{PREFIX}{name}" for name in core}
    names |= {f"{PREFIX}{item.name}_total" for item in fields(Tally)}
    return names | {f"{PREFIX}up"} | set(STAGE_NUMBERS.values())


def test_the_search_finds_the_numbers_of_each_service() -> None:
    found = set_by_the_code()
    assert {"asapo_receiver_bytes_total", "asapo_data_server_bytes_total", "asapo_broker_waiters"} <= found
    assert '"asapo_broker_up"' in (ROOT / "broker/asapo_broker/http/app.py").read_text()


def test_every_number_the_code_sets_is_documented_and_no_other() -> None:
    assert set_by_the_code() == DOCUMENTED
