"""Asking a host's backend for plans: only the answer to the last question counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from snaptree.model.errors import SnapTreeError
    from snaptree.plans.intention import Intention, Take
    from snaptree.plans.operation import Operation
    from snaptree.plans.plan import Plan
    from snaptree.ui.estate import HostEntry

_Answer = TypeVar("_Answer")


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
        self._host.backend.plan(self._uuid, intention, self._if_last(on_ready))

    def make_takes(
        self, intentions: tuple[Take, ...], on_ready: Callable[[tuple[Plan, ...] | SnapTreeError], None]
    ) -> None:
        """Ask for plans of several ways of taking a snapshot at once, as `make` does for one."""
        self._host.backend.plan_takes(self._uuid, intentions, self._if_last(on_ready))

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
