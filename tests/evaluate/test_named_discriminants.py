from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jetfoundry.errors import ConfigError, InputError
from jetfoundry.evaluate.discriminants import SIGNALS, resolve
from jetfoundry.evaluate.event_sums import first_of_event, leading_sum, stored, whole_events
from jetfoundry.evaluate.named_discriminants import load_discriminants
from jetfoundry.labels import CLASSES, label_scheme

FOLDER = Path(__file__).resolve().parents[2] / "datasets" / "discriminants"
RNG = np.random.default_rng(11)


@pytest.fixture
def written(tmp_path):
    """`written(text)`: a discriminants YAML with this text."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


def test_the_published_discriminants_have_the_published_classes():
    found = load_discriminants(FOLDER / "sophon.yaml", CLASSES)
    assert list(found.of_jet) == ["Xbb", "Wbump", "topbump", "triboson"]
    for name, signal in (("Wbump", "W bump"), ("topbump", "top bump"), ("triboson", "triboson")):
        published = resolve(signal, "QCD", CLASSES)
        ours = found.of_jet[name]
        assert dict(zip(ours.signal, ours.weights, strict=True)) == dict(
            zip(published.signal, published.weights, strict=True)
        )
        assert set(ours.background) == set(range(161, 188))
    assert found.of_jet["Xbb"].signal == (0,)
    assert set(SIGNALS) == {"W bump", "top bump", "triboson"}
    events = load_discriminants(FOLDER / "sophon_events.yaml", CLASSES)
    assert (events.of_event, events.event) == ({"triboson_event": ("triboson", 2)}, ("event_number",))


def test_splitting_a_class_leaves_a_named_discriminant(written):
    # Class A into A1 and A2 with scores of the same sum.
    whole, share = RNG.normal(size=(50, 3)), RNG.random(50)
    split = np.column_stack([whole[:, 0] + np.log(share), whole[:, 0] + np.log(1 - share), whole[:, 1:]])
    before = load_discriminants(written("discriminants: {D: {signal: {A: 2}, background: [B]}}"), ["A", "B", "C"])
    after = load_discriminants(
        written("discriminants: {D: {signal: {A1+A2: 2}, background: [B]}}"), ["A1", "A2", "B", "C"]
    )
    np.testing.assert_allclose(after.log_odds(split)["D"], before.log_odds(whole)["D"], atol=1e-12)


def test_adding_a_class_leaves_a_named_discriminant(written):
    path = written("discriminants: {D: {signal: {A: 1}, background: [B, C]}}")
    logits, more = RNG.normal(size=(50, 3)), RNG.normal(scale=5, size=(50, 1))
    before = load_discriminants(path, ["A", "B", "C"]).log_odds(logits)["D"]
    after = load_discriminants(path, ["new", "A", "B", "C"]).log_odds(np.hstack([more, logits]))["D"]
    np.testing.assert_allclose(after, before, atol=1e-12)


def test_names_are_looked_up_in_the_class_list_of_the_model():
    # Three- and four-prong classes are not among the 42 of Sophon*: what it cannot say is refused, by name.
    with pytest.raises(ConfigError, match=r"sophon\.yaml: discriminant 'topbump': the model has not output 'X_YY_ccb'"):
        load_discriminants(FOLDER / "sophon.yaml", label_scheme("sophon42").classes)
    order = RNG.permutation(188)
    logits = RNG.normal(size=(5, 188))
    straight = load_discriminants(FOLDER / "sophon.yaml", CLASSES).log_odds(logits)
    shuffled = load_discriminants(FOLDER / "sophon.yaml", [CLASSES[i] for i in order]).log_odds(logits[:, order])
    for name, values in straight.items():
        np.testing.assert_allclose(shuffled[name], values, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("discriminants: {D: {signal: {X_bs: 1}, background: [QCD]}}", r"'D': .*output 'X_bs'.*nearest: .*X_cs"),
        ("discriminants: {D: {signal: {X_bb: 1}, background: [QDC]}}", r"output 'QDC'.*nearest: .*QCD"),
        ("discriminants: {D: {signal: {X_bb: -1}, background: [QCD]}}", "weight -1.0 of X_bb: wanted a number > 0"),
        ("discriminants: {D: {signal: {X_QQ: 1, X_bb: 2}, background: [QCD]}}", "X_bb stands in two terms"),
        ("discriminants: {D: {signal: {X_bb: 1}, background: [QCD, QCD_b]}}", "QCD_b stands twice in the background"),
        ("discriminants: {D: {signal: {X_bb: 1}, background: [QCD, X_QQ]}}", "X_bb stands on both sides"),
        ("discriminants: {D: {signal: {X_bb: 1}}}", "discriminants.D: give either signal and background, or sum_of"),
        ("discriminants: {D: {signal: {X_bb: 1}, back: [QCD]}}", "unknown key 'discriminants.D.back'; nearest: backgr"),
        ("discriminants: {D vs E: {signal: {X_bb: 1}, background: [QCD]}}", "'D vs E' cannot be the name of a column"),
        ("event: [e]\ndiscriminants: {S: {sum_of: Xbb}}", "S: sum_of 'Xbb' is no discriminant of a jet"),
        ("discriminants: {D: {signal: {X_bb: 1}, background: [QCD]}, S: {sum_of: D}}", "S sums over the jets of an ev"),
        ("store: float16\ndiscriminants: {}", "store: wanted one of log_odds, minus_log_one_minus, probability"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(written, text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_discriminants(written(text), CLASSES)
    assert "mine.yaml" in str(raised.value)


def test_what_is_stored_does_not_saturate_where_d_does():
    jets = np.array([-3.0, 0.0, 40.0, 60.0])
    assert stored(jets, "probability").tolist() == [pytest.approx(1 / (1 + np.exp(3))), 0.5, 1.0, 1.0]
    assert stored(jets, "log_odds") == pytest.approx(jets)
    assert stored(jets, "minus_log_one_minus") == pytest.approx([np.log1p(np.exp(-3)), np.log(2), 40, 60])
    assert stored(jets, "log_odds").astype(np.float16).tolist() == jets.tolist()


def test_event_sums_by_hand():
    # Event 7: D = 0.5, 0.9, 0.8 with pt 300, 500, 400: the leading two are 0.9 and 0.8. Event 8 has one jet only.
    d = np.array([0.5, 0.9, 0.8, 0.6, 0.25, 0.75])
    event = np.array([7, 7, 7, 8, 9, 9])
    first = first_of_event([event])
    assert first.tolist() == [True, False, False, True, True, False]
    pt = [300, 500, 400, 250, 300, 200]
    odds = np.log(d / (1 - d))
    sums = leading_sum(odds, pt, first, 2, "probability")
    np.testing.assert_allclose(sums, [1.7, 1.7, 1.7, np.nan, 1.0, 1.0])
    np.testing.assert_allclose(
        leading_sum(odds, pt, first, 2, "log_odds"), [np.log(1.7 / 0.3)] * 3 + [np.nan, 0, 0], atol=1e-7
    )
    np.testing.assert_allclose(
        leading_sum(odds, pt, first, 2, "minus_log_one_minus"), [-np.log(0.15)] * 3 + [np.nan] + [np.log(2)] * 2, 1e-6
    )
    odds[1] = np.nan  # a leading jet without score
    assert np.isnan(leading_sum(odds, pt, first, 2, "probability")).tolist() == [True] * 4 + [False] * 2


def test_sums_of_jets_that_saturate_keep_their_order():
    first = np.array([True, False, True, False])
    sums = leading_sum(np.array([45.0, 50.0, 46.0, 50.0]), [2, 1, 2, 1], first, 2, "log_odds")
    assert sums[2] > sums[0] > 40
    assert (leading_sum(np.array([45.0, 50.0, 46.0, 50.0]), [2, 1, 2, 1], first, 2, "probability") == 2).all()


def tables(events, files=None, cut=3):
    whole = pa.table({"source_file": files or [0] * len(events), "event": events})
    return [whole.slice(start, cut) for start in range(0, len(events), cut)]


def test_tables_end_where_events_end_and_no_row_is_lost():
    events = [1, 1, 2, 2, 2, 2, 2, 5, 4, 4, 3]
    cut = list(whole_events(tables(events), ["event"]))
    assert pa.concat_tables(cut)["event"].to_pylist() == events
    assert [part["event"].to_pylist() for part in cut] == [[1, 1], [2] * 5 + [5], [4, 4], [3]]


def test_the_same_number_in_the_next_file_is_another_event():
    parts = list(whole_events(tables([1, 1, 2, 1, 1], files=[0, 0, 0, 1, 1]), ["event"]))
    assert sum(part.num_rows for part in parts) == 5
    assert all(len(set(part["source_file"].to_pylist())) == 1 for part in parts[-1:])


def test_an_event_that_comes_back_and_a_column_that_tells_no_events_are_refused():
    with pytest.raises(InputError, match=r"a\.root: the jets of an event \(event 1\) do not stand together; sort"):
        list(whole_events(tables([1, 2, 3, 3, 1]), ["event"], names=["a.root"]))
    with pytest.raises(InputError, match=r"b\.root: .*\(event 4\)"):
        list(whole_events(tables([1, 4, 3, 4, 1], files=[0, 1, 1, 1, 2]), ["event"], names=["a.root", "b.root"]))
    with pytest.raises(InputError, match=r"a\.root: event is the same for more than 1000 jets"):
        list(whole_events(tables([0] * 5000, cut=700), ["event"], names=["a.root"]))
