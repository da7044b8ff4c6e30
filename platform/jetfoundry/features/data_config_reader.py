"""Reading the data YAML: weaver's schema into the dataclasses of `data_config.py`, all formulas compiled, all checked.

Section by section as in weaver-core 0.5.3, whose published files are read unchanged: `selection`,
`test_time_selection`, `new_variables`, `preprocess`, `inputs`, `labels`, `observers`, `monitor_variables`, `weights`,
`treename`. Unlike there, an unknown section, key or name is an error that names the nearest one, and a variable may
also be written with keys, `{name: part_deltaR, center: 0.2, scale: 4.0, clip: [-5, 5], pad: 0}`. What only the data can
tell (`center: auto`, `reweight_hists`) may be missing here; `data_statistics.py` fills it in.

Our one addition: `labels` may name a label scheme of `labels.py`, as `scheme: sophon188` beside weaver's `type` and
`value` (weaver ignores the key), or alone as `labels: {scheme: sophon42, from: jet_label}`. `value: {…: jet_label}`
without a scheme means sophon188. Jets of classes that a scheme drops are not selected, in training or testing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jetfoundry import config
from jetfoundry.errors import ConfigError, nearest
from jetfoundry.features.data_config import InputGroup, InputVariable, Labels, Sections, Weights
from jetfoundry.features.expressions import Formula, compile_formula
from jetfoundry.features.list_functions import LONGEST_LIST
from jetfoundry.labels import label_scheme

__all__ = ["read"]

_SECTIONS = (
    "treename", "selection", "test_time_selection", "new_variables", "preprocess", "inputs", "labels", "observers",
    "monitor_variables", "weights",
)  # fmt: skip
_UNSUPPORTED = {
    "branch_magic": "rename columns with new_variables instead",
    "file_magic": "add the column when the files are ingested",
    "bucketing": "the loader sorts jets by length by itself",
}
_WEIGHT_KEYS = (
    "use_precomputed_weights", "weight_branches", "reweight_method", "reweight_basewgt", "reweight_vars",
    "reweight_classes", "class_weights", "reweight_threshold", "reweight_discard_under_overflow", "reweight_hists",
    "statistics",
)  # fmt: skip
_VARIABLE_FIELDS = ("name", "center", "scale", "low", "high", "pad")  # the order of weaver's lists
_AUTO_KEYS = {"center": "center", "scale": "scale", "low": "min", "high": "max", "pad": "pad_value"}

S = TypeVar("S", bound=Sections)


def read(cls: type[S], source: str | Path | Mapping[str, Any], known: Collection[str] | None, scheme: str) -> S:
    """Read a YAML file or a mapping into `cls`; see `features.load_data_config`."""
    reader = _Reader("data config" if isinstance(source, Mapping) else str(source))
    tree = source if isinstance(source, Mapping) else config.load_yaml(source)
    tree = reader.mapping(tree, "", _SECTIONS, ignored=_UNSUPPORTED)
    for key, hint in _UNSUPPORTED.items():
        if tree.get(key):
            reader.fail(key, f"this section of weaver is not supported; {hint}")
    params, fraction = reader.preprocess(tree.get("preprocess"))
    sections = cls(
        where=reader.where,
        hash=hashlib.sha256(
            json.dumps(config.to_dict([tree, scheme]), sort_keys=True, default=str).encode()
        ).hexdigest()[:12],
        treename=tree.get("treename"),
        selection=reader.formula(tree.get("selection"), "selection"),
        test_time_selection=reader.formula(tree.get("test_time_selection"), "test_time_selection"),
        formulas=reader.new_variables(tree.get("new_variables")),
        inputs=reader.inputs(tree.get("inputs"), params),
        labels=reader.labels(tree.get("labels"), scheme),
        observers=reader.names(tree.get("observers"), "observers"),
        monitor_variables=reader.names(tree.get("monitor_variables"), "monitor_variables"),
        weights=reader.weights(tree.get("weights")),
        data_fraction=fraction,
    )
    if sections.observers and sections.monitor_variables:
        reason = "weaver takes either observers (testing) or monitor_variables (training too), not both"
        reader.fail("monitor_variables", reason)
    sections.check(known)
    return sections


class _Reader:
    """Parses the sections of one YAML; `where` opens every message."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.auto = False  # `preprocess: {method: auto}`: variables without a center are measured

    def fail(self, key: str, reason: str) -> NoReturn:
        msg = f"{self.where}: {key + ': ' if key else ''}{reason}"
        raise ConfigError(msg) from None

    def mapping(self, value: Any, key: str, keys: Iterable[str], ignored: Iterable[str] = ()) -> Mapping[str, Any]:
        """A mapping with no keys but `keys` (and `ignored`)."""
        value = {} if value is None else value
        if not isinstance(value, Mapping):
            self.fail(key, f"wanted a mapping, got {value!r}")
        known = [*keys, *ignored]
        for name in value:
            if name not in known:
                kind = "key" if key else "section"
                self.fail(key, f"unknown {kind} {name!r}; {nearest(str(name), keys)}")
        return value

    def names(self, value: Any, key: str) -> tuple[str, ...]:
        value = [] if value is None else value
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            self.fail(key, f"wanted a list of names, got {value!r}")
        return tuple(value)

    def number(self, value: Any, key: str) -> float:
        try:
            number = float("nan") if isinstance(value, bool) else float(value)  # also '1e-3', a text to YAML
        except (TypeError, ValueError):
            number = float("nan")
        if math.isnan(number):
            self.fail(key, f"wanted a number, got {value!r}")
        return number

    def numbers(self, value: Any, key: str) -> tuple[float, ...]:
        if not isinstance(value, list | tuple):
            self.fail(key, f"wanted a list of numbers, got {value!r}")
        return tuple(self.number(item, key) for item in value)

    def formula(self, text: Any, key: str) -> Formula | None:
        if text is None:
            return None
        if isinstance(text, list | Mapping):
            self.fail(key, f"wanted a formula, got {text!r}")
        return compile_formula(text, where=f"{self.where}: {key}")

    def required(self, text: Any, key: str) -> Formula:
        formula = self.formula(text, key)
        if formula is None:
            self.fail(key, "wanted a formula, got nothing")
        return formula

    def new_variables(self, value: Any) -> dict[str, Formula]:
        if value is not None and not isinstance(value, Mapping):
            self.fail("new_variables", f"wanted a mapping of names to formulas, got {value!r}")
        found: dict[str, Formula] = {}
        for name, text in (value or {}).items():
            formula = self.required(text, f"new_variables.{name}")
            if formula.text != name:  # `jet_pt: jet_pt` says that a column exists; weaver leaves it out, too
                found[str(name)] = formula
        return found

    def preprocess(self, value: Any) -> tuple[Mapping[str, Any], float]:
        """The `params` by variable (weaver writes them into its `*.auto.yaml`), `data_fraction`; notes the method."""
        tree = self.mapping(value, "preprocess", ("method", "data_fraction", "params"))
        method = str(tree.get("method") or "manual").lower()
        if method not in ("manual", "auto"):
            self.fail("preprocess.method", f"wanted manual or auto, got {method!r}")
        self.auto = method == "auto"
        fraction = tree.get("data_fraction")
        fraction = 0.1 if fraction is None else self.number(fraction, "preprocess.data_fraction")
        if not 0 < fraction <= 1:
            self.fail("preprocess.data_fraction", f"wanted a number above 0 and at most 1, got {fraction}")
        params = tree.get("params") or {}
        if not isinstance(params, Mapping) or not all(isinstance(each, Mapping) for each in params.values()):
            self.fail("preprocess.params", "wanted a mapping of variables to {center, scale, min, max, pad_value}")
        return params, fraction

    def inputs(self, value: Any, params: Mapping[str, Any]) -> dict[str, InputGroup]:
        if not isinstance(value, Mapping) or not value:
            self.fail("inputs", f"wanted a mapping of input names, got {value!r}")
        found = {}
        for name, raw in ((str(name), raw) for name, raw in value.items()):
            key = f"inputs.{name}"
            tree = self.mapping(raw, key, ("length", "pad_mode", "vars"))
            length, mode = tree.get("length"), str(tree.get("pad_mode", "constant")).lower()
            whole = isinstance(length, int) and not isinstance(length, bool) and 1 <= length <= LONGEST_LIST
            if length is not None and not whole:
                self.fail(
                    f"{key}.length", f"wanted a whole number above 0, at most {LONGEST_LIST}, or null, got {length!r}"
                )
            if mode not in ("constant", "wrap"):
                self.fail(f"{key}.pad_mode", f"wanted constant or wrap, got {mode!r}")
            if name.endswith("_mask") and mode == "wrap":
                self.fail(f"{key}.pad_mode", "a wrapped mask would mark no particle as padding; wanted constant")
            entries = tree.get("vars")
            if not isinstance(entries, list) or not entries:
                self.fail(f"{key}.vars", f"wanted a list of variables, got {entries!r}")
            variables = tuple(self.variable(entry, f"{key}.vars", params) for entry in entries)
            found[name] = InputGroup(name=name, length=length, pad_mode=mode, variables=variables)
        return found

    def variable(self, entry: Any, key: str, params: Mapping[str, Any]) -> InputVariable:
        """`name`, `[name, center, scale, low, high, pad]` or the keyed form; null and left out mean the default."""
        if isinstance(entry, Mapping):
            given = dict(self.mapping(entry, key, ("name", "center", "scale", "clip", "pad")))
            clip = given.pop("clip", None)
            if clip is not None:
                if not isinstance(clip, list) or len(clip) != 2:
                    self.fail(key, f"clip: wanted [low, high], got {clip!r}")
                given |= {"low": clip[0], "high": clip[1]}
        else:
            items = entry if isinstance(entry, list) else [entry]
            if len(items) > len(_VARIABLE_FIELDS):
                self.fail(
                    key,
                    f"wanted at most {len(_VARIABLE_FIELDS)} entries [{', '.join(_VARIABLE_FIELDS)}], got {entry!r}",
                )
            given = dict(zip(_VARIABLE_FIELDS, items, strict=False))
        name = given.pop("name", None)
        if not isinstance(name, str):
            self.fail(key, f"wanted a name or a list that begins with one, got {entry!r}")
        if name in params:
            given = {ours: params[name].get(weavers) for ours, weavers in _AUTO_KEYS.items()}
        auto = given.get("center", "auto" if self.auto else None) == "auto"
        given = {field: item for field, item in given.items() if item is not None and item != "auto"}
        values = {field: self.number(item, f"{key}.{name}") for field, item in given.items()}
        auto = auto and not name.endswith("_mask")  # weaver's rule for masks
        variable = InputVariable(name=name, auto=auto, **values)
        if variable.low > variable.high:
            self.fail(f"{key}.{name}", f"clips to {variable.low}…{variable.high}: nothing is in between")
        return variable

    def labels(self, value: Any, override: str) -> Labels:
        tree = self.mapping(value, "labels", ("type", "value", "scheme", "from"))
        kind, entries, scheme = tree.get("type"), tree.get("value"), override or tree.get("scheme")
        if kind is None and scheme:
            kind, entries = "custom", {"truth_label": tree.get("from", "jet_label")}
        if kind == "simple":
            if scheme:
                self.fail("labels", f"scheme {scheme!r} maps one class number, but type simple has 0-1 columns")
            if not isinstance(entries, list) or not entries:
                self.fail("labels.value", f"type simple wants a list of 0-1 columns, got {entries!r}")
            formulas = {str(text): self.required(text, "labels.value") for text in entries}
            return Labels(kind=kind, formulas=formulas, classes=tuple(formulas), scheme=None)
        if kind != "custom":
            self.fail("labels.type", f"wanted simple or custom (or a label scheme alone), got {kind!r}")
        if not isinstance(entries, Mapping) or not entries:
            self.fail("labels.value", f"type custom wants a mapping of names to formulas, got {entries!r}")
        formulas = {str(name): self.required(text, f"labels.value.{name}") for name, text in entries.items()}
        if not scheme and next(iter(formulas.values())).text == "jet_label":
            scheme = "sophon188"
        try:
            found = label_scheme(str(scheme)) if scheme else None
        except ConfigError as error:
            self.fail("labels.scheme", str(error))
        return Labels(kind=kind, formulas=formulas, classes=found.classes if found else (), scheme=found)

    def weights(self, value: Any) -> Weights | None:
        if value is None:
            return None
        tree = self.mapping(value, "weights", _WEIGHT_KEYS)
        jets, mean = self.statistics(tree.get("statistics"))
        if tree.get("use_precomputed_weights"):
            branches = self.names(tree.get("weight_branches"), "weights.weight_branches")
            if not branches:
                self.fail("weights.weight_branches", "wanted a list of columns, got nothing")
            product = self.required("*".join(branches), "weights.weight_branches")
            return Weights(precomputed=product, jets=jets, mean=mean)
        method = tree.get("reweight_method")
        classes = self.names(tree.get("reweight_classes"), "weights.reweight_classes")
        if method not in ("flat", "ref"):
            self.fail("weights.reweight_method", f"wanted flat or ref, got {method!r}")
        edges = tree.get("reweight_vars")
        if not isinstance(edges, Mapping) or len(edges) != 2:
            self.fail("weights.reweight_vars", f"wanted two variables with their bin edges, got {edges!r}")
        bins = {str(name): self.edges(values, f"weights.reweight_vars.{name}") for name, values in edges.items()}
        shares = tree.get("class_weights")
        class_weights = (1.0,) * len(classes) if shares is None else self.numbers(shares, "weights.class_weights")
        if not classes or len(class_weights) != len(classes) or min(class_weights) <= 0:
            reason = f"wanted one number above 0 for each of the {len(classes)} reweight_classes, got {class_weights}"
            self.fail("weights.class_weights", reason)
        threshold = self.number(tree.get("reweight_threshold", 10), "weights.reweight_threshold")
        if not 0 <= threshold <= 100:
            self.fail("weights.reweight_threshold", f"wanted a percentile 0…100, got {threshold}")
        return Weights(
            method=method,
            vars=bins,
            classes=classes,
            class_weights=class_weights,
            base_weight=self.formula(tree.get("reweight_basewgt"), "weights.reweight_basewgt"),
            threshold=threshold,
            discard_under_overflow=bool(tree.get("reweight_discard_under_overflow", True)),
            tables=self.hists(tree.get("reweight_hists"), classes, [len(values) - 1 for values in bins.values()]),
            jets=jets,
            mean=mean,
        )

    def statistics(self, value: Any) -> tuple[int, float]:
        """Selected jets and mean weight, as `data_statistics.py` has written them; zeros if it has not."""
        tree = self.mapping(value, "weights.statistics", ("jets", "mean_weight"))
        jets, mean = (self.number(tree.get(key, 0), f"weights.statistics.{key}") for key in ("jets", "mean_weight"))
        return int(jets), mean

    def edges(self, value: Any, key: str) -> tuple[float, ...]:
        edges = self.numbers(value, key)
        if len(edges) < 2 or any(low >= high for low, high in itertools.pairwise(edges)):
            self.fail(key, f"wanted at least two bin edges in rising order, got {value!r}")
        return edges

    def hists(self, value: Any, classes: tuple[str, ...], shape: list[int]) -> dict[str, tuple[tuple[float, ...], ...]]:
        """The weights by class and bin of weaver's `*.auto.yaml`, each of `shape`; empty if there are none."""
        if value is None:
            return {}
        tree = self.mapping(value, "weights.reweight_hists", classes)
        found = {}
        for name, rows in tree.items():
            key = f"weights.reweight_hists.{name}"
            hist = tuple(self.numbers(row, key) for row in rows) if isinstance(rows, list) else ()
            if len(hist) != shape[0] or {len(row) for row in hist} != {shape[1]}:
                self.fail(key, f"wanted {shape[0]} rows of {shape[1]} numbers, one for each bin")
            found[name] = hist
        for name in classes:
            if name not in found:
                self.fail("weights.reweight_hists", f"{name} is missing")
        return found
