from pathlib import Path

import pytest
import torch

from jetfoundry.labels import label_scheme
from jetfoundry.models.checkpoints import save_model
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A run folder with an untrained small network for the 17 inputs of datasets/jetclass2.yaml and 188 classes."""
    run = tmp_path_factory.mktemp("run")
    config = ParTConfig(
        embed_dims=(16, 8), pair_embed_dims=(4,), num_heads=2, num_layers=1, num_class_layers=1, fc_dims=(8,)
    )
    torch.manual_seed(3)
    model = ParticleTransformer(config)
    save_model(
        run / "model.pt",
        model_name="particle_transformer",
        model_config=config,
        weights=model.state_dict(),
        classes=label_scheme("sophon188").classes,
        data_yaml=(ROOT / "datasets" / "jetclass2.yaml").read_text(),
        meta={},
    )
    return run
