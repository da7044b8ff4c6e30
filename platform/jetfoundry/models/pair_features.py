"""Physics of a pair of particles: (ln kt, ln z, ln deltaR, ln m²) from two four-vectors.

These four numbers are the "interaction features" of the Particle Transformer (arXiv:2202.03772, eq. 3-6): they
bias the attention between two particles. With a, b the particles, pT in GeV and y the rapidity:

    deltaR = hypot(y_a - y_b, phi_a - phi_b)      kt = min(pT_a, pT_b) * deltaR
    z = min(pT_a, pT_b) / (pT_a + pT_b)           m² = (E_a + E_b)² - |p_a + p_b|²

Decided here: everything in float32 or better, whatever comes in (squares of GeV overflow float16); padding is
zeroed *before* any logarithm, so no infinity can appear behind a mask; rapidity in the antisymmetric form that is
finite for pz = ±E; everything else rounded exactly as weaver rounds it, because (E² - p²) of nearly massless pairs
is mostly rounding and published weights were trained on it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["PAIR_FEATURES", "kinematics", "pair_features", "rapidity"]

PAIR_FEATURES: tuple[str, ...] = ("ln_kt", "ln_z", "ln_deltaR", "ln_m2")
"""Names of the channels of `pair_features`, in order."""

_FLOOR = 1e-8
"""Smallest argument of a logarithm, in GeV, GeV² or rad; ln gives -18.4 (a particle paired with itself)."""


def rapidity(pz: Tensor, energy: Tensor) -> Tensor:
    """y = ½ ln((E + pz)/(E - pz)) as sign(pz) ½ ln(1 + 2|pz| / max(E - |pz|, 1e-20)).

    Equal to the textbook form where that is finite, antisymmetric to the last bit, and finite (|y| < 55) for
    pz = ±E and for E = 0, where one-sided protections overflow.
    """
    size = pz.abs()
    return torch.sign(pz) * 0.5 * torch.log(1 + 2 * size / (energy - size).clamp(min=1e-20))


def kinematics(vectors: Tensor, mask: Tensor) -> Tensor:
    """What a pair needs to know of each particle: rows (px, py, pz, E, pT, y, phi).

    Parameters
    ----------
    vectors
        (B, 4, P) of (px, py, pz, E) in GeV, any floating type; the content of padded slots is ignored.
    mask
        (B, 1, P) bool, True for real particles.

    Returns
    -------
    Tensor
        (7, B, P) in float32 (float64 for float64 input); all zero for padding.
    """
    precise = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    px, py, pz, energy = precise.masked_fill(~mask, 0).unbind(1)
    pt = (px.square() + py.square()).sqrt()
    return torch.stack((px, py, pz, energy, pt, rapidity(pz, energy), torch.atan2(py, px)))


def pair_features(a: Tensor, b: Tensor) -> Tensor:
    """(ln kt, ln z, ln deltaR, ln m²) of particles `a` with particles `b`.

    `a` and `b` are rows of `kinematics`, (7, ...) each; trailing dimensions broadcast, so (7, N) with (7, N) gives
    N pairs and (7, B, P, 1) with (7, B, 1, P) gives all of them. Returns (..., 4).
    """
    px_a, py_a, pz_a, energy_a, pt_a, y_a, phi_a = a.unbind(0)
    px_b, py_b, pz_b, energy_b, pt_b, y_b, phi_b = b.unbind(0)
    dphi = (phi_a - phi_b + math.pi) % (2 * math.pi) - math.pi
    delta_r = ((y_a - y_b).square() + dphi.square()).sqrt()
    pt_min = torch.minimum(pt_a, pt_b)
    p2 = (px_a + px_b).square() + (py_a + py_b).square() + (pz_a + pz_b).square()
    m2 = (energy_a + energy_b).square() - p2
    z = pt_min / (pt_a + pt_b).clamp(min=_FLOOR)
    return torch.stack((pt_min * delta_r, z, delta_r, m2), dim=-1).clamp(min=_FLOOR).log()
