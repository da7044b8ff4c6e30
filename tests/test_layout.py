"""The repository's shape: what would break imports, Ray workers or readers if somebody changed it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "platform" / "jetfoundry"


def test_source_roots_are_not_packages():
    # With platform/__init__.py `import torch` fails from the root and Ray workers hang for ever.
    for folder in ("platform", "jobs", "datasets", "cluster", "tests"):
        assert (ROOT / folder).is_dir()
        assert not (ROOT / folder / "__init__.py").exists()


def test_standard_librarys_platform_module_wins_from_the_repository_root():
    command = [sys.executable, "-c", "import platform; print(platform.__file__); platform.system()"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert not Path(done.stdout.strip()).is_relative_to(ROOT)


@pytest.mark.slow
def test_wheel_imports_from_another_folder(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("jetfoundry-*.whl")
    target = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    code = "import jetfoundry.labels as labels; print(labels.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(target)


def imports_of(path):
    """Modules of our own that a file imports, at module level or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# A room may import itself and the rooms named here; the rest of the way is jobs -> library.
BELOW = {
    "events": (),
    "features": (),
    "data": ("events", "features"),
    "sim": ("data", "events", "features"),
    "loading": ("data", "features"),
    "models": ("loading",),
    "train": ("data", "features", "loading", "models"),
    "evaluate": ("data", "events", "features", "loading", "sim", "train"),
    "downstream": ("data", "features", "loading", "models", "train", "evaluate"),
    "benchmark": ("data", "downstream", "events", "features", "loading", "models", "sim", "train"),
    "dry_run": (
        "benchmark",
        "data",
        "downstream",
        "evaluate",
        "events",
        "features",
        "loading",
        "models",
        "sim",
        "train",
    ),
}


@pytest.mark.parametrize("room", BELOW)
def test_imports_go_one_way(room):
    allowed = {room, *BELOW[room]}
    for path in (LIBRARY / room).rglob("*.py"):
        for module in imports_of(path):
            found = re.match(r"jetfoundry\.(\w+)", module)
            if found and found.group(1) in BELOW:
                assert found.group(1) in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_models_and_the_training_loop_import_no_ray():
    code = (
        "import sys, jetfoundry.train.loop, jetfoundry.models.particle_transformer, jetfoundry.models.checkpoints;"
        "print([m for m in sys.modules if m.split('.')[0] in ('ray', 'weaver')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_never_imports_the_peer():
    for path in LIBRARY.rglob("*.py"):
        assert not [m for m in imports_of(path) if m.split(".")[0] == "weaver"], path


def test_jobs_only_wire_pieces():
    for path in (ROOT / "jobs").glob("*.py"):
        assert path.read_text().count("\n") <= 150, path
        assert not [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)], path


def test_files_of_the_library_are_short():
    long = {str(p.relative_to(ROOT)): n for p in LIBRARY.rglob("*.py") if (n := p.read_text().count("\n")) > 400}
    assert not long
