"""What the columns of an input are called and what they mean: JetClass-II, or what a schema YAML says.

A schema YAML (datasets/schemas/*.yaml) describes any flat ntuple of jets:

    name: JetClass
    classes: [QCD, Hbb, …]            # jet_label 0, 1, … ; goes into the manifest
    columns:
      - {name: part_px, kind: float32, list: part, unit: GeV, meaning: x momentum}
      - {name: jet_label, kind: int32, from: [label_QCD, label_Hbb, …], meaning: class}

`kind`: float32, int32 or bool; the values of a file must fit into it. `list`: name of the group of lists that have one
length within a jet, left out for one value per jet. `from`: name of the branch if it is another one, or the branches of
a one-hot label. `part` is the list that a network sees: each jet needs at least one of them. jet_label, jet_pt and
jet_sdmass must be there (a branch of another name by `from`): shards are counted in them.

    {name: JetClass-II and more, extends: JetClass-II, classes: [X_bs]}

is JetClass-II with further classes, numbered from 188 on.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jetfoundry import config, schema
from jetfoundry.errors import ConfigError, InputError, nearest
from jetfoundry.labels import CLASSES

__all__ = ["JETCLASS2", "Layout", "LayoutColumn", "load_layout"]

_KINDS = ("float32", "int32", "bool")
_REQUIRED = ("jet_label", "jet_pt", "jet_sdmass")
_KEYS = {"name", "classes", "columns"}
_COLUMN_KEYS = {"name", "kind", "list", "from", "unit", "meaning"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayoutColumn(schema.Column):
    """A stored column, the list it belongs to ('' = one value per jet), and the branches that it is made of."""

    group: str
    branches: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The columns in stored order, and the classes that jet_label counts."""

    name: str
    classes: tuple[str, ...]
    columns: tuple[LayoutColumn, ...]

    @functools.cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the lists, each once, in alphabetical order."""
        return tuple(sorted({column.group for column in self.columns} - {""}))

    def select(self, names: Sequence[str] | None) -> tuple[LayoutColumn, ...]:
        """The columns `names` (None = all) in stored order; InputError for an unknown one."""
        if names is None:
            return self.columns
        known = {column.name for column in self.columns}
        for name in names:
            if name not in known:
                msg = f"{name!r} is not a {self.name} column; {nearest(name, known)}"
                raise InputError(msg)
        return tuple(column for column in self.columns if column.name in set(names))

    def to_dict(self) -> dict[str, Any]:
        """For plan.json and manifest.json; `from_dict` takes it back."""
        columns = [
            {
                "name": c.name,
                "kind": c.kind,
                "list": c.group,
                "from": list(c.branches),
                "unit": c.unit,
                "meaning": c.meaning,
            }
            for c in self.columns
        ]
        return {"name": self.name, "classes": list(self.classes), "columns": columns}

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Layout:
        return cls(tree["name"], tuple(tree["classes"]), tuple(_column(fields) for fields in tree["columns"]))


JETCLASS2 = Layout(
    "JetClass-II",
    CLASSES,
    tuple(
        LayoutColumn(**dataclasses.asdict(column), group=schema.column_group(column.name), branches=(column.name,))
        for column in schema.COLUMNS
    ),
)
"""The 54 columns and 188 classes of schema.py and labels.py."""


def load_layout(path: str | Path) -> Layout:
    """Read a schema YAML; '' is JetClass-II. ConfigError names the file and what is wrong in it."""
    if not str(path):
        return JETCLASS2
    tree = config.load_yaml(path)
    extends = isinstance(tree, dict) and "extends" in tree
    fault = _extension_fault(tree) if extends else _fault(tree)
    if fault:
        msg = f"{path}: {fault}"
        raise ConfigError(msg)
    if extends:
        return dataclasses.replace(JETCLASS2, name=tree["name"], classes=(*CLASSES, *tree["classes"]))
    return Layout.from_dict(tree)


def _column(fields: dict[str, Any]) -> LayoutColumn:
    source = fields.get("from") or fields["name"]
    return LayoutColumn(
        name=fields["name"],
        kind=fields["kind"],
        jagged=bool(fields.get("list")),
        unit=fields.get("unit", ""),
        meaning=fields.get("meaning", ""),
        group=fields.get("list", ""),
        branches=(source,) if isinstance(source, str) else tuple(source),
    )


def _extension_fault(tree: dict[str, Any]) -> str:
    """What is wrong with a YAML that extends another schema, or ''."""
    if tree["extends"] != JETCLASS2.name:
        return f"extends: {tree['extends']!r}; only {JETCLASS2.name} can be extended"
    if tree.keys() != {"name", "extends", "classes"}:
        return f"wanted the keys classes, extends, name, got {', '.join(map(str, tree))}"
    return _classes_fault(tree, CLASSES)


def _classes_fault(tree: dict[str, Any], known: tuple[str, ...] = ()) -> str:
    classes = tree["classes"]
    if not isinstance(classes, list) or not classes or len({*known, *map(str, classes)}) != len(known) + len(classes):
        return "classes: wanted a list of different names" + (f", none of {JETCLASS2.name}'s" if known else "")
    if not all(isinstance(name, str) for name in [tree["name"], *classes]):
        return "name and classes must be text (quote what YAML takes for a number)"
    return ""


def _fault(tree: Any) -> str:
    """The first thing wrong with a schema YAML, or ''."""
    if not isinstance(tree, dict) or tree.keys() != _KEYS:
        found = ", ".join(map(str, tree)) if isinstance(tree, dict) else type(tree).__name__
        return f"wanted the keys {', '.join(sorted(_KEYS))}, got {found}"
    classes, columns = tree["classes"], tree["columns"]
    if fault := _classes_fault(tree):
        return fault
    if not isinstance(columns, list) or not columns:
        return "columns: wanted a list"
    for number, fields in enumerate(columns):
        fault = _column_fault(fields, len(classes))
        if fault:
            return f"columns, number {number + 1}: {fault}"
    counts = collections.Counter(fields["name"] for fields in columns)
    for name in _REQUIRED:
        if name not in counts:
            return f"no column {name}; {nearest(name, counts)}; take a branch of another name with from"
    twice = [name for name, count in counts.items() if count > 1]
    return f"column {twice[0]} stands there twice" if twice else ""


def _column_fault(fields: Any, classes: int) -> str:
    if not isinstance(fields, dict) or not {"name", "kind"} <= fields.keys():
        return f"wanted a mapping with name and kind, got {str(fields)[:60]}"
    name = fields["name"]
    for key in fields.keys() - _COLUMN_KEYS:
        return f"{name}: unknown key {key!r}; {nearest(str(key), _COLUMN_KEYS)}"
    if fields["kind"] not in _KINDS:
        return f"{name}: kind {fields['kind']!r}; {nearest(str(fields['kind']), _KINDS)}"
    source = fields.get("from", name)
    texts = [name, fields.get("list", ""), fields.get("unit", ""), fields.get("meaning", "")]
    texts += source if isinstance(source, list) else [source]
    if not name or not all(isinstance(text, str) for text in texts):
        return f"{name}: name, list, unit, meaning and from must be text"
    if name in ("source_file", "source_entry"):
        return f"{name} is a column that ingest makes itself"
    if name in _REQUIRED and fields.get("list"):
        return f"{name} must be one value per jet"
    if isinstance(source, list) and (name != "jet_label" or len(source) != classes):
        return f"{name}: a list in from is the one-hot label of jet_label, one branch for each of the {classes} classes"
    return f"{name}: kind must be int32" if name == "jet_label" and fields["kind"] != "int32" else ""
