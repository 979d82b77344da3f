"""Figures, ages and states in words. What is not known is said to be unknown."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

import humanize

from snaptree.model.estate import (
    Consistency,
    DomainState,
    Impact,
    LooksAt,
    Mark,
    MemorySnapshot,
    SnapshotKind,
)
from snaptree.model.figures import Confidence, Figure
from snaptree.model.settings import THERE, WHILE_RUNNING, SettingChange
from snaptree.model.text import plain, quoted
from snaptree.model.text import size as size

if TYPE_CHECKING:
    from snaptree.plans.operation import Progress
    from snaptree.plans.totals import Totals

UNKNOWN = "?"
NONE = "—"
"""Stands where there is nothing to count, such as the memory of a snapshot of disks only."""


def figure(figure: Figure) -> str:
    """A figure with its confidence: `1.25 GiB`, `≤ 1.25 GiB`, `~1.25 GiB`, `about −1.25 GiB`, or `?`."""
    if figure.bytes is None:
        return UNKNOWN
    if figure.bytes < 0 and figure.confidence is Confidence.LIVE:
        return f"about {size(figure.bytes)}"  # two waves side by side are read as one
    sign = {Confidence.UPPER_BOUND: "≤ ", Confidence.LIVE: "~"}.get(figure.confidence, "")
    return f"{sign}{size(figure.bytes)}"


def figure_in_full(figure: Figure) -> str:
    """What a tooltip says about a figure: the exact bytes, how sure they are, and why."""
    if figure.bytes is None:
        return f"Not known: {figure.how}" if figure.how else "Not known."
    sure = {
        Confidence.EXACT: "",
        Confidence.UPPER_BOUND: "At most: it can be less.",
        Confidence.LIVE: "A moment ago: it is being written to.",
    }.get(figure.confidence, "")
    takes = f"It takes {size(-figure.bytes)} more than it gives back." if figure.bytes < 0 else ""
    return "\n".join(part for part in (f"{figure.bytes:,} bytes", takes, sure, figure.how) if part)


def looks_at(look: LooksAt) -> str:
    """What a machine was made for: `looks at “before-upgrade” of db-01`."""
    return f"looks at {quoted(look.snapshot)} of {plain(look.domain)}"


def age(seconds: float) -> str:
    """How long ago: `33 days`, `an hour`. Never negative: the clocks of hosts differ."""
    return humanize.naturaldelta(dt.timedelta(seconds=max(0.0, seconds)), months=False)


def moment(created: float) -> str:
    """The exact time here: `3 Apr 2026, 14:05:09 CEST`."""
    local = dt.datetime.fromtimestamp(created, dt.UTC).astimezone()
    return f"{local.day} {local:%b %Y, %H:%M:%S %Z}"


def mark(mark: Mark) -> str:
    """Who marked something, and on which day here: `by amina, 3 Nov 2026`."""
    return _by_and_when(mark, _day(mark.at))


def mark_in_full(mark: Mark) -> str:
    """The same with the exact time."""
    return _by_and_when(mark, moment(mark.at))


def _by_and_when(mark: Mark, when: str) -> str:
    return ", ".join([*([f"by {mark.by}"] if mark.by else []), *([when] if mark.at else [])]) or "not recorded by whom"


def _day(at: float) -> str:
    local = dt.datetime.fromtimestamp(at, dt.UTC).astimezone()
    return f"{local.day} {local:%b %Y}"


def duration(seconds: float) -> str:
    """A span of time for people: `40 seconds`, `3 minutes and 20 seconds`."""
    if seconds < 1:
        return "less than a second"
    return humanize.precisedelta(dt.timedelta(seconds=round(seconds)), minimum_unit="seconds", format="%d")


def how_far(progress: Progress) -> str:
    """How far a step is, as far as that is known: `1.2 GiB of 4.0 GiB, 310.0 MiB/s, 9 seconds left`.

    One of several says so: `Step 2 of 3: 1.2 GiB of 4.0 GiB, 310.0 MiB/s, 9 seconds left in this step`.
    """
    is_one_of_several = progress.steps > 1
    parts = []
    if progress.done is not None and progress.total:
        parts.append(f"{size(progress.done)} of {size(progress.total)}")
    elif progress.share is not None:
        parts.append(f"{int(100 * progress.share)} %")
    if progress.rate:
        parts.append(f"{size(progress.rate)}/s")
    if progress.seconds_left is not None:
        parts.append(f"{duration(progress.seconds_left)} left{' in this step' if is_one_of_several else ''}")
    step = f"Step {progress.step + 1} of {progress.steps}" if is_one_of_several else ""
    return ": ".join(part for part in (step, ", ".join(parts)) if part)


def pause(seconds: float) -> str:
    """A span that may be short: `0.3 s`, `less than 0.1 s`, `2 minutes and 5 seconds`."""
    if seconds < 0.1:
        return "less than 0.1 s"
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def impact(impact: Impact) -> str:
    """What taking a snapshot did: `paused the guest for 0.3 s, wrote 212.0 MiB`."""
    parts = []
    if impact.paused is not None:
        parts.append(f"paused the guest for {pause(impact.paused)}" if impact.paused else "did not pause the guest")
    if impact.frozen is not None:
        parts.append(f"froze its file systems for {pause(impact.frozen)}")
    if impact.wrote is not None:
        parts.append(f"wrote {size(impact.wrote)}")
    return ", ".join(parts) or f"took {pause(impact.seconds)}"


def about(seconds: float) -> str:
    """A forecast of time: `about 40 seconds`."""
    return f"{'about ' if seconds >= 1 else ''}{duration(seconds)}"


def totals(totals: Totals) -> list[str]:
    """Sums, each with its verb, as far as they are known: `frees 3.1 GiB`, `takes about 40 seconds and more`."""
    known = totals.known
    more = dict.fromkeys(totals.partly, " and more")
    return [
        f"frees {figure(known.frees)}{more.get('frees', '')}",
        f"copies {figure(known.copies)}{more.get('copies', '')}",
        f"needs {figure(known.peak_extra)}{more.get('peak_extra', '')} meanwhile",
        f"takes {UNKNOWN if known.seconds is None else about(known.seconds)}{more.get('seconds', '')}",
    ]


def count(number: int, noun: str) -> str:
    """`1 snapshot`, `1,204 snapshots`, `2 branches`."""
    ending = "" if number == 1 else "es" if noun.endswith(("ch", "s")) else "s"
    return f"{number:,} {noun}{ending}"


_STATES = {
    DomainState.RUNNING: "running",
    DomainState.BLOCKED: "running (blocked)",
    DomainState.PAUSED: "paused",
    DomainState.SHUTTING_DOWN: "shutting down",
    DomainState.OFF: "off",
    DomainState.CRASHED: "crashed",
    DomainState.SUSPENDED: "suspended",
    DomainState.DISK_ONLY: "running",
    DomainState.UNKNOWN: "state unknown",
}

_CONSISTENCIES = {
    Consistency.MEMORY: (
        "with memory",
        "The memory was captured too: a revert goes on exactly there. A database goes on as well; its clients have to"
        " connect again.",
    ),
    Consistency.FILESYSTEM: (
        "file systems frozen",
        "The guest agent froze the file systems while the disks were taken: after a revert they need no repair. A"
        " database starts as after a crash, from a log that is whole; nothing that it had committed is missing.",
    ),
    Consistency.CRASH: (
        "crash-consistent",
        "Only the disks, while it ran: a revert is like after a power cut. File systems replay their journals, and a"
        " database recovers from its log; what was not flushed to disk by then is missing.",
    ),
    Consistency.OFFLINE: (
        "offline",
        "The machine was off: its disks were at rest. If it had been shut down properly, a database starts as usual.",
    ),
    Consistency.UNKNOWN: (
        "of unknown consistency",
        "Nothing recorded says in what state the disks were. Take it for a power cut: a database may have to recover.",
    ),
}

_KINDS = {
    SnapshotKind.INTERNAL: ("internal", "Inside the qcow2 images."),
    SnapshotKind.EXTERNAL: ("external", "The image is frozen, and an overlay has taken over."),
    SnapshotKind.MIXED: ("mixed", "Some disks inside the qcow2 image, others as frozen layers."),
}

_MEMORY = {
    MemorySnapshot.NO: "not captured",
    MemorySnapshot.INTERNAL: "inside the qcow2 image",
    MemorySnapshot.EXTERNAL: "in a file of its own",
}


def state(state: DomainState) -> str:
    """A machine's state as a word."""
    return _STATES[state]


def kind(kind: SnapshotKind) -> str:
    """Internal, external or mixed."""
    return _KINDS[kind][0]


def kind_in_full(kind: SnapshotKind) -> str:
    """What the kind means."""
    return _KINDS[kind][1]


def consistency(consistency: Consistency) -> str:
    """What a reverted guest finds, in a word or two."""
    return _CONSISTENCIES[consistency][0]


def consistency_in_full(consistency: Consistency) -> str:
    """What a reverted guest finds, as a sentence."""
    return _CONSISTENCIES[consistency][1]


def memory(memory: MemorySnapshot) -> str:
    """Where the RAM was captured."""
    return _MEMORY[memory]


_LONG_VALUE = 200
_LONG_IN_A_LINE = 100
"""Letters of a setting's value that are shown in a table, and beside others in a line."""


def setting_value(value: str | None, longest: int = _LONG_VALUE) -> str:
    """What is set, on one line and within reason; `NONE` where nothing is."""
    shown = NONE if value is None else plain(value)
    return shown if len(shown) <= longest else f"{shown[:longest]}…"


def setting(change: SettingChange) -> str:
    """A changed setting as one line: `Memory: 2 GiB → 4 GiB`, `Disk vdb added: …`, `Disk vdb removed: …`."""
    what = plain(change.what)
    before, after = (setting_value(value, _LONG_IN_A_LINE) for value in (change.before, change.after))
    is_of_a_part = ": " in change.what.removeprefix(WHILE_RUNNING)
    if is_of_a_part or (change.before is not None and change.after is not None):
        return f"{what}: {before} → {after}"
    verb, value = ("added", after) if change.before is None else ("removed", before)
    return f"{what} {verb}" if value == THERE else f"{what} {verb}: {value}"


def settings(changes: Sequence[SettingChange], most: int) -> list[str]:
    """Changed settings as lines, no more than `most` of them."""
    shown = [setting(change) for change in changes[:most]]
    return shown if len(changes) <= most else [*shown, f"and {len(changes) - most:,} more"]


def moment_named(snapshot: str | None) -> str:
    """A snapshot's name, or `Now`."""
    return "Now" if snapshot is None else plain(snapshot)
