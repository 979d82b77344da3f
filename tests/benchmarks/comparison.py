"""What is measured: SnapTree and its peer in turn, in one run; ratios of neighbours in time, and never a verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import humanize
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 180


class Unit(Enum):
    """How a figure is printed. Samples are in seconds, bytes, or just numbers."""

    TIME = "time"
    MEMORY = "memory"
    COUNT = "count"
    SHARE = "share"


@dataclass(frozen=True)
class Comparison:
    """Samples of ours and of the peer's, taken in turn; without a peer, the aim is in the samples' unit."""

    what: str
    ours: tuple[float, ...]
    peer: tuple[float, ...] = ()
    peer_name: str = ""
    aim: float | None = None
    unit: Unit = Unit.TIME

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours to the peer's, each with the one measured next to it: noise that lasts longer cancels out."""
        return tuple(ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)) if self.peer else ()


Ours = TypeVar("Ours")
Peers = TypeVar("Peers")


def in_turn(ours: Callable[[], Ours], peer: Callable[[], Peers], runs: int) -> tuple[list[Ours], list[Peers]]:
    """Measure both `runs` times. Who goes first changes, because going second may be easier.

    Before, both run once for nothing, unless once is all that is wanted.
    """
    our_samples: list[Ours] = []
    peer_samples: list[Peers] = []
    if runs > 1:
        ours()
        peer()
    for run in range(runs):
        if run % 2:
            peer_samples.append(peer())
            our_samples.append(ours())
        else:
            our_samples.append(ours())
            peer_samples.append(peer())
    return our_samples, peer_samples


def say(text: str) -> None:
    """Print a line."""
    Console().print(text, highlight=False, soft_wrap=True)


def print_table(title: str, comparisons: Iterable[Comparison]) -> None:
    """Print minimum / median / maximum of everything, and the aim beside each ratio."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("SnapTree", "peer", "ratio", "aim"):
        table.add_column(heading, justify="right")
    for comparison in comparisons:
        peer = f"{comparison.peer_name}  {_spread(comparison.peer, comparison.unit)}" if comparison.peer else ""
        table.add_row(
            comparison.what,
            _spread(comparison.ours, comparison.unit),
            peer,
            " / ".join(f"{ratio:.2f}" for ratio in _min_median_max(comparison.ratios)),
            _aim(comparison),
        )
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH  # a pipe has none of its own, and figures must not be broken into lines
    console.print(table)


def _min_median_max(samples: Sequence[float]) -> tuple[float, ...]:
    return (min(samples), statistics.median(samples), max(samples)) if len(samples) > 1 else tuple(samples)


def _spread(samples: Sequence[float], unit: Unit) -> str:
    return " / ".join(_words(sample, unit) for sample in _min_median_max(samples))


def _words(sample: float, unit: Unit) -> str:
    if unit is Unit.MEMORY:
        return humanize.naturalsize(sample, binary=True, format="%.0f")
    if unit is Unit.COUNT:
        return f"{sample:.1f}"
    if unit is Unit.SHARE:
        return f"{sample * 100:.0f} %"
    return f"{sample * 1000:.0f} ms" if sample < 1 else f"{sample:.2f} s"


def _aim(comparison: Comparison) -> str:
    if comparison.aim is None:
        return ""
    if comparison.peer:
        return f"at most {comparison.aim:g}x"
    return f"at most {_words(comparison.aim, comparison.unit)}"
