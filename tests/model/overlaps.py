"""Layers as sets of units: what merging them does, worked out one unit after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

UNIT = 64 * 1024


@dataclass(frozen=True)
class Merge:
    """Figures of one merge, known exactly."""

    copies_least: int
    copies_most: int
    growth_least: int
    growth_most: int


@dataclass(frozen=True)
class UnitOverlaps:
    """Layers that own units of 64 KiB; `slack` bytes of growth are uncertain."""

    units: Mapping[str, frozenset[int]]
    below: Mapping[str, str | None]
    slack: int = 0

    def data(self, layer: str) -> int:
        """Of the layer alone."""
        return len(self.units[layer]) * UNIT

    def path(self, bottom: str, top: str) -> list[str]:
        """Layers from the top down to the bottom."""
        layers = [top]
        while layers[-1] != bottom:
            below = self.below[layers[-1]]
            assert below is not None, f"{top} does not stand on {bottom}"
            layers.append(below)
        return layers

    def visible(self, layer: str, top: str) -> int:
        """What those above leave to be seen."""
        hidden = set().union(*(self.units[above] for above in self.path(layer, top)[:-1]))
        return len(self.units[layer] - hidden) * UNIT

    def merge(self, bottom: str, top: str, into: str) -> Merge:
        """Everything that `into` has not is written to it; what lies above it is written over what it has."""
        path = self.path(bottom, top)
        at = path.index(into)
        together: set[int] = set().union(*(self.units[layer] for layer in path))
        copied: set[int] = set().union(*(self.units[layer] for layer in path[:at])) | (together - self.units[into])
        growth = len(together - self.units[into]) * UNIT
        return Merge(len(copied) * UNIT, len(copied) * UNIT, growth - self.slack, growth)
