from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry.events import truth
from jetfoundry.events.jets import delta_r
from jetfoundry.labels import CLASSES, FAMILIES, INDEX

PAIRS = [("b", "b"), ("c", "c"), ("s", "s"), ("q", "q"), ("g", "g"), ("e", "e"), ("m", "m")]
TAU_MODES = ("taue", "taum", "tauh")
NEUTRAL = PAIRS + list(itertools.product(TAU_MODES, TAU_MODES))
CHARGED = [("q", "q"), ("q", "s"), ("q", "b"), ("c", "q"), ("c", "s"), ("c", "b")]
CHARGED += [(f"{lepton}v", "") for lepton in ("e", "m", *TAU_MODES)]


def prongs(letters: list[list[str]], matched: list[list[bool]], cascade: bool) -> truth.Prongs:
    """Candidates in events 0, 1, ...: matched prongs lie on the axis of a jet at (0, 0), the others far away."""
    codes = [[truth.LETTERS.index(letter) if letter else -1 for letter in row] for row in letters]
    eta = np.where(np.asarray(matched), 0.0, 3.0)
    n = len(letters)
    return truth.Prongs(np.arange(n), np.full(n, cascade), np.array(codes), eta, np.zeros((n, 4)))


def names(found: truth.Prongs) -> list[str]:
    n = len(found.event)
    label, _ = truth.label_resonance(found, np.arange(n), np.zeros(n), np.zeros(n), 0.8)
    return [CLASSES[i] if i >= 0 else "" for i in label]


def is_hadronic(pair: tuple[str, str]) -> bool:
    return pair[0] in tuple("bcsqg")


def test_every_decay_of_x_to_yy_has_a_label_exactly_where_the_rules_give_one() -> None:
    rows, masks, expected = [], [], []
    for channels in (NEUTRAL, CHARGED):
        for first, second in itertools.combinations_with_replacement(channels, 2):
            for mask in itertools.product((False, True), repeat=4):
                letters = [*first, *second]
                valid = is_hadronic(first) or is_hadronic(second)
                valid &= sum(m and letter != "" for m, letter in zip(mask, letters, strict=True)) >= 3
                for pair, seen in ((first, mask[:2]), (second, mask[2:])):
                    if pair[0] in TAU_MODES:
                        valid &= all(seen) and "tauh" in pair
                rows.append(letters)
                masks.append(list(mask))
                expected.append(valid)
    found = names(prongs(rows, masks, cascade=True))
    assert [name != "" for name in found] == expected
    assert {INDEX[name] for name in found if name} == set(FAMILIES["Res34P"])


@pytest.mark.parametrize(
    ("letters", "name"),
    [
        ("b b", "X_bb"),
        ("b c", "X_bc"),
        ("q s", "X_sq"),
        ("g g", "X_gg"),
        ("m m", "X_mm"),
        ("taue tauh", "X_tauhtaue"),
        ("tauh tauh", "X_tauhtauh"),
        ("taue taum", ""),
        ("taue taue", ""),
    ],
)
def test_two_prong_resonances_need_both_prongs(letters: str, name: str) -> None:
    row = [*letters.split(), "", ""]
    masks = [[True, True, False, False], [True, False, False, False]]
    assert names(prongs([row, row], masks, cascade=False)) == [name, ""]


def test_the_first_resonance_in_record_order_that_gives_a_label_wins() -> None:
    three = prongs(
        [["b", "b", "", ""], ["c", "c", "", ""], ["s", "s", "", ""]],
        [[True, False, False, False], [True, True, False, False], [True, True, False, False]],
        cascade=False,
    )
    one_event = truth.Prongs(np.zeros(3, int), three.cascade, three.letter, three.eta, three.phi)
    label, candidate = truth.label_resonance(one_event, np.zeros(1, int), np.zeros(1), np.zeros(1), 0.8)
    assert (CLASSES[label[0]], candidate[0]) == ("X_cc", 1)


def test_qcd_index_gives_each_of_the_27_labels() -> None:
    for nb, nc, ns in itertools.product(range(4), repeat=3):
        flavours = "b" * min(nb, 2) + "c" * min(nc, 2) + "s" * min(ns, 2)
        assert CLASSES[truth.qcd_index(np.array(nb), np.array(nc), np.array(ns))] == f"QCD_{flavours or 'light'}"


def test_qcd_labels_count_quarks_of_the_own_jet_only() -> None:
    owner, pid = np.array([0, 0, 0, 2, 2]), np.array([5, -5, 5, -4, 2])
    assert [CLASSES[i] for i in truth.label_qcd(owner, pid, 3)] == ["QCD_bb", "QCD_light", "QCD_c"]


def record_of(jet: dict[str, list[float]]) -> SimpleNamespace:
    """The stored truth particles of a resonance jet as a generator record: X, Ys, products, tau daughters."""
    pid = np.array([0, *jet["aux_genpart_pid"]])  # position 0: the system line
    role = {name: np.array([False, *jet[f"aux_genpart_{name}"]]) for name in ("isResX", "isResY", "isTauDecayProd")}
    daughter1, daughter2 = np.full(len(pid), -1), np.full(len(pid), -1)
    parents = np.flatnonzero(role["isResY"]) if role["isResY"].any() else np.array([1])
    product = np.flatnonzero([False, *jet["aux_genpart_isResDecayProd"]])
    if role["isResY"].any():
        daughter1[1], daughter2[1] = parents
    daughter1[parents], daughter2[parents] = product[::2], product[1::2]
    taus = product[np.abs(pid[product]) == 15]
    if len(taus):
        from_tau = np.flatnonzero(role["isTauDecayProd"])
        starts = from_tau[np.isin(pid[from_tau], (16, -16))]  # Pythia lists the tau neutrino first
        daughter1[taus], daughter2[taus] = starts, [*(starts[1:] - 1), from_tau[-1]]
    pt, eta, phi = (np.array([1.0, *jet[f"aux_genpart_{name}"]]) for name in ("pt", "eta", "phi"))
    p4 = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], axis=1)
    status = np.where(role["isResX"] | role["isResY"], -22, 23)
    mother = np.where(role["isResY"], 1, 0)
    return SimpleNamespace(
        event=np.zeros(len(pid), int), pid=pid, status=status, mother=mother,
        daughter1=daughter1, daughter2=daughter2, p4=p4,
    )  # fmt: skip


def relabel(jet: dict[str, list[float]]) -> str:
    if any(jet["aux_genpart_isResX"]):
        found = truth.find_resonances(record_of(jet))  # type: ignore[arg-type]
        axis = np.array([jet["jet_eta"]]), np.array([jet["jet_phi"]])
        label, _ = truth.label_resonance(found.prongs, np.zeros(1, int), *axis, 0.8)
        return CLASSES[label[0]] if label[0] >= 0 else ""
    eta, phi = np.array(jet["aux_genpart_eta"]), np.array(jet["aux_genpart_phi"])
    near = delta_r(eta, phi, np.array(jet["jet_eta"]), np.array(jet["jet_phi"])) < 0.8
    near &= np.array(jet["aux_genpart_pt"]) > 10
    pid = np.array(jet["aux_genpart_pid"], dtype=int)[near]
    return CLASSES[truth.label_qcd(np.zeros(len(pid), int), pid, 1)[0]]


def test_our_rules_give_the_stored_label_of_every_real_jet(real_table: pa.Table) -> None:
    jets = real_table.to_pylist()
    stored = [CLASSES[jet["jet_label"]] for jet in jets]
    assert [relabel(jet) for jet in jets] == stored
