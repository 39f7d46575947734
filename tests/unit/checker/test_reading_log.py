"""The log of a reader says what it saw, cut anywhere; the programs refuse what they cannot understand."""

from pathlib import Path

import pytest

from asapo.errors import DamagedFile, DeadlineExceeded, DiskFull, DuplicateId, LinkLost
from asapo.testing.checker.evidence import Event, Reading, Seen, Way
from asapo.testing.checker.programs import main
from asapo.testing.checker.reading_log import ReadingLog, read_log
from asapo.testing.checker.sender import outcome_of

SEEN = Seen(3, 10, "ab", 3, 77, 2, late=True)


def write(path: Path) -> None:
    with ReadingLog(path, Way.WORKER, "w1", group="g") as log:
        log.got(SEEN)
        log.failed(4, "damaged_file", 78)
        log.hole(5, 79)
        log.done(3, 80)
        log.end()


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path)
    assert read_log(path) == Reading(
        Way.WORKER, "w1", (SEEN,), complete=True, group="g", errors=(Event(4, 78, "damaged_file"),),
        holes=(Event(5, 79),), confirmed=(Event(3, 80),),
    )  # fmt: skip


def test_a_log_cut_anywhere_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path)
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        found = read_log(path)
        n_lines = whole[:end].count(b"\n") - 1
        assert not found.complete
        assert len(found.seen) + len(found.errors) + len(found.holes) + len(found.confirmed) == n_lines


def test_a_line_of_no_known_kind_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path)
    path.write_text(path.read_text().replace("HOLE", "HOLES"))
    with pytest.raises(DamagedFile, match="line 4"):
        read_log(path)


def test_an_error_of_the_way_leaves_the_outcome_unknown() -> None:
    assert outcome_of(None, "written") == ("ACK", "written")
    assert outcome_of(LinkLost("x", address="a"), "written") == ("UNKNOWN", "")
    assert outcome_of(DeadlineExceeded("x", after_s=1.0), "written") == ("UNKNOWN", "")
    assert outcome_of(DuplicateId("x", message_id=1), "written") == ("FAIL", "duplicate_id")
    assert outcome_of(DiskFull("x", free_bytes=0, path="p"), "written") == ("FAIL", "disk_full")


@pytest.mark.parametrize(
    ("argv", "said"),
    [([], "not enough"), (["send", "no"], "Expecting value"), (["fly", "{}"], "expected send or read")],
)
def test_a_program_called_wrongly_says_so(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 1
    assert said in capsys.readouterr().err
