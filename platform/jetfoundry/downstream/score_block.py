"""Scores, latents and discriminants of one table of jets, row for row: what each actor of `score_files` does.

PyTorch and ONNX give the same figures within float32. Of ONNX files without the output `log_scores` (made by others, or
by versions that had none) the logarithms are those of the softmax and end at -87.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jetfoundry.downstream.scoring import Network, as_lists, open_network, score_table
from jetfoundry.evaluate.named_discriminants import NamedDiscriminants

__all__ = ["WRITE", "ScoreBlock", "latent_names", "open_scorer"]

WRITE = ("scores", "log_scores", "latent")
"""Arrays (B, n) that can be had: softmax, its logarithm, latent."""


def open_scorer(model: str, device: str, all_jets: bool, tokens: Sequence[str] = ()) -> Network:
    """The network, without the selection of its data YAML where all jets are wanted, with the latents of `tokens`."""
    network = open_network(model, device, tokens)
    if not all_jets:
        return network
    everything = dataclasses.replace(network.data, selection=None, test_time_selection=None)
    return dataclasses.replace(network, data=everything)


def latent_names(tokens: Sequence[str]) -> tuple[str, ...]:
    """Columns of the latents: one of the first class token, or one of each that was asked for.

    >>> latent_names(["classification", "contrastive"])
    ('latent_classification', 'latent_contrastive')
    """
    return tuple(f"latent_{token}" for token in tokens) or ("latent",)


class ScoreBlock:
    """The actor: opens the network once; every jet of a block comes back, `scored` or with NaN.

    `network` are the arguments of `open_scorer`; each class token named there has a latent of its own.

    Columns: `carried`, `scored`, `not_finite` (the network gave NaN or infinity: not scored either), those of `write`,
    and the log-odds (float64) of each discriminant of a jet.
    """

    def __init__(
        self,
        network: tuple[str, str, bool, tuple[str, ...]],
        write: Sequence[str],
        named: NamedDiscriminants,
        carried: Sequence[str],
    ) -> None:
        self._network, self._write, self._named, self._carried = open_scorer(*network), write, named, list(carried)
        self._latents = latent_names(network[3])

    def __call__(self, block: pa.Table) -> pa.Table:
        scored = score_table(self._network, block)
        good = np.isfinite(scored.logits).all(axis=1) & np.isfinite(scored.latent).all(axis=1)
        rows, logits = scored.rows[good], scored.logits[good].astype(np.float64)
        log_scores = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        arrays = {"scores": [np.exp(log_scores)], "log_scores": [log_scores]}
        arrays["latent"] = np.split(scored.latent[good], len(self._latents), axis=1)
        has_scores, not_finite = np.zeros((2, block.num_rows), bool)
        has_scores[rows], not_finite[scored.rows[~good]] = True, True
        out = block.select(self._carried)
        out = out.append_column("scored", pa.array(has_scores)).append_column("not_finite", pa.array(not_finite))
        for what in self._write:
            for name, values in zip(self._latents if what == "latent" else (what,), arrays[what], strict=True):
                full = np.full((block.num_rows, values.shape[1]), np.nan, np.float32)
                full[rows] = values
                out = out.append_column(name, as_lists(full))
        for name, odds in self._named.log_odds(logits).items():
            alone = np.full(block.num_rows, np.nan)
            alone[rows] = odds
            out = out.append_column(name, pa.array(alone))
        return out
