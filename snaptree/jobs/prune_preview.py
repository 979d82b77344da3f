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
from snaptree.plans.policy import Policy
from snaptree.plans.policy_file import PolicyFile
from snaptree.plans.prune import Pruning, prune_together

_PREVIEW = "preview"


@dataclass(frozen=True, slots=True)
class WorkedOut:
    """What a question came to: by machine, as it was named there."""

    number: int
    """Of the question; the last one asked is the one that counts."""
    prunings: Mapping[str, Pruning]


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

    def ask(self, policy: Policy, machines: Mapping[str, tuple[LayerTree, Mapping[str, str]]]) -> None:
        """Ask what a policy comes to on these machines, each with what else is to be kept. `worked_out` answers."""
        self.asked += 1
        number, now = self.asked, int(time.time())

        def work(_should_stop: ShouldStop) -> WorkedOut:
            found = prune_together(policy, list(machines.values()), now)
            return WorkedOut(number, dict(zip(machines, found, strict=True)))

        self._worker.submit(work, on_done=self.worked_out.emit, on_failed=_raise, priority=Priority.USER, key=_PREVIEW)

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
