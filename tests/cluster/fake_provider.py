"""Ray's fake provider with nodes that have memory to reserve, as those of real providers have: it takes `memory` for a
resource of somebody's own, and refuses it."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import ray._private.parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Provider(FakeMultiNodeProvider):
    """Each node is a raylet on this machine."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, Any], labels: Any
    ) -> None:
        memory, others = resources.get("memory"), {key: each for key, each in resources.items() if key != "memory"}
        parameters = functools.partial(ray._private.parameter.RayParams, memory=memory)
        with mock.patch.object(ray._private.parameter, "RayParams", parameters):
            super()._create_node_with_resources_and_labels(node_config, tags, count, others, labels)
