"""Simulate jets with Pythia 8 and a parametrised detector, as ROOT files in the JetClass-II layout.

    python jobs/simulate.py datasets/jetclass2_sim.yaml output=data/sim/root jets=24000

The file holds all physics; keys on the command line change it. Needs the [sim] extra. The same command continues an
interrupted run; a larger `jets` extends a sample. Written: <family>_<shard>.root, config.yaml, summary.json.

    python jobs/simulate.py datasets/jetclass2_sim.yaml check=true reference=real.parquet output=data/sim/check

makes no sample but tests the physics, and compares it with real JetClass-II jets if there are some: check/report.html.
"""

from __future__ import annotations

import sys

from jetfoundry import cli
from jetfoundry.dry_run.data import plan_simulate
from jetfoundry.evaluate.simulation import check
from jetfoundry.sim.run import simulate
from jetfoundry.sim.settings import SimulateConfig


def main(cfg: SimulateConfig) -> int:
    if cfg.check:
        found = check(cfg)
        for gate in found["gates"]:
            verdict = "passed" if gate["passed"] else "FAILED"
            print(f"{verdict}  {gate['name']}: {gate['value']} (wanted {gate['limit']})")
        print(f"{cfg.output}/check/report.html")
        return cli.EXIT_OK if found["passed"] else cli.EXIT_FAILED
    summary = simulate(cfg)
    run = summary["this_run"]
    print(f"{summary['jets']} simulated jets ({summary['mode']}) in {cfg.output}")
    print(f"{run['files_made']} files made, {run['files_kept']} kept, {run['jets_per_second']} jets/s")
    for name, row in summary["families"].items():
        print(f"  {name:<16} {row['jets']:>8} jets  {row['jets_per_cpu_second']:>6} jets per CPU-second")
    print(f"  {summary['classes']} of 188 classes have jets")
    return cli.EXIT_OK


if __name__ == "__main__":
    yaml = "datasets/jetclass2_sim.yaml"
    sys.exit(cli.run(main, SimulateConfig, usage=__doc__, default=yaml, folder=lambda c: c.output, plan=plan_simulate))
