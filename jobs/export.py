"""Export a trained model to ONNX and check it against PyTorch on jets of its own validation sample.

    python jobs/export.py runs/demo            # writes runs/demo/model.onnx and export.json

Inputs pf_features (B, F, P), pf_vectors (B, 4, P), pf_mask (B, 1, P), any B and P; outputs scores (B, C) after the
softmax and latent (B, D). Class names, data YAML and model hash stand in the file's metadata.
"""

from __future__ import annotations

import sys

from jetfoundry import cli, config, files, runs
from jetfoundry.data.shards import open_shards, read_row_group
from jetfoundry.downstream.export import ExportConfig, padded_batches
from jetfoundry.downstream.reporting import result_table, write_report
from jetfoundry.dry_run.downstream import plan_export
from jetfoundry.errors import InputError
from jetfoundry.evaluate.tables import terminal_table
from jetfoundry.models.checkpoints import load_model
from jetfoundry.models.export import check_onnx, export_onnx


def main(options: ExportConfig) -> int:
    run = files.place(options.run)
    data = options.data or config.load_yaml(run / "config.yaml")["data"]
    shards = open_shards(data, "val")
    if not shards.rows:
        msg = f"{data}: the val split holds no jets to check the export on"
        raise InputError(msg)
    model, path = load_model(run / "model.pt"), files.place(options.output or run / "model.onnx")
    export_onnx(model, path)
    jets = read_row_group(shards.row_groups[0], None).slice(0, options.check_jets)
    difference = check_onnx(path, model.build(), padded_batches(model, jets))
    figures = {
        "onnx": str(path),
        "max_difference": difference,
        "allowed": options.tolerance,
        "checked_jets": jets.num_rows,
        "classes": len(model.classes),
        "onnx_sha256": files.sha256_file(path),
    }
    files.write_json(run / "export.json", {**figures, "provenance": runs.provenance()})
    print(terminal_table(result_table(run)))
    print(f"report: {write_report(run, shards.sample)}")
    if difference > options.tolerance:
        print(f"error: ONNX and PyTorch differ by {difference:.2e}, allowed {options.tolerance:.0e}", file=sys.stderr)
        return cli.EXIT_BAD_INPUT
    return cli.EXIT_OK


if __name__ == "__main__":
    key, run_folder = "run", "runs/demo"
    sys.exit(
        cli.run(
            main,
            ExportConfig,
            usage=__doc__,
            file_key=key,
            default=run_folder,
            folder=lambda c: c.run,
            plan=plan_export,
        )
    )
