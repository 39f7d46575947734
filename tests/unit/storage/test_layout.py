from pathlib import Path

import pytest

from asapo.models import StreamRef
from asapo.storage import layout
from asapo.storage.layout import SegmentName, decode_name, encode_name, parse_segment_name, segment_name


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("run_7", "run_7"),
        ("a.b-c", "a.b-c"),
        (".", "%2E"),
        ("..", "%2E."),
        (".asapo-tier", "%2Easapo-tier"),
        ("a/b c", "a%2Fb%20c"),
        ("ä", "%C3%A4"),
        ("%41", "%2541"),
        ("~x", "%7Ex"),
        ("+x", "%2Bx"),
        ("back\\slash\n", "back%5Cslash%0A"),
    ],
)
def test_names_are_percent_encoded_and_come_back(name: str, encoded: str) -> None:
    assert encode_name(name) == encoded
    assert decode_name(encoded) == name


def test_a_name_whose_encoding_fits_in_255_bytes_is_kept_whole() -> None:
    assert encode_name("x" * 255) == "x" * 255
    assert encode_name("/" * 85) == "%2F" * 85


def test_a_longer_encoding_is_cut_and_hashed_so_that_names_stay_apart() -> None:
    one, two = encode_name("/" * 86), encode_name("/" * 87)
    assert one != two
    assert len(one) == len(two) == 217
    assert one[:200] == ("%2F" * 67)[:200]
    assert decode_name(one) is None


@pytest.mark.parametrize("text", ["", "a/b", "%2f", "%41", "a b", ".x", "%C3", "%", "a~b"])
def test_text_that_is_no_encoded_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an encoded name"):
        decode_name(text)


def test_segment_names_say_receiver_epoch_and_number() -> None:
    assert segment_name("host-1 a", 12, 3) == "host-1%20a-12-000003.seg"
    assert parse_segment_name("host-1%20a-12-000003.idx") == SegmentName("host-1%20a", 12, 3)
    assert parse_segment_name("r-1-1234567.seg") == SegmentName("r", 1, 1234567)
    for other in ("r-1-000001.h5", "000001.seg", "r-1-001.seg", ".asapo-tier", "r-1-000001.seg.tmp"):
        assert parse_segment_name(other) is None


def test_the_longest_receiver_name_still_makes_a_file_name() -> None:
    name = segment_name("/" * 255, 2**63 - 1, 10**6)
    assert len(name) <= 255
    assert parse_segment_name(name) is not None


def test_a_stream_lies_four_levels_below_its_tier() -> None:
    folder = layout.stream_dir("/tier", StreamRef("bt 1", "..", "a/b"))
    assert folder == Path("/tier/bt%201/%2E./a%2Fb")
    assert layout.tier_root_of(folder / "r-1-000001.seg") == Path("/tier")


def test_journals_are_found_but_not_streams_that_are_called_like_one(tmp_path: Path) -> None:
    stream = layout.stream_dir(tmp_path, StreamRef("b", "s", "t"))
    trap = layout.stream_dir(tmp_path, StreamRef("b", "s", "r-1-000009.idx"))
    stream.mkdir(parents=True)
    trap.mkdir(parents=True)
    own = layout.beamtime_journal(tmp_path, "b", receiver="r", epoch=1, number=2)
    paths = [own, stream / "r-1-000001.idx", trap / "r-1-000002.idx"]
    for path in [*paths, stream / "r-1-000001.seg", stream / "notes.idx"]:
        path.touch()
    assert sorted(layout.find_journals(tmp_path)) == sorted(paths)
    assert parse_segment_name(own.name) == SegmentName("r", 1, 2)


def test_no_source_can_take_the_name_of_a_beamtime_journal() -> None:
    name = layout.beamtime_journal("/t", "b", receiver="r", epoch=1, number=2).name
    assert encode_name(name) != name
