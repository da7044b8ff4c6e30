from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jetfoundry import config
from jetfoundry.errors import ConfigError
from jetfoundry.events.flow import CHARGED_HADRON, ELECTRON, MUON, NEUTRAL_HADRON, PHOTON, Flow
from jetfoundry.sim import response
from jetfoundry.sim.detector import DetectorCard

CARD = Path(__file__).resolve().parents[2] / "datasets" / "cards" / "cms.yaml"


@pytest.fixture(scope="module")
def card() -> DetectorCard:
    return config.read(DetectorCard, CARD)


@pytest.fixture(scope="module")
def no_pileup(card: DetectorCard) -> DetectorCard:
    cleaning = dataclasses.replace(
        card.pileup_cleaning, keep=(1.0,) * len(card.pileup_cleaning.pt), neutral_whole=1.0, neutral_pt_min=0.0
    )
    return dataclasses.replace(card, pileup_cleaning=cleaning)


def momentum(pt: float, eta: float, phi: float, mass: float = 0.0) -> np.ndarray:
    p = np.array([[pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), 0.0]])
    p[:, 3] = np.sqrt((p**2).sum() + mass**2)
    return p


def see(card: DetectorCard, pid: int, pt: float, eta: float, n: int, mass: float = 0.0) -> Flow:
    """n events of one particle from the origin."""
    p4 = np.repeat(momentum(pt, eta, 0.3, mass), n, axis=0)
    rng = np.random.default_rng(1)
    return response.respond(card, np.arange(n), np.full(n, pid), p4, np.full(n, mass), np.zeros((n, 3)), rng)


def test_closest_approach_is_that_of_the_sampled_helix(card: DetectorCard) -> None:
    vertex, p4, charge = np.array([[12.0, -5.0, 30.0]]), momentum(1.5, 0.4, 2.0), np.array([1])
    _, _, d0, dz = response.propagate(card.tracker, p4, charge, vertex)
    radius = 1.5 / (0.299792458e-3 * 3.8)
    path = np.linspace(-200, 200, 400_001)
    phi = 2.0 - path / radius  # a positive particle turns clockwise in a field along z
    x = vertex[0, 0] + radius * (np.sin(2.0) - np.sin(phi))
    y = vertex[0, 1] + radius * (np.cos(phi) - np.cos(2.0))
    at = np.hypot(x, y).argmin()
    assert abs(d0[0]) == pytest.approx(np.hypot(x[at], y[at]), abs=1e-3)
    assert d0[0] == pytest.approx(x[at] * np.sin(phi[at]) - y[at] * np.cos(phi[at]), abs=1e-3)
    assert dz[0] == pytest.approx(30.0 + path[at] * np.sinh(0.4), abs=1e-2)


def test_opposite_charges_bend_apart_and_reach_the_same_radius(card: DetectorCard) -> None:
    p4 = np.repeat(momentum(5.0, 0.2, 1.0), 3, axis=0)
    eta, phi, d0, dz = response.propagate(card.tracker, p4, np.array([1, -1, 0]), np.zeros((3, 3)))
    bend = np.arcsin(1290.0 / (2 * 5.0 / (0.299792458e-3 * 3.8)))
    assert phi == pytest.approx([1.0 - bend, 1.0 + bend, 1.0], abs=1e-9)
    assert eta[2] == pytest.approx(0.2)
    assert d0 == pytest.approx([0, 0, 0], abs=1e-9)
    assert dz == pytest.approx([0, 0, 0], abs=1e-9)


def test_looping_particles_end_in_the_end_cap(card: DetectorCard) -> None:
    eta, _, _, _ = response.propagate(card.tracker, momentum(0.3, 1.0, 0.0), np.array([1]), np.zeros((1, 3)))
    distance = 3000.0 / np.sinh(eta[0])
    assert distance < 2 * 0.3 / (0.299792458e-3 * 3.8)


def test_particles_made_behind_the_tracker_are_not_seen(card: DetectorCard) -> None:
    p4, rng = np.repeat(momentum(50.0, 0.0, 0.0), 3, axis=0), np.random.default_rng(1)
    vertex = np.array([[0.0, 1300.0, 0.0], [0.0, 0.0, 3001.0], [0.0, 1280.0, 0.0]])
    flow = response.respond(card, np.arange(3), np.full(3, 22), p4, np.zeros(3), vertex, rng)
    assert set(flow.event.tolist()) <= {2}


@pytest.mark.parametrize(("pid", "mass"), [(22, 0.0), (130, 0.4976), (211, 0.13957), (13, 0.10566), (11, 0.000511)])
def test_energy_is_right_on_average_without_pileup_cleaning(no_pileup: DetectorCard, pid: int, mass: float) -> None:
    flow = see(no_pileup, pid, 50.0, 0.3, 4000, mass)
    seen = np.bincount(flow.event, flow.energy, 4000)
    efficiency = {13: 0.99}.get(pid, 1.0)  # what leaves no track is seen by the calorimeter, but for muons
    assert seen.mean() == pytest.approx(efficiency * np.sqrt((50 * np.cosh(0.3)) ** 2 + mass**2), rel=0.06)


def test_categories_follow_the_particle_and_its_track(no_pileup: DetectorCard) -> None:
    for pid, kinds in (
        (22, {PHOTON}),
        (130, {NEUTRAL_HADRON}),
        (-13, {MUON}),
        (11, {ELECTRON, PHOTON}),
        (-211, {CHARGED_HADRON, NEUTRAL_HADRON}),
    ):
        assert set(see(no_pileup, pid, 30.0, 0.1, 500).kind.tolist()) == kinds


def test_impact_parameters_spread_as_their_error_says_and_are_zero_for_neutrals(no_pileup: DetectorCard) -> None:
    flow = see(no_pileup, 211, 2.0, 1.1, 5000, 0.13957)
    track = flow.charge != 0
    expected = np.hypot(0.0098, 0.1035 / 2.0**0.8)
    assert flow.d0err[track] == pytest.approx(expected)
    assert np.std(flow.d0[track]) == pytest.approx(expected, rel=0.05)
    assert np.std(flow.dz[track]) == pytest.approx(np.hypot(0.0344, 0.202 / 2.0**0.786), rel=0.05)
    for values in (flow.d0, flow.d0err, flow.dz, flow.dzerr):
        assert not values[~track].any()


def test_tracks_end_at_the_acceptance_and_at_low_momentum(no_pileup: DetectorCard) -> None:
    assert not see(no_pileup, 211, 20.0, 2.55, 200).charge.any()
    assert not see(no_pileup, 211, 0.18, 0.0, 200).charge.any()
    assert see(no_pileup, 211, 20.0, 2.45, 200).charge.any()


def test_pileup_cleaning_thins_out_soft_charged_hadrons_but_not_leptons(card: DetectorCard) -> None:
    soft = np.count_nonzero(see(card, 211, 0.85, 0.0, 4000, 0.13957).charge)
    assert soft / 4000 == pytest.approx(0.70 * 0.22, abs=0.04)
    assert np.count_nonzero(see(card, 13, 1.5, 0.0, 1000).charge) > 950


def test_a_misspelt_card_entry_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "card.yaml"
    wrong.write_text(CARD.read_text().replace("half_length", "half_lenght"))
    with pytest.raises(ConfigError, match=r"tracker.half_lenght.*nearest: half_length"):
        config.read(DetectorCard, wrong)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: 0.95}", "value: 1.2}", r"efficiency.hadron\[1\]: unphysical: wanted efficiency from 0 to 1, got 1.2"),
        ("    muon:", "    moun:", r"efficiency: unknown particle moun, nearest: muon.*; muon is missing"),
        ("field: 3.8", "field: 0", r"tracker: unphysical: wanted 0 < field < 100 T, got 0.0"),
        (
            "{eta_max: 0.5, a: 0.06",
            "{eta_max: 3.5, a: 0.06",
            r"tracker: momentum.hadron: wanted rows with rising eta_max",
        ),
        ("{eta_max: 0.5, a: 0.06", "{eta_max: 0.5, a: -0.06", r"resolution terms >= 0, got a -0.06"),
        ("d0: [0.0108, 0.0864, 0.775]", "d0: [0, 0.0864, 0.775]", r"d0: three terms a > 0, b >= 0, g >= 0, got \(0.0"),
        ("deta: 0.0174", "deta: 0", r"wanted 0 < deta, .* at most 8192 bins, got 0.0, 1.0"),
        ("deta: 0.0174", "deta: 0.0005", r"at most 8192 bins, got 0.0005, 1.0"),
        ("significance_min: 1.0", "significance_min: -3", r"energy_min and significance_min >= 0, got"),
        ("0.86, 0.93]", "0.86, .nan]", r"pileup_cleaning.keep.*: wanted float, got nan"),
        ("stochastic: 1.5", "stochastic: -1.5", r"hcal.resolution\[0\]: unphysical: wanted resolution terms >= 0"),
        ("0.86, 0.93]", "0.86, 1.93]", r"probabilities from 0 to 1"),
        ("  radius: 1290.0", "  radus: 1290.0", r"tracker.radus.*nearest: radius"),
    ],
)
def test_an_unphysical_card_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = CARD.read_text()
    assert old in text
    (tmp_path / "card.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        config.read(DetectorCard, tmp_path / "card.yaml")
