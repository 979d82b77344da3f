"""Schedules: what is taken and pruned without anybody being there, and when. Pure."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from snaptree.plans.hours import Hours
from snaptree.plans.intention import Capture, Prune, Take
from snaptree.plans.naming import FIELDS, is_template, template_problem
from snaptree.plans.plan import Freeze
from snaptree.plans.policy import Policy, local_zone
from snaptree.plans.wording import listed, quoted

DEFAULT_HOST: Final = "qemu:///system"
DEFAULT_NAMES: Final = "{schedule}-{date}-{time}"

ENOUGH_TIMES: Final = 1_500
"""Times of a schedule that show at which times of the day it runs: of one that runs every minute, a whole day."""
_DAY: Final = 86_400

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)
"""It stands in names of snapshots, of systemd's units and of files."""
_WILD: Final = re.compile(r"[*?\[]")
"""What lets a pattern be more than one name."""


class TakeKind(StrEnum):
    """What a schedule takes, in the words of `snaptree take`."""

    BEST = "best"
    DISK_ONLY = "disk-only"
    MEMORY = "memory"
    LIVE = "live"
    INTERNAL = "internal"


class Notify(StrEnum):
    """When a schedule's end is told on the desktop."""

    FAILURE = "failure"
    ALWAYS = "always"
    NEVER = "never"


_CAPTURES: Final = {
    TakeKind.BEST: Capture.BEST,
    TakeKind.DISK_ONLY: Capture.DISKS,
    TakeKind.MEMORY: Capture.DISKS_AND_MEMORY,
    TakeKind.LIVE: Capture.DISKS_AND_MEMORY,
    TakeKind.INTERNAL: Capture.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """What is done when its time has come: a snapshot of each of its machines, then a prune of each, or one of both."""

    name: str
    when: str
    """A calendar expression of systemd's: `daily`, `*-*-* 02:00`."""
    connect: str = DEFAULT_HOST
    """The address of its host."""
    machines: tuple[str, ...] = ()
    """Patterns of names; empty for all."""
    take: TakeKind | None = None
    """None: nothing is taken."""
    together: bool = False
    """Its machines are taken at one time, as a group: all of them or none."""
    quiesce: Freeze = Freeze.NO
    names: str = DEFAULT_NAMES
    """The template of the snapshots' names, in which {schedule} may stand beside the fields of naming.py."""
    note: str = ""
    policy: Policy | None = None
    """What is kept; of this schedule's own snapshots only. None: nothing is pruned."""
    pruned_machines: tuple[str, ...] = ()
    """Patterns of the machines that its policy is for; empty for all that are its own."""
    limit: int | None = None
    """Bytes per second that a prune copies at most."""
    between: Hours | None = None
    """The hours at which it prunes. It takes whenever it runs."""
    notify: Notify = Notify.FAILURE

    def is_for(self, domain: str) -> bool:
        """Whether a machine of this name is one of its."""
        return is_named_by(self.machines, domain)

    @property
    def taking(self) -> Take | None:
        """What it wants of each machine first."""
        if self.take is None:
            return None
        freezes = self.quiesce is not Freeze.NO
        return Take(
            self.names.replace("{schedule}", self.name),
            self.note,
            Capture.DISKS if freezes else _CAPTURES[self.take],
            quiesce=self.quiesce,
            live=self.take is TakeKind.LIVE,
            schedule=self.name,
        )

    def pruning(self, domain: str) -> Prune | None:
        """What it wants of a machine afterwards."""
        if self.policy is None or not is_named_by(self.pruned_machines, domain):
            return None
        # What libvirt merges itself can be neither slowed down nor stopped.
        by_own_jobs = self.limit is not None or self.between is not None
        return Prune(self.policy, by_own_jobs=by_own_jobs, limit=self.limit, schedule=self.name)


def together_problem(take: TakeKind, names: str, machines: tuple[str, ...]) -> tuple[str, str]:
    """Why machines can't be taken together so: the key of a schedule that is at odds with it, and a sentence."""
    if take not in (TakeKind.DISK_ONLY, TakeKind.MEMORY):
        return "take", 'machines are taken together with disks only or with memory: take = "disk-only" or "memory".'
    if "{vm}" in names:
        return "name", f"what is taken together has one name: {quoted('{vm}')} can't stand in it."
    if len(machines) == 1 and not _WILD.search(machines[0]):
        return "machines", "a group needs two machines at least: name more of them."
    return "", ""


def is_named_by(patterns: tuple[str, ...], domain: str) -> bool:
    """Whether a machine's name fits one of these patterns, or there are none."""
    return not patterns or any(fnmatchcase(domain, pattern) for pattern in patterns)


def who_is_missing(patterns: tuple[str, ...], domains: Collection[str]) -> str:
    """Which of these name no machine, and what they may mean; empty if all name one. One sentence."""
    missing = [pattern for pattern in patterns if not any(fnmatchcase(domain, pattern) for domain in domains)]
    if not missing:
        return ""
    others = [domain for domain in domains if not is_named_by(patterns, domain)]
    near = dict.fromkeys(name for pattern in missing for name in get_close_matches(pattern, others, n=1))
    hint = f" (did you mean {listed(near, quoted)}?)" if near else ""
    return f"No virtual machine is named {listed(missing, quoted)}{hint}."


def hours_problem(schedule: Schedule, coming: Sequence[float], zone: dt.tzinfo | None = None) -> str:
    """Why a schedule never prunes: none of the times at which it runs is in its hours. Empty if it does. One sentence.

    `coming` are its next times, `ENOUGH_TIMES` of them if there are so many, in seconds since 1970, UTC; none, or less
    than a day of many, tell nothing. `zone` is whose clock has the hours.
    """
    between, clock = schedule.between, zone or local_zone()
    is_cut_short = len(coming) >= ENOUGH_TIMES and coming[-1] - coming[0] < _DAY
    if between is None or not coming or is_cut_short:
        return ""
    if any(between.allow(dt.datetime.fromtimestamp(moment, clock)) for moment in coming):
        return ""
    return (
        f"The schedule {quoted(schedule.name)} prunes {between.in_words} only, and never runs then: it prunes nothing."
    )


def schedule_name_problem(name: str) -> str:
    """Why no schedule can be called so; empty if one can. One sentence."""
    if _NAME.fullmatch(name):
        return ""
    return f"{quoted(name)} names no schedule: use up to 40 letters from a to z, digits, dashes and underscores."


def names_problem(template: str, schedule: str) -> str:
    """Why a schedule can't name its snapshots so; empty if it can. One sentence."""
    filled = template.replace("{schedule}", schedule)
    if not is_template(filled):
        fields = ", ".join(f"{{{field}}}" for field in FIELDS)
        return f"{quoted(template)} is the same name each time. Put some of these into it: {fields}."
    return template_problem(filled, ("schedule", *FIELDS))
