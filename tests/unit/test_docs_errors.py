"""The errors page lists every class, with the code and the flag that the class has."""

import re
from pathlib import Path

import pytest

from asapo.errors import AsapoError
from asapo.supervise import ServiceFailed

PAGE = (Path(__file__).parents[2] / "docs/reference/errors.md").read_text()
ROWS = {
    name: (code, retriable)
    for name, code, retriable in re.findall(r"^\| (?:↳ )*`(\w+)` \| `(\w+)` \| (yes|no) \|", PAGE, re.MULTILINE)
}


def tree(kind: type[AsapoError]) -> list[type[AsapoError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in tree(child))]


OURS = [kind for kind in tree(AsapoError) if kind.__module__.partition(".")[0].startswith("asapo")]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_every_class_is_listed_as_it_is(kind: type[AsapoError]) -> None:
    assert ROWS[kind.__name__] == (kind.code, "yes" if kind.retriable else "no")


def test_no_class_is_listed_that_does_not_exist() -> None:
    assert ServiceFailed in OURS
    assert set(ROWS) == {kind.__name__ for kind in OURS}


def test_children_stand_below_their_parent() -> None:
    parents = {kind.__name__: kind.__bases__[0].__name__ for kind in OURS}
    above: list[str] = []
    for indent, name in re.findall(r"^\| ((?:↳ )*)`(\w+)` \| `", PAGE, re.MULTILINE):
        depth = indent.count("↳")
        del above[depth:]
        assert not depth or parents[name] == above[-1]
        assert len(above) == depth, f"{name} stands too deep"
        above.append(name)
