"""Paths of client files: what is refused, and that whatever passes stays below the folder on every system."""

import ntpath
import sys
import tempfile
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asapo.client_path import MAX_PART_BYTES, MAX_PATH_BYTES, check_client_path
from asapo.errors import WrongInput

GOOD = [
    "img_0001.cbf",
    "scan1/img_0001.cbf",
    "a/b/c/d/e.tif",
    "run-7_x/..a".replace("..a", "a..b"),
    "probe Nr 3/Bild ä.cbf",
    "試料/像.h5",
    "x" * MAX_PART_BYTES,
    "con1", "common", "auxiliary.txt", "com10", "segment", "idx", "a.segment", "index.snap",
]  # fmt: skip
BAD = {
    "absolute": ["/etc/x", "//server/share", "/"],
    "parent": ["..", "../x", "a/../x", "a/..", "raw/../../x", ".", "./x", "a/./b"],
    "empty part": ["", "a//b", "a/"],
    "NUL and control": ["a\0b", "\0", "a\nb", "a\tb", "\x7f", "\x85"],
    "backslash": ["a\\b", "..\\x", "\\\\server\\share"],
    "drive, stream, wildcard": ["C:", "c:/x", "a:b", "a*", "a?", 'a"', "a<b", "a>b", "a|b"],
    "long": ["x" * (MAX_PART_BYTES + 1), "ä" * 128, "x" * 4096, "x" * 10_000, "a/" * 600 + "b"],
    "unicode dots": ["\u2025", "\uff0e\uff0e/x", "\u2024\u2024", "a/\u2025/b", "\u2026", "\ufe52x", "x\uff0e"],
    "unicode separators": ["a\uff0fb", "a\uff3cb", "a\ufe68b", "C\uff1ax", "a\u2028b"],
    "trailing dot or blank": ["a.", "a ", "a/b.", "b /a", "a\u00a0", "a\u3000"],
    "leading dot or blank": [".a", ".asapo-tier", ".asapo-x/y", " a", "a/ b", ".ssh/authorized_keys"],
    "devices": [
        "con", "CON", "nul.txt", "a/NUL", "aux.tar.gz", "com1", "COM9.cbf", "lpt1", "con .txt", "com\u00b9", "\uff43on",
        "CONIN$",
    ],
    "ours": ["x.seg", "x.SEG", "r1-1-000001.idx", "a/b.part", "index.snapshot", "INDEX.SNAPSHOT.tmp", "x.\uff53eg"],
    "invisible": ["a\u200bb", "a\u202eb", "\ufeffa", "a\u00adb"],
    "not NFC": ["a\u0308", "e\u0301/x"],
    "surrogates": ["a\ud800"],
}  # fmt: skip


def is_device(path: str) -> bool:
    """Say what Python says of Windows."""
    if sys.version_info >= (3, 13):
        return ntpath.isreserved(path)
    return PureWindowsPath(path).is_reserved()


@pytest.mark.parametrize("path", GOOD)
def test_a_plain_relative_path_is_taken_as_it_is(path: str) -> None:
    assert check_client_path(path) == path


@pytest.mark.parametrize("path", [path for group in BAD.values() for path in group], ids=ascii)
def test_a_path_that_means_something_else_anywhere_is_refused(path: str) -> None:
    with pytest.raises(WrongInput, match="expected"):
        check_client_path(path)


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"], PureWindowsPath("C:/x"), PurePosixPath("/x")])
def test_what_is_no_relative_path_is_refused(value: object) -> None:
    with pytest.raises(WrongInput):
        check_client_path(value)


def test_a_path_object_is_taken_with_slashes() -> None:
    assert check_client_path(PureWindowsPath("scan1") / "img.cbf") == "scan1/img.cbf"


@given(st.one_of(st.text(max_size=40), st.text(alphabet="./\\ aC:\0\u2025\uff0e\uff0fcon", max_size=12)))
def test_whatever_passes_names_one_file_below_the_folder(text: str) -> None:
    try:
        path = check_client_path(text)
    except WrongInput:
        return
    root = PurePosixPath("/root")
    assert len(path.encode()) <= MAX_PATH_BYTES
    for form in (path, unicodedata.normalize("NFKC", path)):
        parts = form.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert PurePosixPath("/root", form).is_relative_to(root)
        assert PureWindowsPath("C:/root", form).is_relative_to("C:/root")
        assert not is_device(form)
        assert PureWindowsPath(form).parts == PurePosixPath(form).parts == tuple(parts)
        assert all(part == part.strip(" .") for part in parts)


@given(st.text(min_size=1, max_size=20))
def test_the_system_takes_whatever_passes(text: str) -> None:
    try:
        path = check_client_path(text)
    except WrongInput:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        assert file.resolve().is_relative_to(Path(folder).resolve())
