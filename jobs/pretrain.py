"""Pre-train a jet model: shards in; model.pt, metrics, summary.json and report.html in the run folder out.

    python jobs/pretrain.py                                     # the demo recipe; makes its simulated jets first
    python jobs/pretrain.py jobs/recipes/sophon.yaml data=… run=…
    ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/pretrain.py jobs/recipes/demo.yaml

The same command on the same run folder continues from the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from jetfoundry import cli, files, ray_session, runs
from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.downstream.embeddings import embed
from jetfoundry.downstream.reporting import evaluation_plots, run_report, run_table
from jetfoundry.evaluate.validation import EvaluationConfig, evaluate_scores
from jetfoundry.labels import label_scheme
from jetfoundry.train.ray_worker import check_recipe, pretrain
from jetfoundry.train.recipe import MAY_CHANGE, Recipe

HERE = Path(__file__).resolve().parent
