from __future__ import annotations

import dataclasses

import pytest
import torch

from jetfoundry import config
from jetfoundry.errors import ConfigError
from jetfoundry.models.particle_transformer import ParTConfig, ParticleTransformer
from jetfoundry.models.tasks import TaskConfig

OWN = TaskConfig(name="contrastive", head=(11, 12), outputs=6)
SHARED_BLOCKS = dataclasses.replace(OWN, class_blocks="classification")
SHARED_TOKEN = dataclasses.replace(OWN, token="classification")


def network(small_config: ParTConfig, *further: TaskConfig) -> ParticleTransformer:
    torch.manual_seed(0)
    return ParticleTransformer(dataclasses.replace(small_config, tasks=(TaskConfig(), *further))).eval()


def shapes(model: ParticleTransformer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def test_one_task_is_the_network_without_tasks(small_config: ParTConfig, make_batch) -> None:
    torch.manual_seed(0)
    plain, one, batch = ParticleTransformer(small_config).eval(), network(small_config), make_batch([4, 2], features=5)
    assert shapes(plain) == shapes(one)
    assert torch.equal(plain(*batch), one(*batch))
    assert list(plain.outputs(*batch)) == ["classification"]


def test_names_of_the_first_tasks_weights_do_not_depend_on_further_tasks(small_config: ParTConfig) -> None:
    further = shapes(network(small_config, OWN)).items() - shapes(network(small_config)).items()
    assert {name.split(".")[0] for name, _ in further} == {"readouts", "heads"}
    assert shapes(network(small_config)).items() <= shapes(network(small_config, OWN)).items()


@pytest.mark.parametrize("task", [OWN, SHARED_BLOCKS, SHARED_TOKEN])
def test_every_task_has_outputs_of_its_own(small_config: ParTConfig, make_batch, task: TaskConfig) -> None:
    model, batch = network(small_config, task), make_batch([4, 2], features=5)
    outputs = model.outputs(*batch)
    assert {name: tuple(values.shape) for name, values in outputs.items()} == {
        "classification": (2, 3),
        "contrastive": (2, 6),
    }
    torch.testing.assert_close(outputs["classification"], model(*batch))
    torch.testing.assert_close(model.latents(*batch)["classification"], model.latent(*batch))


def test_tokens_and_class_blocks_are_shared_as_told(small_config: ParTConfig, make_batch) -> None:
    batch = make_batch([4, 2], features=5)
    assert list(network(small_config, OWN).latents(*batch)) == ["classification", "contrastive"]
    assert list(network(small_config, SHARED_TOKEN).latents(*batch)) == ["classification"]
    assert network(small_config, SHARED_BLOCKS).readout.token.shape == (2, 16)
    blocks = [
        sum("blocks" in n and "read" in n for n in shapes(network(small_config, t))) for t in (OWN, SHARED_BLOCKS)
    ]
    assert blocks[0] == 2 * blocks[1]


def test_tokens_that_share_class_blocks_see_each_other(small_config: ParTConfig, make_batch) -> None:
    batch = make_batch([4, 2], features=5)
    for task, token, seen in ((SHARED_BLOCKS, "readout.token", True), (OWN, "readouts.contrastive.token", False)):
        model = network(small_config, task)
        before = model(*batch)
        with torch.no_grad():
            weight = model.get_parameter(token)
            (weight[1] if seen else weight).add_(1)
        assert torch.equal(model(*batch), before) is not seen


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ([{"name": "a"}, {"name": "a"}], "every task needs a name of its own, got"),
        ([{"name": "a"}, {"name": "b", "token": "a", "class_blocks": "c"}], "token 'a' goes through .* 'a' and 'c'"),
        ([{"name": "a", "outputs": 4}], "first task classifies: wanted outputs 0 or 3, got 4"),
        ([{"name": "a.b"}], "names of tasks.* got 'a.b'"),
        ([{"name": "a", "head": [0]}], "task 'a': wanted widths >= 1"),
        ([{"nam": "a"}], r"unknown key 'tasks\[0\].nam'; nearest: name"),
    ],
)
def test_tasks_that_contradict_each_other_are_refused(tasks: list[dict], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        config.build(ParTConfig, {"num_classes": 3, "tasks": tasks})
