"""What a policy comes to, worked out on a thread of its own while somebody changes it: the newest question wins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PySide6.QtCore import QObject, Qt, Signal, Slot

from snaptree.hosts.policies import load_policies
from snaptree.jobs.postman import Postman
from snaptree.jobs.worker import Priority, ShouldStop, Worker
from snaptree.model.errors import SnapTreeError
from snaptree.model.merging import LayerTree
from snaptree.plans.plan import Finding
from snaptree.plans.policy import Policy
from snaptree.plans.policy_file import PolicyFile
from snaptree.plans.prune import ASKED_ABOUT, Pruning, likely_refusal, prune_together
from snaptree.plans.situation import Situation

_PREVIEW = "preview"


@dataclass(frozen=True, slots=True)
class WorkedOut:
    """What a question came to: by machine, as it was named there."""

    number: int
    """Of the question; the last one asked is the one that counts."""
    prunings: Mapping[str, Pruning]
    refusals: Mapping[str, Finding]
    """Of those machines of which a rule is known to let nothing go."""


@dataclass(frozen=True, slots=True)
class Known:
    """A machine as it is known now, without asking its host."""

    situation: Situation
    layer_tree: LayerTree


class PrunePreview(QObject):
    """Answers questions of a window. Nothing waits: while one is worked out, only the newest of the others is kept."""

    worked_out = Signal(object)
    """WorkedOut"""
    policies_read = Signal(object)
    """PolicyFile, or the SnapTreeError that says why there is none."""

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._postman = Postman()
        self._postman.posted.connect(self._run_posted, Qt.ConnectionType.QueuedConnection)
        self._worker = Worker("preview of a prune", self._postman.post)
        self.asked = 0
        """The number of the last question."""
        self._judged: dict[str, tuple[Known, tuple[str, ...], Finding | None]] = {}
        """The worker's: what was in the way of a machine last, and of which snapshots."""

    def ask(self, policy: Policy, machines: Mapping[str, tuple[Known, Mapping[str, str]]]) -> None:
        """Ask what a policy comes to on these machines, each with what else is to be kept. `worked_out` answers."""
        self.asked += 1
        number, now = self.asked, int(time.time())

        def work(_should_stop: ShouldStop) -> WorkedOut:
            found = prune_together(policy, [(known.layer_tree, kept) for known, kept in machines.values()], now)
            prunings = dict(zip(machines, found, strict=True))
            refusals = {uuid: self._refusal(uuid, machines[uuid][0], pruning) for uuid, pruning in prunings.items()}
            return WorkedOut(number, prunings, {uuid: why for uuid, why in refusals.items() if why is not None})

        self._worker.submit(work, on_done=self.worked_out.emit, on_failed=_raise, priority=Priority.USER, key=_PREVIEW)

    def _refusal(self, uuid: str, known: Known, pruning: Pruning) -> Finding | None:
        """On the worker: while a slider moves, it is mostly about the same ones that go first."""
        few = pruning.goes[:ASKED_ABOUT]
        judged = self._judged.get(uuid)
        if judged is None or judged[0] is not known or judged[1] != few:
            judged = self._judged[uuid] = known, few, likely_refusal(few, known.situation, known.layer_tree)
        return judged[2]

    def read_policies(self) -> None:
        """Read the user's file of policies. `policies_read` answers."""

        def work(_should_stop: ShouldStop) -> PolicyFile:
            return load_policies()

        tell = self.policies_read.emit
        self._worker.submit(work, on_done=tell, on_failed=tell, priority=Priority.USER)

    def close(self) -> None:
        """Answer nothing any more."""
        self._worker.close()

    @Slot(object)
    def _run_posted(self, call: Callable[[], None]) -> None:
        call()


def _raise(error: SnapTreeError) -> None:
    raise error
