from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from jetfoundry import config
from jetfoundry.errors import ConfigError
from jetfoundry.sim.settings import ResonanceConfig, SimulateConfig, plan, seeds
from jetfoundry.sim.source import PairSource, two_body

YAML = Path(__file__).resolve().parents[2] / "datasets" / "jetclass2_sim.yaml"
ID, STATUS, MOTHER, COLOUR, ANTI, PX, E, M = 0, 1, 2, 4, 5, 6, 9, 10


def family(name: str) -> ResonanceConfig:
    resonance = config.read(SimulateConfig, YAML).families[name].resonance
    assert resonance is not None
    return resonance


def draw(cfg: ResonanceConfig, n: int = 400, seed: int = 1) -> list[np.ndarray]:
    source = PairSource(cfg, 6500.0, np.random.default_rng(seed))
    return [np.array(rows) for _, rows in itertools.islice(source, n)]


def test_two_body_decays_conserve_momentum_and_are_on_shell() -> None:
    rng = np.random.default_rng(1)
    p = rng.normal(0, 300, (50, 3))
    parent = np.column_stack([p, np.sqrt((p**2).sum(1) + 125.0**2)])
    first, second = two_body(parent, np.full(50, 4.8), np.full(50, 1.5), rng)
    np.testing.assert_allclose(first + second, parent, rtol=1e-10)
    mass2 = first[:, 3] ** 2 - (first[:, :3] ** 2).sum(1)
    np.testing.assert_allclose(mass2, 4.8**2, rtol=1e-5)


@pytest.mark.parametrize(("name", "size"), [("Res2P_neutral", 8), ("Res2P_charged", 8), ("Res34P", 16)])
def test_events_conserve_momentum_charge_and_colour(name: str, size: int) -> None:
    charge = {1: -1, 2: 2, 3: -1, 4: 2, 5: -1, 11: -3, 13: -3, 15: -3}
    for rows in draw(family(name)):
        assert len(rows) == size
        final = rows[rows[:, STATUS] == 1]
        incoming = rows[rows[:, STATUS] == -1]
        np.testing.assert_allclose(final[:, PX : E + 1].sum(0), incoming[:, PX : E + 1].sum(0), rtol=1e-9, atol=1e-6)
        assert sum(charge.get(abs(int(i)), 0) * np.sign(i) for i in final[:, ID]) == 0
        colours, anti = (sorted(final[final[:, c] > 0, c]) for c in (COLOUR, ANTI))
        assert colours == anti
        for mother in set(final[:, MOTHER]):  # each pair is a colour singlet of its own
            pair = final[final[:, MOTHER] == mother]
            assert sorted(pair[:, COLOUR]) == sorted(pair[:, ANTI])


def test_masses_and_momenta_follow_the_configured_spectrum() -> None:
    x = np.concatenate([rows[2:4] for rows in draw(family("Res2P_neutral"), 2000)])
    pt = np.hypot(x[:, PX], x[:, PX + 1])
    assert x[:, M].min() > 20
    assert x[:, M].max() < 500
    assert x[:, M].mean() == pytest.approx(260, abs=10)
    assert pt.min() > 200
    assert (pt > 1.8 * x[:, M]).all()
    assert pt.max() < 2500


def test_channels_appear_with_their_branching_fractions() -> None:
    ids = np.array([abs(rows[4, ID]) for rows in draw(family("Res2P_neutral"), 4000)])
    assert np.mean(ids == 5) == pytest.approx(0.125, abs=0.02)
    assert np.mean(ids == 15) == pytest.approx(0.25, abs=0.03)
    assert np.mean(ids == 1) == pytest.approx(0.0625, abs=0.015)


def test_a_negative_parent_decays_to_the_antiparticles() -> None:
    rows = draw(family("Res2P_charged"), 200)
    assert {tuple(r[4:6, ID].astype(int)) for r in rows} == {(-d, u) for d in (1, 3, 5) for u in (2, 4)}
    assert {tuple(r[6:8, ID].astype(int)) for r in rows} == {(d, -u) for d in (1, 3, 5) for u in (2, 4)}


def test_channels_closed_by_mass_are_not_drawn() -> None:
    light = dataclasses.replace(family("Res2P_neutral"), mass=(5.0, 10.0))  # bb needs 9.6 GeV
    pairs = [(rows[2 + k, M], abs(int(rows[4 + 2 * k, ID]))) for rows in draw(light, 2000) for k in (0, 1)]
    assert min(mass for mass, pid in pairs if pid == 5) > 9.6
    assert {4, 15, 21} <= {pid for mass, pid in pairs if mass < 9}


def test_events_without_an_open_decay_are_not_made() -> None:
    beauty = dataclasses.replace(family("Res2P_neutral"), mass=(5.0, 15.0), decays={"25": {"5 -5": 1.0}})
    assert min(rows[2 + k, M] for rows in draw(beauty) for k in (0, 1)) > 9.6


def test_a_spectrum_that_never_has_an_open_decay_ends_with_an_error() -> None:
    nothing = dataclasses.replace(family("Res2P_neutral"), x_max=1e-6)
    with pytest.raises(
        ConfigError, match=r"no decay is open in 25600 pairs of resonances; mass .* or x_max is too low"
    ):
        draw(nothing, 1)


def test_blocks_without_an_open_decay_are_passed_over() -> None:
    tight = dataclasses.replace(family("Res34P"), mass=(20.0, 24.0))
    tight = dataclasses.replace(tight, decays={"25": {"35 35": 1.0}, "35": {"5 -5": 1.0}})
    assert all((np.abs(rows[8:, ID]) == 5).all() for rows in draw(tight, 20))


def test_secondary_resonances_stay_below_threshold() -> None:
    for rows in draw(family("Res34P"), 1000):
        for k in (0, 1):
            assert rows[4 + 2 * k : 6 + 2 * k, M].sum() < rows[2 + k, M]


def test_the_same_seed_draws_the_same_events() -> None:
    first, again, other = (draw(family("Res34P"), 300, seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_every_family_gets_a_file_and_the_rest_go_by_weight() -> None:
    weights = ["families.Res2P_charged.weight=0", "families.Res34P.weight=0", "families.QCD.weight=0.1"]
    files = [plan(config.read(SimulateConfig, YAML, [f"jets={jets}", *weights])) for jets in (2000, 5000)]
    assert files[0] == [("Res2P_neutral", 0), ("QCD", 0)]
    assert files[1] == [*files[0], *(("Res2P_neutral", shard) for shard in (1, 2, 3))]


def test_a_larger_sample_begins_with_the_files_of_a_smaller_one() -> None:
    sizes = [plan(config.read(SimulateConfig, YAML, [f"jets={1000 * n}"])) for n in range(4, 40)]
    assert all(large[: len(small)] == small for small, large in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("jets=1500", "jets 1500 is not a multiple of jets_per_shard 1000"),
        ("jets=1000000000000", "makes 1000000000 files, more than 1000000; raise jets_per_shard"),
        ("jets=1000", "makes 1 files, but there are 4 families; lower jets_per_shard"),
        ("seed=0", "seed 0: wanted 1 to 900000000"),
        ("seed=900000001", "seed 900000001: wanted 1 to 900000000"),
        (
            "families.QCD.settings=['PartonLevel:mpi = off']",
            "families.QCD: 'PartonLevel:mpi = off' is decided by `mode`",
        ),
        ("families.QCD.settings=['PartonLevel:all = off']", "is decided by `mode`"),
        ("families.QCD.settings=['Tune:pp = 5']", "'Tune:pp = 5' is no setting of the process; write it under"),
        ("pythia=['PartonLevel:MPI = off']", "pythia: 'PartonLevel:MPI = off' is decided by `mode`"),
        ("pythia=['Beams:eCM = 14000.']", "'Beams:eCM = 14000.' is decided by `beam_energy`"),
        ("pythia=['Random:seed = 7']", "'Random:seed = 7' is decided by `seed`"),
        ("balance=even", "balance: wanted one of natural, classes, got 'even'"),
        ("mode=ful", "mode: wanted one of full, no_mpi, fast, got 'ful'"),
        ("families.Res34P.resonance.secondary.floor=15", "secondary.floor 15.0: two of it exceed the smallest mass"),
        ("families.Res34P.resonance.secondary.ratio=[]", "ratio: wanted two rising numbers from 0 on, got"),
        ("families.Res34P.resonance.secondary.ratio=[0.8, 0.1]", "ratio: wanted two rising numbers"),
        ("families.Res34P.resonance.ids=[23, 23]", "wanted a pair of one particle or its antiparticle, of"),
        ("families.Res34P.resonance.min_boost=.nan", "min_boost: wanted float, got nan"),
        ("jet.radius=-1", "wanted 0 < radius < pi"),
        ("jet.softdrop_zcut=7", "softdrop_zcut <= 0.5"),
        ("selection.pt=[2500, 200]", "pt: wanted two rising numbers from 0 on, got"),
        ("selection.sdmass=[]", "sdmass: wanted two rising numbers"),
        ("families.QCD.wieght=1", r"families.QCD.wieght.*nearest: weight"),
        ("families.Res2P_neutral.resonance.pt=[200, 600]", "exceeds pt 600"),
    ],
)
def test_wrong_configurations_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.read(SimulateConfig, YAML, [override])


def test_seeds_depend_on_run_family_and_shard_and_are_valid_for_pythia() -> None:
    keys = [(run, name, shard) for run in (1, 2) for name in ("QCD", "Res2P_neutral") for shard in range(50)]
    found = {key: seeds(*key)[0] for key in keys}
    assert len(set(found.values())) == len(keys)
    assert all(1 <= seed <= 900_000_000 for seed in found.values())
    assert seeds(1, "QCD", 0)[1].random() == seeds(1, "QCD", 0)[1].random()
    assert seeds(1, "QCD", 0)[1].random() != seeds(1, "QCD", 0)[2].random()
