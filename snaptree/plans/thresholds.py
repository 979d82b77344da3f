"""From where on something is worth a word: `[check]` in the user's file, and the options of `snaptree check`."""

from __future__ import annotations

from dataclasses import dataclass

from snaptree.model.troubles import DEEP_CHAIN
from snaptree.plans.policy import Duration

_QUARTER = Duration(days=90)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is more than this is found."""

    max_depth: int = DEEP_CHAIN
    """Layers that a disk may stand on."""
    max_age: Duration = _QUARTER
    """Of snapshots that are neither pinned nor known good."""
    days_left: int = 14
    """Until a file system is full."""
    max_growth: int = 1 << 30
    """Bytes that a guest may write a day."""
