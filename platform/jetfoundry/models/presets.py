"""Named model configurations."""

from __future__ import annotations

from jetfoundry.models.particle_transformer import ParTConfig

__all__ = ["PRESETS"]

PRESETS: dict[str, ParTConfig] = {
    # For a laptop. Below a width of 64 the time goes into pairs, attention maps and activations, not into matrix
    # products: two blocks, four heads and a small pair network buy more speed than a narrower model.
    "demo": ParTConfig(
        embed_dims=(64, 64),
        pair_embed_dims=(16,),
        num_heads=4,
        num_layers=2,
        num_class_layers=1,
        ffn_ratio=2,
        attention_dropout=0.0,
        activation_dropout=0.0,
        fc_dims=(64,),
    ),
    # arXiv:2405.12972, 2,304,688 parameters.
    "sophon": ParTConfig(),
}
"""Configurations by the name that recipes use; `num_classes` and `input_dim` follow the data."""
