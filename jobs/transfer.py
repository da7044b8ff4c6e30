"""Transfer learning: which backbone solves downstream tasks better, by which method, from how many jets?

    python jobs/transfer.py datasets/tasks/demo.yaml backbone=runs/demo
    python jobs/transfer.py datasets/tasks/ backbone=runs/sophon,runs/sophon_pp methods=probe,mlp,finetune seeds=3

Every jet passes each backbone once; the embeddings are cached in its run folder. Ray Tune runs tasks x backbones x
methods x class tokens x sizes x seeds. The answer is `report.html`, `table.csv` and `summary.json` in the result
folder; of a single backbone it is also in the report of its run.
"""

from __future__ import annotations

import sys

from jetfoundry import cli, files, ray_session, runs
from jetfoundry.benchmark.report import hardware
from jetfoundry.downstream.reporting import write_report
from jetfoundry.downstream.tasks import load_tasks
from jetfoundry.downstream.transfer import MAY_CHANGE, TransferConfig, transfer
from jetfoundry.downstream.transfer_page import write_page
from jetfoundry.downstream.transfer_report import matrix, write_transfer_report
from jetfoundry.dry_run.downstream import plan_transfer
from jetfoundry.evaluate.tables import terminal_table


def main(options: TransferConfig) -> int:
    load_tasks(options.tasks)  # before anything is written
    folder = runs.open_run(options.folder, options, MAY_CHANGE)
    with ray_session.session(options.ray.address, options.ray.num_cpus, options.ray.object_store_gb):
        figures = transfer(options, folder)
    runs.write_summary(folder, **figures)
    print(terminal_table(matrix(figures)))
    print(f"{figures['trials_run']} trials run, {figures['trials_found']} found, {figures['failed_trials']} failed")
    print(f"report: {write_transfer_report(folder, figures['sample'])}")
    if options.page:
        print(f"page: {write_page(files.place(options.page), folder, options.backbone, hardware())}")
    if len(options.backbone) == 1:
        print(f"report: {write_report(files.place(options.backbone[0]), figures['sample'])}")
    return cli.EXIT_SET_ASIDE if figures["failed_trials"] else cli.EXIT_OK


if __name__ == "__main__":
    sys.exit(
        cli.run(main, TransferConfig, usage=__doc__, file_key="tasks", folder=lambda c: c.folder, plan=plan_transfer)
    )
