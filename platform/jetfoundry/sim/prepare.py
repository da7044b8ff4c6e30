"""Shards of simulated jets for recipes that bring their own: simulated and ingested where they are missing."""

from __future__ import annotations

from jetfoundry import config, files
from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.plan import ShardConfig

__all__ = ["prepare"]


def prepare(
    folder: str,
    *,
    simulate: str,
    jets: int,
    root: str,
    features: str,
    schema: str = "",
    shards: ShardConfig = ShardConfig(),  # noqa: B008
) -> None:
    """Make the shard folder `folder` if it has no manifest: `jets` of the simulation YAML `simulate` as ROOT files in
    `root`, then shards of them. Nothing is made without such a YAML. Needs Ray, and the [sim] extra to simulate.
    `schema` is that of the ingest, for jets of classes that JetClass-II lacks."""
    if not simulate or (files.place(folder) / "manifest.json").exists():
        return
    from jetfoundry.sim import run, settings

    run.simulate(config.read(settings.SimulateConfig, simulate, [f"output={root}", f"jets={jets}"]))
    ingest(IngestConfig(features=features, schema=schema, input=(f"{root}/*.root",), output=folder, shards=shards))
