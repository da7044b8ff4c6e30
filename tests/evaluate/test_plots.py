import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.text import Text

from jetfoundry.errors import InputError
from jetfoundry.evaluate import metrics, plots

SAMPLE = "simulated (Pythia 8, embedded detector)"


def texts(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def curve(jets=2000):
    signal = np.arange(jets) % 2 == 0
    return metrics.roc_curve(np.random.default_rng(0).normal(size=jets) + 2 * signal, signal)


def jet(title="X_bb, pT 500 GeV"):
    flags = ("Electron", "Muon", "Photon", "ChargedHadron", "NeutralHadron")
    row = {f"part_is{name}": np.eye(5, dtype=bool)[i] for i, name in enumerate(flags)}
    row |= {"part_px": [3.0, 0, 0, 0, 6], "part_py": [4.0, 1, 1, 1, 8], "part_deta": [0.1] * 5, "part_dphi": [0.2] * 5}
    return plots.constituents(row, title)


ROWS = [{"epoch": 0.5, "loss": 3.0, "lr": 1e-3}, {"epoch": 1.0, "val_loss": 2.5, "val_accuracy": 0.2}]

FIGURES = {
    "learning_curves": lambda: plots.learning_curves(ROWS, SAMPLE),
    "roc": lambda: plots.roc({"Sophon": curve(), "from scratch": curve(600)}, SAMPLE, "X_bb", "QCD"),
    "confusion": lambda: plots.confusion([[8, 2], [0, 0]], ["X_QQ", "QCD"], SAMPLE),
    "score_distribution": lambda: plots.score_distribution({"X_bb": np.linspace(0, 1, 99), "QCD": []}, SAMPLE),
    "jets_eta_phi": lambda: plots.jets_eta_phi([jet(), jet()], SAMPLE),
    "class_counts": lambda: plots.class_counts({"X_QQ": 12345, "X_gg": 0, "QCD": 1}, SAMPLE),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_that_it_is_simulated_and_names_its_axes(name):
    figure = FIGURES[name]()
    shown = texts(figure)
    assert any(SAMPLE in text for text in shown)
    for axes in figure.axes:
        named = axes.get_xlabel() or axes.get_ylabel()
        assert named or name == "jets_eta_phi", name  # inner jets share the labels of the outer ones
    assert plots.png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.learning_curves([]),
        lambda: plots.roc({}),
        lambda: plots.roc({"no signal": metrics.roc_curve([1.0, 2.0], [False, False])}),
        lambda: plots.roc({"no jets": metrics.roc_curve([], [])}),
        lambda: plots.score_distribution({}),
        lambda: plots.score_distribution({"none": []}),
        lambda: plots.jets_eta_phi([]),
        lambda: plots.class_counts({}),
    ],
)
def test_nothing_to_show_is_still_a_figure(figure):
    assert plots.png(figure()).startswith(b"\x89PNG")


def test_learning_curves_take_what_each_row_has():
    loss, accuracy = plots.learning_curves(ROWS).axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    assert accuracy.lines[0].get_ydata().tolist() == [0.2]


def test_roc_is_dotted_where_fewer_than_ten_background_jets_survive():
    solid, dotted = plots.roc({"tagger": curve(2000)}).axes[0].lines
    assert dotted.get_linestyle() == ":"
    assert solid.get_ydata().min() >= 10 / 1000 > dotted.get_ydata().max()


def test_large_curves_are_thinned_but_keep_their_ends():
    eff_s, eff_b, _ = plots._thinned(curve(100_000))
    assert len(eff_s) <= 500
    assert (eff_s[-1], eff_b[-1]) == (1.0, 1.0)


def test_confusion_cells_show_fractions_and_leave_empty_classes_blank():
    figure = plots.confusion([[8, 2], [0, 0]], ["X_QQ", "QCD"])
    assert [text for text in texts(figure) if text in ("0.80", "0.20", "nan")] == ["0.80", "0.20"]
    with pytest.raises(InputError, match=r"wanted shape \(3, 3\)"):
        plots.confusion([[1]], ["a", "b", "c"])


def test_constituents_are_read_with_pt_and_type():
    found = jet()
    assert found.pt.tolist() == [5, 1, 1, 1, 10]
    assert found.kind.tolist() == ["electron", "muon", "photon", "charged hadron", "neutral hadron"]


def test_real_jets_can_be_drawn(shared):
    import pyarrow.parquet as pq

    rows = pq.read_table(shared / "data/jetclass2/jetclass2_real_60.parquet").slice(0, 6).to_pylist()
    figure = plots.jets_eta_phi([plots.constituents(row, str(row["jet_label"])) for row in rows])
    assert len(figure.axes) == 6
    assert plots.png(figure).startswith(b"\x89PNG")


def test_long_class_lists_go_into_several_panels():
    figure = plots.class_counts({f"class {i}": i for i in range(188)})
    assert [len(axes.get_yticks()) for axes in figure.axes] == [47, 47, 47, 47]
    assert figure.get_size_inches()[1] < 12


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_in_the_fonts_of_the_page(name):
    figure = FIGURES[name]()
    plots.png(figure, dpi=40)  # ticks are made when they are drawn
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 3
    assert {tuple(text.get_fontfamily()) for text in texts} == {("TeX Gyre Heros", "DejaVu Sans")}


def test_figures_can_be_drawn_in_threads():
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda name: plots.png(FIGURES[name]()), list(FIGURES) * 2))
    half = len(FIGURES)
    assert images[:half] == images[half:]


def test_drawing_opens_no_pyplot_figure_and_leaves_the_settings():
    code = (
        "import matplotlib, numpy as np; from jetfoundry.evaluate import plots; before = dict(matplotlib.rcParams);"
        "plots.png(plots.score_distribution({'a': np.linspace(0, 1, 9)})); import matplotlib.pyplot as plt;"
        "import sys; print(plt.get_fignums(), before == dict(matplotlib.rcParams), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True False"
