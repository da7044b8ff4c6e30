"""Functions of the truth record for task labels, registered in the formula language under their own names."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from jetfoundry.errors import FormulaError
from jetfoundry.features.expressions import register
from jetfoundry.features.jagged import Jagged

__all__ = ["deltaR_pair"]


def deltaR_pair(eta: Jagged, phi: Jagged, chosen: Jagged) -> npt.NDArray[np.float64]:
    """deltaR = hypot(delta eta, wrapped delta phi) of the two chosen particles of each jet, (B,).

    NaN for jets in which not exactly two particles are chosen. For the opening angle of X->bb choose
    `aux_genpart_isResDecayProd & (abs(aux_genpart_pid) == 5)` (arXiv:2405.12972's truth record).
    """
    if not all(isinstance(part, Jagged) for part in (eta, phi, chosen)):
        msg = "deltaR_pair(eta, phi, chosen) takes three per-particle quantities"
        raise FormulaError(msg)
    mask = chosen.values.astype(bool)
    before = np.concatenate([[0], np.cumsum(mask)])
    number = before[chosen.offsets[1:]] - before[chosen.offsets[:-1]]
    pair = number == 2
    inside = np.repeat(pair, np.diff(chosen.offsets)) & mask
    eta_pair = eta.values[inside].astype(np.float64).reshape(-1, 2)
    phi_pair = phi.values[inside].astype(np.float64).reshape(-1, 2)
    dphi = np.remainder(phi_pair[:, 0] - phi_pair[:, 1] + np.pi, 2 * np.pi) - np.pi
    result = np.full(len(pair), np.nan)
    result[pair] = np.hypot(eta_pair[:, 0] - eta_pair[:, 1], dphi)
    return result


register("deltaR_pair", deltaR_pair)
