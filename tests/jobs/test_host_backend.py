"""The backend over libvirt's test driver: what a window is told, and when, whatever happens on the host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from PySide6.QtCore import Qt, QTimer
from pytestqt.qtbot import QtBot

from snaptree.hosts import reading
from snaptree.hosts.connection import Connection
from snaptree.jobs import host_backend
from snaptree.jobs.host_backend import CredentialsRequest, HostBackend, Phase
from snaptree.model.errors import AccessDeniedError, ConnectionLostError, SnapTreeError, VanishedError
from snaptree.model.estate import DomainState
from snaptree.plans.intention import Take
from snaptree.plans.plan import Plan
from tests.jobs.conftest import DOMAIN, TIMEOUT_MS, Listener

TEST = "test:///default"
Listen = Callable[..., Listener]


def take(machine: Any, name: str) -> Any:
    return machine.snapshotCreateXML(f"<domainsnapshot><name>{escape(name)}</name></domainsnapshot>")


def host_file(path: Path, machines: int, snapshots: int) -> str:
    """The address of a host of libvirt's test driver with so many machines of so many snapshots each."""

    def snapshot(machine: int, number: int) -> str:
        parent = f"<parent><name>auto-{number - 1}</name></parent>" if number else ""
        return (
            f"<test:domainsnapshot><name>auto-{number}</name><state>shutoff</state>{parent}"
            f"<creationTime>{1_700_000_000 + 3600 * number}</creationTime>"
            "<memory snapshot='no'/><disks><disk name='vda' snapshot='internal'/></disks>"
            f"<domain type='test'><name>web-{machine}</name><memory>1024</memory><os><type>hvm</type></os>"
            f"<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
            f"<source file='/nowhere/{machine}.qcow2'/><target dev='vda'/></disk></devices></domain>"
            f"<active>{int(number == snapshots - 1)}</active></test:domainsnapshot>"
        )

    def machine(number: int) -> str:
        return (
            "<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>"
            f"<name>web-{number}</name><memory>1024</memory><os><type>hvm</type></os>"
            "<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
            f"<source file='/nowhere/{number}.qcow2'/><target dev='vda'/></disk></devices>"
            f"<test:runstate>5</test:runstate>{''.join(snapshot(number, n) for n in range(snapshots))}</domain>"
        )

    path.write_text(
        "<node xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>"
        f"{''.join(machine(number) for number in range(machines))}</node>"
    )
    return f"test://{path}"


# Opening and reading


def test_opening_lists_the_machines_at_once_and_reads_everything_in_the_background(listen: Listen, virsh: Any) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    take(machine, "one")
    take(machine, "two")
    listener = listen(TEST)
    assert listener.backend.status.phase is Phase.CLOSED
    listener.open()
    assert listener.phases == [Phase.CONNECTING, Phase.CONNECTED]
    assert listener.backend.status.host is not None
    assert listener.backend.status.host.driver == "TEST"
    assert [domain.name for domain in listener.lists[0]] == ["test", "web-01"]
    assert [domain.snapshot_count for domain in listener.lists[0]] == [0, None]
    listener.settle()
    uuid = listener.uuid("web-01")
    assert listener.names(uuid) == ["one", "two"]
    listener.until(lambda: listener.lists[-1][1].snapshot_count == 2)
    assert listener.backend.domain(uuid) == listener.lists[-1][1]
    assert listener.failures == []


def test_what_is_on_screen_is_read_before_the_rest(listen: Listen, tmp_path: Path) -> None:
    listener = listen(host_file(tmp_path / "host.xml", machines=300, snapshots=5))
    listener.open()
    last = listener.uuid("web-299")
    listener.backend.look_at(last)
    listener.until(lambda: listener.backend.tree(last))
    read = [uuid for uuid, _ in listener.trees]
    assert len(read) < 300
    listener.settle()
    names = [domain.name for domain in listener.backend.domains()]
    assert names == [f"web-{number}" for number in range(300)]


def test_the_machine_that_was_on_screen_before_the_connection_is_read_first(listen: Listen, virsh: Any) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    take(machine, "one")
    listener = listen(TEST)
    listener.backend.look_at(machine.UUIDString())
    listener.open()
    listener.until(lambda: listener.trees)
    listener.settle()
    assert listener.names(machine.UUIDString()) == ["one"]


def test_a_large_tree_grows_on_screen_while_it_is_read(
    listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FIRST_PART_SECONDS", 0.01)
    listener = listen(host_file(tmp_path / "host.xml", machines=1, snapshots=2000))
    listener.open()
    uuid = listener.uuid("web-0")
    listener.backend.look_at(uuid)
    listener.until(lambda: listener.backend.costs(uuid))
    *parts, whole = [reading for _, reading in listener.trees]
    assert [part.complete for part in parts] == [False] * len(parts)
    assert whole.complete
    assert len(whole.tree) == 2000
    sizes = [len(part.tree) for part in parts]
    assert sizes
    assert all(2 * smaller <= larger for smaller, larger in pairwise(sizes))


def test_a_refresh_shows_no_half_trees(listen: Listen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(host_file(tmp_path / "host.xml", machines=1, snapshots=500))
    listener.open()
    listener.backend.look_at(listener.uuid("web-0"))
    listener.settle()
    listener.forget()
    monkeypatch.setattr(reading, "FIRST_PART_SECONDS", 0.0)
    handled: list[object] = []
    monkeypatch.setattr(listener.backend, "_measured", lambda *_: handled.append(None))
    listener.backend.refresh()
    listener.until(lambda: handled)
    assert listener.trees == []


def test_a_refresh_tells_nothing_that_is_known_already(listen: Listen, virsh: Any, monkeypatch: Any) -> None:
    take(virsh.defineXML(DOMAIN.format(name="web-01")), "one")
    listener = listen(TEST)
    listener.open()
    listener.settle()
    listener.until(lambda: listener.lists[-1][1].snapshot_count == 1)
    listener.forget()
    measured: list[str] = []
    original = listener.backend._measured

    def note(uuid: str, *answer: Any) -> None:
        original(uuid, *answer)
        measured.append(uuid)

    monkeypatch.setattr(listener.backend, "_measured", note)
    listener.backend.refresh()
    listener.until(lambda: len(measured) == 2)
    assert (listener.lists, listener.trees, listener.costs) == ([], [], [])


# Changes by others


@pytest.mark.usefixtures("brisk")
def test_what_others_do_appears_by_itself(listen: Listen, virsh: Any) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    take(machine, "one")
    listener = listen(TEST)
    listener.open()
    listener.settle()
    uuid = listener.uuid("web-01")
    listener.backend.look_at(uuid)

    take(machine, "two")
    listener.until(lambda: listener.names(uuid) == ["one", "two"])
    machine.snapshotLookupByName("one").delete()
    listener.until(lambda: listener.names(uuid) == ["two"])
    machine.create()
    listener.until(lambda: listener.backend.domain(uuid).state is DomainState.RUNNING)  # type: ignore[union-attr]  # it stays listed
    other = virsh.defineXML(DOMAIN.format(name="newcomer"))
    listener.until(lambda: listener.backend.costs(other.UUIDString()))
    other.undefine()
    listener.until(lambda: listener.backend.domain(other.UUIDString()) is None)
    assert listener.backend.tree(other.UUIDString()) is None
    assert listener.failures == []


def test_a_snapshot_taken_by_virsh_appears_within_two_seconds(listen: Listen, virsh: Any) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    listener = listen(TEST)
    listener.open()
    listener.settle()
    listener.backend.look_at(machine.UUIDString())
    listener.qtbot.wait(500)  # at any moment between two looks
    took = time.monotonic()
    take(machine, "from outside")
    listener.until(lambda: listener.names(machine.UUIDString()) == ["from outside"])
    assert time.monotonic() - took < 2.0


HOSTILE = ["<b>x</b>", "a'b\"c", "two\nlines", "\u202egnp.exe", "ä" * 120, "🦔 hedgehog", "  spaces  "]


def test_hostile_names_arrive_as_they_are(listen: Listen, virsh: Any) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    for name in HOSTILE:
        take(machine, name)
    listener = listen(TEST)
    listener.open()
    listener.settle()
    assert sorted(listener.names(machine.UUIDString())) == sorted(HOSTILE)


# Failing to connect, credentials, read-only


def test_a_wrong_address_fails_with_what_to_check_and_is_not_tried_again(listen: Listen) -> None:
    listener = listen("not a uri")
    listener.backend.open()
    listener.until(lambda: Phase.FAILED in listener.phases)
    status = listener.backend.status
    assert status.error is not None
    assert "not a uri" in status.error.summary
    assert status.error.hint
    assert status.retry_at is None
    listener.backend.reconnect_now()
    listener.until(lambda: listener.phases.count(Phase.FAILED) == 2)


def test_a_daemon_that_is_not_there_is_tried_again_by_itself(listen: Listen, tmp_path: Path) -> None:
    listener = listen(f"test+unix:///default?socket={tmp_path}/nobody")
    listener.backend.open()
    listener.until(lambda: Phase.FAILED in listener.phases)
    status = listener.backend.status
    assert isinstance(status.error, ConnectionLostError)
    assert status.retry_at is not None
    assert 0 < status.retry_at - time.time() <= 1
    listener.until(lambda: (listener.backend.status.retry_at or 0) - time.time() > 1)  # the second pause is longer


AUTH = """<node><auth><user password='s3cret'>anna</user></auth>
  <domain type='test'><name>web-01</name><memory>1024</memory><os><type>hvm</type></os></domain></node>"""


@pytest.fixture
def locked(tmp_path: Path) -> str:
    """The address of a host that asks for a user and a password."""
    (tmp_path / "locked.xml").write_text(AUTH)
    return f"test://{tmp_path}/locked.xml"


class User:
    """Answers what a host asks, in a dialog's place."""

    def __init__(self, listener: Listener, *answers: list[str] | None) -> None:
        self.asked: list[CredentialsRequest] = []
        self._answers = list(answers)
        listener.backend.credentials_needed.connect(self._answer)

    def _answer(self, request: CredentialsRequest) -> None:
        self.asked.append(request)
        if self._answers:
            request.answer(self._answers.pop(0))


def test_credentials_are_asked_for_and_let_us_in(listen: Listen, locked: str) -> None:
    listener = listen(locked)
    user = User(listener, ["anna"], ["s3cret"])
    listener.open()
    (name,), (password,) = (request.questions for request in user.asked)
    assert not name.is_secret
    assert password.is_secret
    assert [domain.name for domain in listener.backend.domains()] == ["web-01"]


def test_a_wrong_password_fails_and_is_asked_for_again_when_the_user_tries_again(listen: Listen, locked: str) -> None:
    listener = listen(locked)
    user = User(listener, ["anna"], ["wrong"], ["anna"], ["s3cret"])
    listener.backend.open()
    listener.until(lambda: Phase.FAILED in listener.phases)
    assert isinstance(listener.backend.status.error, AccessDeniedError)
    assert listener.backend.status.retry_at is None
    listener.backend.reconnect_now()
    listener.until(lambda: Phase.CONNECTED in listener.phases)
    assert len(user.asked) == 4


def test_giving_up_on_credentials_is_no_reason_to_ask_again(listen: Listen, locked: str) -> None:
    listener = listen(locked)
    user = User(listener, None)
    listener.backend.open()
    listener.until(lambda: Phase.FAILED in listener.phases)
    assert len(user.asked) == 1


def test_closing_while_a_password_is_waited_for(listen: Listen, locked: str) -> None:
    listener = listen(locked)
    user = User(listener)  # who has gone to lunch
    listener.backend.open()
    listener.until(lambda: user.asked)
    listener.backend.close()
    assert listener.backend.wait_until_closed(10)
    assert listener.backend.status.phase is Phase.CLOSED


def test_a_host_that_only_lets_us_look_is_opened_read_only_and_says_why(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Connection.open

    def deny(connection: Connection) -> Any:
        if not connection._read_only:
            raise AccessDeniedError("Cannot connect: authentication unavailable.", hint="Join the group 'libvirt'.")
        return opened(connection)

    monkeypatch.setattr(Connection, "open", deny)
    listener = listen(TEST)
    listener.open()
    status = listener.backend.status
    assert status.phase is Phase.CONNECTED
    assert status.host is not None
    assert status.host.read_only
    assert isinstance(status.error, AccessDeniedError)
    answers: list[object] = []
    listener.backend.planner.plan(listener.uuid("test"), Take("no"), answers.append)
    listener.until(lambda: answers)
    (plan,) = answers
    assert isinstance(plan, Plan)
    assert plan.is_refused


def test_a_read_only_connection_that_was_asked_for_needs_no_excuse(listen: Listen) -> None:
    listener = listen(TEST, read_only=True)
    listener.open()
    assert listener.backend.status.host is not None
    assert listener.backend.status.host.read_only
    assert listener.backend.status.error is None


# Failing to read


def failing(monkeypatch: pytest.MonkeyPatch, name: str, error: SnapTreeError) -> threading.Event:
    """Let one of the backend's readings fail until the event is set."""
    mended = threading.Event()
    original = getattr(host_backend, name)

    def read(*arguments: Any, **options: Any) -> Any:
        if not mended.is_set():
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(host_backend, name, read)
    return mended


@pytest.mark.parametrize("what", ["read_tree", "read_layers"])
def test_a_machine_that_cannot_be_read_says_so_until_it_can(
    listen: Listen, virsh: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    take(machine, "one")
    uuid = machine.UUIDString()
    error = SnapTreeError("The machine is busy.", hint="Wait.")
    mended = failing(monkeypatch, what, error)
    listener = listen(TEST)
    listener.open()
    listener.until(lambda: (uuid, error) in listener.failures)
    listener.until(lambda: listener.backend.status.phase is Phase.CONNECTED)
    listener.forget()
    mended.set()
    listener.backend.refresh()
    listener.until(lambda: uuid in [told for told, _ in listener.trees])
    listener.settle()
    assert listener.failures == []


def test_a_machine_that_is_listed_but_cannot_be_found_fails_once(
    listen: Listen, virsh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    take(machine, "one")
    uuid, error = machine.UUIDString(), VanishedError("The virtual machine is not there any more.")
    failing(monkeypatch, "read_tree", error)
    listener = listen(TEST)
    listener.open()
    listener.until(lambda: listener.failures)
    listener.qtbot.wait(100)  # it is not asked for over and over
    assert listener.failures == [(uuid, error)]


def test_a_tree_that_cannot_be_read_again_stays_failed_while_its_costs_are_measured(
    listen: Listen, virsh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    take(machine, "one")
    uuid = machine.UUIDString()
    listener = listen(TEST)
    listener.open()
    listener.settle()
    mended = failing(monkeypatch, "read_tree", SnapTreeError("The machine is busy."))
    listener.backend.refresh()
    listener.until(lambda: listener.failures)
    listener.forget()
    measured: list[object] = []
    original = listener.backend._measured
    monkeypatch.setattr(listener.backend, "_measured", lambda *what: measured.append(original(*what)))
    listener.backend.look_at(uuid)
    listener.until(lambda: measured)
    assert listener.trees == []
    mended.set()
    listener.backend.refresh()
    listener.until(lambda: [told for told, _ in listener.trees] == [uuid])


def test_a_list_that_cannot_be_read_is_told_and_the_machines_stay(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen(TEST)
    listener.open()
    listener.settle()
    error = SnapTreeError("Listing the virtual machines failed.")
    mended = failing(monkeypatch, "list_domains", error)
    listener.backend.refresh()
    listener.until(lambda: listener.backend.status.error is error)
    assert listener.backend.status.phase is Phase.CONNECTED
    assert listener.backend.domains()
    mended.set()
    listener.backend.refresh()
    listener.until(lambda: listener.backend.status.error is None)


def test_a_mistake_of_ours_is_shown_and_does_not_stop_the_host(
    listen: Listen, qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen(TEST)
    listener.open()
    listener.settle()

    def broken(*_arguments: object, **_options: object) -> object:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(host_backend, "list_domains", broken)
    with qtbot.capture_exceptions() as raised:
        listener.backend.refresh()
        listener.until(lambda: raised)
    assert raised[0][0] is ZeroDivisionError
    assert listener.backend.status.error is not None
    assert "mistake" in listener.backend.status.error.summary


# A link that breaks


def break_the_link(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The next calls fail as over a broken link, and connecting as with nobody there, until the event is set."""
    mended = threading.Event()
    opened, lives = Connection.open, Connection.is_alive

    def open_or_fail(connection: Connection) -> Any:
        if not mended.is_set():
            raise ConnectionLostError(f"Cannot connect to {connection.uri}: Connection refused.")
        return opened(connection)

    monkeypatch.setattr(Connection, "open", open_or_fail)
    monkeypatch.setattr(Connection, "is_alive", lambda connection: mended.is_set() and lives(connection))

    def list_or_fail(connection: Connection) -> Any:
        if not mended.is_set():
            raise ConnectionLostError("Listing the virtual machines failed: the connection to the host was lost.")
        return reading.list_domains(connection)

    monkeypatch.setattr(host_backend, "list_domains", list_or_fail)
    return mended


def test_a_lost_connection_is_told_tried_again_and_restored_with_all_that_was_known(
    listen: Listen, virsh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = virsh.defineXML(DOMAIN.format(name="web-01"))
    take(machine, "one")
    listener = listen(TEST)
    listener.open()
    uuid = listener.uuid("web-01")
    listener.backend.look_at(uuid)
    listener.settle()
    known = listener.backend.tree(uuid), listener.backend.costs(uuid), listener.backend.domains()
    listener.forget()

    mended = break_the_link(monkeypatch)
    listener.backend.refresh()
    listener.until(lambda: listener.backend.status.retry_at is not None)
    status = listener.backend.status
    assert status.phase is Phase.LOST
    assert isinstance(status.error, ConnectionLostError)
    assert status.host is not None, "what the host was is still shown"
    assert (listener.backend.tree(uuid), listener.backend.costs(uuid), listener.backend.domains()) == known
    answers: list[object] = []
    listener.backend.planner.plan(uuid, Take("now"), answers.append)
    listener.until(lambda: answers)
    assert isinstance(answers[0], ConnectionLostError)

    mended.set()
    take(machine, "meanwhile")
    listener.backend.reconnect_now()
    listener.until(lambda: listener.backend.status.phase is Phase.CONNECTED)
    listener.until(lambda: listener.names(uuid) == ["one", "meanwhile"])
    assert Phase.CONNECTING not in listener.phases
    assert listener.failures == []
    assert uuid not in [told for told, reading in listener.trees if len(reading.tree) == 1], "told twice"


# Closing


def test_closing_tells_that_it_is_closed_and_nothing_after(listen: Listen, tmp_path: Path) -> None:
    listener = listen(host_file(tmp_path / "host.xml", machines=30, snapshots=30))
    listener.open()
    listener.backend.close()
    assert listener.phases[-1] is Phase.CLOSED
    listener.forget()
    assert listener.backend.wait_until_closed(10)
    listener.qtbot.wait(100)
    assert (listener.phases, listener.lists, listener.trees, listener.costs) == ([], [], [], [])
    listener.backend.refresh()
    listener.backend.reconnect_now()
    listener.backend.look_at(None)
    listener.backend.close()


def test_a_call_that_hangs_does_not_keep_the_window_from_closing(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(*_arguments: object) -> object:
        hangs.set()
        assert goes_on.wait(30)
        return ()

    monkeypatch.setattr(host_backend, "list_domains", hang)
    backend = HostBackend(TEST)
    backend.open()
    qtbot.waitUntil(hangs.is_set, timeout=TIMEOUT_MS)
    began = time.monotonic()
    backend.close()
    assert time.monotonic() - began < 0.5
    assert not backend.wait_until_closed(0.1)
    backend.deleteLater()
    qtbot.wait(50)  # the backend is gone, and its thread comes back
    goes_on.set()
    assert backend.wait_until_closed(10)


def test_a_backend_that_was_never_opened_can_be_closed(qtbot: QtBot) -> None:
    backend = HostBackend(TEST)
    assert backend.domains() == ()
    assert backend.domain("nobody") is None
    backend.close()
    assert backend.wait_until_closed(1)


# The window's event loop


def test_all_signals_come_on_the_windows_thread(listen: Listen, virsh: Any) -> None:
    listener = listen(TEST)
    threads: set[int] = set()
    for signal in (
        listener.backend.host_changed,
        listener.backend.domains_changed,
        listener.backend.tree_changed,
        listener.backend.costs_changed,
    ):
        signal.connect(lambda *_: threads.add(threading.get_ident()), Qt.ConnectionType.DirectConnection)
    listener.open()
    listener.settle()
    virsh.defineXML(DOMAIN.format(name="web-01"))
    listener.until(lambda: len(listener.backend.domains()) == 2)
    assert threads == {threading.get_ident()}


def test_the_event_loop_turns_while_much_is_read(listen: Listen, tmp_path: Path) -> None:
    """Not how fast (that is the benchmark's), but that reading never happens in the window's thread."""
    listener = listen(host_file(tmp_path / "host.xml", machines=30, snapshots=60))
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1

    timer = QTimer(interval=1)
    timer.timeout.connect(turn)
    listener.open()
    timer.start()
    listener.settle()
    timer.stop()
    assert turns > 20
    assert sum(len(listener.names(domain.uuid)) for domain in listener.backend.domains()) == 1800
