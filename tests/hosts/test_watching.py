"""Watching a host: what somebody else does there is told, soon and once; our own changes are not."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest

from snaptree.hosts import watching
from snaptree.hosts.connection import Connection
from snaptree.hosts.reading import read_tree
from snaptree.hosts.watching import Changes, Watcher

TIMEOUT = 20.0
QUIET = 0.4
"""Long enough for several looks, at the pace that most tests set."""

DOMAIN = "<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"


class Ears:
    """Hears what a watcher tells."""

    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[Changes] = queue.SimpleQueue()

    def __call__(self, changes: Changes) -> None:
        self._heard.put(changes)

    def wait_for(self, wanted: Callable[[Changes], bool]) -> Changes:
        """Skip what was not asked for."""
        deadline = time.monotonic() + TIMEOUT
        while not wanted(changes := self._heard.get(timeout=max(0.0, deadline - time.monotonic()))):
            pass
        return changes

    def wait_for_domain(self, uuid: str) -> Changes:
        return self.wait_for(lambda changes: uuid in changes.domains)

    def all_that_comes(self, seconds: float = QUIET) -> list[Changes]:
        """Everything that is told within a while: for showing that something is not."""
        heard = []
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                heard.append(self._heard.get(timeout=left))
            except queue.Empty:
                break
        return heard


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, so that tests need not wait long."""
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)


@pytest.fixture
def connection() -> Iterator[Connection]:
    """libvirt's test driver; every connection of the process sees the same machines."""
    connection = Connection("test:///default")
    connection.open()
    yield connection
    connection.close()


@pytest.fixture
def virsh(connection: Connection) -> Iterator[Any]:
    """Somebody else, on a connection of their own."""
    other = libvirt.open("test:///default")
    yield other
    other.close()


@pytest.fixture
def machine(virsh: Any) -> Any:
    """A machine with snapshots one <- two."""
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    for name in ("one", "two"):
        machine.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")
    return machine


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def watcher(connection: Connection, machine: Any, ears: Ears) -> Iterator[Watcher]:
    """A watcher of the host, with the machine on screen as it is now."""
    watcher = Watcher(connection, ears)
    uuid = machine.UUIDString()
    watcher.showing(uuid, read_tree(connection, uuid))
    watcher.look_at(uuid)
    watcher.start()
    yield watcher
    assert watcher.close(TIMEOUT)


def take(machine: Any, name: str, description: str = "", flags: int = 0) -> Any:
    return machine.snapshotCreateXML(
        f"<domainsnapshot><name>{name}</name><description>{description}</description></domainsnapshot>", flags
    )


def edit(machine: Any, name: str, description: str) -> None:
    """What virt-manager and `virsh snapshot-edit` do."""
    snapshot = machine.snapshotLookupByName(name)
    xml = snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    xml = xml.replace("<state>", f"<description>{description}</description>\n  <state>", 1)
    machine.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def test_a_snapshot_taken_by_somebody_else_is_told_within_two_seconds(
    watcher: Watcher, machine: Any, ears: Ears
) -> None:
    ears.all_that_comes(1.5)  # in the middle between two looks
    took = time.monotonic()
    take(machine, "three")
    ears.wait_for_domain(machine.UUIDString())
    assert time.monotonic() - took < 2.0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda machine: take(machine, "three"), id="taken"),
        pytest.param(lambda machine: machine.snapshotLookupByName("two").delete(), id="deleted"),
        pytest.param(lambda machine: edit(machine, "one", "before the update"), id="edited"),
        pytest.param(
            lambda machine: machine.revertToSnapshot(machine.snapshotLookupByName("one")), id="another one current"
        ),
    ],
)
@pytest.mark.usefixtures("brisk")
def test_what_somebody_else_does_to_the_machine_on_screen_is_told(
    watcher: Watcher, machine: Any, ears: Ears, change: Callable[[Any], object]
) -> None:
    change(machine)
    ears.wait_for_domain(machine.UUIDString())


@pytest.mark.usefixtures("brisk")
def test_nothing_is_told_when_nothing_happens(watcher: Watcher, ears: Ears) -> None:
    assert ears.all_that_comes() == []


@pytest.mark.usefixtures("brisk")
def test_a_change_is_told_once_until_it_is_shown(
    watcher: Watcher, connection: Connection, machine: Any, ears: Ears
) -> None:
    uuid = machine.UUIDString()
    take(machine, "three")
    ears.wait_for_domain(uuid)
    assert ears.all_that_comes() == []
    watcher.showing(uuid, read_tree(connection, uuid))
    take(machine, "four")
    ears.wait_for_domain(uuid)


@pytest.mark.usefixtures("brisk")
def test_a_change_that_could_not_be_shown_is_told_again(
    watcher: Watcher, machine: Any, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_TELL_AGAIN_SECONDS", 0.2)
    take(machine, "three")
    ears.wait_for_domain(machine.UUIDString())
    ears.wait_for_domain(machine.UUIDString())


@pytest.mark.usefixtures("brisk")
def test_what_happened_before_it_was_shown_is_told_too(
    watcher: Watcher, connection: Connection, machine: Any, ears: Ears
) -> None:
    uuid = machine.UUIDString()
    stale = read_tree(connection, uuid)
    watcher.look_at(None)
    edit(machine, "two", "changed while it was being read")
    watcher.showing(uuid, stale)
    watcher.look_at(uuid)
    ears.wait_for_domain(uuid)


@pytest.mark.usefixtures("brisk")
def test_machines_that_are_not_on_screen_get_their_turn(
    watcher: Watcher, connection: Connection, virsh: Any, ears: Ears
) -> None:
    others = [virsh.defineXML(DOMAIN.format(name=f"other-{number}")) for number in range(20)]
    for other in others:
        watcher.showing(other.UUIDString(), read_tree(connection, other.UUIDString()))
    for other in others:
        take(other, "nightly")
    missing = {other.UUIDString() for other in others}
    while missing:
        missing -= ears.wait_for(lambda changes: bool(changes.domains)).domains


@pytest.mark.usefixtures("brisk")
def test_an_edit_in_a_large_tree_is_found_too(
    watcher: Watcher, connection: Connection, machine: Any, ears: Ears
) -> None:
    uuid = machine.UUIDString()
    for number in range(250):
        take(machine, f"auto-{number}")
    watcher.showing(uuid, read_tree(connection, uuid))
    ears.all_that_comes()
    edit(machine, "auto-200", "keep this one")
    ears.wait_for_domain(uuid)


@pytest.mark.usefixtures("brisk")
def test_a_machine_that_nothing_is_shown_of_is_left_alone(
    watcher: Watcher, machine: Any, ears: Ears, virsh: Any
) -> None:
    uuid = machine.UUIDString()
    watcher.forget(uuid)
    ears.all_that_comes()
    take(machine, "three")
    assert ears.all_that_comes() == []


def test_machines_that_come_start_stop_and_go_are_told_at_once(watcher: Watcher, virsh: Any, ears: Ears) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="newcomer"))
    uuid = machine.UUIDString()
    for happens in (lambda: None, machine.create, machine.destroy, machine.undefine):
        happens()
        changes = ears.wait_for_domain(uuid)
        assert changes.list_changed


def test_pausing_a_machine_changes_the_list_only(watcher: Watcher, machine: Any, ears: Ears) -> None:
    machine.create()
    ears.wait_for_domain(machine.UUIDString())
    machine.suspend()
    changes = ears.wait_for(lambda changes: changes.list_changed)
    assert changes.domains == frozenset()


def test_a_burst_of_events_is_told_together(watcher: Watcher, virsh: Any, ears: Ears) -> None:
    machines = [virsh.defineXML(DOMAIN.format(name=f"burst-{number}")) for number in range(10)]
    uuids = {machine.UUIDString() for machine in machines}
    told = ears.all_that_comes(1.0)
    assert frozenset().union(*(changes.domains for changes in told)) >= uuids
    assert len(told) <= 3


@pytest.mark.usefixtures("brisk")
def test_a_machine_that_we_change_is_left_alone_until_that_is_over(
    watcher: Watcher, connection: Connection, machine: Any, ears: Ears
) -> None:
    uuid = machine.UUIDString()
    before = read_tree(connection, uuid)
    with watcher.paused(uuid):
        take(machine, "ours")
        machine.create()
        ears.wait_for(lambda changes: changes.list_changed)
        after = read_tree(connection, uuid)
        take(machine, "theirs, meanwhile")
        assert all(uuid not in changes.domains for changes in ears.all_that_comes())
    # The reading that follows our change shows it as it was before they came along.
    watcher.showing(uuid, after)
    ears.wait_for_domain(uuid)
    assert before != after


@pytest.mark.usefixtures("brisk")
def test_a_machine_that_vanished_without_an_event_changes_the_list(
    connection: Connection, machine: Any, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watcher, "_register", lambda *_arguments: True)  # a libvirt that says it does, and does not
    uuid = machine.UUIDString()
    watcher = Watcher(connection, ears)
    watcher.showing(uuid, read_tree(connection, uuid))
    watcher.look_at(uuid)
    watcher.start()
    assert ears.all_that_comes() == []
    machine.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
    ears.wait_for(lambda changes: changes.list_changed)
    assert watcher.close(TIMEOUT)


@pytest.mark.usefixtures("brisk")
def test_a_host_without_events_has_its_list_read_now_and_then(
    connection: Connection, machine: Any, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(name: str) -> None:
        if name == "domainEventRegisterAny":
            raise libvirt.libvirtError("this function is not supported by the connection driver")

    faulty(connection, unsupported, monkeypatch)
    watcher = Watcher(connection, ears)
    watcher.start()
    ears.wait_for(lambda changes: changes.list_changed)
    ears.wait_for(lambda changes: changes.list_changed)
    assert watcher.close(TIMEOUT)


@pytest.mark.usefixtures("brisk")
def test_a_read_only_connection_can_be_watched(machine: Any, ears: Ears) -> None:
    connection = Connection("test:///default", read_only=True)
    connection.open()
    watcher = Watcher(connection, ears)
    uuid = machine.UUIDString()
    watcher.showing(uuid, read_tree(connection, uuid))
    watcher.look_at(uuid)
    watcher.start()
    edit(machine, "one", "seen by all")
    ears.wait_for_domain(uuid)
    machine.create()
    ears.wait_for(lambda changes: changes.list_changed)
    assert watcher.close(TIMEOUT)
    connection.close()


def test_after_closing_nothing_is_told(connection: Connection, machine: Any, ears: Ears) -> None:
    watcher = Watcher(connection, ears)
    watcher.start()
    assert watcher.close(TIMEOUT)
    machine.create()
    assert ears.all_that_comes() == []


def test_a_watcher_that_was_never_started_can_be_closed(connection: Connection, ears: Ears) -> None:
    assert Watcher(connection, ears).close(0)


class Faulty:
    """A real libvirt object behind a fault: each call goes through `fault` first, and what it returns as well."""

    def __init__(self, real: Any, fault: Callable[[str], None]) -> None:
        self._real = real
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._real, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any) -> Any:
            if name not in ("UUIDString", "name"):  # not calls to the host
                self._fault(name)
            return self._wrapped(attribute(*arguments))

        return call

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._wrapped(item) for item in result]
        if isinstance(result, (libvirt.virDomain, libvirt.virDomainSnapshot)):
            return Faulty(result, self._fault)
        return result


def faulty(connection: Connection, fault: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_handle", Faulty(connection.handle, fault))


@pytest.mark.usefixtures("brisk")
def test_on_a_slow_link_most_of_the_time_is_left_to_others(
    connection: Connection, machine: Any, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[float, float]] = []

    def slow(_name: str) -> None:
        began = time.monotonic()
        threading.Event().wait(0.02)
        calls.append((began, time.monotonic()))

    uuid = machine.UUIDString()
    watcher = Watcher(connection, ears)
    watcher.showing(uuid, read_tree(connection, uuid))
    watcher.start()
    faulty(connection, slow, monkeypatch)
    watcher.look_at(uuid)
    ears.all_that_comes(5.0)
    assert watcher.close(TIMEOUT)
    busy = sum(end - began for began, end in calls)
    assert len(calls) > 5
    assert busy < 0.2 * (calls[-1][1] - calls[0][0])


@pytest.mark.usefixtures("brisk")
def test_one_machine_that_cannot_be_read_does_not_keep_others_from_being_watched(
    watcher: Watcher, connection: Connection, machine: Any, virsh: Any, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = machine.UUIDString()
    other = virsh.lookupByName("test")
    watcher.showing(other.UUIDString(), read_tree(connection, other.UUIDString()))

    def broken_contents(name: str) -> None:
        if name == "getXMLDesc":
            raise libvirt.libvirtError("internal error: cannot parse that")

    monkeypatch.setattr(libvirt.libvirtError, "get_error_code", lambda error: libvirt.VIR_ERR_INTERNAL_ERROR)
    faulty(connection, broken_contents, monkeypatch)
    watcher.look_at(uuid)
    take(other, "nightly")
    ears.wait_for_domain(other.UUIDString())


@pytest.mark.usefixtures("brisk")
def test_a_link_that_breaks_in_silence_is_noticed(
    watcher: Watcher, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()

    def broken(name: str) -> None:
        if name in ("listAllDomains", "listAllSnapshots"):
            raise libvirt.libvirtError("internal error: client socket is closed")

    connection.on_lost = lost.put
    monkeypatch.setattr(connection, "is_alive", lambda: False)
    faulty(connection, broken, monkeypatch)
    assert lost.get(timeout=TIMEOUT)


def test_closing_does_not_wait_for_a_call_that_hangs(
    connection: Connection, machine: Any, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(_name: str) -> None:
        hangs.set()
        assert goes_on.wait(TIMEOUT)

    watcher = Watcher(connection, ears)
    watcher.start()
    faulty(connection, hang, monkeypatch)
    watcher.look_at(machine.UUIDString())
    assert hangs.wait(TIMEOUT)
    assert not watcher.close(0.05)
    goes_on.set()
    assert watcher.close(TIMEOUT)
