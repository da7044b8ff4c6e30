from __future__ import annotations

import shutil

import pytest
import torch

from jetfoundry.loading.batch import Batch, MicroBatch
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer, _triangle
from jetfoundry.train.compiled import compile_network
from jetfoundry.train.optim import OptimConfig
from jetfoundry.train.step import Stepper
from jetfoundry.train.timing import PhaseTimer

SMALL = ParTConfig(
    input_dim=5, num_classes=3, embed_dims=(16,), pair_embed_dims=(8,), num_heads=2, num_layers=1, num_class_layers=1,
    dropout=0, attention_dropout=0, activation_dropout=0, fc_dims=(), fc_dropout=0,
)  # fmt: skip


def batch(lengths: list[int], jets: int, seed: int) -> Batch:
    """Micro-batches of different lengths, with one slot of padding in every other jet."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for length in lengths:
        mask = torch.ones(jets, 1, length)
        mask[::2, :, -1] = 0
        momenta = torch.randn(jets, 3, length, generator=draw)
        vectors = torch.cat((momenta, momenta.norm(dim=1, keepdim=True) * 1.1), 1)
        features = torch.randn(jets, 5, length, generator=draw)
        inputs = {"pf_features": features, "pf_vectors": vectors, "pf_mask": mask}
        parts.append(MicroBatch(inputs, torch.randint(3, (jets,), generator=draw)))
    return Batch(tuple(parts), jets * len(parts))


@pytest.mark.parametrize("length", [1, 2, 7, 128, 1000])
def test_the_triangle_is_that_of_torch(length):
    assert torch.equal(torch.stack(_triangle(length, torch.device("cpu"))), torch.tril_indices(length, length))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch warns of its own deprecated functions while it compiles
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("how", ["default", "reduce-overhead"])
def test_a_compiled_network_trains_alike_and_default_is_compiled_once_for_all_lengths(how):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batches = [batch([3, 5], 4, seed=1), batch([4], 5, seed=2), batch([5], 4, seed=3)]
    found = []
    for mode in ("off", how):
        torch.manual_seed(0)
        model = ParticleTransformer(SMALL)
        compile_network(model, mode)
        step = Stepper(model, OptimConfig(eps=1e-4), "off", torch.device("cpu"))
        found.append([step(each, 1e-3, PhaseTimer()).losses for each in batches])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-4)
    if how == "default":
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one for the first shape, one for all"
