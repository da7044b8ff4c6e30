"""The 60 real JetClass-II jets through the product: ingest, shards, ONNX export, scores."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from jetfoundry.data.ingest import IngestConfig, ingest
from jetfoundry.data.shards import open_shards, read_row_group
from jetfoundry.downstream.export import padded_batches
from jetfoundry.downstream.score_files import ScoreConfig, score_files
from jetfoundry.features.transform import load_data_config
from jetfoundry.models.checkpoints import load_model
from jetfoundry.models.export import check_onnx, export_onnx

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:copyreg"),
]


@pytest.fixture(scope="module")
def ingested(ray_local, shared, tmp_path_factory):
    """The file of real jets, and what the ingest of it reported."""
    source = shared / "data" / "jetclass2" / "jetclass2_real_60.parquet"
    return source, ingest(IngestConfig(input=(str(source),), output=str(tmp_path_factory.mktemp("real") / "shards")))


def test_sixty_real_jets_are_ingested_and_scored_by_the_exported_model(ingested, small_model, tmp_path):
    source, report = ingested
    assert sum(report.jets.values()) == 60
    assert report.complete

    model = load_model(small_model / "model.pt")
    onnx = tmp_path / "model.onnx"
    export_onnx(model, onnx)
    jets = pq.read_table(source)
    assert check_onnx(onnx, model.build(), padded_batches(model, jets)) < 1e-4

    shards = [str(path) for split in ("train", "val", "test") for path in sorted((report.folder / split).iterdir())]
    by_onnx, by_torch = (
        score_files(ScoreConfig(model=str(path), input=tuple(shards), output=str(out), all_jets=True))
        for path, out in ((onnx, tmp_path / "onnx.parquet"), (small_model, tmp_path / "torch.parquet"))
    )
    assert by_onnx["scored"] == by_torch["scored"] == 60
    one, two = (
        np.array(pq.read_table(tmp_path / f"{name}.parquet")["scores"].to_pylist()) for name in ("onnx", "torch")
    )
    assert np.abs(one - two).max() < 1e-4
    assert np.isfinite(one).all()


def test_selected_real_jets_are_those_inside_the_published_phase_space(ingested, small_model):
    source, report = ingested
    data = load_data_config(yaml.safe_load(load_model(small_model / "model.pt").data_yaml))
    kept = 0
    for split in ("train", "val", "test"):
        for group in open_shards(report.folder, split).row_groups:
            kept += len(data.apply(read_row_group(group, data.columns), training=False))
    jets = pq.read_table(source)
    pt, mass = jets["jet_pt"].to_numpy(), jets["jet_sdmass"].to_numpy()
    assert kept == ((pt > 200) & (pt < 2500) & (mass > 20) & (mass < 500)).sum()
