"""The physics gates: what they measure on hand-made jets, that they fail on broken ones, and the gates themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ks_2samp

from jetfoundry import config
from jetfoundry.errors import InputError
from jetfoundry.events.record import Events
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.sim.validation import comparison, gates, tagging
from jetfoundry.sim.validation.comparison import Sample, copy_weights, weighted_ks
from jetfoundry.sim.validation.gates import Gate
from jetfoundry.sim.validation.observables import OBSERVABLES, observables

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cfg() -> SimulateConfig:
    return config.read(SimulateConfig, ROOT / "datasets" / "jetclass2_sim.yaml", ["mode=no_mpi"])


@pytest.fixture(scope="module")
def card() -> DetectorCard:
    return config.read(DetectorCard, ROOT / "datasets" / "cards" / "cms.yaml")


def replaced(table: pa.Table, name: str, change: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    """`table` with the values of one column changed, flat ones in the case of a list column."""
    column = table[name].combine_chunks()
    if not pa.types.is_list(column.type):
        new = pa.array(change(column.to_numpy()).astype(np.float32))
    else:
        new = pa.ListArray.from_arrays(column.offsets, pa.array(change(column.values.to_numpy())), type=column.type)
    return table.set_column(table.column_names.index(name), table.schema.field(name), new)


# ------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize(("n", "m", "shift"), [(60, 900, 0.0), (60, 900, 0.4), (300, 200, 0.1), (12, 15, 1.0)])
def test_ks_without_weights_is_that_of_scipy(n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.normal(size=n), rng.normal(shift, 1.0, m)
    distance, p = weighted_ks(first, second, np.ones(n), np.full(m, 0.37))
    wanted = ks_2samp(first, second, method="asymp")
    assert distance == pytest.approx(wanted.statistic, abs=1e-12)
    assert p == pytest.approx(wanted.pvalue, rel=1e-9)


def test_ks_of_copies_with_integer_weights_is_that_of_repeated_values() -> None:
    values, weight = np.array([1.0, 2.0, 2.0, 5.0]), np.array([1.0, 3.0, 2.0, 1.0])
    other = np.array([0.0, 2.0, 4.0])
    distance, _ = weighted_ks(values, other, weight, np.ones(3))
    repeated, _ = weighted_ks(np.repeat(values, weight.astype(int)), other, np.ones(7), np.ones(3))
    assert distance == pytest.approx(repeated)


def test_copies_of_a_real_jet_share_weight_one() -> None:
    np.testing.assert_allclose(copy_weights(np.array([0, 0, 0, 2])), [1 / 3, 1 / 3, 1 / 3, 1])


def sample(values: np.ndarray, real: np.ndarray) -> Sample:
    from jetfoundry.sim.validation.observables import Values

    every = {o.name: Values(values, np.arange(len(values))) for o in OBSERVABLES}
    return Sample(every, real, np.zeros(len(values), int), copy_weights(real))


def test_comparison_accepts_jets_drawn_like_their_copies_and_refuses_shifted_ones() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(0, 3, 50)
    copies = sample(np.repeat(truth, 30) + rng.normal(size=1500), np.repeat(np.arange(50), 30))
    good = comparison.compare(sample(truth + rng.normal(size=50), np.arange(50)), copies, 200, 1)[0].tests["all"]
    assert good.p is not None
    assert good.p > 0.01
    assert good.p_matched > 0.01
    bad = comparison.compare(sample(truth + 1.0 + rng.normal(size=50), np.arange(50)), copies, 200, 1)[0].tests["all"]
    assert bad.p is not None
    assert bad.p > 0.01  # the truth hides the shift from the ordinary test ...
    assert bad.p_matched < 0.01  # ... and not from the one that knows the truth


def test_comparison_without_any_copy_is_refused() -> None:
    with pytest.raises(InputError, match="none of them has a simulated copy"):
        comparison.compare(sample(np.ones(2), np.arange(2)), sample(np.ones(1), np.array([7])), 10, 1)


def test_gate_says_its_limit_and_nan_never_passes() -> None:
    assert Gate(name="a", value=22.0, low=21, high=25).limit == "21 to 25"
    assert Gate(name="a", value=0.2, high=1.0, unit="GeV").limit == "< 1 GeV"
    assert Gate(name="a", value=0.96, low=0.95).passed
    assert not Gate(name="a", value=0.94, low=0.95).passed
    assert not Gate(name="a", value=float("nan"), low=0.95).passed


# ---------------------------------------------------------------------------------------- hand-made jets, events


def test_features_and_observables_of_real_jets_are_finite_and_mean_what_they_say(real_table: pa.Table) -> None:
    plain, displaced = tagging.features(real_table)
    assert plain.shape == (60, len(tagging.FEATURES))
    assert displaced.shape == (60, len(tagging.DISPLACEMENT))
    assert np.isfinite(plain).all()
    assert np.isfinite(displaced).all()
    named = dict(zip(tagging.FEATURES, plain.T, strict=True)) | dict(
        zip(tagging.DISPLACEMENT, displaced.T, strict=True)
    )
    np.testing.assert_array_equal(named["nparticles"], real_table["jet_nparticles"].to_numpy())
    assert (named["z1"] >= named["z2"]).all()
    assert (named["significance1"] >= named["significance2"]).all()
    jet = real_table.slice(7, 1).to_pylist()[0]
    pt = np.hypot(jet["part_px"], jet["part_py"])
    assert named["z2"][7] == pytest.approx(pt[1] / pt.sum(), rel=1e-5)
    ratios = sorted((abs(d / e) for d, e in zip(jet["part_d0val"], jet["part_d0err"], strict=True) if e), reverse=True)
    assert named["significance3"][7] == pytest.approx(ratios[2], rel=1e-5)
    assert named["tracks_above_2"][7] == sum(r > 2 for r in ratios)
    found = observables(real_table)
    assert set(found) == {o.name for o in OBSERVABLES}
    assert found["n_constituents"].values[7] == jet["jet_nparticles"]
    assert found["n_photons"].values[7] == sum(jet["part_isPhoton"])
    assert found["response"].values[7] == pytest.approx(jet["jet_pt"] / jet["genjet_pt"])
    assert (found["d0"].jet == 7).sum() == sum(c != 0 for c in jet["part_charge"])


def test_kinematic_weights_give_both_classes_the_same_histogram(toy_jets: Callable[..., pa.Table]) -> None:
    table = toy_jets(4000)
    signal = np.arange(4000) < 1000
    weights = tagging.kinematic_weights(table, signal)
    pt = table["jet_pt"].to_numpy()
    edges = np.geomspace(200.0, 2500.0, 13)
    histograms = [np.histogram(pt[side], edges, weights=weights[side])[0] for side in (signal, ~signal)]
    np.testing.assert_allclose(*histograms)
    assert weights.max() <= 1


def test_auc_of_one_telling_and_of_no_telling_feature() -> None:
    rng = np.random.default_rng(2)
    signal = np.arange(1200) < 600
    noise = rng.normal(size=(1200, 2))
    nothing = tagging.auc(noise, signal, np.ones(1200), 1)
    assert abs(nothing.value - 0.5) < 4 * nothing.error
    telling = tagging.auc(np.column_stack([noise, signal + rng.normal(0, 0.2, 1200)]), signal, np.ones(1200), 1)
    assert telling.value > 0.99
    with pytest.raises(InputError, match="make more jets"):
        tagging.auc(noise, signal, np.where(signal, 1.0, 0.0), 1)


def pair_event() -> Events:
    """X (37) -> X and a photon of its own; X -> c dbar -> pi+, pi- and a photon; one pion of no resonance."""
    pid = np.array([2212, 37, 37, 22, 4, -1, 211, -211, 22, 211])
    status = np.array([-12, -22, -62, 62, -23, -23, 83, 83, 91, 63])
    mother = np.array([-1, 0, 1, 1, 2, 2, 4, 5, 5, 0])
    daughter = np.array([1, 2, 4, -1, 6, 7, -1, -1, -1, -1])
    p4 = np.zeros((10, 4))
    p4[6:] = [[0, 0, 30, 40], [0, 0, -20, 40], [0, 0, -10, 20], [0, 0, 5, 5]]
    p4[3] = [0, 0, 7, 7]
    mass = np.where(pid == 37, 100.0, 0.0)
    zero = np.zeros(10, int)
    return Events(np.array([0, 10]), zero, pid, status, mother, daughter, daughter, p4, mass, np.zeros((10, 4)))


def test_decay_products_of_x_are_counted_and_summed_but_not_what_it_radiates() -> None:
    assert gates.mass_of_descendants(pair_event()) == pytest.approx(0.0)
    event = pair_event()
    lost = dataclasses.replace(event, status=np.where(event.p4[:, 3] == 20, -1, event.status))
    assert gates.mass_of_descendants(lost) == pytest.approx(100 - np.sqrt(80**2 - 10**2))
    without = dataclasses.replace(event, pid=np.where(event.pid == 37, 23, event.pid))
    with pytest.raises(InputError, match="no resonance"):
        gates.mass_of_descendants(without)


def test_jets_are_the_sum_of_their_constituents_and_a_scaled_constituent_is_seen(
    toy_jets: Callable[..., pa.Table],
) -> None:
    table = toy_jets(50)
    sums = observables(table)  # toy axes are not those of the sum: put the sum in their place
    assert len(sums["sdmass"].values) == 50
    flat = [ak_sum(table, f"part_{name}") for name in ("px", "py", "pz", "energy")]
    pt = np.hypot(flat[0], flat[1])
    jets = {"jet_pt": pt, "jet_eta": np.arcsinh(flat[2] / pt), "jet_phi": np.arctan2(flat[1], flat[0])}
    jets["jet_energy"] = flat[3]
    for name, values in jets.items():
        table = replaced(table, name, lambda _, values=values: values)
    assert gates.sum_gate(table).passed
    broken = replaced(table, "part_energy", lambda values: 1.01 * values)
    gate = gates.sum_gate(broken)
    assert gate.value == pytest.approx(0.01, rel=1e-2)
    assert not gate.passed


def ak_sum(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return np.add.reduceat(column.values.to_numpy().astype(np.float64), column.offsets.to_numpy()[:-1])


# ------------------------------------------------------------------------------------------------ with Pythia 8


@pytest.fixture(scope="module")
def simulation() -> None:
    pytest.importorskip("pythia8mc", reason="needs the [sim] extra")
    pytest.importorskip("fastjet", reason="needs the [sim] extra")


@pytest.mark.sim
@pytest.mark.usefixtures("simulation")
def test_multiplicity_and_mass_at_the_z_mass_without_mpi(cfg: SimulateConfig) -> None:
    from jetfoundry.sim.validation import samples

    counts = {}
    for channel, daughters in (("bb", "5 -5"), ("gg", "21 21")):
        events = samples.events_of(cfg, samples.two_prong(cfg, daughters, gates.AT_Z), channel, 150)
        counts[channel] = gates.charged_multiplicity(events, channel)
        (gate,) = gates.mass_gates({channel: gates.mass_of_descendants(events)})
        assert gate.passed, gate
    assert counts["bb"].resonances == 300
    (gate,) = gates.multiplicity_gates(list(counts.values()))
    assert gate.passed, gate
    assert 29 < counts["gg"].mean < 35


@pytest.mark.sim
@pytest.mark.usefixtures("simulation")
def test_mass_of_a_cascade_without_mpi(cfg: SimulateConfig) -> None:
    from jetfoundry.sim.validation import samples

    events = samples.events_of(cfg, cfg.families["Res34P"], "cascade", 100)
    assert gates.mass_of_descendants(events) < gates.MASS_LIMIT


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.usefixtures("simulation")
def test_displacement_tells_bb_from_qcd_and_nothing_else_does_as_well(cfg: SimulateConfig, card: DetectorCard) -> None:
    from jetfoundry.sim.validation import samples

    tables = [samples.tagging_jets(cfg, card, 0, 1500, signal) for signal in (True, False)]
    both = pa.concat_tables(tables)
    is_signal = np.arange(3000) < 1500
    assert gates.sum_gate(both).passed
    plain, displaced = tagging.features(both)
    weights = tagging.kinematic_weights(both, is_signal)
    with_all = tagging.auc(np.concatenate([plain, displaced], axis=1), is_signal, weights, 1)
    without = tagging.auc(plain, is_signal, weights, 1)
    assert all(gate.passed for gate in gates.tagging_gates(with_all, without)), (with_all, without)


@pytest.mark.sim
@pytest.mark.usefixtures("simulation")
def test_truth_of_real_jets_is_a_consistent_les_houches_event(real_table: pa.Table) -> None:
    from jetfoundry.sim.validation import replay

    for jet in replay.true_jets(real_table):
        if not jet.x:
            assert jet.replayable == (jet.genjet_pt > 0)
            continue
        _, rows = next(replay.ReplaySource(jet, 6500.0))
        p = np.array([row[6:10] for row in rows])
        np.testing.assert_allclose(p[:2].sum(axis=0), p[2:4].sum(axis=0), atol=1e-6)
        for position, row in enumerate(rows[2:4], start=3):
            mine = [i for i, r in enumerate(rows) if r[2] == position]
            np.testing.assert_allclose(p[mine].sum(axis=0), row[6:10], atol=1e-6)
        colours = [tag for row in rows[2:] for tag in row[4:6] if tag]
        assert all(colours.count(tag) == 2 for tag in colours)


@pytest.mark.sim
@pytest.mark.usefixtures("simulation")
def test_a_resonance_without_its_decay_cannot_be_replayed(make_jets: Callable[..., pa.Table]) -> None:
    from jetfoundry.sim.validation import replay

    with pytest.raises(InputError, match=r"entry 0 \(X_bb\): wanted X with 2 decay products"):
        replay.true_jets(make_jets(1, label=0))


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("simulation")
def test_simulated_copies_look_like_the_real_jets(
    cfg: SimulateConfig, card: DetectorCard, real_table: pa.Table
) -> None:
    from jetfoundry.sim.validation import replay

    full = dataclasses.replace(cfg, mode="full")
    jets = replay.true_jets(real_table)
    tables = [replay.copies(full, card, jet, i, 20, 200) for i, jet in enumerate(jets)]
    counts = [len(table) for table in tables]
    assert counts.count(0) <= 2
    copies = Sample.of(pa.concat_tables(tables).combine_chunks(), np.repeat(np.arange(len(jets)), counts))
    found = comparison.compare(Sample.of(real_table, np.arange(len(jets))), copies, 100, 1)
    tested = gates.comparison_gates(found)
    assert len(tested) == 4
    assert all(gate.passed for gate in tested), tested


@pytest.mark.sim
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("simulation", "ray_local")
def test_the_whole_check_runs_on_ray_and_names_its_gates(
    cfg: SimulateConfig, card: DetectorCard, real_table: pa.Table, tmp_path: Path
) -> None:
    from jetfoundry.sim.validation.checks import CHANNELS, measure

    pq.write_table(real_table.slice(7, 3), tmp_path / "real.parquet")  # a three-prong jet and two of QCD
    small = gates.Sizes(
        mass_events=10, multiplicity_events=20, tagging_jets=60, jets_per_task=40, copies=4, copy_events=100,
        pseudo_experiments=20,
    )  # fmt: skip
    found = measure(dataclasses.replace(cfg, detector=card), tmp_path / "real.parquet", small)
    named = {gate.name: gate for gate in found.gates}
    assert [m.channel for m in found.multiplicities] == list(CHANNELS)
    assert sum("mass of what X decays to" in name for name in named) == 3
    assert all(gate.passed for name, gate in named.items() if "mass of what" in name)
    assert sum("KS p-value" in name for name in named) == 4
    assert found.replay is not None
    assert found.replay.without_copies == 0
    assert np.bincount(found.replay.simulated.real).tolist() == [4, 4, 4]
    (tmp_path / "text.root").write_text("no jets in here")
    with pytest.raises(InputError, match="neither ROOT nor Parquet"):
        measure(dataclasses.replace(cfg, detector=card), tmp_path / "text.root", small)
