from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jetfoundry import config
from jetfoundry.errors import ConfigError
from jetfoundry.labels import CLASSES, FAMILIES, INDEX
from jetfoundry.sim.balance import class_probabilities, even_fractions
from jetfoundry.sim.channels import Chains, decay_chains
from jetfoundry.sim.settings import ResonanceConfig, SimulateConfig
from jetfoundry.sim.source import PairSource

YAML = Path(__file__).resolve().parents[2] / "datasets" / "jetclass2_sim.yaml"


def family(name: str) -> ResonanceConfig:
    resonance = config.read(SimulateConfig, YAML).families[name].resonance
    assert resonance is not None
    return resonance


def chain(chains: Chains, *products: int) -> int:
    (row,) = np.flatnonzero((chains.products == products).all(axis=1))
    return int(row)


def test_chains_are_all_combinations_with_the_product_of_their_fractions() -> None:
    chains = decay_chains(family("Res34P"))
    assert chains.products.shape == (9 * 9 + 9 * 9, 4)
    assert chains.fraction.sum() == pytest.approx(1.0)
    assert chains.fraction[chain(chains, 5, -5, 15, -15)] == pytest.approx(0.5 * 0.125 * 0.25)
    charged = chain(chains, -5, 4, 5, -4)  # Y+ -> c bbar, Y- -> b cbar
    assert chains.secondary[charged].tolist() == [37, -37]


def test_a_chain_is_open_if_every_pair_is_lighter_than_its_parent() -> None:
    chains = decay_chains(family("Res34P"))
    is_open = chains.open_at(np.array([[10.0, 3.1], [10.0, 2.9]]))[:, chain(chains, 5, -5, 4, -4)]
    assert is_open.tolist() == [True, False]


@pytest.mark.parametrize(
    ("decays", "message"),
    [
        ({"5 -5 21": 1.0}, r"families.F.resonance.decays.25: wanted channels like '5 -5', got '5 -5 21'"),
        ({"5 -5": 1.0, "99 99": 1.0}, r"unknown particle 99 in channel '99 99'"),
        ({"5 -5": -0.1}, r"the fraction of '5 -5' must be >= 0, got -0.1"),
        ({"5 -5": float("inf")}, r"the fraction of '5 -5' must be >= 0, got inf"),
        ({"11 -13": 1.0}, r"'11 -13' breaks lepton number"),
        ({"5 -5": 0.0}, r"no channel has a fraction above 0"),
        ({"2 -1": 1.0}, r"'2 -1' has charge \+3/3, 25 has 0"),
        ({"2 1": 1.0}, r"'2 1' has charge \+1/3, 25 has 0"),
        ({"5 5": 1.0}, r"'5 5' has charge -2/3"),
        ({"21 35": 1.0}, r"'21 35' is no colour singlet"),
        ({"5 -5": 1.0, "4 -4": 1.0}, r"the channel '5 -5' needs more than 9.6 GeV, the spectrum ends at 8 GeV"),
        ({"35 35": 1.0, "4 -4": 1.0}, r"decays.25: channels to two resonances and to two particles cannot be mixed"),
    ],
)
def test_channels_that_cannot_be_are_named(decays: dict[str, float], message: str) -> None:
    tables = {"25": decays, "35": {"4 -4": 1.0}}
    light = dataclasses.replace(family("Res2P_neutral"), mass=(5.0, 8.0), decays=tables)
    with pytest.raises(ConfigError, match=message):
        decay_chains(light, "F")


def test_a_channel_that_no_y_is_heavy_enough_for_is_named() -> None:
    light = dataclasses.replace(family("Res34P"), mass=(5.0, 10.0))  # m_Y is at most 0.8 m_X
    with pytest.raises(ConfigError, match=r"decays.35: the channel '5 -5' needs more than 9.6 GeV, .* ends at 8 GeV"):
        decay_chains(light)


def test_class_probabilities_follow_from_tau_decays_and_matching() -> None:
    two, four = (decay_chains(family(name)) for name in ("Res2P_neutral", "Res34P"))
    given = class_probabilities(two)
    assert given[chain(two, 5, -5), INDEX["X_bb"]] == 1.0
    tau = given[chain(two, 15, -15)]
    assert tau[INDEX["X_tauhtauh"]] == pytest.approx(0.648**2)
    assert tau.sum() == pytest.approx(1 - (1 - 0.648) ** 2)  # two leptonic taus have no class
    mixed = class_probabilities(four)[chain(four, 5, -5, 11, -11)]
    assert {CLASSES[i] for i in np.flatnonzero(mixed)} == {"X_YY_bbee", "X_YY_bee", "X_YY_bbe"}
    assert mixed.sum() == pytest.approx(1.0)
    (leptonic,) = np.flatnonzero((four.products == [-5, 4, 11, -12]).all(axis=1))
    assert {CLASSES[i] for i in np.flatnonzero(class_probabilities(four)[leptonic])} == {"X_YY_bcev"}


def test_all_classes_of_a_family_can_be_reached() -> None:
    found = {name: class_probabilities(decay_chains(family(name))).any(axis=0) for name in ("Res34P",)}
    assert np.flatnonzero(found["Res34P"]).tolist() == list(FAMILIES["Res34P"])
    two = [class_probabilities(decay_chains(family(f"Res2P_{name}"))).any(axis=0) for name in ("neutral", "charged")]
    assert np.flatnonzero(two[0] | two[1]).tolist() == list(FAMILIES["Res2P"])


def test_balanced_fractions_make_the_rarest_class_three_quarters_of_the_median() -> None:
    chains = decay_chains(family("Res34P"))
    given = class_probabilities(chains)
    natural, even = (np.sort((f @ given)[list(FAMILIES["Res34P"])]) for f in (chains.fraction, even_fractions(chains)))
    assert natural[0] < 0.3 * np.median(natural)
    assert even[0] > 0.75 * np.median(even)
    assert even_fractions(chains).sum() == pytest.approx(1.0)


def test_a_balanced_source_draws_the_balanced_chains() -> None:
    cfg = family("Res2P_neutral")
    source = PairSource(cfg, 6500.0, np.random.default_rng(1), balanced=True)
    beauty = np.mean([abs(next(source)[1][4][0]) == 5 for _ in range(4000)])
    chains = decay_chains(cfg)
    expected = even_fractions(chains)[chain(chains, 5, -5)]
    assert beauty == pytest.approx(expected, abs=0.015)
    assert expected < 0.1
