"""How the frames of a batch become units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from asapo.errors import WrongInput
from asapo.models import Format
from asapo.wire.limits import MAX_UNIT_MESSAGES, MIB
from asapo.wire.put import unit_offsets
from asapo_produce.batches import Chunk, Frames, check_ids, chunks, frames_of
from asapo_produce.units import BATCH_UNIT_BYTES


def cut(frames: object, metas: list[str] | None = None) -> tuple[Frames, list[Chunk]]:
    found = frames_of(frames, codec="raw", shape=None, dtype=None, copy=False)
    return found, list(chunks(found, metas or ["{}"] * found.n))


def frames_in(found: Frames, parts: list[Chunk]) -> list[bytes]:
    """Take the frames out of the units again, as a receiver does, and check the checksums."""
    out = []
    for part in parts:
        sizes = found.sizes[part.start : part.stop]
        starts = unit_offsets(sizes)
        assert starts[-1] == len(part.view)
        out += [bytes(part.view[a : a + n]) for a, n in zip(starts, sizes, strict=False)]
        assert part.checksums == [xxh3_64_intdigest(frame) for frame in out[part.start : part.stop]]
    return out


@given(st.integers(1, 9), st.sampled_from([0, 1, 16, 17, 64, 100]), st.booleans())
def test_every_frame_comes_out_as_it_went_in(n: int, width: int, as_list: bool) -> None:
    array = np.arange(n * width, dtype="<u4").reshape(n, width)
    found, parts = cut(list(array) if as_list else array)
    assert found.format == Format("<u4", (width,))
    assert frames_in(found, parts) == [frame.tobytes() for frame in array]


def test_aligned_frames_of_one_array_are_not_copied() -> None:
    array = np.zeros((64, 32, 32), "<u4")
    _, (part,) = cut(array)
    array[0, 0, 0] = 1
    assert part.view[0] == 1
    assert len(part.view) == array.nbytes


def test_large_frames_go_uncopied_whatever_their_alignment() -> None:
    array = np.zeros((3, 200_001), "|u1")
    found, parts = cut(array)
    array[:] = 1
    assert [len(part.view) for part in parts] == [200_001] * 3
    assert all(part.view[0] == 1 for part in parts)
    found, parts = cut(list(array))
    assert [part.stop - part.start for part in parts] == [1, 1, 1]


def test_a_batch_is_cut_at_the_size_of_a_unit() -> None:
    found, parts = cut(np.zeros((20, MIB), "|u1"))
    assert [len(part.view) // MIB for part in parts] == [8, 8, 4]
    assert max(len(part.view) for part in parts) == BATCH_UNIT_BYTES


@pytest.mark.parametrize("as_list", [False, True])
def test_a_batch_is_cut_at_the_number_of_messages(as_list: bool) -> None:
    array = np.zeros((MAX_UNIT_MESSAGES + 1, 4), "|u1")
    found, parts = cut(list(array) if as_list else array)
    assert [part.stop - part.start for part in parts] == [MAX_UNIT_MESSAGES, 1]


def test_a_batch_is_cut_when_its_metadata_are_long() -> None:
    _, parts = cut(np.zeros((8, 64), "|u1"), ["{" + " " * (MIB - 2) + "}"] * 8)
    assert [part.stop - part.start for part in parts] == [3, 3, 2]


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([], "no frames"),
        (np.zeros((0, 4)), "no frames"),
        (np.array(1.0), "array of frames"),
        (3, "array of frames"),
        (b"one", "array of frames"),
        ([b"a", np.zeros(2)], "one dtype"),
    ],
)
def test_what_is_no_batch_is_refused(frames: object, match: str) -> None:
    with pytest.raises(WrongInput, match=match):
        cut(frames)


def test_dense_ids_are_a_range() -> None:
    assert type(check_ids(np.arange(5, 9), 4)) is range  # type: ignore[arg-type]
    assert check_ids([5, 6, 7, 8], 4) == range(5, 9)
    assert check_ids([5, 7, 9], 3) == [5, 7, 9]


@pytest.mark.parametrize("ids", [[1], [2, 1], [1, 1], [0, 1], [1, 2**63], ["1", "2"], [1.0, 2.0], [1, 3, 2]])
def test_bad_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(WrongInput):
        check_ids(ids, 3 if len(ids) == 3 else 2)
