"""weaver's formula language: parsed and checked when the YAML is loaded, evaluated on the flat buffers of a block.

A formula is arithmetic (`+ - * / // % **`), comparisons (also chained), `& | ^ ~`, numbers, names of columns or of
other variables, constants (`np.pi`, `np.e`, `np.inf`, `np.nan`) and calls of the functions in `functions.py`, with or
without `np.`, `ak.` or `math.` in front, and `x[index]`, `x[condition]`, `x[:, 0]`, `x[:, :3]` of particles. Nothing
else: a formula is walked, never handed to Python's `eval`, so a YAML from a stranger can compute numbers and do nothing
more. `and`, `or` and `not` are refused (they do not work on arrays; weaver fails on them too), as are results that
would depend on which jets share a block.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from jetfoundry.errors import FormulaError, InputError, JetFoundryError, nearest
from jetfoundry.features import list_functions
from jetfoundry.features.functions import FUNCTIONS, REFUSED, elementwise, register
from jetfoundry.features.jagged import Array, Jagged

__all__ = ["Formula", "check_names", "compile_formula", "evaluate", "register"]

_MODULES = frozenset({"np", "numpy", "ak", "awkward", "math"})
_CONSTANTS: dict[str, Any] = {
    "pi": np.pi,
    "e": np.e,
    "inf": np.inf,
    "nan": np.nan,  # Python floats: they leave float32 as it is
    **{name: np.dtype(name) for name in ("float32", "float64", "int32", "int64", "bool")},
}
_WITH_LISTS = frozenset({"stack", "_stack", "concatenate", "_concat"})

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

_LONGEST_FORMULA = 20_000  # characters; keeps hostile nesting away from the parser
_SHOWN = 200  # characters of a formula in an error message
_LARGEST_EXPONENT = 64  # of a constant to a constant, or shift: 9**9**9 would not end
_LARGEST_POWER = 64  # parts of a power of constants, which is computed when the formula is read
_LARGEST_INTEGER = 2**63 - 1

_HINTS: dict[type[ast.AST], str] = {
    ast.BoolOp: "write & and | with brackets around each comparison instead of `and` and `or`",
    ast.Not: "write ~(…) instead of `not`",
    ast.IfExp: "write np.where(condition, a, b) instead of `a if condition else b`",
    ast.Attribute: "a name may only have np., ak. or math. in front of it",
    ast.Subscript: "x[index], x[condition], x[:, 0] and x[:, :3] choose particles; ak.max, … with axis=1 reduce them",
    ast.List: "a list may only stand in np.stack([a, b], axis=1) and ak.concatenate([x, y], axis=1)",
    ast.In: "compare with == and join with |",
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Formula:
    """A checked formula. `names` are the columns and variables that it reads; `where` opens error messages."""

    text: str
    names: frozenset[str]
    where: str
    tree: ast.expr

    def __repr__(self) -> str:
        return repr(self.text)

    def fail(self, reason: object, kind: type[JetFoundryError] = FormulaError) -> NoReturn:
        """Raise a FormulaError (or `kind`) that names the place and the formula."""
        shown = self.text if len(self.text) <= _SHOWN else self.text[: _SHOWN - 1] + "…"
        msg = f"{self.where + ': ' if self.where else ''}formula {shown!r}: {reason}"
        raise kind(msg) from (reason if isinstance(reason, Exception) else None)


def compile_formula(text: str, *, where: str = "") -> Formula:
    """Parse and check a formula; `where` (file and section) opens every error message.

    Raises FormulaError for bad syntax, for an unknown function (with the nearest ones) and for everything that
    is not part of the language. Names of columns are checked by whoever knows them: `check_names`, `evaluate`.
    """
    text = str(text).strip()
    blank = Formula(text, frozenset(), where, ast.Constant(0))
    if len(text) > _LONGEST_FORMULA:
        msg = f"{where}: a formula of {len(text)} characters; at most {_LONGEST_FORMULA} are read"
        raise FormulaError(msg)
    try:
        tree = ast.parse(text, mode="eval").body
        names = frozenset(_check(tree))
    except SyntaxError as error:
        near = f" at character {error.offset}" if error.offset else ""
        blank.fail(f"cannot be read{near}: {error.msg}")
    except (ArithmeticError, MemoryError, RecursionError, TypeError, ValueError) as error:
        blank.fail(f"cannot be read: {error}")
    except FormulaError as error:
        blank.fail(error)
    formula = Formula(text, names, where, tree)
    if not names:
        evaluate(formula, {})  # a constant: wrong types, 1/0 and 10.0**400 show now
    return formula


def check_names(formula: Formula, known: Collection[str]) -> None:
    """Raise FormulaError, with the nearest names, if the formula reads something that is not in `known`."""
    for name in sorted(formula.names):
        if name not in known:
            formula.fail(f"unknown name {name!r}; {nearest(name, known)}")


def _check(node: ast.AST) -> Iterator[str]:
    """Walk a syntax tree, refuse what is not part of the language, yield the names of variables."""
    match node:
        case ast.Constant(value=bool() | int() | float()):
            return
        case ast.Name(id=name):
            _check_name(name)
            yield name
        case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _MODULES and name in _CONSTANTS:
            return
        case ast.BinOp(left=left, op=op, right=right):
            _check_operator(op)
            yield from _check(left)
            yield from _check(right)
            if isinstance(op, ast.Pow | ast.LShift):  # what is inside is checked by now
                _check_power(node)
        case ast.UnaryOp(op=op, operand=operand):
            _check_operator(op)
            yield from _check(operand)
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for comparison in ops:
                _check_operator(comparison)
            for part in (left, *comparators):
                yield from _check(part)
        case ast.Call(args=args, keywords=keywords):
            name = _function_name(node)
            _check_arguments(name, args, keywords)
            for part in (*args, *(keyword.value for keyword in keywords)):
                if name == "values_astype" and isinstance(part, ast.Constant) and isinstance(part.value, str):
                    continue
                inside = part.elts if isinstance(part, ast.List | ast.Tuple) and name in _WITH_LISTS else [part]
                for item in inside:
                    yield from _check(item)
        case ast.Subscript(value=value, slice=chosen):
            yield from _check(value)
            if not isinstance(chosen, ast.Tuple):
                yield from _check(chosen)
            elif _places(chosen) is None:
                raise _refused(node)
        case _:
            raise _refused(node)


def _places(chosen: ast.Tuple) -> tuple[int | None, ...] | None:
    """`:, n` as (n,), `:, a:b` as (a, b); None for anything else."""
    match chosen.elts:
        case [ast.Slice(lower=None, upper=None, step=None), ast.Slice(lower=lower, upper=upper, step=None)]:
            ends = [None if end is None else _whole(end) for end in (lower, upper)]
            wrong = any(end is None and node is not None for end, node in zip(ends, (lower, upper), strict=True))
            return None if wrong else tuple(ends)
        case [ast.Slice(lower=None, upper=None, step=None), place] if _whole(place) is not None:
            return (_whole(place),)
    return None


def _whole(node: ast.expr) -> int | None:
    match node:
        case ast.Constant(value=int() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)) if not isinstance(value, bool):
            return -value
    return None


def _check_name(name: str) -> None:
    if name in _MODULES:
        msg = f"{name!r} stands alone; wanted e.g. {name}.log(x)"
        raise FormulaError(msg)
    if name.startswith("_"):
        msg = f"name {name!r} is refused: names of variables do not start with an underscore"
        raise FormulaError(msg)


def _check_operator(op: ast.AST) -> None:
    if type(op) not in _OPERATORS:
        raise _refused(op)


def _check_power(node: ast.BinOp) -> None:
    parts = list(itertools.islice(ast.walk(node), _LARGEST_POWER))
    if any(isinstance(part, ast.Name | ast.Call) for part in parts):
        return
    if len(parts) == _LARGEST_POWER:
        msg = f"a power of constants with {_LARGEST_POWER} parts and more is refused"
        raise FormulaError(msg)
    base, exponent = _constant(node.left), _constant(node.right)
    if abs(exponent) > _LARGEST_EXPONENT or abs(base) > 1e9 or (base < 0 and not exponent.is_integer()):
        msg = f"constant power {ast.unparse(node)!r} is too large or not a real number"
        raise FormulaError(msg)


def _constant(node: ast.expr) -> float:
    return float(_value(node, {}))


def _bounded(value: Any) -> Any:
    """A constant; Python's integers grow without end, NumPy has 64 bits: what does not fit is a float."""
    return float(value) if isinstance(value, int) and abs(value) > _LARGEST_INTEGER else value


def _check_arguments(name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> None:
    function = FUNCTIONS[name]
    for keyword in keywords:
        if keyword.arg not in function.keywords:
            msg = f"{name} takes no keyword {keyword.arg or '**'!r}"
            raise FormulaError(msg)
    given = len(args) + len(keywords)
    if function.most is not None and not function.least <= given <= function.most:
        wanted = str(function.least) if function.least == function.most else f"{function.least} or {function.most}"
        msg = f"{name} takes {wanted} argument(s), got {given}"
        raise FormulaError(msg)


def _function_name(node: ast.Call) -> str:
    match node.func:
        case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _MODULES:
            shown = f"{module}.{name}"
        case ast.Name(id=name):
            shown = name
        case _:
            msg = f"call of {ast.unparse(node.func)!r} is refused; {_HINTS[ast.Attribute]}"
            raise FormulaError(msg)
    if name in REFUSED:
        msg = f"{shown} is not offered: {REFUSED[name]}"
        raise FormulaError(msg)
    if name not in FUNCTIONS:
        msg = f"unknown function {shown!r}; {nearest(name, FUNCTIONS)}"
        raise FormulaError(msg)
    return name


def _refused(node: ast.AST) -> FormulaError:
    hint = next((text for kind, text in _HINTS.items() if isinstance(node, kind)), "")
    shown = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
    return FormulaError(f"{shown!r} is not part of the formula language" + (f"; {hint}" if hint else ""))


def evaluate(formula: Formula, columns: Mapping[str, Jagged | Array]) -> Jagged | Array:
    """The formula's value: Jagged (N particles) if it reads per-particle columns, else an array (B,).

    Division by zero, log of a negative number and the like give inf and NaN, silently, as everywhere in NumPy;
    `Features.nonfinite` counts what of it reaches an input. A formula of constants only gives a 0-d array.
    Raises FormulaError for unknown names and for operations that the types do not have.
    """
    try:
        with np.errstate(all="ignore"):
            value = _value(formula.tree, columns)
    except InputError as error:
        formula.fail(error, InputError)
    except (ArithmeticError, FormulaError, RecursionError, TypeError, ValueError) as error:
        formula.fail(error)
    found = value if isinstance(value, Jagged) else np.asanyarray(value)
    kind = found.values.dtype if isinstance(found, Jagged) else found.dtype
    if kind.kind not in "biuf":
        formula.fail(f"gives values of type {kind}, wanted numbers")
    return found


def _value(node: ast.AST, columns: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return _bounded(value)
        case ast.Name(id=name):
            if name not in columns:
                msg = f"unknown name {name!r}; {nearest(name, columns)}"
                raise FormulaError(msg)
            return columns[name]
        case ast.Attribute(attr=name):
            return _CONSTANTS[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _value(left, columns), _value(right, columns))
        case ast.UnaryOp(op=op, operand=operand):
            return elementwise(_OPERATORS[type(op)], _value(operand, columns))
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            operands = [_value(part, columns) for part in (left, *comparators)]
            parts = [
                elementwise(_OPERATORS[type(op)], *pair)
                for op, pair in zip(ops, itertools.pairwise(operands), strict=True)
            ]
            result = parts[0]
            for part in parts[1:]:
                result = elementwise(operator.and_, result, part)
            return result
        case ast.Subscript(value=inner, slice=ast.Tuple() as chosen):
            places = _places(chosen) or ()
            return list_functions.part(_value(inner, columns), *places)
        case ast.Subscript(value=inner, slice=index):
            return list_functions.pick(_value(inner, columns), _value(index, columns))
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, columns) for item in items]
        case ast.Call(args=args, keywords=keywords):
            name = _function_name(node)
            named = {str(keyword.arg): _value(keyword.value, columns) for keyword in keywords}
            return FUNCTIONS[name].call(*(_value(argument, columns) for argument in args), **named)
        case _:
            raise AssertionError(ast.dump(node))  # _check lets nothing else through


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    try:
        return _bounded(elementwise(_OPERATORS[type(op)], left, right))
    except TypeError as error:
        if not isinstance(op, ast.BitAnd | ast.BitOr | ast.BitXor):
            raise
        msg = "& | ^ join booleans or integers; put brackets around each comparison: (a > 1) & (b < 2)"
        raise FormulaError(msg) from error
