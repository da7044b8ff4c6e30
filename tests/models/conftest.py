"""Jets for model tests: random ones of any length, and 60 real ones where the shared sample is at hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from jetfoundry.models.particle_transformer import ParTConfig

Batch = tuple[Tensor, Tensor, Tensor]
REAL_JETS = Path(__file__).parents[3] / "shared" / "data" / "jetclass2" / "jetclass2_real_60.parquet"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread costs more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """make_batch(lengths, features=17, seed=0, pad_to=None) -> (features, vectors, mask) of random particles."""

    def make(lengths: Sequence[int], features: int = 17, seed: int = 0, pad_to: int | None = None) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(lengths), pad_to or max(lengths))
        pt = torch.rand(shape, generator=generator) * 50 + 0.5
        eta, phi = torch.randn(2, *shape, generator=generator) * 0.3
        mass = torch.rand(shape, generator=generator) * 0.5 + 0.1
        px, py, pz = pt * phi.cos(), pt * phi.sin(), pt * eta.sinh()
        energy = (px.square() + py.square() + pz.square() + mass.square()).sqrt()
        mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None])[:, None]
        vectors = torch.stack((px, py, pz, energy), 1) * mask
        return torch.randn(shape[0], features, shape[1], generator=generator) * mask, vectors, mask

    return make


@pytest.fixture(scope="session")
def real_jets() -> Batch:
    """The 60 real JetClass-II jets as Sophon's inputs: (60, 17, P), (60, 4, P), (60, 1, P)."""
    if not REAL_JETS.exists():
        pytest.skip("the 60 real jets are not at hand")
    table = pq.read_table(REAL_JETS)
    offsets = np.cumsum([0, *(len(jet) for jet in table["part_px"].to_pylist())])
    lengths = np.diff(offsets)

    def particles(name: str) -> np.ndarray:
        return table["part_" + name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)

    def jets(name: str) -> np.ndarray:
        return np.repeat(table["jet_" + name].to_numpy(), lengths)

    def standardised(x: np.ndarray, shift: float, scale: float) -> np.ndarray:
        return np.clip((x - shift) * scale, -5, 5)

    scale = 500 / jets("pt")
    pt, energy = np.hypot(particles("px"), particles("py")), particles("energy")
    deta, dphi = particles("deta"), particles("dphi")
    flags = ("charge", "isChargedHadron", "isNeutralHadron", "isPhoton", "isElectron", "isMuon")
    features = np.stack(
        [
            standardised(np.log(pt * scale), 1.7, 0.7),
            standardised(np.log(energy * scale), 2.0, 0.7),
            standardised(np.log(pt / jets("pt")), -4.7, 0.7),
            standardised(np.log(energy / jets("energy")), -4.7, 0.7),
            standardised(np.hypot(deta, dphi), 0.2, 4.0),
            *(particles(name) for name in flags),
            np.tanh(particles("d0val")),
            np.clip(particles("d0err"), 0, 1),
            np.tanh(particles("dzval")),
            np.clip(particles("dzerr"), 0, 1),
            deta,
            dphi,
        ]
    )
    vectors = np.stack([particles(name) * scale for name in ("px", "py", "pz", "energy")])
    mask = np.arange(min(lengths.max(), 128)) < lengths[:, None]

    def padded(flat: np.ndarray) -> Tensor:
        out = np.zeros((len(lengths), len(flat), mask.shape[1]), np.float32)
        for i, (start, stop) in enumerate(itertools.pairwise(offsets)):
            out[i, :, : min(stop - start, 128)] = flat[:, start:stop][:, :128]
        return torch.from_numpy(out)

    return padded(features), padded(vectors), torch.from_numpy(mask)[:, None]


@pytest.fixture
def small_config() -> ParTConfig:
    """A Particle Transformer of some thousand parameters with every part of the large one."""
    return ParTConfig(
        input_dim=5, num_classes=3, embed_dims=(8, 16), pair_embed_dims=(6, 7),
        num_heads=4, num_layers=2, num_class_layers=2, ffn_ratio=2, fc_dims=(9,),
    )  # fmt: skip
