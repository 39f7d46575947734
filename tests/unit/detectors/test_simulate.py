"""The simulated detector: frames that can be computed again, faults as asked, summary as it happened."""

import json
from typing import Any

import numpy as np
import pytest

from asapo import cli
from asapo.errors import WrongInput
from asapo_produce.detectors import simulate_cli
from asapo_produce.detectors.faults import Faults, Kind, Share
from asapo_produce.detectors.frames import FramePool, diffraction_frame, largest_divisor, sphere_intensity
from asapo_produce.detectors.ledger import Ledger
from asapo_produce.detectors.pacing import Pacer
from asapo_produce.detectors.presets import PRESETS, preset
from asapo_produce.detectors.simulate import FIRST_TRAIN, Simulation, Simulator, block_of, measure_ceiling
from tests.unit.detectors.fakes import FakeClock, FakeProducer


def simulated(pool: FramePool, what: Simulation, clock: FakeClock | None = None) -> tuple[FakeProducer, Ledger, Any]:
    sink, ledger, ticking = FakeProducer(), Ledger(), clock or FakeClock()
    simulator = Simulator(sink, pool, what, ledger=ledger, pacer=Pacer(clock=ticking, sleep=ticking.sleep))
    simulator.run()
    return sink, ledger, simulator.report


def test_presets_have_the_rates_and_sizes_that_facilities_plan_with() -> None:
    sizes = {name: round(each.frame_bytes / 1e6, 1) for name, each in PRESETS.items()}
    assert (sizes["pilatus-300k"], sizes["pilatus-6m"], sizes["pco-edge"], sizes["perkinelmer"]) == (
        1.2,
        24.9,
        8.4,
        16.8,
    )
    rates = {name: round(each.bytes_per_s / 1e9, 1) for name, each in PRESETS.items()}
    assert (rates["lambda"], rates["eiger"], rates["euxfel-agipd"]) == (7.5, 3.8, 7.4)
    for name, trains_hz in (("euxfel-agipd", 10), ("euxfel-pulses", 10)):
        assert preset(name).rate_hz / preset(name).pulses == trains_hz
    assert preset("euxfel-pulses").rate_hz == 27_000
    with pytest.raises(WrongInput, match="pilatus-6m"):
        preset("pilatus")


def test_sphere_intensity_has_its_first_minimum_where_tan_x_is_x() -> None:
    intensity = sphere_intensity((401, 401), fringe_px=40.0)
    assert intensity.sum() == pytest.approx(1)
    along = intensity[200, 200:]
    minimum = next(k for k in range(1, 200) if along[k + 1] > along[k])
    assert minimum * np.pi / 40 == pytest.approx(4.4934, abs=np.pi / 40)
    assert intensity.argmax() == 200 * 401 + 200


def test_every_frame_can_be_computed_again_from_seed_and_id() -> None:
    pool = FramePool((24, 32), ">u2", seed=11, block=3)
    for i in (1, 2, 3, 500, 10**12):
        frame, facts = diffraction_frame((24, 32), ">u2", seed=11, number=pool.index_of(i))
        assert np.array_equal(pool.frame(i), frame)
        assert pool.frame(i).dtype.str == ">u2"
        assert pool.facts_of(i) == facts
    assert {pool.facts_of(i).hit for i in range(1, 50)} == {True, False}
    assert len({pool.index_of(i) for i in range(1, 200)}) > 4
    assert np.array_equal(pool.frames(4, 3), np.stack([pool.frame(i) for i in (4, 5, 6)]))


def test_hits_scatter_and_others_do_not() -> None:
    for number in range(8):
        _, facts = diffraction_frame((64, 64), "<u2", seed=1, number=number, hit_fraction=0.25)
        assert facts.hit == (number % 4 == 3)
        assert (facts.photons > 5000) == facts.hit


@pytest.mark.parametrize("dtype", ["|u1", "|b1", "<i4", ">f4", "<c8"])
def test_frames_of_every_kind_of_number(dtype: str) -> None:
    frame, _ = diffraction_frame((3, 16, 16), dtype, seed=0, number=1)
    assert (frame.shape, frame.dtype.str) == ((3, 16, 16), dtype)
    assert frame.any()


def test_pool_frames_cannot_be_written_to() -> None:
    pool = FramePool((8, 8), "<u2")
    with pytest.raises(ValueError, match="read-only"):
        pool.frame(1)[0, 0] = 1


def test_faults_are_sent_and_counted_exactly() -> None:
    faults = Faults(skip=Share(1, 20), repeat=Share(1, 25), conflict=Share(1, 50), reorder=5, seed=4)
    pool = FramePool((16, 16), "<u2", seed=4)
    sink, ledger, report = simulated(pool, Simulation(stream="s", n_frames=200, faults=faults))
    fates = report.fates
    assert fates[Kind.SKIP] == 10
    sent = [i for call in sink.calls for i in call["ids"]]
    assert len(set(sent)) == 190 == fates[Kind.SEND]
    assert len(sent) - 190 == fates[Kind.REPEAT] + fates[Kind.CONFLICT]
    assert (ledger.sent, ledger.duplicates, ledger.failed) == (len(sent), fates[Kind.CONFLICT], 0)
    assert ledger.acked == len(sent) - fates[Kind.CONFLICT]
    assert fates[Kind.CONFLICT] > 0 < fates[Kind.REPEAT]
    for i, frame in sink.frames("s").items():
        assert np.array_equal(frame, pool.frame(i))
    highest, late = 0, 0
    for i in dict.fromkeys(sent):  # repetitions left out
        late += i < highest
        highest = max(highest, i)
    assert late == report.reordered > 0
    assert report.highest == highest


def test_trains_go_in_one_call_and_carry_train_and_pulse() -> None:
    what = Simulation(stream="s", n_frames=20, pulses=8, rate_hz=80)
    clock = FakeClock()
    pool = FramePool((8, 8), "<u2", seed=2, block=block_of(8, 128))
    sink, _, _ = simulated(pool, what, clock)
    assert [call["ids"] for call in sink.calls] == [list(range(1, 9)), list(range(9, 17)), list(range(17, 21))]
    metas = {i: json.loads(text) for i, text in sink.metas("s").items()}
    assert (metas[1]["train_id"], metas[1]["pulse_id"]) == (FIRST_TRAIN, 0)
    assert (metas[20]["train_id"], metas[20]["pulse_id"]) == (FIRST_TRAIN + 2, 3)
    assert metas[9]["hit"] is pool.facts_of(9).hit
    # 8 frames at 80 Hz: a train each 0.1 s.
    assert clock.slept_s == [pytest.approx(0.1), pytest.approx(0.1)]


def test_a_skipped_frame_takes_its_time() -> None:
    clock = FakeClock()
    what = Simulation(n_frames=11, rate_hz=10, faults=Faults(skip=Share(1, 2)))
    simulated(FramePool((4, 4), "<u2"), what, clock)
    assert clock.now_s == pytest.approx(100 + 1.0, abs=0.11)


def test_large_trains_are_cut_into_equal_parts() -> None:
    assert block_of(352, 2 * 1024 * 1024) == 4
    assert block_of(2700, 4096) == 1350
    assert block_of(1, 25_000_000) == 1
    assert largest_divisor(7, 3) == 1


def test_the_ceiling_is_measured_for_the_time_given() -> None:
    clock = FakeClock()

    def ticking() -> float:
        clock.now_s += 0.001
        return clock.now_s

    found = measure_ceiling(FramePool((4, 4), "<u2"), Simulation(n_frames=3), for_s=0.5, clock=ticking)
    assert 0 < found.frames_per_s < 1000
    assert found.bytes_per_s == pytest.approx(found.frames_per_s * 32)


class _CountingProducer(FakeProducer):
    made: dict[str, Any] = {}

    def __init__(self, url: str, **more: Any) -> None:
        super().__init__()
        type(self).made = {"url": url, **more, "producer": self}

    def __enter__(self) -> FakeProducer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass


@pytest.fixture
def fake_producer(monkeypatch: pytest.MonkeyPatch) -> type[_CountingProducer]:
    monkeypatch.setattr("asapo_produce.producer.Producer", _CountingProducer)
    return _CountingProducer


def test_the_command_sends_and_sums_up(
    fake_producer: type[_CountingProducer], capsys: pytest.CaptureFixture[str]
) -> None:
    args = (
        "simulate asapo://h:1 --beamtime bt --source det --stream s1 --shape 8x16 --dtype >i4 --frames 40 --rate-hz 0"
    )
    status = cli.main([*args.split(), "--skip", "1/10", "--conflict", "1/20", "--seed", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == 0
    assert (found["shape"], found["dtype"], found["skipped"]) == ([8, 16], ">i4", 4)
    assert found["sent"] == found["acked"] + found["refused_duplicates"]
    assert found["acked"] == 36
    assert found["refused_duplicates"] == found["conflicts"]
    assert found["ceiling"]["frames_per_s"] > 0
    assert found["ack_ms"]["p50"] is not None
    assert fake_producer.made["beamtime"] == "bt"
    assert fake_producer.made["producer"].finished == [("s1", "")]


def test_the_command_tells_its_ceiling_without_services(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate_cli, "CEILING_ALONE_S", 0.01)
    assert cli.main(["simulate", "--ceiling", "--shape", "4x4"]) == 0
    assert "ceiling without a receiver" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--frames", "1"], "URL"),
        (["asapo://h:1", "--shape", "8by9"], "--shape '8by9'"),
        (["asapo://h:1", "--dtype", "text"], "text"),
        (["asapo://h:1", "--preset", "kodak"], "kodak"),
        (["asapo://h:1", "--skip", "2/1"], "2/1"),
        (["asapo://h:1", "--rate-hz", "-3"], "--rate-hz -3"),
        (["asapo://h:1", "--reorder", "0"], "reorder 0"),
    ],
)
def test_wrong_options_are_named_and_end_with_status_2(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["simulate", *words]) == 2
    assert named in capsys.readouterr().err
