"""The other side: weaver-core 0.5.3, called as its users call it. A development extra, never needed by the library."""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from jetfoundry.errors import ConfigError

__all__ = ["VERSION", "Conversion", "convert", "prepare_conversion", "weaver"]

VERSION = "0.5.3"


def weaver(module: str) -> ModuleType:
    """A module of weaver-core; ConfigError if it is missing or of another version."""
    try:
        found = importlib.metadata.version("weaver-core")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != VERSION:
        msg = f"benchmarks compare with weaver-core {VERSION}, installed is {found}; pip install 'jetfoundry[dev]'"
        raise ConfigError(msg)
    return importlib.import_module(f"weaver.{module}")


Conversion = tuple[Any, list[Path], Path, list[str]]


def prepare_conversion(inputs: list[Path], output: Path) -> Conversion:
    """Import weaver's converter and list the branches, as its command line does."""
    module = weaver("utils.convert_to_parquet")
    uproot = importlib.import_module("uproot")
    with uproot.open(inputs[0]) as root:
        branches = list(root["tree"].keys())
    output.mkdir(parents=True, exist_ok=True)
    return module, inputs, output, branches


def convert(state: Conversion) -> int:
    """ROOT to Parquet with weaver's defaults: lz4, row groups of 1,000, all branches."""
    module, inputs, output, branches = state
    jets = [
        module.convert_file(str(path), str(output / f"{path.stem}.parquet"), branches=branches, treename="tree")
        for path in inputs
    ]
    return sum(jets)
