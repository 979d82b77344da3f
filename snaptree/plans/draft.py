"""A plan being put together: each step is judged on the situation that those before it leave."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType

from snaptree.model.errors import VanishedError
from snaptree.model.estate import Snapshot
from snaptree.model.settings import SettingChange
from snaptree.model.tree import SnapshotTree
from snaptree.plans import rules
from snaptree.plans.aftermath import after
from snaptree.plans.facts import Facts
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    Finding,
    Forecast,
    ForgetMemory,
    ForkAtSnapshot,
    MakeLook,
    MergeLayers,
    Plan,
    RecordLayers,
    RemoveLeftover,
    RenameSnapshot,
    RevertToSnapshot,
    Step,
    TakeSnapshot,
    Undo,
)
from snaptree.plans.rule import Case, action_of
from snaptree.plans.rules_plan import LAST_GOOD, LAST_TRACE
from snaptree.plans.situation import Situation
from snaptree.plans.wording import MOST_NAMED, plain, quoted, snapshots_named

_NAMING = (
    TakeSnapshot | RevertToSnapshot | ForkAtSnapshot | DeleteSnapshot | ForgetMemory | DescribeSnapshot | RenameSnapshot
)
"""Steps that say which snapshot they are about."""
_OTHERWISE_TIMED = DeleteSnapshot | MergeLayers | RecordLayers | ForgetMemory | DescribeSnapshot | RenameSnapshot
"""Steps of which their planners know how long they take."""


class Draft:
    """Steps so far, what rules said about them, and the `situation` they lead to."""

    def __init__(self, action: Action, situation: Situation) -> None:
        self.start = situation
        self.situation = situation
        self.facts = self._facts_of_start = Facts(situation)
        self._action = action
        self._steps: list[Step] = []
        self._warnings: dict[Finding, None] = {}
        self._refusals: dict[Finding, None] = {}

    def copy(self) -> Draft:
        """The same so far: to try something that may be given up again."""
        twin = Draft(self._action, self.start)
        twin._facts_of_start = self._facts_of_start
        twin.take_over(self)
        return twin

    def has_nothing_new_against(self, other: Draft) -> bool:
        """Whether no rule refused anything here that it did not refuse there."""
        return self._refusals.keys() == other._refusals.keys()

    def take_over(self, other: Draft) -> None:
        """Go on from where a copy has got to."""
        self.situation, self.facts = other.situation, other.facts
        self._steps = list(other._steps)
        self._warnings, self._refusals = dict(other._warnings), dict(other._refusals)

    def case(
        self,
        step: Step,
        *,
        name: str | None = None,
        batch: tuple[str, ...] = (),
        safety: str | None = None,
        wants_memory: bool = False,
        obsolete: frozenset[str] = frozenset(),
        deleting: frozenset[str] = frozenset(),
        places: tuple[str, ...] = (),
    ) -> Case:
        """What rules are asked about, if this were the next step. `name`: the snapshot, where the step names none."""
        if isinstance(step, _NAMING):
            name = step.name
        elif isinstance(step, CopyOut | MakeLook):
            name = step.snapshot
        return Case(
            self.situation,
            self.facts,
            action_of(step),
            name,
            step,
            batch,
            safety,
            wants_memory,
            obsolete=obsolete,
            deleting=deleting,
            places=places,
            takes_back=self._action is Action.UNDO,
        )

    def add(self, case: Case) -> None:
        """Judge a step, and append it or note why not."""
        self.refuse(*self.try_add(case))

    def try_add(self, case: Case) -> tuple[Finding, ...]:
        """Append a step with its warnings if no rule refuses it; else say which do, without noting it."""
        assert case.step is not None
        problems = rules.refusals(case)
        if not problems:
            self.warn(*rules.warnings(case))
            self.add_unjudged(case.step)
        return problems

    def judge(self, case: Case) -> None:
        """Note what rules say about a step, without appending it."""
        self.refuse(*rules.refusals(case))
        self.warn(*rules.warnings(case))

    def add_unjudged(self, *steps: Step) -> None:
        """Append steps that need no judging."""
        self._steps += steps
        self.situation = after(self.situation, *steps)
        self.facts = Facts(self.situation)

    def add_done(self, step: Step) -> None:
        """Append a step whose work is in the situation already."""
        self._steps.append(step)

    def refuse(self, *findings: Finding) -> None:
        """Note reasons why this plan can't run, each once."""
        self._refusals |= dict.fromkeys(findings)

    def warn(self, *findings: Finding) -> None:
        """Note what somebody should know, each once."""
        self._warnings |= dict.fromkeys(findings)

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """Why this plan can't run."""
        return tuple(self._refusals)

    @property
    def is_refused(self) -> bool:
        """Whether any rule forbids this."""
        return bool(self._refusals)

    def plan(self, snapshots: tuple[str, ...], forecast: Forecast, undo: Undo | None) -> Plan:
        """The finished plan. A refused one has no steps."""
        start = self.start
        marks = self._marks_of_traces()
        self._warn_of_the_last_good()
        forecast = self._with_times(forecast)
        return Plan(
            action=self._action,
            host_uri=start.host.uri,
            domain_uuid=start.domain.uuid,
            domain=start.domain.name,
            snapshots=snapshots,
            steps=() if self.is_refused else (*marks, *self._steps),
            forecast=Forecast() if self.is_refused else forecast,
            warnings=() if self.is_refused else tuple(self._warnings),
            refusals=tuple(self._refusals),
            undo=None if self.is_refused else undo,
            expected_chains=MappingProxyType({chain.target: chain.layers for chain in start.layers.chains}),
            settings=() if self.is_refused else self._settings(),
        )

    def _marks_of_traces(self) -> tuple[Step, ...]:
        """What marks snapshots as doubtful, first of all, of which nothing would tell it any more after these steps.

        What is finished was marked when it began.
        """
        suspects = self._facts_of_start.written_to_since
        if self.is_refused or self._action is Action.FINISH or not suspects:
            return ()
        tree = self.situation.tree
        lost = [name for name in tree.snapshots if name in suspects and not self.facts.is_written_to_since(tree[name])]
        unmarked = [name for name in lost if not tree[name].annotations.doubtful]
        if not unmarked:
            return ()
        ahead = Draft(self._action, self.start)
        said = {name: self.start.tree[name].remarks for name in unmarked}
        marks = tuple(DescribeSnapshot(name, before, replace(before, doubtful=True)) for name, before in said.items())
        for mark in marks:
            ahead.add(ahead.case(mark))
        self.refuse(*ahead.refusals)
        self.warn(LAST_TRACE.say(self.case(marks[0]), {"names": snapshots_named(unmarked)}))
        return marks

    def _warn_of_the_last_good(self) -> None:
        """Say so if nothing is left that anybody can go back to, but snapshots that look as if."""
        if self.is_refused or self._action not in (Action.DELETE, Action.PRUNE):
            return
        left, of_no_use = self.situation.tree.snapshots, self._facts_of_start.of_no_use
        good = {each.name for each in self.start.tree if not each.problem}.difference(of_no_use)
        if left and good and good.isdisjoint(left):
            case = self.case(DeleteSnapshot(next(iter(left)), (), merges=False))
            self.warn(LAST_GOOD.say(case, {"left": snapshots_named(left)}))

    def _settings(self) -> tuple[SettingChange, ...]:
        """What the last revert makes of the machine's settings."""
        reverts = [step.name for step in self._steps if isinstance(step, RevertToSnapshot | ForkAtSnapshot)]
        return self.start.settings.get(reverts[-1], ()) if reverts else ()

    def _with_times(self, forecast: Forecast) -> Forecast:
        """Add how long takes and reverts take, which others know for themselves; and how long the guest is away."""
        speed = self.start.speed
        pause = speed.pause_of(self._steps) if self.start.domain.state.is_active else 0.0
        forecast = replace(forecast, pause_seconds=pause)
        steps = [step for step in self._steps if not isinstance(step, _OTHERWISE_TIMED)]
        if not steps or all(isinstance(step, RemoveLeftover) for step in steps):
            return forecast
        seconds = speed.seconds_of(steps)
        if len(steps) < len(self._steps):
            seconds = None if seconds is None or forecast.seconds is None else seconds + forecast.seconds
        return replace(forecast, seconds=seconds)


def find_snapshot(situation: Situation, name: str) -> Snapshot:
    """A snapshot by name. Raises VanishedError if the machine has none of that name."""
    return snapshot_named(situation.domain.name, situation.tree, name)


def snapshot_named(domain: str, tree: SnapshotTree, name: str) -> Snapshot:
    """As `find_snapshot`, for who knows the tree only."""
    snapshot = tree.snapshots.get(name)
    if snapshot is None:
        raise VanishedError(
            f"{plain(domain)} has no snapshot named {quoted(name)}.",
            hint=f"It may have been deleted meanwhile. {_there_are(tree, name)}",
        )
    return snapshot


def _there_are(tree: SnapshotTree, name: str) -> str:
    """Snapshots that exist, those with the most similar names first."""
    if not len(tree):
        return "There are none."
    by_folded = {known.casefold(): known for known in tree.snapshots}
    close = [by_folded[folded] for folded in get_close_matches(name.casefold(), by_folded, n=MOST_NAMED)]
    return f"There are: {snapshots_named(dict.fromkeys([*close, *tree.snapshots]))}."
