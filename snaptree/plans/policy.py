"""Which snapshots a policy keeps, and why. Pure: the words and their meaning are restic's, which users know.

Rules that count (`keep_last`, `keep_daily`, ...) look at the snapshots in the policy's scope from the newest to the
oldest: `keep_daily=7` keeps the newest of each of the last seven days that have any, and where fewer days than that
have any, the oldest of all as well. Calendars are local. A snapshot that any rule keeps is kept.
Source: restic's documentation, "Removing backup snapshots", and its `ApplyPolicy`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from dateutil import tz
from dateutil.relativedelta import relativedelta

from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Snapshot
from snaptree.model.tree import SnapshotTree
from snaptree.plans.wording import listed, quoted

ALL: Final = -1
"""As a count: as many as there are."""

_TAG: Final = re.compile(r"(?<![\w#])#(\w[\w-]*)")
"""A word of a snapshot's note, like `#release`: whoever can read the note sees it, and every tool can write it."""
_DURATION: Final = re.compile("".join(rf"(?:(\d{{1,20}}){unit})?" for unit in "ymwdh"), re.ASCII)


@dataclass(frozen=True, slots=True)
class Duration:
    """A time as calendars count it: `1y6m` is a year and six months, `2w` two weeks, `36h` a day and a half."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `1y6m2w3d12h`, any of these in this order. Raises SnapTreeError for anything else, and for no time."""
        match = _DURATION.fullmatch(text.strip().lower())
        years, months, weeks, days, hours = (int(part or 0) for part in match.groups()) if match else (0,) * 5
        found = cls(years, months, 7 * weeks + days, hours)
        if found == cls():
            raise SnapTreeError(
                f"{quoted(text)} is not a time.", hint="Write years, months, weeks, days and hours: 1y6m2w3d12h."
            )
        return found

    def before(self, moment: dt.datetime) -> dt.datetime:
        """So long before a moment, by the calendar of its time zone; at the beginning of time at the earliest."""
        try:
            day = moment - relativedelta(years=self.years, months=self.months, days=self.days)
            # Days may be longer or shorter when clocks are changed. Hours are not.
            return (day.astimezone(dt.UTC) - dt.timedelta(hours=self.hours)).astimezone(moment.tzinfo)
        except (OverflowError, ValueError):
            return dt.datetime.min.replace(tzinfo=dt.UTC)

    def __str__(self) -> str:
        return "".join(f"{number}{unit[0]}" for unit, number in self._units if number)

    @property
    def in_words(self) -> str:
        """As it stands in a sentence: `1 year and 6 months`."""
        return listed(f"{number} {unit}{'' if number == 1 else 's'}" for unit, number in self._units if number)

    @property
    def _units(self) -> tuple[tuple[str, int], ...]:
        return ("year", self.years), ("month", self.months), ("day", self.days), ("hour", self.hours)


class Period(StrEnum):
    """The parts of a calendar of which one snapshot each is kept; the values stand in options and policy files."""

    LAST = "last"
    HOURLY = "hourly"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    YEARLY = "yearly"


_PARTS: Final[Mapping[Period, Callable[[dt.datetime], tuple[object, ...]]]] = MappingProxyType(
    {
        # One hour comes twice when clocks go back: its distance from UTC tells which.
        Period.HOURLY: lambda at: (at.date(), at.hour, at.utcoffset()),
        Period.DAILY: lambda at: (at.date(),),
        Period.WEEKLY: lambda at: at.isocalendar()[:2],
        Period.MONTHLY: lambda at: (at.year, at.month),
        Period.YEARLY: lambda at: (at.year,),
    }
)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which snapshots a policy speaks of at all. Those out of its scope are kept, and are not counted."""

    names: tuple[str, ...] = ()
    """Patterns like those of files: `auto-*`. Empty for any name."""
    tags: tuple[str, ...] = ()
    """Words that stand in the note behind a `#`; one of them is enough. Empty for any."""
    owners: tuple[str, ...] = ()
    """Who took them. Empty for anybody."""
    schedules: tuple[str, ...] = ()
    """The schedules that took them. Empty for any."""
    by_hand: bool = False
    """Those too that no schedule took. Safety snapshots are among them only if `names` fit them as well."""

    def why_not(self, snapshot: Snapshot) -> str:
        """Why a snapshot is out of scope; empty if it is not. No other field takes the place of `by_hand`."""
        marks = snapshot.annotations
        if marks.safety and not (self.by_hand and self.names):
            return "a safety snapshot"
        if not self.by_hand and not marks.schedule:
            return "not made by a schedule"
        if self.schedules and marks.schedule not in self.schedules:
            return "made by another schedule" if marks.schedule else "not made by a schedule"
        if self.names and not any(fnmatchcase(snapshot.name, pattern) for pattern in self.names):
            return "its name is not asked for"
        if self.owners and marks.taken_by not in self.owners:
            return "taken by somebody else"
        if self.tags and tags_of(snapshot).isdisjoint(self.tags):
            return "not tagged so"
        return ""

    def needing_by_hand(self, snapshots: Iterable[Snapshot]) -> tuple[str, ...]:
        """Those of these snapshots that are out of scope for nothing but that `by_hand` is not said."""
        if self.by_hand:
            return ()
        wider = replace(self, by_hand=True)
        return tuple(each.name for each in snapshots if self.why_not(each) and not wider.why_not(each))


def tags_of(snapshot: Snapshot) -> frozenset[str]:
    """The words in a snapshot's note that stand behind a `#`."""
    return frozenset(_TAG.findall(snapshot.description))


@dataclass(frozen=True, slots=True)
class Policy:
    """What to keep. With nothing said it keeps all."""

    counts: Mapping[Period, int] = field(default_factory=lambda: MappingProxyType({}))
    """How many of each period to keep; `ALL` for no end."""
    within: Duration | None = None
    """Keep all that are not so much older than the newest one in scope."""
    keep_forks: bool = True
    """Keep those from which several others descend."""
    minimum_age: Duration | None = None
    """Keep those that are younger."""
    maximum_depth: int | None = None
    """Let no more go than it takes for each disk to stand on so many layers at most."""
    free_at_least: int | None = None
    """Let no more go than it takes to get so many bytes back, the cheapest first."""
    scope: Scope = Scope()

    @property
    def lets_go(self) -> bool:
        """Whether it says anything by which snapshots go. What is only to be kept, keeps all."""
        limits = (self.within, self.maximum_depth, self.free_at_least)
        return any(self.counts.values()) or any(limit is not None for limit in limits)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a snapshot stays, and by which rules, in words that follow "kept: " or "goes: "."""

    name: str
    keeps: bool
    reasons: tuple[str, ...]

    @property
    def reason(self) -> str:
        """All reasons in one line."""
        return ", ".join(self.reasons)


@lru_cache(maxsize=1)
def local_zone() -> dt.tzinfo:
    """Tell this computer's time zone, with all its past and future clock changes, as it was when first asked for."""
    return tz.gettz() or dt.UTC


def decide(
    policy: Policy,
    tree: SnapshotTree,
    now: int,
    *,
    kept: Mapping[str, str] | None = None,
    of_no_use: Mapping[str, str] = MappingProxyType({}),
    zone: dt.tzinfo | None = None,
) -> dict[str, Decision]:
    """Decide on each snapshot of a machine, in the tree's order. `now` is in seconds since 1970, UTC.

    `kept` are others that are to be kept, each with the reason. What nobody can rely on to go back to takes no other's
    place: it is kept and not counted, as are those `of_no_use`, each with the reason. `zone` is whose calendar counts:
    this computer's by default. What `maximum_depth` and `free_at_least` keep, and which images are missing, depends on
    layers: `plans/prune.py` knows.
    """
    zone = zone or local_zone()
    reasons: dict[str, list[str]] = {snapshot.name: [] for snapshot in tree}
    in_scope: list[Snapshot] = []
    for snapshot in tree:
        if why_not := policy.scope.why_not(snapshot) or _why_of_no_use(snapshot, of_no_use):
            reasons[snapshot.name].append(why_not)
        elif not 0 < snapshot.created <= now:
            reasons[snapshot.name].append("of unknown age" if snapshot.created <= 0 else "from the future")
        else:
            in_scope.append(snapshot)
        reasons[snapshot.name] += _whatever_is_said(policy, snapshot, tree)
        if kept is not None and snapshot.name in kept:
            reasons[snapshot.name].append(kept[snapshot.name])
    oldest_first = sorted(in_scope, key=lambda each: each.created)  # those of one second stay in the tree's order
    moments = {each.name: _moment(each.created, zone) for each in reversed(oldest_first)}
    for name, reason in _by_calendar(policy, moments):
        reasons[name].append(reason)
    if policy.minimum_age is not None:
        for name in _since(policy.minimum_age.before(_moment(now, zone)), moments):
            reasons[name].append(f"younger than {policy.minimum_age}")
    if not policy.lets_go:
        for name in moments:
            reasons[name].append("no rule lets it go")
    return {name: Decision(name, bool(found), tuple(found) or ("no rule keeps it",)) for name, found in reasons.items()}


def kept_with_groups(machines: Iterable[tuple[SnapshotTree, Mapping[str, Decision]]]) -> list[dict[str, str]]:
    """What else has to be kept of each machine, with the reason, so that snapshots taken together stay together.

    If one of a group is kept, on any of these machines, all of it is.
    """
    found = [(tree, decisions) for tree, decisions in machines]
    kept = {
        tree[name].annotations.group
        for tree, decisions in found
        for name, decision in decisions.items()
        if decision.keeps and tree[name].annotations.group
    }
    return [
        {
            name: because_of_group(tree[name].annotations.group)
            for name, decision in decisions.items()
            if not decision.keeps and tree[name].annotations.group in kept
        }
        for tree, decisions in found
    ]


def because_of_group(group: str) -> str:
    """Why one that was taken with others stays, whatever is said of it alone."""
    return f"its group {quoted(group)} is kept"


def _why_of_no_use(snapshot: Snapshot, known: Mapping[str, str]) -> str:
    return "damaged" if snapshot.problem else known.get(snapshot.name, "")


def _whatever_is_said(policy: Policy, snapshot: Snapshot, tree: SnapshotTree) -> Iterator[str]:
    """Why a snapshot is kept by what it is."""
    if snapshot.annotations.pinned is not None:
        yield "pinned"
    if snapshot.annotations.known_good is not None:
        yield "known good"
    if policy.keep_forks and len(tree.children(snapshot.name)) > 1:
        yield "a fork"


def _by_calendar(policy: Policy, moments: dict[str, dt.datetime]) -> Iterator[tuple[str, str]]:
    """Snapshots that rules of time keep, each with the reason; `moments` has them from the newest to the oldest."""
    if not moments:
        return
    if policy.within is not None:
        limit = policy.within.before(next(iter(moments.values())))
        yield from ((name, f"within {policy.within}") for name in _since(limit, moments))
    oldest = next(reversed(moments))
    for period, left in policy.counts.items():
        last: tuple[object, ...] | None = None
        for name, moment in moments.items():
            if left == 0:
                break
            part = _PARTS[period](moment) if period in _PARTS else (name,)
            if part == last and name != oldest:
                continue
            yield name, f"oldest {period.value}" if part == last else period.value
            last = part
            left -= left > 0


def _since(limit: dt.datetime, moments: Mapping[str, dt.datetime]) -> list[str]:
    """Who is younger than a moment. In seconds: within one time zone, Python compares what clocks show."""
    return [name for name, moment in moments.items() if moment.timestamp() > limit.timestamp()]


def _moment(seconds: int, zone: dt.tzinfo) -> dt.datetime:
    try:
        return dt.datetime.fromtimestamp(seconds, zone)
    except (OverflowError, OSError, ValueError):  # a clock gone mad
        return dt.datetime.fromtimestamp(0, zone)
