"""Finding what should be looked at: on one machine from its tree, layers and costs, on a host from all of them. Pure.

A cure is offered only after it was tried: by what is known here no rule refuses its plan, and what it lets go is what
was complained of. A file that nobody is known to need is told of, and never proposed to be deleted.
"""

from __future__ import annotations

import datetime as dt
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from types import MappingProxyType
from typing import Final

from snaptree.model.estate import DiskSnapshot, ImageKey, Snapshot
from snaptree.model.growth import growth_of
from snaptree.model.merging import Elsewhere
from snaptree.model.text import size
from snaptree.model.troubles import Kind, Severity, Trouble, troubles_of_layers, troubles_of_tree, worst_first
from snaptree.plans.advice import (
    REMEDIES,
    WHY,
    Advice,
    Cure,
    HostAdvice,
    Observed,
    advice_on,
    advice_on_operation,
)
from snaptree.plans.facts import Facts, external_disks
from snaptree.plans.intention import Delete, Prune
from snaptree.plans.merge import layer_tree_of
from snaptree.plans.planner import make_plan
from snaptree.plans.policy import Period, Policy, Scope, decide, local_zone
from snaptree.plans.prune import depth_of, pruning_of
from snaptree.plans.rules_depth import MOST_LAYERS_TO_START, NESTING_SINCE, NESTING_UNTIL
from snaptree.plans.schedule_check import BrokenSchedule, SeenSchedule, check_broken, check_schedule
from snaptree.plans.situation import Situation, glance
from snaptree.plans.thresholds import Thresholds
from snaptree.plans.wording import files_named, listed, plain, quoted, snapshots_named, version

NEWEST: Final = 5
"""Snapshots that no cure deletes to make a chain shorter or to make room, if it can do without."""
_FASTEST: Final = 3
"""Machines of a host that are said to grow fast."""
_MOST_ASKED: Final = 10
"""Machines that may make room: those that write most."""
_TRIED: Final = 50
"""Snapshots of which a cure is planned before it is offered: rules that are in the way of all are in theirs, too."""
_SOON: Final = 3
"""Days in which somebody has to act at once."""
_DRIVERS: Final = ("QEMU",)
"""Others have no images, so of those nothing can be known."""


@dataclass(frozen=True, slots=True)
class Space:
    """A file system or storage pool, by the directories in it that hold layers."""

    directories: tuple[str, ...]
    free: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Stray:
    """An image beside the layers of machines that no machine of the host refers to."""

    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is around the machines of a host."""

    spaces: tuple[Space, ...] = ()
    strays: tuple[Stray, ...] = ()
    schedules: tuple[SeenSchedule | BrokenSchedule, ...] = ()
    """Those of the user's that are for this host."""
    unusable_file: str = ""
    """Why the user's file of policies can't be used at all, as a sentence; empty if it can."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a machine alone tells, and what it adds to its host."""

    observed: Observed
    advice: tuple[Advice, ...]
    bytes_per_day: int | None
    """None where its history does not say."""

    @property
    def directories(self) -> list[str]:
        """Where its disks are written to, one for each disk."""
        return [posixpath.dirname(chain.active) for chain in self.observed.layers.chains if chain.active is not None]


def check_machine(
    observed: Observed,
    thresholds: Thresholds,
    now: int,
    *,
    zone: dt.tzinfo | None = None,
    is_analysed: bool = True,
) -> Checked:
    """What there is to say about one machine. `now` is in seconds since 1970, UTC; `zone` is whose calendar counts.

    `is_analysed`: all that can be known of its images is.
    """
    growth = growth_of(observed.tree, observed.costs, now)
    found = _Check(observed, thresholds, now, zone).advice(is_analysed=is_analysed)
    return Checked(observed, worst_first(found), None if growth is None else growth.bytes_per_day)


def check_host(machines: Iterable[Checked], surroundings: Surroundings, thresholds: Thresholds, now: int) -> HostAdvice:
    """What there is to say about all machines of a host and what they share, with what each tells for itself."""
    every = list(machines)
    found = {machine.observed.domain.uuid: list(machine.advice) for machine in every}
    for uuid, advice in _fastest(every, thresholds):
        found[uuid].append(advice)
    shared = [
        *(advice for space in surroundings.spaces for advice in _space(space, every, thresholds, now)),
        *_strays(surroundings.strays),
        *_schedules(surroundings, now),
    ]
    by_machine = {uuid: worst_first(advice) for uuid, advice in found.items()}
    return HostAdvice(worst_first(shared), MappingProxyType(by_machine))


def side_by_side(machines: Sequence[Observed]) -> list[Observed]:
    """All machines of a host, each told which of its images the others need."""
    users: dict[ImageKey, set[str]] = {}
    for machine in machines:
        for key in machine.costs.images:
            users.setdefault(key, set()).add(machine.domain.name)
    return [replace(each, elsewhere=Elsewhere(MappingProxyType(_others(each, users)))) for each in machines]


def _others(machine: Observed, users: Mapping[ImageKey, set[str]]) -> dict[ImageKey, frozenset[str]]:
    ours = {machine.layers.key(path) for path in machine.layers.images}
    return {key: others for key in ours & users.keys() if (others := frozenset(users[key] - {machine.domain.name}))}


# One machine


class _Check:
    def __init__(self, observed: Observed, thresholds: Thresholds, now: int, zone: dt.tzinfo | None) -> None:
        self._observed = observed
        self._tree, self._layers = observed.tree, observed.layers
        self._thresholds = thresholds
        self._now = now
        self._zone = zone

    def advice(self, *, is_analysed: bool) -> list[Advice]:
        found = [*advice_on_operation(self._observed.unfinished)]
        most = self._thresholds.max_depth
        if self._starts_no_deep_machine:
            most = min(most, MOST_LAYERS_TO_START)
        layers = troubles_of_layers(self._tree, self._layers, most_layers=most)
        found += [self._on_layers(trouble, most) for trouble in layers]
        found += [self._on_tree(trouble) for trouble in troubles_of_tree(self._tree, is_complete=True)]
        found += [*self._stale(), *self._changed(), *self._held_by_nobody(), *self._old()]
        is_enough = any(each.severity > Severity.NOTE for each in found)
        return found if is_enough or not is_analysed else [*found, *self._unknown()]

    def _on_layers(self, trouble: Trouble, most: int) -> Advice:
        match trouble.kind:
            case Kind.DEEP_CHAIN:
                return self._deep(trouble, most)
            case Kind.MISSING_IMAGE if stale := self._frozen_in(trouble.about):
                cure, why_not = self._first([Delete(stale)])
                otherwise = why_not if cure is None else f"If it is gone for good, forget {snapshots_named(stale)}."
                return advice_on(trouble, cure, remedy=f"{REMEDIES[trouble.kind]} {otherwise}".strip())
        return advice_on(trouble)

    def _frozen_in(self, path: str) -> tuple[str, ...]:
        return tuple(each.name for each in self._tree if any(disk.frozen == path for disk in each.disks))

    def _on_tree(self, trouble: Trouble) -> Advice:
        if trouble.kind is Kind.HALF_DELETED and (children := self._tree.children(trouble.about)):
            cure, _ = self._first([Delete(tuple(children))])
            return advice_on(trouble, cure)
        if trouble.kind is Kind.MIXTURE:
            cure, _ = self._first([Delete((trouble.about,))])
            return advice_on(trouble, cure)
        return advice_on(trouble)

    @property
    def _starts_no_deep_machine(self) -> bool:
        """Whether this libvirt is one of those that `rules_depth.py` speaks of."""
        return NESTING_SINCE <= self._observed.host.libvirt_version < NESTING_UNTIL

    def _deep(self, trouble: Trouble, most: int) -> Advice:
        cure, remedy = self._shallower(most)
        advice = advice_on(trouble, cure, remedy=remedy)
        layers = max(len(chain.layers) for chain in self._layers.chains if chain.target == trouble.about)
        if not self._starts_no_deep_machine or layers <= MOST_LAYERS_TO_START:
            return advice
        why = (
            f"libvirt {version(self._observed.host.libvirt_version)} starts no machine on more than"
            f" {MOST_LAYERS_TO_START} layers: once stopped, it does not come up again."
        )
        return replace(advice, severity=Severity.ERROR, why=why)

    def _shallower(self, most: int) -> tuple[Cure | None, str]:
        """What makes no disk stand on more layers: of what schedules took if that is enough, else of all."""
        newest = MappingProxyType({Period.LAST: min(NEWEST, most - 1)})
        by_hand = Scope(by_hand=True)
        policies = [
            Policy(newest, maximum_depth=most),
            Policy(newest, maximum_depth=most, scope=by_hand),
            Policy(newest, maximum_depth=most, scope=by_hand, keep_forks=False),
        ]
        cure, why_not = self._first(Prune(policy) for policy in policies if self._reaches(policy, most))
        if cure is None and not why_not:
            why_not = "What it stands on is pinned, known good, or no snapshot's: unpin what can go."
        return cure, why_not

    def _reaches(self, policy: Policy, most: int) -> bool:
        return depth_of(layer_tree_of(self._situation), self._goes(policy)) <= most

    def _goes(self, policy: Policy) -> tuple[str, ...]:
        """What no rule of a policy keeps."""
        return _goes(policy, self._facts, self._zone)

    def _stale(self) -> Iterator[Advice]:
        """Internal snapshots that their image does not hold any more."""
        for snapshot in self._tree:
            gone = [path for path in _inside(snapshot) if self._facts.lacks(path, snapshot.name)]
            if not gone:
                continue
            does_not = "does not" if len(gone) == 1 else "do not"
            text = f"Snapshot {quoted(snapshot.name)} is listed, but {files_named(gone)} {does_not} hold it any more."
            trouble = Trouble(Severity.WARNING, text, Kind.STALE_SNAPSHOT, snapshot.name)
            cure, why_not = self._first([Delete((snapshot.name,))])
            yield advice_on(trouble, cure, remedy=why_not)

    def _changed(self) -> Iterator[Advice]:
        """Snapshots whose layer something may have been merged into behind libvirt's back."""
        facts = self._facts
        merged_away: dict[str, set[str]] = {}
        for link in facts.broken_links:
            if link.actual_below is not None:
                merged_away.setdefault(link.actual_below, set()).add(link.recorded_below)
        for layer, gone in sorted(merged_away.items()):
            if names := facts.frozen_by.get(layer):
                held_there = tuple(each.name for each in self._tree if not gone.isdisjoint(_frozen(facts, each)))
                cure, _ = self._first([Delete(held_there)] if held_there else [])
                which = f"Snapshot{'s' if len(names) > 1 else ''} {snapshots_named(names)}"
                text = f"{which} may not show what was there when it was taken: {plain(layer)} holds more by now."
                remedy = (
                    "If a layer was merged by hand, forget whose layer that was; what is left is marked as doubtful."
                )
                yield advice_on(Trouble(Severity.WARNING, text, Kind.STALE_SNAPSHOT, names[0]), cure, remedy=remedy)

    def _held_by_nobody(self) -> Iterator[Advice]:
        """Internal snapshots of which libvirt knows nothing, in images that are this machine's alone."""
        ours = {path for snapshot in self._tree for path in _inside(snapshot)}
        ours |= {layer for chain in self._layers.chains for layer in chain.layers}
        for path in sorted(ours & self._layers.images.keys()):
            if self._layers.key(path) in self._observed.elsewhere.users:
                continue
            names = [entry.name for entry in self._layers.images[path].internal_snapshots]
            unknown = [name for name in names if name not in self._tree]
            if unknown:
                text = f"The image {plain(path)} holds {snapshots_named(unknown)}, of which libvirt knows nothing."
                remedy = "If nobody needs it, qemu-img snapshot -d removes it while the machine is off."
                yield Advice(Kind.ORPHAN, Severity.NOTE, text, WHY[Kind.ORPHAN], remedy)

    def _old(self) -> Iterator[Advice]:
        """Snapshots that are kept for too long, if nobody said that they are to be: forks hold others together."""
        limit = self._thresholds.max_age
        latest = limit.before(dt.datetime.fromtimestamp(self._now, self._zone or local_zone())).timestamp()
        if all(snapshot.created > latest for snapshot in self._tree):
            return  # as it mostly is, and calendars take their time
        old = self._goes(Policy(maximum_depth=1, minimum_age=limit, scope=Scope(names=("*",), by_hand=True)))
        old = tuple(name for name in old if name != self._last_good)
        by_machines = tuple(name for name in old if _is_automatic(self._tree[name]))
        by_people = tuple(name for name in old if name not in by_machines)
        for names, severity, who in (
            (by_machines, Severity.WARNING, "that nobody took by hand"),
            (by_people, Severity.NOTE, "that nobody pinned"),
        ):
            if not names:
                continue
            verb, number = ("is", "A snapshot") if len(names) == 1 else ("are", f"{len(names):,} snapshots")
            text = f"{number} {who} {verb} older than {limit.in_words}: {snapshots_named(names)}."
            cure, why_not = self._first([self._without(names)])
            remedy = "Pin what is to stay." if cure is not None else why_not
            yield advice_on(Trouble(severity, text, Kind.OLD_SNAPSHOTS), cure, remedy=remedy)

    @property
    def _last_good(self) -> str | None:
        """The newest snapshot that somebody can rely on to go back to: nobody is told to delete that."""
        good = [each for each in self._tree if not each.problem and each.name not in self._facts.of_no_use]
        return max(good, key=lambda each: each.created).name if good else None

    def _without(self, old: tuple[str, ...]) -> Prune | Delete:
        """What makes exactly these go: a policy if one says it."""
        newest = MappingProxyType({Period.LAST: 1})
        for scope in (Scope(), Scope(by_hand=True)):
            policy = Policy(newest, minimum_age=self._thresholds.max_age, scope=scope)
            if self._goes(policy) == old:
                return Prune(policy)
        return Delete(old)

    def _unknown(self) -> Iterator[Advice]:
        if self._observed.host.driver not in _DRIVERS:
            return
        frees = {name: cost.frees for name, cost in self._observed.costs.snapshots.items()}
        unknown = [name for name, figure in frees.items() if not figure.is_known]
        if unknown:
            text = f"What deleting {snapshots_named(unknown)} gives back is not known: {plain(frees[unknown[0]].how)}."
            yield advice_on(Trouble(Severity.NOTE, text, Kind.UNKNOWN_COST))

    # Cures

    @cached_property
    def _situation(self) -> Situation:
        return _situation(self._observed, self._now)

    @cached_property
    def _facts(self) -> Facts:
        return Facts(self._situation)

    def _first(self, intentions: Iterable[Prune | Delete]) -> tuple[Cure | None, str]:
        """The first of these that can be done as far as is known; else why the first one can't."""
        return _first(self._observed, self._situation, intentions)


def _situation(observed: Observed, now: int) -> Situation:
    seen = glance(
        observed.host, observed.domain, observed.tree, observed.layers, observed.unfinished, observed.elsewhere
    )
    return replace(seen, now=now)


def _first(observed: Observed, seen: Situation, intentions: Iterable[Prune | Delete]) -> tuple[Cure | None, str]:
    why_not = ""
    for intention in intentions:
        plan = make_plan(_trial(intention, seen), seen)
        if plan.steps and not plan.is_refused:
            return Cure(observed.domain.uuid, observed.domain.name, intention), ""
        for refusal in plan.refusals:
            why_not = why_not or f"{refusal.reason} {refusal.remedy}".strip()
    return None, why_not


def _trial(intention: Prune | Delete, seen: Situation) -> Prune | Delete:
    """What is planned to see whether an intention can be had: of a few snapshots, as a thousand take their time."""
    goes = intention.snapshots if isinstance(intention, Delete) else _goes(intention.policy, Facts(seen))
    return intention if len(goes) <= _TRIED else Delete(goes[:_TRIED])


def _goes(policy: Policy, facts: Facts, zone: dt.tzinfo | None = None) -> tuple[str, ...]:
    """What no rule of a policy keeps."""
    seen = facts.situation
    decisions = decide(policy, seen.tree, seen.now, of_no_use=facts.of_no_use, zone=zone)
    return tuple(name for name, decision in decisions.items() if not decision.keeps)


def _frozen(facts: Facts, snapshot: Snapshot) -> frozenset[str]:
    """The layers that hold it."""
    return facts.keys(disk.frozen for disk in external_disks(snapshot))


def _inside(snapshot: Snapshot) -> list[str]:
    """The images that hold it."""
    return [disk.frozen for disk in snapshot.disks if disk.how is DiskSnapshot.INTERNAL and disk.frozen]


def _is_automatic(snapshot: Snapshot) -> bool:
    return bool(snapshot.annotations.schedule) or snapshot.annotations.safety


# All of a host


def _fastest(machines: Sequence[Checked], thresholds: Thresholds) -> Iterator[tuple[str, Advice]]:
    growing = sorted((each for each in machines if each.bytes_per_day), key=lambda each: -(each.bytes_per_day or 0))
    for machine in growing[:_FASTEST]:
        rate = machine.bytes_per_day or 0
        if rate <= thresholds.max_growth:
            return
        trouble = Trouble(Severity.NOTE, f"Its guest writes {size(rate)} a day.", Kind.FAST_GROWTH)
        remedy = "Keep fewer snapshots of it, or see what in the guest writes so much."
        yield machine.observed.domain.uuid, advice_on(trouble, remedy=remedy)


def _space(space: Space, machines: Sequence[Checked], thresholds: Thresholds, now: int) -> Iterator[Advice]:
    """Whether a file system is full soon if machines go on like that. All disks of one are taken to write alike."""
    rates = [(rate, each) for each in machines if (rate := _rate_in(space, each)) > 0]
    rates.sort(key=lambda pair: -pair[0])
    total = sum(rate for rate, _ in rates)
    if not total or space.free >= thresholds.days_left * total:
        return
    days = space.free / total
    severity = Severity.ERROR if days < _SOON else Severity.WARNING
    most = ", ".join(f"{plain(each.observed.domain.name)} {size(rate)}" for rate, each in rates[:_FASTEST])
    when = "in less than a day" if days < 1 else f"in {int(days)} days" if days >= 2 else "in a day"
    text = (
        f"{listed(space.directories, plain)}: full {when}. {size(space.free)} are free, and machines write"
        f" {size(total)} there a day: {most}."
    )
    needed = ceil(thresholds.days_left * total - space.free)
    cure, remedy = _roomier([each for _, each in rates[:_MOST_ASKED]], needed, total, now)
    yield advice_on(Trouble(severity, text, Kind.LOW_SPACE), cure, remedy=remedy)


def _rate_in(space: Space, machine: Checked) -> float:
    """Bytes that a machine writes there a day."""
    directories = machine.directories
    if not machine.bytes_per_day or not directories:
        return 0.0
    there = sum(directory in space.directories for directory in directories)
    return machine.bytes_per_day * there / len(directories)


def _roomier(machines: Sequence[Checked], needed: int, rate: float, now: int) -> tuple[Cure | None, str]:
    """What gives so much back, or else the most: pruning one machine."""
    newest = MappingProxyType({Period.LAST: NEWEST})
    most, best = 0, None
    for scope in (Scope(), Scope(by_hand=True)):
        for machine in machines:
            observed, seen = machine.observed, _situation(machine.observed, now)
            frees = pruning_of(Prune(Policy(newest, scope=scope)), seen).cost.frees.bytes or 0
            policy = Policy(newest, free_at_least=needed if frees >= needed else None, scope=scope)
            if frees <= most or (cure := _first(observed, seen, [Prune(policy)])[0]) is None:
                continue
            most, best = frees, cure
            if frees >= needed:
                return cure, ""
    if best is None:
        return None, "Delete what nobody needs there, or give it more room."
    days = f"{most / rate:.0f}" if most >= rate else "less than one"
    return best, f"Pruning {plain(best.domain)} gives back {size(most)}, enough for {days} more days: not all it takes."


def _strays(strays: Iterable[Stray]) -> Iterator[Advice]:
    for stray in strays:
        text = f"Nothing on this host refers to the image {plain(stray.path)}, which takes {size(stray.bytes)}."
        remedy = "Another host may need it, or a person. SnapTree does not delete what it can't prove to be unneeded."
        yield Advice(Kind.ORPHAN, Severity.NOTE, text, WHY[Kind.ORPHAN], remedy)


def _schedules(surroundings: Surroundings, now: int) -> Iterator[Advice]:
    if surroundings.unusable_file:
        text = f"The file of policies can't be used: {plain(surroundings.unusable_file)}"
        yield advice_on(Trouble(Severity.WARNING, text, Kind.POLICY_FILE), remedy="Mend the file.")
    for schedule in surroundings.schedules:
        if isinstance(schedule, BrokenSchedule):
            yield check_broken(schedule)
        else:
            yield from check_schedule(schedule, now)
