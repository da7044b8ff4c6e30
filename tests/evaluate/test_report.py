import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from jetfoundry import runs
from jetfoundry.errors import InputError
from jetfoundry.evaluate import plots
from jetfoundry.evaluate.report import Section, build_report, evaluation_sections, render
from jetfoundry.evaluate.tables import format_cell, format_column, format_rejection, terminal_table
from jetfoundry.evaluate.validation import evaluate_scores
from jetfoundry.labels import CLASSES

PICTURE = plots.png(plots.class_counts({"X_QQ": 3}))


class Page(HTMLParser):
    """Checks that tags nest and collects text and attributes."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_well_formed_and_loads_nothing():
    sections = [Section(f"Part {i}", "One.\n\nTwo.", [{"a": 1}], [("A plot.", PICTURE)]) for i in range(3)]
    page = Page(render("Title", "simulated", sections, {"git_commit": "abc"}))
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert page.tags.count("img") == 3


def test_every_text_is_escaped():
    evil = "<script>alert('x')</script>\"&"
    section = Section(evil, evil, [{evil: evil}], [(evil, PICTURE)])
    text = render(evil, evil, [section] * 3, {evil: {evil: [evil]}})
    assert "<script" not in text
    assert "script" not in Page(text).tags
    assert Page(text).text.count(evil) >= 10


def test_figures_stand_right_and_words_left():
    rows = [{"task": "a", "AUC": 0.5, "rejection": "> 299 (95% CL)"}, {"task": "b", "AUC": None, "rejection": "12 ± 3"}]
    text = render("t", "", [Section("s", "", rows)], {})
    assert "<th>task</th>" in text
    assert '<th class="n">AUC</th>' in text
    assert '<td class="n">12 ± 3</td>' in text


def test_pictures_are_shown_in_their_printed_size():
    inches = [float(re.search(r'width="(\d+)"', render("t", "", [Section("s", figures=[("", data)])], {}))[1]) / 96
              for figure in [plots.roc({})] for data in (plots.png(figure), plots.png(figure, dpi=144))]  # fmt: skip
    assert inches[0] == pytest.approx(inches[1], rel=0.02)
    assert inches[0] == pytest.approx(5.2, rel=0.05)


def test_something_else_than_png_is_refused():
    with pytest.raises(InputError, match=r"figure 'A plot\.': wanted PNG bytes"):
        render("t", "", [Section("s", "", None, [("A plot.", b"<svg/>")])], {})


def test_an_empty_run_folder_gives_a_report(tmp_path):
    page = Page(build_report(tmp_path).read_text(encoding="utf-8"))
    assert f"Run {tmp_path.name}" in page.text
    assert "No provenance" in page.text


def test_a_full_run_folder_gives_all_sections(tmp_path):
    labels = np.repeat([0, 187], 30)
    logits = np.random.default_rng(0).normal(size=(60, 188))
    evaluation = evaluate_scores(logits, labels, CLASSES, {"jet_pt": np.full(60, 500.0)})
    runs.write_summary(tmp_path, evaluation=evaluation, training={"jets_per_s": 1234.0}, manifest_hash="f00d")
    rows = [{"step": 1, "epoch": 0.5, "loss": 3.0}, {"step": 2, "epoch": 1.0, "val_loss": 2.0, "val_accuracy": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.yaml").write_text("train:\n  epochs: 7\n  steps_per_epoch: 10240\n")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "roc.png").write_bytes(PICTURE)
    text = build_report(tmp_path, [Section("Mine", "first")], "simulated (Pythia 8)").read_text(encoding="utf-8")
    page = Page(text)
    titles = re.findall(r"<h2>([^<]*)</h2>", text)
    assert titles == [
        "Mine", "Result", "Classification", "Discriminants", "Discriminants by transverse momentum", "Training",
        "Figures", "Configuration", "Where these figures come from",
    ]  # fmt: skip
    assert page.tags.count("img") == 2
    for wanted in (
        "simulated (Pythia 8)",
        "training.jets_per_s",
        "train.epochs",
        "10240",
        "lower and further right is better",
    ):
        assert wanted in page.text
    for wanted in ("f00d", "git_commit", "versions.numpy"):
        assert wanted in page.text.split("Where these figures come from")[1]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="wanted a run folder"):
        build_report(tmp_path / "none")


def test_an_evaluation_without_jets_can_be_shown():
    evaluation = evaluate_scores(np.empty((0, 188)), [], CLASSES, {"jet_pt": []})
    text = render("t", "", evaluation_sections(evaluation), {})
    assert "–" in Page(text).text


def test_numbers_are_written_with_four_digits():
    written = [format_cell(v) for v in (None, float("nan"), True, 1234567, 0.123456, 98765.4, 1e-5, "text")]
    assert written == ["–", "–", "yes", "1,234,567", "0.1235", "98,765", "1e-05", "text"]


def test_a_column_shares_its_decimals():
    assert format_column([0.997, 0.99951, None]) == ["0.9970", "0.9995", "–"]
    assert format_column([1.0, 2.0, 10.0]) == ["1", "2", "10"]
    assert format_column([1e-4, 2.5, 3e6]) == ["0.0001", "2.5", "3,000,000"]


def test_rejections_are_written_with_error_or_as_a_bound_rounded_down():
    point = {"rejection": 123.456, "error": 8.7, "is_lower_bound": False}
    assert format_rejection(point) == "123.5 ± 8.7"
    assert format_rejection({"rejection": 1999.9, "error": None, "is_lower_bound": True}) == "> 1,990 (95% CL)"
    assert format_rejection({"rejection": 1.0, "error": None, "is_lower_bound": True}) == "> 1.00 (95% CL)"
    assert format_rejection({"rejection": None, "error": None, "is_lower_bound": False}) == "–"


def test_terminal_table_by_eye():
    rows = [{"task": "xbb", "AUC": 0.91}, {"task": "opening angle", "AUC": 0.8, "n": 1000}]
    assert terminal_table(rows).splitlines() == [
        "task              AUC      n",
        "─────────────  ──────  ─────",
        "xbb            0.9100      –",
        "opening angle  0.8000  1,000",
    ]
    assert terminal_table([]) == ""
