from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("fastjet", reason="needs the [sim] extra")

from jetfoundry.sim import jets

pytestmark = pytest.mark.sim


def massless(*particles: tuple[float, float, float]) -> np.ndarray:
    pt, eta, phi = np.array(particles).T
    return np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], axis=1)


def real(table: pa.Table, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    columns = [table[f"{prefix}_{name}"].combine_chunks() for name in ("px", "py", "pz", "energy")]
    return np.stack([c.values.to_numpy() for c in columns], axis=1), columns[0].offsets.to_numpy()


def test_clusters_are_sorted_by_event_and_pt_and_equal_their_constituents() -> None:
    p4 = massless((150, 0, 0), (300, 1, 2), (100, 0.1, 0), (50, -2, -2), (400, 0, 3.1), (30, 0.1, -3.1))
    found = jets.cluster(p4, np.array([0, 4, 4, 6]), 0.8, 200.0)
    assert found.event.tolist() == [0, 0, 2]
    assert found.pt == pytest.approx([300, 250, 430], abs=0.5)
    assert found.index.tolist() == [1, 0, 2, 4, 5]
    sums = np.add.reduceat(p4[found.index], found.offsets[:-1])
    np.testing.assert_allclose(found.p4, sums, rtol=1e-12)


def test_jets_outside_the_acceptance_are_dropped() -> None:
    found = jets.cluster(massless((300, 2.6, 0), (300, -2.4, 0)), np.array([0, 2]), 0.8, 200.0, eta_max=2.5)
    assert found.eta == pytest.approx([-2.4])


def test_soft_drop_removes_soft_wide_particles_and_keeps_hard_ones() -> None:
    hard = massless((100, 0, 0), (80, 0.4, 0))
    pair_mass = np.sqrt(2 * 100 * 80 * (np.cosh(0.4) - 1))
    soft = np.concatenate([hard, massless((5, 0, 0.7))])
    single = massless((100, 0, 0))
    p4, offsets = np.concatenate([hard, soft, single]), np.array([0, 2, 5, 6, 6])
    assert jets.softdrop_mass(p4, offsets, 0.1) == pytest.approx([pair_mass, pair_mass, 0, 0], abs=1e-5)


def test_generator_level_soft_drop_mass_of_real_jets_is_reproduced(real_table: pa.Table) -> None:
    mass = jets.softdrop_mass(*real(real_table, "genpart"), 0.1)
    stored = real_table["genjet_sdmass"].to_numpy()
    assert np.mean(np.abs(mass / stored - 1) < 1e-3) >= 0.85


def test_nsubjettiness_of_real_jets_is_reproduced(real_table: pa.Table) -> None:
    tau = jets.nsubjettiness(*real(real_table, "part"), 0.8)
    stored = np.stack([real_table[f"jet_tau{n}"].to_numpy() for n in range(1, 5)], axis=1)
    some = stored[:, 3] > 0
    # stored constituents are off the clustered ones by the beam spot: agreement of a few per cent only
    assert np.median(tau[some] / stored[some], axis=0) == pytest.approx([1, 1, 1, 1], abs=0.03)


def test_tau_n_vanishes_for_jets_of_n_particles() -> None:
    tau = jets.nsubjettiness(massless((100, 0, 0), (80, 0.4, 0), (50, 0, 0.4)), np.array([0, 3]), 0.8)
    assert tau.shape == (1, 4)
    assert tau[0, 1] > 0.01
    assert tau[0, 2:] == pytest.approx([0, 0], abs=1e-9)


def test_no_jets_give_empty_substructure() -> None:
    assert jets.nsubjettiness(np.zeros((0, 4)), np.array([0]), 0.8).shape == (0, 4)
    assert jets.softdrop_mass(np.zeros((0, 4)), np.array([0]), 0.1).shape == (0,)
