"""Figures of merit by kind and by what they are of, so that nobody has to read either out of a name."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Figure", "Kind"]

Kind = Literal["accuracy", "accuracy within one class", "AUC", "rejection", "resolution", "response"]


class Figure(NamedTuple):
    """`of` is a discriminant or a range of the target, '' for all jets; a rejection has a signal `efficiency`.

    >>> Figure("rejection", "W vs QCD", 0.5).name, Figure("resolution", "20-60").name, Figure("accuracy").name
    ('rejection at 50% W vs QCD', 'resolution 20-60', 'accuracy')
    """

    kind: Kind
    of: str = ""
    efficiency: float | None = None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.short} {self.of}".rstrip()

    @property
    def short(self) -> str:
        """The same without what it is of."""
        return self.kind if self.efficiency is None else f"{self.kind} at {100 * self.efficiency:g}%"

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is, 0 where neither is: a response belongs at 1."""
        return {"resolution": -1, "response": 0}.get(self.kind, 1)
