"""A process that reads hostile formulas and YAML files, and says of each whether that was a result or an error of ours.

Or something that must not be: another exception, a side effect, a number that is none, too much time.

    python watch.py <seed> <jets.parquet> <case file> formulas=<cases> yamls=<cases> arguments=<cases> unsafe=<cases>

Whatever Python does is reported to an audit hook (PEP 578). Only what reading a file and parsing a formula need is let
through; all else, a file opened for writing, a module, a process, a socket, is a violation. Memory is limited, and the
text of each case is written down before it is tried, so that a crash or a hang leaves its cause behind.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import importlib.util
import json
import os
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import jetfoundry
from jetfoundry import cli, config, files, labels
from jetfoundry.data.ingest import IngestConfig
from jetfoundry.data.layouts import Layout, load_layout
from jetfoundry.data.root import jet_schema
from jetfoundry.downstream.comparison import ComparisonConfig
from jetfoundry.downstream.export import ExportConfig
from jetfoundry.downstream.score_files import ScoreConfig
from jetfoundry.downstream.task_formulas import Formulas as TaskFormulas
from jetfoundry.downstream.tasks import load_tasks
from jetfoundry.downstream.transfer import TransferConfig
from jetfoundry.errors import JetFoundryError
from jetfoundry.evaluate import discriminants
from jetfoundry.evaluate.named_discriminants import load_discriminants
from jetfoundry.features.expressions import compile_formula, evaluate
from jetfoundry.features.jagged import Jagged, from_arrow
from jetfoundry.features.transform import load_data_config
from jetfoundry.models.presets import configure
from jetfoundry.sim.detector import DetectorCard
from jetfoundry.sim.settings import SimulateConfig
from jetfoundry.train.recipe import Recipe

SECONDS = 5.0  # CPU time of one case, 0.5 of what is unsafe
MEMORY = 2 * 2**30  # bytes beyond what the process has at the start
LONGEST_MESSAGE = 5000

HARMLESS = {
    "compile", "object.__getattr__", "sys._getframe", "os.listdir", "os.scandir", "pathlib.Path.glob", "glob.glob",
    "array.__new__", "id", "builtins.id",
}  # fmt: skip
HOW = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TooLong(BaseException):
    """A case took more than its time."""


class Watch:
    """Notes what is done while it is armed."""

    def __init__(self) -> None:
        self.armed, self.may_ask, self.seen = False, False, []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if not self.armed or event in HARMLESS:
            return
        if event == "open":
            _, mode, flags = arguments
            if not (flags or 0) & HOW and not set(str(mode or "r")) & set("wax+"):
                return
        if event.startswith("socket.") and self.may_ask:
            return
        if event == "exec" and sys._getframe(1).f_globals.get("__name__") == "typing":
            return  # a type annotation of our own source
        self.seen.append(f"{event} {arguments!r}"[:200])

    @contextlib.contextmanager
    def __call__(self):
        self.seen.clear()
        self.armed = True
        try:
            yield
        finally:
            self.armed = False


def too_long(*_: object) -> None:
    raise TooLong


def numbers(value: object) -> None:
    """What a formula gives are numbers, one for each jet or particle, or it is no result."""
    values = value.values if isinstance(value, Jagged) else value
    assert isinstance(values, np.ndarray), type(values)
    assert values.dtype.kind in "biuf", values.dtype


class Targets:
    """What is tried: each method takes a case."""

    def __init__(self, jets: str, case: Path) -> None:
        self.table, self.case = pq.read_table(jets), case
        self.columns = {name: from_arrow(self.table[name], name) for name in self.table.column_names}
        self.columns["good_jet"] = self.columns["jet_pt"] > 500
        self.task = TaskFormulas("fuzz", {"twice": "2 * jet_pt"})
        self.logits = np.random.default_rng(0).normal(size=(5, len(labels.CLASSES)))
        self.jobs = [IngestConfig, Recipe, TransferConfig, ScoreConfig, ExportConfig, ComparisonConfig]

    def formulas(self, text: str) -> None:
        formula = compile_formula(text, where="fuzz.yaml: selection")
        value = evaluate(formula, self.columns)
        numbers(value)
        self.task.names([text])
        if formula.names <= {*self.table.column_names, "twice"}:
            values = self.task.values(self.table, [text])
            if not isinstance(value, Jagged) and value.shape in ((), (self.table.num_rows,)):
                values.condition(text)

    def yamls(self, case: tuple[str, str]) -> None:
        kind, _ = case
        getattr(self, f"yaml_{kind}")(self.case)

    def yaml_data(self, path: Path) -> None:
        data = load_data_config(path)
        assert data.columns is not None
        for training in (True, False):
            features = data.apply(self.table, training=training)
            if len(features):
                features.pad_all([0])
        data.class_numbers(self.table)

    def yaml_task(self, path: Path) -> None:
        for task in load_tasks(path):
            task.check_columns(self.table.column_names, "the table")
            task.check_data()
            task.sample(self.table, training=True)

    def yaml_schema(self, path: Path) -> None:
        layout = load_layout(path)
        assert Layout.from_dict(layout.to_dict()) == layout
        jet_schema(layout=layout)

    def yaml_discriminants(self, path: Path) -> None:
        named = load_discriminants(path, labels.CLASSES)
        json.dumps(named.definitions(labels.CLASSES))
        for values in named.log_odds(self.logits).values():
            numbers(values)

    def yaml_recipe(self, path: Path) -> None:
        recipe = self.kept(Recipe, path)
        architecture = configure(recipe.model.preset, recipe.model.change, input_dim=17, num_classes=188)
        json.dumps(config.to_dict(architecture))

    def yaml_ingest(self, path: Path) -> None:
        self.kept(IngestConfig, path)

    def yaml_simulate(self, path: Path) -> None:
        self.kept(SimulateConfig, path)

    def yaml_card(self, path: Path) -> None:
        self.kept(DetectorCard, path)

    def yaml_compare(self, path: Path) -> None:
        self.kept(ComparisonConfig, path)

    def kept(self, cls: type, path: Path):
        """The configuration, which must come back the same from the text that goes into the run folder."""
        read = config.read(cls, path)
        again = config.build(cls, config.parse_yaml(config.dump_yaml(config.to_dict(read)), "again"))
        assert config.fingerprint(again) == config.fingerprint(read)
        return read

    def arguments(self, case: tuple[int, list[str]]) -> None:
        job, given = case
        labels_or_sides = given[0].partition("=")[2]
        for read in (labels.label_scheme, lambda text: discriminants.parse(text, labels.CLASSES)):
            with contextlib.suppress(JetFoundryError):
                read(labels_or_sides)
        parsed = cli._parse(self.jobs[job], given, None, None)
        config.dump_yaml(config.to_dict(parsed))

    def unsafe(self, text: str) -> None:
        """What the library does not do: the watch must notice it."""
        eval(text, {"jet_pt": 1.0, "os": os})  # noqa: S307


def attempt(run, case: object, watch: Watch, seconds: float) -> tuple[str, str]:
    """(kind of outcome, what happened)."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with watch():
            run(case)
        found = "result", ""
    except JetFoundryError as error:
        text = str(error)
        found = type(error).__name__, text
        if not text.strip() or len(text) > LONGEST_MESSAGE:
            found = "no clear message", f"{len(text)} characters: {text[:300]}"
    except TooLong:
        found = "too long", ""
    except BaseException as error:
        last = "".join(traceback.format_exception(error)[-4:])
        found = "another exception", last[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if watch.seen:
        found = "side effect", "; ".join([*watch.seen, *found])
    return found


def state() -> dict[str, object]:
    """What a side effect would change."""
    return {
        "modules": sorted(sys.modules), "environment": dict(os.environ), "folder": str(Path.cwd()),
        "recursion": sys.getrecursionlimit(),
        "functions": sorted(compile_formula.__globals__["FUNCTIONS"]), "numpy": repr(np.geterr()),
    }  # fmt: skip


def difference(before: object, after: object) -> list[object]:
    """What went and what came."""
    if isinstance(before, list) and isinstance(after, list):
        return [sorted(set(before) - set(after)), sorted(set(after) - set(before))]
    return [before, after]


def prepared(targets: Targets, hostile) -> None:
    """What is imported on first use is imported now."""
    for kind, tree in hostile.published():
        targets.case.write_text(config.dump_yaml(tree))
        with contextlib.suppress(JetFoundryError):
            targets.yamls((kind, ""))
    with contextlib.suppress(JetFoundryError):
        files.read_text("http://localhost:9/x")
    for text in ("1/0", "x.y", "_", "np.nopes(1)", "deltaR_pair(part_px, part_px, part_px > 0)"):
        with contextlib.suppress(JetFoundryError):
            targets.formulas(text)


def tried(what: str, cases: int, supply, targets: Targets, watch: Watch, note: int) -> dict[str, object]:
    """Try `cases` of a kind; counts of outcomes, and the cases that must not be."""
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[tuple[str, str, str]] = []
    for _ in range(cases):
        case = supply()
        shown = repr(case).encode(errors="backslashreplace")[:4000]
        os.pwrite(note, shown.ljust(4001), 0)
        if what == "yamls":
            targets.case.write_text(case[1], encoding="utf-8", errors="replace")
        # A recipe behind a URL is read, as one on the disk is; a URL that is a value is no reason to ask anybody.
        watch.may_ask = what == "arguments" and any("://" in each and "=" not in each for each in case[1])
        outcome, text = attempt(getattr(targets, what), case, watch, 0.5 if what == "unsafe" else SECONDS)
        counts[outcome] += 1
        if outcome != "result" and not outcome.endswith("Error"):
            wrong.append((outcome, repr(case)[:1500], text))
    return {"counts": counts, "wrong": wrong[:100]}


def main() -> None:
    seed, jets, case_file, *wanted = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
    hostile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hostile)
    targets = Targets(jets, Path(case_file).with_suffix(".yaml"))
    keys = [[key for key, _, _ in config.describe(job)] for job in targets.jobs]
    supplies = {
        "formulas": hostile.Formulas(int(seed)),
        "yamls": hostile.Yamls(int(seed)),
        "arguments": hostile.Arguments(int(seed), keys),
        "unsafe": iter(hostile.UNSAFE).__next__,
    }
    warnings.simplefilter("error")
    for harmless in (SyntaxWarning, DeprecationWarning):  # of Python's own parser
        warnings.simplefilter("ignore", harmless)
    prepared(targets, hostile)
    watch = Watch()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGPROF, too_long)
    faulthandler.enable()
    before, found = state(), {}
    with open(case_file, "wb", buffering=0) as note:  # noqa: PTH123
        for text in wanted:
            what, _, cases = text.partition("=")
            found[what] = tried(what, int(cases), supplies[what], targets, watch, note.fileno())
    after = state()
    found["changed"] = {key: difference(before[key], after[key]) for key in before if before[key] != after[key]}
    found["library"] = list(jetfoundry.__path__)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
