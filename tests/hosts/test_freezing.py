"""Snapshots of a real guest with a real agent: what they hold, and that it is thawed again, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pytestqt.qtbot import QtBot

from snaptree.cli import main
from snaptree.hosts.freezing import thaw_left
from snaptree.hosts.journal import Journal
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.jobs.host_backend import HostBackend
from snaptree.model.estate import Consistency, Snapshot
from snaptree.plans.intention import Capture, Recover, Revert, Take
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Freeze, FreezeFileSystems, Plan
from snaptree.plans.planner import make_plan
from tests.kit.crashing import Moment, run_and_kill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.guest import Guest, check_clean, make_guest, needs_recovery, numbers_in, raw_copy, wait_until
from tests.kit.machines import EmbeddedHost, remove, wait_for_the_next_second

pytestmark = [pytest.mark.qemu, pytest.mark.daemon, pytest.mark.guest]

TAKE = 1
"""The step between freezing and thawing."""


@pytest.fixture(scope="module")
def guest_host() -> Iterator[LibvirtDaemon]:
    daemon = LibvirtDaemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def the_guest(guest_host: LibvirtDaemon) -> Guest:
    """One for all tests of this file: it takes a while to boot."""
    return make_guest(guest_host)


@pytest.fixture
def guest(the_guest: Guest, guest_host: LibvirtDaemon) -> Iterator[Guest]:
    """The guest, writing; after the test it is as it was, but for its snapshots."""
    the_guest.connection = guest_host.connection
    yield the_guest
    assert not the_guest.is_frozen
    the_guest.wait_for_writes()


@pytest.fixture(scope="module")
def embedded_guest(embedded_host: EmbeddedHost) -> Iterator[Guest]:
    """One that can be reverted before libvirt 9.9 as well: there SnapTree makes layers, and QEMU is the same user's."""
    guest = make_guest(embedded_host, "embedded-guest")
    yield guest
    remove(guest.handle)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite3")
    yield journal
    journal.close()


def names(guest: Guest) -> set[str]:
    return set(guest.tree().snapshots)


def freezing(guest: Guest, name: str, freeze: Freeze = Freeze.REQUIRED, seconds: float | None = None) -> Plan:
    """A plan to take the disks with the file systems frozen, perhaps for other than the usual time."""
    plan = guest.plan(Take(name, capture=Capture.DISKS, quiesce=freeze))
    assert not plan.is_refused, plan.refusals
    if seconds is None:
        return plan
    steps = [replace(step, seconds=seconds) if isinstance(step, FreezeFileSystems) else step for step in plan.steps]
    return replace(plan, steps=tuple(steps))


def image_of(snapshot: Snapshot, directory: Path) -> Path:
    (disk,) = snapshot.disks
    assert disk.frozen is not None
    return raw_copy(Path(disk.frozen), directory / f"{snapshot.name}.raw")


class Interposing(Journal):
    """A journal that does something else when it is told of a step: nothing is recorded before that is over."""

    before_step: Callable[[], None] | None = None
    after_step: Callable[[], None] | None = None

    def step_begins(self, operation: int, number: int, *, was_active: bool) -> None:
        if number == TAKE and self.before_step is not None:
            self.before_step()
        super().step_begins(operation, number, was_active=was_active)

    def step_is_done(self, operation: int, number: int, *, paused: float | None = None) -> None:
        if number == TAKE and self.after_step is not None:
            self.after_step()
        super().step_is_done(operation, number, paused=paused)


@pytest.fixture
def interposing(tmp_path: Path) -> Iterator[Interposing]:
    journal = Interposing(tmp_path / "interposing.sqlite3")
    yield journal
    journal.close()


# What snapshots hold


def test_a_frozen_snapshot_mounts_clean_and_any_other_needs_its_journal(
    guest: Guest, journal: Journal, tmp_path: Path
) -> None:
    frozen = run_plan(guest.connection, freezing(guest, "frozen"), journal=journal)
    assert frozen.error is None, frozen.error
    guest.wait_for_writes()
    before = guest.count()
    guest.change(Take("crash", capture=Capture.DISKS))

    tree = guest.tree()
    assert tree["frozen"].consistency is Consistency.FILESYSTEM
    assert tree["crash"].consistency is Consistency.CRASH
    image = image_of(tree["frozen"], tmp_path)
    assert not needs_recovery(image)
    check_clean(image)
    numbers = numbers_in(image)
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= before

    image = image_of(tree["crash"], tmp_path)
    assert needs_recovery(image)
    assert len(numbers_in(image)) >= before, "what was synced is there once the journal was replayed"


def test_what_it_did_to_the_guest_is_measured_and_kept(guest: Guest, journal: Journal) -> None:
    operation = run_plan(guest.connection, freezing(guest, "measured"), journal=journal)
    impact = guest.tree()["measured"].annotations.impact
    assert impact is not None
    assert impact.frozen is not None
    assert 0 < impact.frozen <= impact.seconds
    assert impact.paused == 0, "freezing stops who writes, not the guest"
    assert impact.wrote
    (known,) = journal.recent()
    assert known.impact == operation.impact


def test_a_snapshot_with_memory_goes_on_where_the_guest_was(embedded_guest: Guest, journal: Journal) -> None:
    guest = embedded_guest
    before = guest.count()
    operation = run_plan(
        guest.connection, guest.plan(Take("memory", capture=Capture.DISKS_AND_MEMORY)), journal=journal
    )
    assert operation.error is None, operation.error
    after = guest.count()
    impact = guest.tree()["memory"].annotations.impact
    assert impact is not None
    assert impact.paused
    assert impact.wrote

    likely = replace(read_situation(guest.connection, guest.uuid), speed=journal.speed(guest.connection.uri))
    forecast = make_plan(Take("again", capture=Capture.DISKS_AND_MEMORY), likely).forecast
    assert forecast.likely_extra == pytest.approx(impact.wrote, rel=0.01)
    assert forecast.pause_seconds == pytest.approx(impact.paused, rel=0.01)

    guest.wait_for_writes(20)
    wait_for_the_next_second()
    later = guest.count()
    guest.change(Revert("memory", take_safety_snapshot=False))
    resumed = guest.count()
    assert before <= resumed < later
    assert after <= later
    guest.wait_for_writes()
    numbers = [int(line) for line in guest.shell("cat /disk/counter").split()]
    assert numbers == list(range(1, len(numbers) + 1)), "disk and memory are of the same moment"


def test_a_live_snapshot_lets_the_guest_run_on(embedded_guest: Guest) -> None:
    embedded_guest.change(Take("live", capture=Capture.DISKS_AND_MEMORY, live=True))
    snapshot = embedded_guest.tree()["live"]
    assert snapshot.consistency is Consistency.MEMORY
    impact = snapshot.annotations.impact
    assert impact is not None
    assert impact.paused is not None
    assert impact.paused < impact.seconds


# Agents that don't


def test_without_an_agent_only_who_allows_it_gets_a_snapshot(guest: Guest) -> None:
    required, allowed = freezing(guest, "required"), freezing(guest, "allowed", Freeze.IF_POSSIBLE)
    guest.stop_agent()
    try:
        refused = guest.plan(Take("no", capture=Capture.DISKS, quiesce=Freeze.REQUIRED))
        assert [refusal.rule for refusal in refused.refusals] == ["quiesce-without-agent"]
        # It went after the plan was made.
        operation = run_plan(guest.connection, required)
        assert operation.state is OperationState.FAILED
        assert "required" not in names(guest)
        operation = run_plan(guest.connection, allowed)
        assert operation.state is OperationState.DONE
        assert "not frozen" in operation.remark
        assert guest.tree()["allowed"].consistency is Consistency.CRASH
    finally:
        guest.start_agent()


def test_an_agent_that_hangs_freezes_nothing_when_it_goes_on(guest: Guest, journal: Journal) -> None:
    plan = freezing(guest, "hung")
    guest.shell("kill -STOP $(pidof qemu-ga)")
    try:
        operation = run_plan(guest.connection, plan, journal=journal)
    finally:
        guest.shell("kill -CONT $(pidof qemu-ga)")
    assert operation.state is OperationState.FAILED
    assert "hung" not in names(guest)
    assert not journal.left_frozen(guest.connection.uri)
    guest.wait_for_writes()
    assert not guest.is_frozen


def test_what_somebody_else_froze_stays_frozen(guest: Guest) -> None:
    plan = freezing(guest, "theirs")
    guest.handle.fsFreeze()
    try:
        operation = run_plan(guest.connection, plan)
        assert operation.state is OperationState.FAILED
        assert operation.error is not None
        assert "Somebody else" in operation.error.hint
        assert guest.is_frozen
    finally:
        guest.handle.fsThaw()


# What goes wrong while they are frozen


def test_when_the_time_is_over_they_are_thawed_and_nothing_is_taken(guest: Guest, interposing: Interposing) -> None:
    interposing.before_step = lambda: wait_until(lambda: not guest.is_frozen, "nobody thaws")
    operation = run_plan(guest.connection, freezing(guest, "late", seconds=1.0), journal=interposing)
    assert operation.state is OperationState.FAILED
    assert operation.error is not None
    assert "frozen" in operation.error.summary
    assert "late" not in names(guest)


@pytest.mark.parametrize("freeze", [Freeze.REQUIRED, Freeze.IF_POSSIBLE])
def test_what_was_taken_when_the_time_was_over_is_not_called_frozen(
    guest: Guest, interposing: Interposing, freeze: Freeze
) -> None:
    name = f"over-{freeze}"
    interposing.after_step = lambda: wait_until(lambda: not guest.is_frozen, "nobody thaws")
    operation = run_plan(guest.connection, freezing(guest, name, freeze, seconds=1.0), journal=interposing)
    assert guest.tree()[name].consistency is Consistency.CRASH
    said = operation.remark if freeze is Freeze.IF_POSSIBLE else str(operation.error)
    assert "crash-consistent" in said
    assert operation.state is (OperationState.DONE if freeze is Freeze.IF_POSSIBLE else OperationState.FAILED)


def test_they_are_thawed_if_taking_fails(guest: Guest, journal: Journal) -> None:
    plan = freezing(guest, "fails")
    guest.virsh_take_disk_only("meanwhile")
    operation = run_plan(guest.connection, replace(plan, expected_chains={}), journal=journal)
    assert operation.state is OperationState.FAILED
    assert not guest.is_frozen
    assert not journal.left_frozen(guest.connection.uri)


def test_they_are_thawed_if_it_is_cancelled(guest: Guest) -> None:
    operation = run_plan(guest.connection, freezing(guest, "cancelled"), cancelled=lambda: guest.is_frozen)
    assert operation.state is OperationState.CANCELLED
    assert "cancelled" not in names(guest)
    assert not guest.is_frozen


def test_they_are_thawed_if_the_program_is_stopped(guest: Guest, interposing: Interposing) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    interposing.after_step = stop
    with pytest.raises(KeyboardInterrupt):
        run_plan(guest.connection, freezing(guest, "stopped"), journal=interposing)
    assert not guest.is_frozen


# What dies meanwhile


def killed_while_frozen(guest: Guest, name: str, journal: Journal, moment: Moment) -> None:
    run_and_kill(guest.connection.uri, freezing(guest, name), journal.path, moment, TAKE)
    assert guest.is_frozen
    assert journal.left_frozen(guest.connection.uri)


def finish(guest: Guest, journal: Journal) -> Operation:
    situation = read_situation(guest.connection, guest.uuid)
    plan = make_plan(Recover(), with_operations(guest.connection, situation, journal, recovers=True))
    assert not plan.is_refused, plan.refusals
    operation = run_plan(guest.connection, plan, journal=journal)
    assert operation.error is None, operation.error
    return operation


def test_whatever_command_comes_next_thaws_what_a_killed_one_left_frozen(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    journal = Journal(tmp_path / "snaptree" / "journal.sqlite3")
    try:
        killed_while_frozen(guest, "killed", journal, Moment.BEGUN)
        assert main(["--connect", guest.connection.uri, "tree", guest.name]) == 0
        assert "were still frozen" in capsys.readouterr().err
        assert not guest.is_frozen
        guest.wait_for_writes()
        assert not thaw_left(guest.connection, journal)
        # Nothing was taken yet: to finish it, they are frozen again.
        finish(guest, journal)
        assert guest.tree()["killed"].consistency is Consistency.FILESYSTEM
    finally:
        journal.close()


def test_the_window_thaws_what_was_left_frozen_as_soon_as_it_is_connected(
    guest: Guest, journal: Journal, qtbot: QtBot
) -> None:
    killed_while_frozen(guest, "killed-later", journal, Moment.ACTED)
    backend = HostBackend(guest.connection.uri, journal=journal)
    try:
        backend.open()
        qtbot.waitUntil(lambda: any("thawed" in each.remark for each in backend.unfinished().values()), timeout=60_000)
        assert not guest.is_frozen
    finally:
        backend.close()
        assert backend.wait_until_closed(30)
    finish(guest, journal)
    assert guest.tree()["killed-later"].consistency is Consistency.CRASH, "nobody saw whether it was frozen to the end"


def test_they_are_thawed_over_a_new_connection_if_the_daemon_dies(
    guest: Guest, guest_host: LibvirtDaemon, interposing: Interposing
) -> None:
    def die() -> None:
        guest_host.kill()
        guest_host.start()

    interposing.before_step = die
    operation = run_plan(guest.connection, freezing(guest, "lost"), journal=interposing)
    guest.connection = guest_host.connection
    assert operation.state is OperationState.INTERRUPTED
    assert not interposing.left_frozen(guest.connection.uri)
    assert not guest.is_frozen
