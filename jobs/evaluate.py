"""Score jets: ROOT or JetClass-II Parquet in; one Parquet file with scores and latent per jet out, in input order.

    python jobs/evaluate.py runs/demo input='more/*.root' output=scores.parquet
    python jobs/evaluate.py runs/demo/model.onnx input=jets.parquet output=scores.parquet

Jets outside the data YAML's selection, and jets that fail the checks, have no row; both are counted.
"""

from __future__ import annotations
