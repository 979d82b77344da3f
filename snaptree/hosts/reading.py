"""Reading a host: its machines, and the snapshots of one machine, many requests in flight."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import libvirt
from natsort import natsorted

from snaptree.hosts.connection import Connection, is_embedded
from snaptree.hosts.errors import explain, explained
from snaptree.hosts.helper_machine import may_be_helper
from snaptree.hosts.snapshot_xml import read_snapshot
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.model.estate import Domain, DomainState, Snapshot
from snaptree.model.tree import SnapshotTree
from snaptree.plans.rule import QEMU

_STATES = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.BLOCKED,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.SHUTTING_DOWN,
    libvirt.VIR_DOMAIN_SHUTOFF: DomainState.OFF,
    libvirt.VIR_DOMAIN_CRASHED: DomainState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.SUSPENDED,
}

# Near, a few threads keep the daemon busy, each best with a connection of its own: on one, libvirt's client spends its
# time handing the socket from thread to thread. Far away the link is what takes long, and one connection serves 64
# requests at once.
_IN_FLIGHT_NEAR = 3
_CHUNK_NEAR = 16
_WORTH_A_CONNECTION = 100
_IN_FLIGHT_FAR = 64
FIRST_PART_SECONDS = 0.1


def never() -> bool:
    """Nobody cancels."""
    return False


def list_domains(connection: Connection) -> tuple[Domain, ...]:
    """All machines of the host but our own helpers, by natural name, in five calls however many there are.

    `snapshot_count` is 0 where there are none and None otherwise: counting is a call for each.
    """
    handle = connection.handle
    with explained("listing the virtual machines"):
        states = {stats[0].UUIDString(): stats[1]["state.state"] for stats in _state_stats(handle)}
        persistent, saved, with_snapshots = (
            {domain.UUIDString() for domain in handle.listAllDomains(flag)}
            for flag in (
                libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT,
                libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE,
                libvirt.VIR_CONNECT_LIST_DOMAINS_HAS_SNAPSHOT,
            )
        )
        domains = [
            Domain(
                uuid=uuid,
                name=domain.name(),
                state=_STATES.get(states.get(uuid, -1), DomainState.UNKNOWN),
                is_persistent=uuid in persistent,
                snapshot_count=None if uuid in with_snapshots else 0,
                has_managed_save=uuid in saved,
            )
            for domain in handle.listAllDomains()
            for uuid in (domain.UUIDString(),)
            if uuid in persistent or not may_be_helper(domain.name())
        ]
    return tuple(natsorted(domains, key=lambda domain: domain.name))


def _state_stats(handle: Any) -> list[tuple[Any, dict[str, Any]]]:
    stats: list[tuple[Any, dict[str, Any]]] = handle.getAllDomainStats(
        libvirt.VIR_DOMAIN_STATS_STATE, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    )
    return stats


def read_domain(connection: Connection, uuid: str) -> Domain:
    """One machine, with the number of its snapshots. Raises VanishedError if it is gone."""
    handle = connection.domain(uuid)
    with explained("reading the virtual machine"):
        return Domain(
            uuid=uuid,
            name=handle.name(),
            state=_STATES.get(handle.state()[0], DomainState.UNKNOWN),
            is_persistent=bool(handle.isPersistent()),
            snapshot_count=handle.snapshotNum(),
            has_managed_save=bool(handle.hasManagedSaveImage()),
        )


def read_tree(
    connection: Connection,
    uuid: str,
    *,
    on_part: Callable[[SnapshotTree], None] | None = None,
    cancelled: Callable[[], bool] = never,
    texts: dict[str, str] | None = None,
) -> SnapshotTree:
    """Read every snapshot of a machine.

    `on_part` gets growing trees while reading takes long: the first after about 0.1 s, then each time the
    number read has doubled. `texts` is filled with the XML of each, by name, for who needs more than a Snapshot
    holds. Raises CancelledError soon after `cancelled` turns true.
    """
    domain = connection.domain(uuid)
    with explained("reading the snapshots"):
        handles = domain.listAllSnapshots(libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL)
        current = current_name(domain)
    snapshots: list[Snapshot] = []
    next_part_at, next_part_size = time.monotonic() + FIRST_PART_SECONDS, 0
    for chunk in _read_all(connection, uuid, handles, texts, cancelled):
        snapshots += chunk
        if on_part is not None and len(snapshots) >= next_part_size and time.monotonic() >= next_part_at:
            on_part(SnapshotTree.build(snapshots, current))
            next_part_size = 2 * len(snapshots)
    return SnapshotTree.build(snapshots, current)


def texts_of(domain: Any) -> list[str]:
    """All that libvirt has on record of a machine: as it runs, as it is defined, its snapshots. Raises libvirtError."""
    texts = [domain.XMLDesc()]
    if domain.isPersistent():
        texts.append(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return texts + [snapshot.getXMLDesc() for snapshot in domain.listAllSnapshots()]


def current_name(domain: Any) -> str | None:
    """The name of the current snapshot. None if there is none; libvirt says so by an error of its own."""
    try:
        return str(domain.snapshotCurrent().getName())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
            return None
        raise


def _read_all(
    connection: Connection, uuid: str, handles: list[Any], texts: dict[str, str] | None, cancelled: Callable[[], bool]
) -> Iterator[list[Snapshot]]:
    """Snapshots in the order of the handles, some at a time; one that vanished meanwhile is left out."""

    def fetch(chunk: Sequence[Any]) -> list[tuple[str, str]]:
        if cancelled():
            raise CancelledError("Reading the snapshots was cancelled.")
        return [fetched for handle in chunk if (fetched := links.fetch(handle)) is not None]

    def read(chunk: list[tuple[str, str]]) -> list[Snapshot]:
        if texts is not None:
            texts.update(chunk)
        return [read_snapshot(name, xml) for name, xml in chunk]

    near = connection.host.is_local
    size = _CHUNK_NEAR if near else 1
    chunks = [handles[start : start + size] for start in range(0, len(handles), size)]
    threads = min(_IN_FLIGHT_NEAR if near else _IN_FLIGHT_FAR, len(chunks))
    links = _Links(connection, uuid, separate=near and len(handles) >= _WORTH_A_CONNECTION)
    if threads < 2:
        yield from map(read, map(fetch, chunks))
        return
    with links, ThreadPoolExecutor(threads, "snaptree-read", initializer=links.enter) as pool:
        yield from map(read, pool.map(fetch, chunks))


class _Links:
    """What the threads of one reading fetch through, each by itself.

    The first uses the connection that is there, the others, where that pays, each a short one of its own, which asks
    nobody (looking needs no password). One that can't be had, or breaks, costs speed only: its thread goes on
    through the first.
    """

    def __init__(self, connection: Connection, uuid: str, *, separate: bool) -> None:
        self._connection = connection
        self._uuid = uuid
        # Drivers inside this process are faster as they are, and the test driver's connections may know other machines.
        self._separate = separate and connection.host.driver == QEMU and not is_embedded(connection.uri)
        self._turns = itertools.count()
        self._own = threading.local()
        self._closing = ExitStack()

    def enter(self) -> None:
        """Give the thread that calls this its link."""
        if next(self._turns) == 0 or not self._separate:
            return
        with suppress(SnapTreeError, libvirt.libvirtError):
            link = self._connection.reader()
            self._closing.callback(link.close)
            listed = link.domain(self._uuid).listAllSnapshots()
            self._own.handles = {handle.getName(): handle for handle in listed}

    def fetch(self, handle: Any) -> tuple[str, str] | None:
        """A snapshot's name and XML, or None if it vanished meanwhile."""
        name = handle.getName()
        own = getattr(self._own, "handles", None)
        if own is not None and name in own:
            with suppress(libvirt.libvirtError):
                return name, own[name].getXMLDesc()
        try:
            return name, handle.getXMLDesc()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                return None
            raise explain(error, "reading a snapshot") from error

    def __enter__(self) -> _Links:
        return self

    def __exit__(self, *_raised: object) -> None:
        self._closing.close()
