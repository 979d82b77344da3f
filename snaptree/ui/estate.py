"""The hosts that the window is connected to, in one place: views hear of changes here, whichever host they are on."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject, Signal

from snaptree.plans.advice import HostAdvice
from snaptree.ui.machine import Machine, MachineId

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from snaptree.jobs.host_backend import CostReading, CredentialsRequest, HostBackend, HostStatus, TreeReading
    from snaptree.model.errors import SnapTreeError
    from snaptree.model.estate import Domain
    from snaptree.plans.advice import Advice
    from snaptree.plans.operation import Operation


class HostEntry(QObject):
    """One host of the estate: its backend, and the last that was heard from it."""

    changed = Signal(str)
    machines_changed = Signal(str)
    machine_changed = Signal(object)
    operation_changed = Signal(str, object)
    done_elsewhere = Signal(str, object)
    history_read = Signal(str, object)
    credentials_needed = Signal(object)

    def __init__(self, backend: HostBackend, label: str, parent: QObject) -> None:
        super().__init__(parent)
        self.backend = backend
        self.label = label
        """What to call the host instead of its address; empty for its address."""
        self.status: HostStatus = backend.status
        self._domains: dict[str, Domain] = {}
        self._readings: dict[str, TreeReading] = {}
        self._costs: dict[str, CostReading] = {}
        self._errors: dict[str, SnapTreeError] = {}
        self._unfinished: Mapping[str, Operation] = {}
        self._advice: HostAdvice | None = None
        self._groups: dict[str, set[str]] = {}
        """Group -> machines, by UUID, that have a snapshot of it."""
        self._machines: dict[str, Machine] = {}
        backend.setParent(self)
        backend.host_changed.connect(self._host_changed)
        backend.domains_changed.connect(self._domains_changed)
        backend.tree_changed.connect(self._tree_changed)
        backend.costs_changed.connect(self._costs_changed)
        backend.reading_failed.connect(self._reading_failed)
        backend.operation_changed.connect(self._operation_changed)
        backend.done_elsewhere.connect(self._done_elsewhere)
        backend.history_read.connect(self._history_read)
        backend.unfinished_changed.connect(self._unfinished_changed)
        backend.advice_changed.connect(self._advice_changed)
        backend.credentials_needed.connect(self._credentials_needed)

    @property
    def uri(self) -> str:
        """The host's address."""
        return self.backend.uri

    def machines(self) -> tuple[Machine, ...]:
        """Its machines, as libvirt lists them."""
        return tuple(machine for uuid in self._domains if (machine := self.machine(uuid)) is not None)

    @property
    def findings(self) -> tuple[Advice, ...]:
        """What should be looked at of what its machines share, the worst first."""
        return () if self._advice is None else self._advice.host

    def machine(self, uuid: str) -> Machine | None:
        """What is known of one machine; None if the host does not have it."""
        domain = self._domains.get(uuid)
        if domain is None:
            return None
        machine = self._machines.get(uuid)
        if machine is None:
            machine = self._machines[uuid] = Machine(
                id=MachineId(self.uri, uuid),
                host=self.status,
                domain=domain,
                reading=self._readings.get(uuid),
                costs=self._costs.get(uuid),
                error=self._errors.get(uuid),
                unfinished=self._unfinished.get(uuid),
                advice=None if self._advice is None else self._advice.machines.get(uuid),
                together=MappingProxyType({group: self._together(group) for group in self._groups_of(uuid)}),
            )
        return machine

    def _groups_of(self, uuid: str) -> frozenset[str]:
        return frozenset(group for group, members in self._groups.items() if uuid in members)

    def _together(self, group: str) -> tuple[Domain, ...]:
        members = [domain for uuid, domain in self._domains.items() if uuid in self._groups[group]]
        return tuple(sorted(members, key=lambda domain: domain.name))

    def _host_changed(self, status: HostStatus) -> None:
        self.status = status
        self._machines.clear()
        self.changed.emit(self.uri)

    def _domains_changed(self, domains: tuple[Domain, ...]) -> None:
        before = self._domains
        self._domains = {domain.uuid: domain for domain in domains}
        for uuid in before.keys() | self._domains.keys():
            if before.get(uuid) != self._domains.get(uuid):
                self._machines.pop(uuid, None)
        for uuid in before.keys() - self._domains.keys():
            self._readings.pop(uuid, None)
            self._costs.pop(uuid, None)
            self._errors.pop(uuid, None)
            self._regroup(uuid, frozenset())
        self.machines_changed.emit(self.uri)

    def _tree_changed(self, uuid: str, reading: TreeReading) -> None:
        self._readings[uuid] = reading
        self._errors.pop(uuid, None)
        self._regroup(uuid, frozenset(snapshot.annotations.group for snapshot in reading.tree) - {""})
        self._machine_changed(uuid)

    def _regroup(self, uuid: str, groups: frozenset[str]) -> None:
        """Note what a machine's snapshots belong to, and tell of others if that is news to them."""
        for group in groups ^ self._groups_of(uuid):
            members = self._groups.setdefault(group, set())
            members ^= {uuid}
            for other in members - {uuid}:
                self._machine_changed(other)
            if not members:
                del self._groups[group]

    def _costs_changed(self, uuid: str, reading: CostReading) -> None:
        self._costs[uuid] = reading
        self._machine_changed(uuid)

    def _reading_failed(self, uuid: str, error: SnapTreeError) -> None:
        self._errors[uuid] = error
        self._machine_changed(uuid)

    def _machine_changed(self, uuid: str) -> None:
        self._machines.pop(uuid, None)
        self.machine_changed.emit(MachineId(self.uri, uuid))

    def _operation_changed(self, operation: Operation) -> None:
        self.operation_changed.emit(self.uri, operation)

    def _done_elsewhere(self, operation: Operation) -> None:
        self.done_elsewhere.emit(self.uri, operation)

    def _history_read(self, operations: tuple[Operation, ...]) -> None:
        self.history_read.emit(self.uri, operations)

    def _unfinished_changed(self, unfinished: Mapping[str, Operation]) -> None:
        before, self._unfinished = self._unfinished, unfinished
        for uuid in before.keys() | unfinished.keys():
            if before.get(uuid) != unfinished.get(uuid) and uuid in self._domains:
                self._machine_changed(uuid)

    def _advice_changed(self, advice: HostAdvice) -> None:
        before, self._advice = self._advice or HostAdvice(), advice
        for uuid in before.machines.keys() | advice.machines.keys():
            if before.machines.get(uuid) != advice.machines.get(uuid) and uuid in self._domains:
                self._machine_changed(uuid)
        if before.host != advice.host:
            self.machines_changed.emit(self.uri)

    def _credentials_needed(self, request: CredentialsRequest) -> None:
        self.credentials_needed.emit(request)


class Estate(QObject):
    """All hosts of the window, in the order in which they were added."""

    hosts_changed = Signal()
    """A host was added or removed."""
    host_changed = Signal(str)
    """The state of this host's connection changed."""
    machines_changed = Signal(str)
    """This host's list of machines, or something in it, changed."""
    machine_changed = Signal(object)
    """More is known about the machine with this MachineId."""
    operation_changed = Signal(str, object)
    """An operation on this host went on or ended."""
    done_elsewhere = Signal(str, object)
    """The same, of one that another program of this user's runs."""
    history_read = Signal(str, object)
    """What was done on this host before this start: Operations, newest first."""
    credentials_needed = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._hosts: dict[str, HostEntry] = {}

    def __iter__(self) -> Iterator[HostEntry]:
        return iter(self._hosts.values())

    def __len__(self) -> int:
        return len(self._hosts)

    def __contains__(self, uri: object) -> bool:
        return uri in self._hosts

    def __getitem__(self, uri: str) -> HostEntry:
        return self._hosts[uri]

    def add(self, backend: HostBackend, label: str = "") -> HostEntry:
        """Show this host from now on. The caller opens the backend; the estate owns it."""
        entry = HostEntry(backend, label, self)
        self._hosts[entry.uri] = entry
        entry.changed.connect(self.host_changed)
        entry.machines_changed.connect(self.machines_changed)
        entry.machine_changed.connect(self.machine_changed)
        entry.operation_changed.connect(self.operation_changed)
        entry.done_elsewhere.connect(self.done_elsewhere)
        entry.history_read.connect(self.history_read)
        entry.credentials_needed.connect(self.credentials_needed)
        self.hosts_changed.emit()
        return entry

    def remove(self, uri: str) -> None:
        """Disconnect from a host and forget it."""
        entry = self._hosts.pop(uri)
        entry.backend.close()
        entry.deleteLater()
        self.hosts_changed.emit()

    def close(self) -> None:
        """Disconnect from every host."""
        for entry in self:
            entry.backend.close()

    def give_up_what_waits(self) -> None:
        """Cancel what waits for its hours: the program is about to end."""
        for entry in self:
            entry.backend.give_up_what_waits()

    def machine(self, machine_id: MachineId | None) -> Machine | None:
        """What is known of one machine; None if it is not there (any more)."""
        if machine_id is None or machine_id.uri not in self._hosts:
            return None
        return self._hosts[machine_id.uri].machine(machine_id.uuid)

    def refresh(self) -> None:
        """Read everything again."""
        for entry in self:
            entry.backend.refresh()
