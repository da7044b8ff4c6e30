"""What the generator knows of a jet, as inputs of a network: the final-state quarks and leptons of the hard process.

From JetClass-II's truth list (`aux_genpart_*`) the particles are taken that a resonance decayed to, with the decay
products of a tau instead of the tau where they are listed, or the partons that decided a QCD jet's label; at most the
`MAX_PARTICLES` of highest pT. Each has the features of Sophon++'s gen-level network (`GEN_FEATURES`).

Decided here: nothing of the reconstructed jet goes in. Features are relative to the sum of the selected particles
themselves, not to the jet: ln(E 500/pT_jet) - ln(E/E_jet) is the jet's E/pT exactly, the jet network sees the same
number in its own features, and the two sides could be matched by it alone, without any physics. Neutrinos, which no
detector sees, are kept and flagged.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from jetfoundry.loading.gen_particles import GEN_COLUMNS

__all__ = ["GEN_COLUMNS", "GEN_FEATURES", "MAX_PARTICLES", "gen_inputs"]

_KINDS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("u", (2,)), ("d", (1,)), ("s", (3,)), ("c", (4,)), ("b", (5,)), ("g", (21,)),
    ("e", (11,)), ("mu", (13,)), ("tau", (15,)), ("neutrino", (12, 14, 16)),
)  # fmt: skip

GEN_FEATURES: tuple[str, ...] = (
    "ln_pt_scaled", "ln_energy_scaled", "ln_pt_share", "ln_energy_share", "deltaR", "sign_pid",
    "is_X", "is_Y", *("is_" + name for name, _ in _KINDS), "is_hadron", "deta", "dphi",
)  # fmt: skip
"""Channels of the features that `gen_inputs` makes, in order."""

MAX_PARTICLES = 10
_SCALE = 500.0  # GeV: pT of the sum of the particles after scaling, as Sophon scales jets
_STANDARDISE = ((1.7, 0.7), (2.0, 0.7), (-4.7, 0.7), (-4.7, 0.7), (0.2, 4.0))  # Sophon's (centre, scale)


def gen_inputs(particles: Tensor, *, with_resonances: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Features, four-vectors and mask of the particles that stand for the hard process.

    Parameters
    ----------
    particles
        (B, 10, G) of `GEN_COLUMNS` (loading/gen_particles.py), in GeV and rad; slots of zero pT are padding.
    with_resonances
        Take the resonances X and Y as particles too.

    Returns
    -------
    tuple of Tensor
        Features (B, `GEN_FEATURES`, T), (px, py, pz, E) scaled to a sum of 500 GeV in pT (B, 4, T), mask (B, 1, T),
        T = `MAX_PARTICLES`, in falling pT; a jet without such particles has none.
    """
    with torch.autocast(particles.device.type, enabled=False):
        particles, mask = _leading(particles.float(), with_resonances)
        pt, eta, phi, mass, pid, is_x, is_y, *_ = particles.unbind(1)  # (B, T) each
        px, py, pz = pt * phi.cos(), pt * phi.sin(), pt * eta.sinh()
        vectors = torch.stack((px, py, pz, (pt.square() + pz.square() + mass.square()).sqrt()), 1)  # (B, 4, T)
        total = vectors.sum(2, keepdim=True)  # (B, 4, 1)
        total_pt = torch.hypot(total[:, 0], total[:, 1]).clamp(min=1e-3)  # (B, 1); two particles may balance
        energy, total_energy = vectors[:, 3].clamp(min=1e-3), total[:, 3].clamp(min=1e-3)
        pt, total_eta = pt.clamp(min=1e-3), torch.asinh(total[:, 2] / total_pt)
        deta = (eta - total_eta) * total_eta.sign()
        dphi = (phi - torch.atan2(total[:, 1], total[:, 0]) + math.pi) % (2 * math.pi) - math.pi
        scale = _SCALE / total_pt
        shares = ((pt * scale).log(), (energy * scale).log(), (pt / total_pt).log(), (energy / total_energy).log())
        standard = [
            ((value - centre) * width).clamp(-5, 5)
            for value, (centre, width) in zip((*shares, torch.hypot(deta, dphi)), _STANDARDISE, strict=True)
        ]
        features = torch.stack((*standard, pid.sign(), *_kinds(pid, is_x, is_y), deta, dphi), 1)
        mask = mask[:, None]
        return features * mask, vectors * scale[:, None] * mask, mask


def _leading(particles: Tensor, with_resonances: bool) -> tuple[Tensor, Tensor]:
    """The selected particles of highest pT, (B, 10, T), zero where there are no more, and their mask (B, T)."""
    pt, pid = particles[:, 0], particles[:, 4].abs()
    is_x, is_y, decay, from_tau, parton = (particles[:, 5:] > 0.5).unbind(1)  # (B, G) each
    decayed_tau = (pid == 15) & from_tau.any(1, keepdim=True)
    chosen = (decay & ~decayed_tau) | from_tau | parton
    if with_resonances:
        chosen |= is_x | is_y
    ranked = pt.where(chosen & (pt > 0), 0)
    ranked, slots = F.pad(ranked, (0, max(0, MAX_PARTICLES - pt.shape[1]))).topk(MAX_PARTICLES)
    mask = ranked > 0
    slots = slots.clamp(max=pt.shape[1] - 1)  # padded slots: masked below
    return particles.gather(2, slots[:, None].expand(-1, particles.shape[1], -1)) * mask[:, None], mask


def _kinds(pid: Tensor, is_x: Tensor, is_y: Tensor) -> list[Tensor]:
    """One-hot: X, Y, then by |pid|; what is none of these is a hadron (a tau's decay product)."""
    size, resonance = pid.abs(), (is_x + is_y) > 0.5
    known = [torch.stack([size == value for value in values]).any(0) & ~resonance for _, values in _KINDS]
    hadron = ~resonance & ~torch.stack(known).any(0) & (size > 0)
    return [is_x, is_y, *(kind.to(pid.dtype) for kind in (*known, hadron))]
