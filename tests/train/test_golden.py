"""The loss of 20 steps is what it was: data order, features, network, optimiser and schedule together.

A change that is meant to alter it renews the stored losses: `JETFOUNDRY_RENEW=1 pytest tests/train/test_golden.py`; say
in the commit why they had to change.
"""

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch

from jetfoundry.data.shards import open_shards
from jetfoundry.features.transform import load_data_config
from jetfoundry.loading.loader import LoaderConfig, every_jet, training_batches
from jetfoundry.loading.sampling import SamplingConfig
from jetfoundry.models.presets import build, configure
from jetfoundry.train.loop import TrainConfig, Validation, fit, predict
from jetfoundry.train.optim import OptimConfig

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden_losses.json")
TINY = {"embed_dims": [16, 16], "pair_embed_dims": [8], "num_layers": 2, "num_heads": 2, "fc_dims": [16]}
# Masks of dropout may come from another generator of random numbers one day; what they do is tested elsewhere.
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "fc_dropout": 0.0}


def losses(shards):
    """Training loss of 20 steps, then the validation loss."""
    data = load_data_config(ROOT / "datasets" / "jetclass2.yaml", scheme="sophon188")
    loader = LoaderConfig(batch_size=32, micro_batches=2, window=100)
    train, val = open_shards(shards, "train"), open_shards(shards, "val")

    @contextlib.contextmanager
    def stream(start):
        yield training_batches(train, data, loader, SamplingConfig(balance="classes"), seed=1, start=start)

    def validate(model):
        total, jets = 0.0, 0
        for _, logits, labels in predict(model, every_jet(val, data, loader), torch.device("cpu")):
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            jets += len(labels)
        return Validation(total / jets, 0.0, jets)

    torch.manual_seed(1)
    features = len(data.inputs["pf_features"].vars)
    model = build(configure("demo", {**TINY, **STILL}, input_dim=features, num_classes=data.num_classes))
    # A large eps: parameters whose true gradient is zero (key biases) would walk at full rate, led by rounding errors.
    options = TrainConfig(epochs=1, optim=OptimConfig(lr=5e-3, warmup=0.1, eps=1e-4), log_steps=1)
    rows = []
    how = {"steps_per_epoch": 20, "device": torch.device("cpu"), "save": lambda state, metrics: None}
    fit(model, stream, validate, options, log=rows.append, **how)
    return [row.get("loss", row.get("val_loss")) for row in rows]


def test_the_loss_curve_is_the_stored_one(tmp_path, toy_shards):
    found = losses(toy_shards(tmp_path / "shards", train=400, val=60))
    assert len(found) == 21
    if os.environ.get("JETFOUNDRY_RENEW"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found[-1] < 0.9 * found[0]
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-5)
