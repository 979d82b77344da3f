"""Reading very many snapshots through a real daemon: all of them, in order, whatever becomes of the connections."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest

from snaptree.hosts.connection import Connection
from snaptree.hosts.reading import read_tree
from snaptree.model.errors import ConnectionLostError, SnapTreeError
from tests.benchmarks.estate import add_internal, running_daemon, snapshot_name
from tests.kit.daemon import LibvirtDaemon, find_daemon
from tests.kit.guest import wait_until

COUNT = 150

pytestmark = [
    pytest.mark.daemon,
    pytest.mark.skipif(
        find_daemon() is None or shutil.which("virtlogd") is None, reason="libvirt's daemons are not installed"
    ),
]


@pytest.fixture(scope="module")
def many() -> Iterator[tuple[LibvirtDaemon, str]]:
    """A daemon, and the UUID of its machine with many snapshots."""
    with running_daemon() as daemon:
        add_internal(daemon, "many", COUNT)
        yield daemon, daemon.connection.domain_uuid("many")


def sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            count += str(link.readlink()).startswith("socket:")
    return count


def test_all_are_read_and_no_connection_is_left(many: tuple[LibvirtDaemon, str]) -> None:
    daemon, uuid = many
    before, texts = sockets(), dict[str, str]()

    tree = read_tree(daemon.connection, uuid, texts=texts)

    assert [snapshot.name for snapshot in tree] == [snapshot_name(number) for number in range(COUNT)]
    assert tree.current == snapshot_name(COUNT - 1)
    assert texts.keys() == {snapshot.name for snapshot in tree}
    wait_until(lambda: sockets() == before, "a connection was left open")  # libvirt closes them in its event loop


@pytest.mark.parametrize("how", ["refused", "broken"])
def test_a_connection_that_fails_costs_no_snapshot(
    many: tuple[LibvirtDaemon, str], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, uuid = many
    asked = list[str]()

    def refuse(_connection: Connection) -> Connection:
        asked.append(how)
        raise SnapTreeError("The daemon serves no more clients.")

    def domain(connection: Connection, uuid: str) -> Any:
        """What a reader finds, but for the link, which breaks as soon as its snapshots are listed."""
        found = find(connection, uuid)
        if connection is daemon.connection:
            return found
        asked.append(how)
        return Breaking(connection, found)

    find = Connection.domain
    if how == "refused":
        monkeypatch.setattr(Connection, "reader", refuse)
    else:
        monkeypatch.setattr(Connection, "domain", domain)
    tree = read_tree(daemon.connection, uuid)

    assert len(tree) == COUNT
    assert asked


class Breaking:
    """A machine whose connection is gone once its snapshots are listed."""

    def __init__(self, connection: Connection, found: Any) -> None:
        self._connection = connection
        self._found = found

    def listAllSnapshots(self) -> list[object]:
        listed: list[object] = self._found.listAllSnapshots()
        self._connection.handle.close()
        return listed


class Once:
    """Does something before the first snapshot is read; whoever reads waits for that."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self._deed = deed
        self._lock = threading.Lock()
        self._is_done = False

    def __call__(self) -> bool:
        """Be asked whether reading is cancelled, which it is not."""
        with self._lock:
            if not self._is_done:
                self._is_done = True
                self._deed()
        return False


def test_one_that_vanishes_meanwhile_is_left_out(many: tuple[LibvirtDaemon, str]) -> None:
    daemon, uuid = many
    gone = snapshot_name(COUNT - 1)
    text = daemon.virsh("snapshot-dumpxml", "many", gone)
    delete = Once(lambda: daemon.virsh("snapshot-delete", "many", gone, "--metadata"))
    tree = read_tree(daemon.connection, uuid, cancelled=delete)
    try:
        assert [snapshot.name for snapshot in tree] == [snapshot_name(number) for number in range(COUNT - 1)]
    finally:
        daemon.connection.domain(uuid).snapshotCreateXML(text, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def test_a_lost_daemon_is_said(many: tuple[LibvirtDaemon, str]) -> None:
    daemon, uuid = many
    with pytest.raises(ConnectionLostError):
        read_tree(daemon.connection, uuid, cancelled=Once(daemon.kill))
