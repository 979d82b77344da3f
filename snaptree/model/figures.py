"""Byte figures that know how sure they are. What is not known is said to be unknown, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Confidence(StrEnum):
    """How far a figure can be trusted; the values stand in JSON."""

    EXACT = "exact"
    UPPER_BOUND = "upper-bound"
    LIVE = "live"
    """True a moment ago: the image is being written to."""
    UNKNOWN = "unknown"


_WEAKEST_LAST = (Confidence.EXACT, Confidence.LIVE, Confidence.UPPER_BOUND, Confidence.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of bytes, how sure it is, and how it was found (or why it could not be)."""

    bytes: int | None
    confidence: Confidence
    how: str = ""

    def __post_init__(self) -> None:
        if (self.bytes is None) != (self.confidence is Confidence.UNKNOWN):
            raise ValueError(f"{self.bytes} bytes cannot be {self.confidence.value}")

    @property
    def is_known(self) -> bool:
        """Whether there is a number at all."""
        return self.bytes is not None


NOTHING = Figure(0, Confidence.EXACT)


def exact(number_of_bytes: int, how: str = "") -> Figure:
    """Make a figure that is true to the byte."""
    return Figure(number_of_bytes, Confidence.EXACT, how)


def unknown(why: str) -> Figure:
    """Make a figure that nobody can state yet, with the reason."""
    return Figure(None, Confidence.UNKNOWN, why)


def total(figures: Iterable[Figure]) -> Figure:
    """Sum figures. One unknown part makes the sum unknown; the weakest confidence wins otherwise.

    The `how` of the sum is that of its weakest part, since that is what a reader needs to hear; where all are exact,
    of all that count.
    """
    number, weakest, how = 0, NOTHING, ""
    for figure in figures:
        if _WEAKEST_LAST.index(figure.confidence) > _WEAKEST_LAST.index(weakest.confidence):
            weakest, how = figure, figure.how
        elif weakest is NOTHING and figure.bytes and figure.how not in how:
            how = f"{how}; {figure.how}" if how else figure.how
        number += figure.bytes or 0
    return weakest if weakest.bytes is None else Figure(number, weakest.confidence, how)
