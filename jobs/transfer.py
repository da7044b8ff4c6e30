"""Transfer learning: which downstream tasks does a frozen backbone solve with one linear layer?

    python jobs/transfer.py datasets/tasks/demo.yaml backbone=runs/demo

Every jet passes the backbone once; the embeddings are cached in its run folder. Ray Tune runs tasks x seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jetfoundry import cli, config, ray_session, runs
from jetfoundry.data.shards import open_shards
from jetfoundry.downstream.reporting import write_report
from jetfoundry.downstream.tasks import load_tasks
from jetfoundry.downstream.transfer import MAY_CHANGE, TransferConfig, transfer
from jetfoundry.evaluate.tables import terminal_table


def main(options: TransferConfig) -> int:
    backbone = Path(options.backbone)
    data = options.data or config.load_yaml(backbone / "config.yaml")["data"]
    load_tasks(options.tasks)  # before anything is written
    folder = runs.open_run(options.folder, options, MAY_CHANGE)
    sample = open_shards(data, "train").sample
    with ray_session.session(options.ray.address, options.ray.num_cpus, options.ray.object_store_gb):
        workers = options.embed_workers or ray_session.available_cpus()
        figures = transfer(options, data, folder, workers, sample)
    runs.write_summary(folder, sample=sample, **figures)
    print(terminal_table(figures["table"]))
    print(f"report: {write_report(backbone, sample)}")
    return cli.EXIT_SET_ASIDE if figures["failed_trials"] else cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(cli.run(main, TransferConfig, usage=__doc__, file_key="tasks", folder=lambda c: c.folder))
