"""Our network against weaver-core's, with the same weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from weaver.nn.model.ParticleTransformer import ParticleTransformer as Weaver

from jetfoundry.errors import CheckpointError
from jetfoundry.models.particle_net import ParticleNetConfig
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.models.weaver_import import config_from_weaver, from_weaver, load_weaver


def weaver_network(config: ParTConfig, seed: int = 0) -> Weaver:
    """weaver's network with the options of Sophon's card and every weight and statistic random."""
    torch.manual_seed(seed)
    network = Weaver(
        input_dim=config.input_dim,
        num_classes=config.num_classes,
        pair_input_dim=4,
        use_pre_activation_pair=False,
        embed_dims=config.embed_dims,
        pair_embed_dims=config.pair_embed_dims,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        num_cls_layers=config.num_class_layers,
        block_params={"ffn_ratio": config.ffn_ratio},
        cls_block_params={"dropout": 0, "attn_dropout": 0, "activation_dropout": 0, "ffn_ratio": config.ffn_ratio},
        fc_params=[(width, 0.1) for width in config.fc_dims],
        activation="gelu",
        trim=True,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape) if parameter.ndim != 2 else 0
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return network.eval()


def ours_from(network: Weaver, config: ParTConfig) -> ParticleTransformer:
    model = ParticleTransformer(config)
    model.load_state_dict(from_weaver(network.state_dict(), config))
    return model.eval()


def gradients(network: Weaver, config: ParTConfig) -> dict[str, torch.Tensor]:
    """weaver's gradients under our names; buffers only fill the places."""
    return from_weaver({**network.state_dict(), **{k: p.grad for k, p in network.named_parameters()}}, config)


def compare(config: ParTConfig, batch: tuple[torch.Tensor, ...], logits_atol: float, gradients_atol: float) -> None:
    features, vectors, mask = batch
    theirs = weaver_network(config).to(features.dtype)
    ours = ours_from(theirs, config).to(features.dtype)
    labels = torch.arange(len(features)) % config.num_classes
    wanted, found = theirs(features, vectors, mask.to(features.dtype)), ours(features, vectors, mask)
    assert wanted.std() > 0.1  # the comparison is about something
    torch.testing.assert_close(found, wanted, atol=logits_atol, rtol=0)
    F.cross_entropy(wanted, labels).backward()
    F.cross_entropy(found, labels).backward()
    wanted_gradients = gradients(theirs, config)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted_gradients[name], atol=gradients_atol, rtol=0, msg=name)


def test_sophon_equals_weaver_on_real_jets(real_jets) -> None:
    compare(ParTConfig(), real_jets, logits_atol=1e-5, gradients_atol=1e-4)


def test_sophon_equals_weaver_on_random_jets_in_double_precision(make_batch) -> None:
    features, vectors, mask = make_batch([30, 1, 17, 2])
    compare(ParTConfig(), (features.double(), vectors.double(), mask), logits_atol=1e-11, gradients_atol=1e-11)


def test_small_network_equals_weaver(small_config: ParTConfig, make_batch) -> None:
    compare(small_config, make_batch([12, 7, 1], features=5), logits_atol=1e-5, gradients_atol=1e-4)


def test_first_training_step_equals_weavers_on_full_jets(small_config: ParTConfig, make_batch) -> None:
    """Without padding and dropout even batch statistics are weaver's, up to its biased variance."""
    batch = make_batch([20] * 64, features=5)
    config = dataclasses.replace(small_config, dropout=0, attention_dropout=0, activation_dropout=0, fc_dropout=0)
    theirs = weaver_network(config)
    ours = ours_from(theirs, config).train()
    for name, buffer in ours.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer.zero_()
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = 1.0
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    torch.testing.assert_close(ours(*batch), theirs(batch[0], batch[1], batch[2].float()), atol=2e-3, rtol=0)
    wanted = from_weaver(theirs.state_dict(), config)
    for name, buffer in ours.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, wanted[name], atol=1e-4, rtol=1e-4, msg=name)


def test_configuration_is_read_from_the_weights(small_config: ParTConfig) -> None:
    assert config_from_weaver(weaver_network(small_config).state_dict()) == small_config
    assert config_from_weaver(weaver_network(ParTConfig()).state_dict()) == ParTConfig()
    no_hidden = dataclasses.replace(small_config, fc_dims=())
    assert config_from_weaver(weaver_network(no_hidden).state_dict()) == no_hidden


def test_wrappers_prefixes_and_old_attention_names_are_understood(small_config: ParTConfig, make_batch) -> None:
    network = weaver_network(small_config)
    old = {
        "module.mod." + name.replace("in_proj.weight", "in_proj_weight").replace("in_proj.bias", "in_proj_bias"): value
        for name, value in network.state_dict().items()
    }
    assert config_from_weaver(old) == small_config
    model = ParticleTransformer(small_config)
    model.load_state_dict(from_weaver(old, small_config))
    batch = make_batch([4, 2], features=5)
    torch.testing.assert_close(model.eval()(*batch), network(batch[0], batch[1], batch[2].float()))


def test_pre_activation_pairs_are_imported_if_one_says_so(small_config: ParTConfig, make_batch) -> None:
    network, batch = weaver_network(small_config), make_batch([6, 4], features=5)
    network.pair_embed.embed = network.pair_embed.embed[:-1]  # what use_pre_activation_pair=True does
    config = config_from_weaver(network.state_dict(), pair_activation=False)
    assert config == dataclasses.replace(small_config, pair_activation=False)
    wanted = network(batch[0], batch[1], batch[2].float())
    torch.testing.assert_close(ours_from(network, config)(*batch), wanted, atol=1e-5, rtol=0)
    assert (ours_from(network, small_config)(*batch) - wanted).abs().max() > 1e-3


def contrastive_state(network: Weaver, tokens: int) -> dict[str, torch.Tensor]:
    """Names and shapes of Sophon's contrastive training: `mod` the network of the jet, without its classifier."""
    dim = network.cls_token.shape[-1]
    body = {"mod." + name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
    heads = {"mod_fc." + name: value for name, value in network.state_dict().items() if name.startswith("fc.")}
    projection = {"mod_proj.fc.0.0.weight": torch.randn(7, dim), "mod_proj.fc.0.0.bias": torch.randn(7)}
    projection |= {"mod_proj.fc.1.weight": torch.randn(6, 7)}
    left_out = {"gen.cls_token": torch.ones(1, 1, 4), "gen_proj.fc.0.weight": torch.ones(6, 4)}
    return {**body, **heads, **projection, **left_out, "mod.cls_token": torch.randn(1, tokens, dim)}


@pytest.mark.parametrize("tokens", [1, 2])
def test_networks_of_several_class_tokens_are_imported(small_config: ParTConfig, make_batch, tokens: int) -> None:
    network, (features, vectors, mask) = weaver_network(small_config), make_batch([6, 4], features=5)
    state = contrastive_state(network, tokens)
    config = config_from_weaver(state)
    ours = ParticleTransformer(config).eval()
    ours.load_state_dict(from_weaver({"module." + name: value for name, value in state.items()}, config))
    found = ours.outputs(features, vectors, mask)

    x, padding = network._forward_encoder(features, vectors, mask.float())
    read = state["mod.cls_token"].expand(2, -1, -1)
    for block in network.cls_blocks:  # tokens read the particles and each other
        read = block(x, x_cls=read, padding_mask=F.pad(padding, (tokens - 1, 0)))
    read = network.norm(read)
    hidden = F.relu(F.linear(read[:, -1], state["mod_proj.fc.0.0.weight"], state["mod_proj.fc.0.0.bias"]))
    torch.testing.assert_close(found["classification"], network.fc(read[:, 0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["contrastive"], hidden @ state["mod_proj.fc.1.weight"].T, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_another_network_is_refused_with_its_first_keys(small_config: ParTConfig) -> None:
    state = weaver_network(small_config).state_dict()
    with pytest.raises(CheckpointError, match=r"no place for, first 'cls_token', '[^']*', '[^']*', …; known: bn_fts"):
        from_weaver(state, ParticleNetConfig())
    tagger = {"pf_conv.conv.0.weight": torch.ones(3), "pn.fc.0.weight": torch.ones(3, 3)}
    with pytest.raises(CheckpointError, match=r"or ParticleNet classifier; it holds pf_conv.conv.0.weight, pn.fc"):
        config_from_weaver(tagger)
    with pytest.raises(
        CheckpointError, match="without pairs, embedding or classifier has no place here; it holds blocks"
    ):
        config_from_weaver({name: value for name, value in state.items() if not name.startswith("fc.")})


def test_misfits_are_named_with_weavers_names(small_config: ParTConfig) -> None:
    state = weaver_network(small_config).state_dict()
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, first 'blocks.0.c_attn'"):
        from_weaver({k: v for k, v in state.items() if k != "blocks.0.c_attn"}, small_config)
    with pytest.raises(CheckpointError, match=r"no place for, first 'blocks.1.ls1.gamma'; nearest: blocks.1"):
        from_weaver({**state, "blocks.1.ls1.gamma": torch.ones(16)}, small_config)
    with pytest.raises(CheckpointError, match=r"fc.1.weight: wanted shape \(3, 9\), got \(4, 9\)"):
        from_weaver({**state, "fc.1.weight": torch.ones(4, 9)}, small_config)
    with pytest.raises(CheckpointError, match=r"no checkpoint of weaver's ParticleTransformer or .* it holds x"):
        config_from_weaver({"x": torch.ones(1)})


def test_files_are_read_without_unpickling_objects(small_config: ParTConfig, tmp_path) -> None:
    state = weaver_network(small_config).state_dict()
    torch.save(state, tmp_path / "best.pt")
    read = load_weaver(tmp_path / "best.pt")
    assert all(torch.equal(read[name], value) for name, value in state.items())
    torch.save(weaver_network(small_config), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"whole.pt: holds Python objects"):
        load_weaver(tmp_path / "whole.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other.pt: wanted a weaver state dict"):
        load_weaver(tmp_path / "other.pt")
