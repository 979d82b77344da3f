"""A backend under test, and somebody else who changes the same host meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest
from pytestqt.qtbot import QtBot

from snaptree.hosts import event_loop, watching
from snaptree.jobs import host_backend
from snaptree.jobs.host_backend import CostReading, HostBackend, Phase, TreeReading
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Domain
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan

TIMEOUT_MS = 30_000

DOMAIN = "<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"


class Listener:
    """Opens a backend, hears all its signals in order, and closes it at the end."""

    def __init__(self, qtbot: QtBot, backend: HostBackend) -> None:
        self.qtbot = qtbot
        self.backend = backend
        self.phases: list[Phase] = []
        self.lists: list[tuple[Domain, ...]] = []
        self.trees: list[tuple[str, TreeReading]] = []
        self.costs: list[tuple[str, CostReading]] = []
        self.failures: list[tuple[str, SnapTreeError]] = []
        self.operations: list[Operation] = []
        backend.host_changed.connect(lambda status: self.phases.append(status.phase))
        backend.domains_changed.connect(self.lists.append)
        backend.tree_changed.connect(lambda uuid, reading: self.trees.append((uuid, reading)))
        backend.costs_changed.connect(lambda uuid, reading: self.costs.append((uuid, reading)))
        backend.reading_failed.connect(lambda uuid, error: self.failures.append((uuid, error)))
        backend.operation_changed.connect(self.operations.append)

    def until(self, condition: Callable[[], object]) -> None:
        """Let the event loop run until something holds."""
        self.qtbot.waitUntil(lambda: bool(condition()), timeout=TIMEOUT_MS)

    def open(self) -> None:
        """Connect, and wait until the machines are listed."""
        self.backend.open()
        self.until(lambda: self.lists or self.backend.status.phase is Phase.FAILED)
        error = self.backend.status.error
        assert self.lists, error and f"{error} {error.details}"

    def uuid(self, name: str) -> str:
        return next(domain.uuid for domain in self.backend.domains() if domain.name == name)

    def names(self, uuid: str) -> list[str]:
        """The snapshots that are shown of a machine, in reading order."""
        tree = self.backend.tree(uuid)
        return [] if tree is None else list(tree.snapshots)

    def settle(self) -> None:
        """Wait until all machines have been read and measured."""
        self.until(lambda: all(self.backend.costs(domain.uuid) for domain in self.backend.domains()))

    def forget(self) -> None:
        """Begin to listen afresh."""
        for heard in (self.phases, self.lists, self.trees, self.costs, self.failures, self.operations):
            heard.clear()

    def plan(self, uuid: str, intention: Any) -> Plan:
        """Ask for a plan, wait for it, and expect it not to be refused."""
        answers: list[Plan | SnapTreeError] = []
        self.backend.planner.plan(uuid, intention, answers.append)
        self.until(lambda: answers)
        (plan,) = answers
        assert isinstance(plan, Plan), plan
        assert not plan.is_refused, plan.refusals
        return plan


@pytest.fixture
def listen(qtbot: QtBot) -> Iterator[Callable[..., Listener]]:
    """Make listeners; their backends are closed, with all threads ended, when the test is over."""
    listeners: list[Listener] = []

    def make(uri: str, **options: Any) -> Listener:
        listeners.append(Listener(qtbot, HostBackend(uri, **options)))
        return listeners[-1]

    yield make
    for listener in listeners:
        listener.backend.close()
        assert listener.backend.wait_until_closed(20)
        listener.backend.deleteLater()


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for changes often, so that tests need not wait long."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(host_backend, "LOOK_ELSEWHERE_MS", 50)


@pytest.fixture
def virsh() -> Iterator[Any]:
    """Somebody else, who uses libvirt's test driver in this process as the backend does."""
    event_loop.start()
    other = libvirt.open("test:///default")
    yield other
    other.close()
