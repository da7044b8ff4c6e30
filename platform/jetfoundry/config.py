"""Run configuration: frozen dataclasses <- YAML file <- `key.sub=value`.

Each room keeps its own dataclass next to the code it configures; a job nests them into one. Rules:
an unknown key is an error that names the nearest valid one, a value of the wrong type is an error that names
the key, and the final configuration is written to the run folder. No key is read by string anywhere else.

Supported field types: bool, int, float, str, Path (or URL), `X | None`, `Literal[...]`, `tuple[X, ...]`,
`dict[str, X]`, `Any` and nested dataclasses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from upath import UPath

from jetfoundry import files
from jetfoundry.errors import ConfigError, nearest

__all__ = [
    "build", "describe", "dump_yaml", "fingerprint", "load_yaml", "option", "parse_overrides", "parse_yaml", "read",
    "to_dict",
]  # fmt: skip

T = TypeVar("T")

# libyaml, where PyYAML was built with it: a data YAML with reweighting tables (320 kB) is read eight times as fast.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_DEEPEST = 100  # levels; libyaml ends the process at some ten thousand
_LARGEST_TREE = 1_000_000  # values with all aliases written out; reweighting tables have some ten thousand
_LARGEST_INTEGER = 2**64


def option(default: Any, meaning: str) -> Any:
    """A dataclass field with a default and the sentence (with unit) that `--help` prints."""
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": meaning})
    return dataclasses.field(default=default, metadata={"help": meaning})


class _StrictLoader(_SafeLoader):  # type: ignore[misc]  # a base that depends on the build
    """Loader of safe types only that refuses a key given twice."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:  # PyYAML's own converters
            raise _unusable(node) from error
        if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            raise _unusable(node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                msg = f"line {key_node.start_mark.line + 1}: key {key!r} is given twice"
                raise ConfigError(msg)
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)


def _unusable(node: yaml.Node) -> yaml.YAMLError:
    shown = f"{str(node.value)[:60]!r} is no {node.tag.rpartition(':')[2]}"
    return yaml.constructor.ConstructorError(None, None, shown, node.start_mark)


def _check_size(text: str) -> None:
    """Refuse YAML that would exhaust the parser's stack or, with its aliases written out, the memory."""
    sizes, anchors = [0], [""]  # of the collections that are open; a value counts more the longer it is
    finished: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_StrictLoader):
        mark: Any = event.start_mark
        name, line = getattr(event, "anchor", None) or "", f"line {mark.line + 1}"
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            anchors.append(name)
        elif isinstance(event, yaml.CollectionEndEvent):
            size, name = sizes.pop(), anchors.pop()
            sizes[-1] += size
            finished[name] = size
        elif isinstance(event, yaml.ScalarEvent):
            finished[name] = 1 + len(event.value) // 64
            sizes[-1] += finished[name]
        elif isinstance(event, yaml.AliasEvent):
            if name in anchors:
                msg = f"{line}: *{name} is a part of itself"
                raise ConfigError(msg)
            sizes[-1] += finished.get(name, 0)
        if len(sizes) > _DEEPEST or sizes[-1] > _LARGEST_TREE:
            what = f"more than {_DEEPEST} levels deep" if len(sizes) > _DEEPEST else "too large with its aliases"
            msg = f"{line}: {what}"
            raise ConfigError(msg)


def _load(text: str) -> Any:
    """The only place where YAML is read. Raises YAMLError or ConfigError."""
    try:
        _check_size(text)
        return yaml.load(text, Loader=_StrictLoader)
    except UnicodeEncodeError as error:
        msg = "not UTF-8 text"
        raise yaml.YAMLError(msg) from error


def load_yaml(path: str | Path) -> Any:
    """Parse a YAML file with safe types only; errors name the file."""
    try:
        text = files.read_text(path)
    except (OSError, ValueError) as error:  # no text, or a path with a zero in it
        msg = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(msg) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text as `load_yaml` does; `where` (the file, say) opens every error message."""
    try:
        return _load(text)
    except (yaml.YAMLError, ConfigError) as error:
        msg = f"{where}: {_one_line(error)}"
        raise ConfigError(msg) from error


def _one_line(error: Exception) -> str:
    """`line 3, column 5: what was wrong`, the same whichever of PyYAML's parsers found it."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    context = getattr(error, "context", None)
    found = getattr(error, "problem", None) or "not YAML"
    return f"line {mark.line + 1}, column {mark.column + 1}: {found}" + (f" {context}" if context else "")


def dump_yaml(tree: Any) -> str:
    """Plain types as YAML text, keys in the order of `tree`."""
    text: str = yaml.dump(tree, Dumper=_SafeDumper, sort_keys=False, allow_unicode=True)
    return text


class Given(NamedTuple):
    """A value from the command line: as YAML reads it, and as it was typed (a name like 2024_07_01 is no number)."""

    value: Any
    text: str


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn `["train.lr=1e-3", "classes=[a, b]"]` into a nested dict of `Given` values."""
    tree: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            msg = f"cannot read argument {argument!r}: wanted key.sub=value"
            raise ConfigError(msg)
        if not _is_text(argument):
            msg = f"argument {argument!r}: not UTF-8 text"
            raise ConfigError(msg)
        try:
            value = _load(text) if text else ""
        except ConfigError as error:
            msg = f"argument {argument!r}: {error}"
            raise ConfigError(msg) from error
        except yaml.YAMLError:  # a bare string with YAML's own signs in it, e.g. input=*.root
            value = text
        node = tree
        *parents, leaf = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                msg = f"argument {argument!r}: {parent} already has a plain value"
                raise ConfigError(msg)
            node = child
        node[leaf] = Given(value, text)
    return tree


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def read(cls: type[T], path: str | Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Build a `cls` from its defaults, then the YAML file at `path`, then `key.sub=value` overrides."""
    tree: Any = {} if path is None else load_yaml(path)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        msg = f"{path}: wanted a mapping of keys to values, got {type(tree).__name__}"
        raise ConfigError(msg)
    return build(cls, _merge(tree, parse_overrides(overrides)), where=str(path) if path else "")


def build(cls: type[T], tree: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from a plain mapping; `where` (a file) opens every error message."""
    return typing.cast("T", _dataclass(cls, tree, "", f"{where}: " if where else ""))


def _dataclass(cls: Any, tree: Mapping[str, Any], key: str, where: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    values: dict[str, Any] = {}
    for name, value in tree.items():
        if name not in fields:
            msg = f"{where}unknown key {_join(key, str(name))!r}; {nearest(str(name), fields)}"
            raise ConfigError(msg)
        values[name] = _convert(hints[name], value, _join(key, name), where)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            msg = f"{where}missing key {_join(key, name)!r}: {field.metadata.get('help', 'it has no default')}"
            raise ConfigError(msg)
    try:
        return cls(**values)
    except ValueError as error:  # limits checked in __post_init__
        msg = f"{where}{key + ': ' if key else ''}{error}"
        raise ConfigError(msg) from error


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _convert(hint: Any, value: Any, key: str, where: str) -> Any:
    """Convert a YAML value to the type `hint`, or say what was wanted and what came."""
    if isinstance(value, Given):
        value = value.text if hint in (str, Path) else value.value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _convert(inner, value, key, where)
    if origin is typing.Literal:
        if value in args:
            return value
        raise _wrong(where, key, "one of " + ", ".join(map(str, args)), value, nearest(str(value), map(str, args)))
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return _dataclass(hint, value, key, where)
        raise _wrong(where, key, "a mapping", value)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert(args[0], item, f"{key}[{i}]", where) for i, item in enumerate(items))
    if origin is dict:
        if isinstance(value, Mapping):
            return {str(k): _convert(args[1], v, _join(key, str(k)), where) for k, v in value.items()}
        raise _wrong(where, key, "a mapping", value)
    return _scalar(hint, value, key, where)


def _scalar(hint: Any, value: Any, key: str, where: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float | str):
            number = _number(value)
            if number is not None and math.isfinite(number) and number == int(number):
                return int(number)
    if hint is float and not isinstance(value, bool):
        number = _number(value)
        if number is not None and not math.isnan(number):
            return number
    if isinstance(value, str) and not _is_text(value):
        raise _wrong(where, key, "UTF-8 text", value)
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if hint is Path and isinstance(value, str):
        return files.place(value, ask=False)
    raise _wrong(where, key, hint.__name__, value)


def _is_text(value: str) -> bool:
    """Whether it can be written to a file: bytes of a command line that are no UTF-8 come as lone surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _wrong(where: str, key: str, wanted: str, value: Any, hint: str = "") -> ConfigError:
    return ConfigError(f"{where}{key}: wanted {wanted}, got {value!r}" + (f"; {hint}" if hint else ""))


def to_dict(config: Any) -> Any:
    """The configuration as plain YAML/JSON types, in field order."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_dict(item) for item in config]
    return str(config) if isinstance(config, Path | UPath) else config


def fingerprint(config: Any, ignore: Sequence[str] = ()) -> str:
    """Twelve hex digits that change when any key outside `ignore` (dotted names) changes.

    Ray Train resumes silently under a changed configuration; comparing this on resume is our guard.
    """
    tree = to_dict(config)
    for name in ignore:
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node.pop(leaf, None)
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def describe(cls: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """Rows (dotted key, default, meaning) of every option, for `--help`."""
    rows: list[tuple[str, str, str]] = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, hint = _join(prefix, field.name), hints[field.name]
        if dataclasses.is_dataclass(hint):
            rows.extend(describe(hint, key))
            continue
        if field.default is not dataclasses.MISSING:
            default = repr(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            default = repr(field.default_factory())
        else:
            default = "required"
        rows.append((key, default, field.metadata.get("help", "")))
    return rows
