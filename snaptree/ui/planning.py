"""Asking a host's backend for plans: only the answer to the last question counts."""

from __future__ import annotations

import datetime as dt
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from snaptree.plans.intention import Revert, Take

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from snaptree.model.errors import SnapTreeError
    from snaptree.plans.group import GroupPlan
    from snaptree.plans.hours import Hours
    from snaptree.plans.intention import Intention, Prune
    from snaptree.plans.operation import Operation
    from snaptree.plans.plan import Plan
    from snaptree.plans.prune_many import PlannedPrune, PlansInTurn
    from snaptree.plans.situation import Situation
    from snaptree.ui.estate import HostEntry

_Answer = TypeVar("_Answer")

WITHOUT_WINDOW: Final = "A schedule prunes without a window: snaptree schedule add."
STAYS_OPEN: Final = f"The window has to stay open for that. {WITHOUT_WINDOW}"
"""What is said wherever something is to wait for its hours."""


class PlanMaker(Protocol):
    """A `Planner`, a `GroupPlanner` or a `PrunePlanner`, for who shows what it makes and hands that back."""

    def make(self, intention: Intention, on_ready: Callable[[Any], None]) -> None:
        """Ask for a plan."""

    def forget(self) -> None:
        """Drop every answer that is still to come."""

    def run(self, plan: Any) -> None:
        """Let the host run what was made."""


class Planner:
    """Makes plans for one machine. Nothing waits: the answer comes to the callback, unless a later question was put."""

    def __init__(self, host: HostEntry, uuid: str, undoes: Operation | None = None) -> None:
        """`undoes` is the operation that the plans take back."""
        self._host = host
        self._uuid = uuid
        self._undoes = undoes
        self._question = 0

    def make(self, intention: Intention, on_ready: Callable[[Plan | SnapTreeError], None]) -> None:
        """Ask for a plan; answers to earlier questions are dropped from now on."""
        self._host.backend.planner.plan(self._uuid, intention, self._if_last(on_ready))

    def make_takes(
        self, intentions: tuple[Take, ...], on_ready: Callable[[tuple[Plan, ...] | SnapTreeError], None]
    ) -> None:
        """Ask for plans of several ways of taking a snapshot at once, as `make` does for one."""
        self._host.backend.planner.plan_takes(self._uuid, intentions, self._if_last(on_ready))

    def _if_last(self, on_ready: Callable[[_Answer], None]) -> Callable[[_Answer], None]:
        self._question += 1
        question = self._question

        def answer(result: _Answer) -> None:
            if question == self._question:
                on_ready(result)

        return answer

    def forget(self) -> None:
        """Drop every answer that is still to come."""
        self._question += 1

    def run(self, plan: Plan) -> None:
        """Let the host run a plan."""
        self._host.backend.run(plan, undoes=self._undoes)


class GroupPlanner:
    """As `Planner`, for several machines of a host together."""

    def __init__(
        self, host: HostEntry, uuids: Sequence[str] = (), *, group: str = "", undoes: Sequence[Operation] = ()
    ) -> None:
        """`group` is what they are reverted to, `undoes` what was done together and is taken back."""
        self._host = host
        self._group = group
        self._undoes = undoes
        self.uuids = tuple(each.plan.domain_uuid for each in undoes) or tuple(uuids)
        """In the order in which they have their turns; another one holds for what is planned next."""
        self._question = 0

    def make(self, intention: Intention, on_ready: Callable[[GroupPlan | SnapTreeError], None]) -> None:
        """Ask for plans; answers to earlier questions are dropped from now on. `intention` holds for each machine."""
        self._question += 1
        question = self._question

        def answer(result: GroupPlan | SnapTreeError) -> None:
            if question == self._question:
                on_ready(result)

        self._host.backend.planner.plan_group(self.uuids, partial(self._plan, intention), answer)

    def _plan(self, intention: Intention, situations: Sequence[Situation]) -> GroupPlan:
        """On another thread."""
        from snaptree.plans.group_planning import plan_group_revert, plan_group_take, plan_group_undo  # with all rules

        match intention:
            case Take():
                return plan_group_take(intention, situations)
            case Revert():
                return plan_group_revert(self._group, intention, situations)
            case _:
                return plan_group_undo(self._undoes, situations)

    def forget(self) -> None:
        """Drop every answer that is still to come."""
        self._question += 1

    def run(self, plan: GroupPlan) -> None:
        """Let the host run plans together."""
        self._host.backend.run_group(plan, undoes={each.plan.domain_uuid: each for each in self._undoes})


class PrunePlanner:
    """As `Planner`, for several machines of a host that are pruned one after the other, each for itself."""

    def __init__(
        self,
        host: HostEntry,
        wanted: Mapping[str, Prune],
        *,
        limit: int | None = None,
        between: Hours | None = None,
    ) -> None:
        """`wanted` is by UUID, in their order; `limit` in bytes per second."""
        self._host = host
        self._wanted = wanted
        self._limit = limit
        self._between = between
        self._planned: tuple[PlannedPrune, ...] = ()
        self._plans: PlansInTurn | None = None
        self._is_forgotten = False

    def make(self, _intention: Intention, on_ready: Callable[[PlansInTurn | SnapTreeError], None]) -> None:
        """Ask for plans, once."""

        def answer(result: tuple[tuple[PlannedPrune, ...], tuple[Plan, ...]] | SnapTreeError) -> None:
            if self._is_forgotten:
                return
            if isinstance(result, tuple):
                from snaptree.plans.prune_many import in_turn  # with all rules

                self._planned, unread = result
                self._plans = in_turn([*(each.plan for each in self._planned), *unread], when=self._when())
                on_ready(self._plans)
            else:
                on_ready(result)

        self._host.backend.planner.plan_prunes(self._wanted, answer)

    def refused(self) -> tuple[Plan, ...]:
        """The plans by which nothing goes, once there are any, each with the reason."""
        return () if self._plans is None else self._plans.left_out

    def _when(self) -> str:
        """What the hours mean, as of now."""
        if self._between is None:
            return ""
        number = sum(1 for each in self._planned if each.plan.steps)
        foretold = self._between.foretold(dt.datetime.now().astimezone(), waits=True, machines=number)
        return f"{foretold} {STAYS_OPEN}"

    def forget(self) -> None:
        """Drop the answer if it is still to come."""
        self._is_forgotten = True

    def run(self, plan: PlansInTurn) -> None:
        """Let the host prune one machine after the other, and tell of those that are left out."""
        for refused in plan.left_out:
            self._host.backend.leave_out(refused)
        for each in self._planned:
            if each.plan.steps:
                self._host.backend.prune(each, limit=self._limit, between=self._between)
