"""Hostile formulas, YAML files and command lines: a result or an error of ours, never anything else.

hostile.py makes the cases, watch.py tries them in a process of its own, in which whatever Python does beside reading a
file and parsing a formula is noticed.
"""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import jetfoundry

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FULL = {"formulas": 60_000, "yamls": 35_000, "arguments": 5_000}


@pytest.fixture
def attempt(tmp_path, toy_jets):
    """`attempt(seed, seconds, formulas=…)`: outcomes by kind; fails if the process crashes or hangs."""

    def run(seed, seconds, **cases):
        pq.write_table(toy_jets(40, labels=(0, 1, 9, 100, 187)), tmp_path / "jets.parquet")
        case, folder = tmp_path / "case.txt", tmp_path / "empty"
        folder.mkdir()
        command = [sys.executable, HERE / "watch.py", str(seed), tmp_path / "jets.parquet", case]
        command += [f"{what}={number}" for what, number in cases.items()]
        path = [str(Path(jetfoundry.__path__[0]).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
        try:
            how = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": seconds}
            done = subprocess.run(command, check=False, **how)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs at {case.read_text(errors='replace')[:2000]}")
        shown = case.read_text(errors="replace")[:2000] if case.exists() else ""
        assert done.returncode == 0, f"{done.stderr[:3000]} at {shown}"
        found = json.loads(done.stdout.splitlines()[-1])
        assert found.pop("library") == list(jetfoundry.__path__)
        return found | {"left": sorted(path.name for path in folder.iterdir())}

    return run


def assert_result_or_own_error(found, cases):
    assert (found["changed"], found["left"]) == ({}, [])
    for what, number in cases.items():
        assert not found[what]["wrong"], found[what]["wrong"][:5]
        counts = found[what]["counts"]
        print(f"{what}: {number:,} cases, " + ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())))
        assert sum(counts.values()) == number
        assert counts["result"] > 0.05 * number  # else only the first check of all is tried
        assert counts["ConfigError" if what != "formulas" else "FormulaError"] > 0.1 * number


def test_hostile_input_gives_a_result_or_an_error_of_ours(attempt):
    cases = {"formulas": 3_500, "yamls": 1_000, "arguments": 500}
    assert_result_or_own_error(attempt(1, 250, **cases), cases)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_hostile_inputs_give_results_or_errors_of_ours(attempt):
    assert_result_or_own_error(attempt(2026, 3500, **FULL), FULL)


def test_the_watch_notices_what_no_formula_may_do(attempt):
    hostile = hostile_module()
    found = attempt(0, 250, unsafe=len(hostile.UNSAFE))
    wrong = {case: (outcome, text) for outcome, case, text in found["unsafe"]["wrong"]}
    for case, event in hostile.UNSAFE.items():
        outcome, text = wrong.pop(repr(case))
        assert outcome == "side effect", case
        assert event in text, case
    assert not wrong
    assert {"modules", "environment"} & set(found["changed"])


def test_the_same_seed_makes_the_same_cases():
    hostile = hostile_module()
    for kind in (hostile.Formulas, hostile.Yamls):
        first, again, other = kind(1), kind(1), kind(2)
        cases = [first() for _ in range(50)]
        assert cases == [again() for _ in range(50)]
        assert cases != [other() for _ in range(50)]


def hostile_module():
    spec = importlib.util.spec_from_file_location("hostile", HERE / "hostile.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Who may run, load or build code, or unpickle: calls by their dotted name -> files in which they may stand.
UNSAFE_CALLS = {
    r"(c?pickle|cloudpickle|dill|joblib|shelve|marshal)\..*": (),
    r"(eval|exec|compile|__import__)": (),
    r"(yaml\.)?(unsafe_load|full_load|unsafe_load_all|full_load_all|load_all)": (),
    r"yaml\.load": ("platform/jetfoundry/config.py",),  # with a loader of safe types, tests/test_config.py
    r"torch\.load": ("platform/jetfoundry/models/checkpoints.py",),  # weights_only=True, see below
    r"torch\.jit\.load": (),
    r"importlib\.import_module": ("platform/jetfoundry/benchmark/peer.py", "platform/jetfoundry/train/metrics_log.py"),
    r"os\.(system|popen|exec\w*|spawn\w*)": (),
    r"subprocess\.\w+": ("platform/jetfoundry/runs.py", "jobs/compare.py"),  # git; jobs/pretrain.py
}
SOURCES = sorted(
    [*(ROOT / "platform").rglob("*.py"), *(ROOT / "jobs").rglob("*.py"), *(ROOT / "cluster").rglob("*.py")]
)


def calls(path):
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            with_dots = ast.unparse(node.func)
            yield with_dots, node


def test_nothing_is_unpickled_and_no_text_becomes_code():
    loads = []
    for path in SOURCES:
        where = str(path.relative_to(ROOT))
        for name, call in calls(path):
            for pattern, allowed in UNSAFE_CALLS.items():
                assert not re.fullmatch(pattern, name) or where in allowed, f"{where}:{call.lineno}: {name}"
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert keywords.get("allow_pickle", "False") == "False", f"{where}:{call.lineno}: allow_pickle"
            assert keywords.get("shell", "False") == "False", f"{where}:{call.lineno}: shell"
            if name == "torch.load":
                loads.append(keywords.get("weights_only"))
            if re.fullmatch(r"(np|numpy)\.load", name):
                assert keywords.get("allow_pickle") == "False", f"{where}:{call.lineno}: say allow_pickle=False"
    assert loads == ["True"]


@pytest.mark.parametrize("code", ["pickle.loads(x)", "eval(x)", "yaml.unsafe_load(x)", "os.system(x)", "torch.load(x)"])
def test_the_search_for_unsafe_calls_finds_them(code, tmp_path):
    (tmp_path / "a.py").write_text(f"import x\ny = {code}\n")
    (name,) = (name for name, _ in calls(tmp_path / "a.py"))
    assert any(re.fullmatch(pattern, name) for pattern in UNSAFE_CALLS)
