"""Notes, marks and names on real machines: everybody sees them, and nothing that a snapshot holds changes."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.connection import Connection
from snaptree.hosts.describing import find_renamed
from snaptree.hosts.journal import Journal, this_user
from snaptree.hosts.reading import read_tree
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_to_describe
from snaptree.hosts.thumbnails import Thumbnails
from snaptree.model.estate import Consistency, Mark
from snaptree.plans.intention import (
    Capture,
    Delete,
    Describe,
    Intention,
    Recover,
    Rename,
    Revert,
    Take,
    TakeBack,
    only_describes,
)
from snaptree.plans.operation import Operation, OperationState, StepState, last_undoable
from snaptree.plans.plan import RenameSnapshot, Undo
from snaptree.plans.planner import make_plan
from tests.hosts.test_recovery import ask, recover
from tests.kit.crashing import Moment, run_and_kill
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import EmbeddedHost, Machine, RealHost, unchanged, wait_for_the_next_second

pytestmark = pytest.mark.qemu


def texts(machine: Machine) -> dict[str, str]:
    """What libvirt has on record of each snapshot, but for what a change of note or marks may change."""
    found = {}
    for snapshot in machine.handle.listAllSnapshots():
        root = ET.fromstring(snapshot.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE))
        for note in root.findall("description"):
            root.remove(note)
        for domain in (*root.findall("domain"), *root.findall("inactiveDomain")):
            for metadata in domain.findall("metadata"):
                domain.remove(metadata)
        found[snapshot.getName()] = ET.canonicalize(ET.tostring(root, encoding="unicode"), strip_text=True)
    return found


def reverted(machine: Machine, name: str) -> Machine:
    """The machine gone back to an external snapshot with children, where libvirt has such reverts."""
    wait_for_the_next_second()
    machine.change(Revert(name, take_safety_snapshot=False))
    machine.write(77)
    return machine


# Notes and marks


@pytest.mark.parametrize("capture", [Capture.DISKS, Capture.INTERNAL])
def test_notes_and_marks_change_nothing_else(host: EmbeddedHost, capture: Capture) -> None:
    secret = "<graphics type='vnc' autoport='yes' passwd='secret'/>"
    machine = host.make_machine(running=capture is Capture.DISKS, extra_devices=secret)
    if capture is Capture.DISKS:
        machine.virsh_take_disk_only("foreign")
    else:
        machine.virsh_take("foreign")
    machine.change(Take("a", description="first", capture=capture))
    machine.change(Take("b", capture=capture))
    before, recorded, contents = machine.tree(), texts(machine), machine.contents()
    assert "secret" in recorded["a"]
    note = "Größe <b>&amp;</b>: 5 > 4\n\n\tsecond “line” 🌳"
    began = int(time.time())
    machine.change(Describe(("a", "foreign"), pinned=True))
    machine.change(Describe(("b",), note=f"{note}\r\n"))
    machine.change(Describe(("a",), known_good=True))

    after = machine.tree()
    assert after.current == before.current
    assert after["b"].description == note
    for name in ("a", "foreign"):
        pinned = after[name].annotations.pinned
        assert pinned is not None
        assert pinned.by == this_user()
        assert began <= pinned.at <= time.time()
    assert after["a"].description == "first"
    good = after["a"].annotations.known_good
    assert replace(after["a"].annotations, pinned=None, known_good=None) == before["a"].annotations
    assert after["foreign"].consistency is before["foreign"].consistency
    assert texts(machine) == recorded
    assert machine.contents() == contents

    machine.change(Describe(("a",), pinned=False, note=""))
    assert machine.tree()["a"].annotations == replace(before["a"].annotations, known_good=good)
    assert machine.tree()["a"].description == ""
    assert texts(machine) == recorded


def test_another_administrator_sees_what_is_said(daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine(running=False)
    machine.change(Take("a", capture=Capture.DISKS))
    machine.change(Describe(("a",), note="before & after", pinned=True))
    ours = machine.tree()["a"].remarks
    daemon.stop()  # what is only in its memory is lost
    daemon.start()
    assert "<description>before &amp; after</description>" in daemon.virsh("snapshot-dumpxml", machine.name, "a")
    other = Connection(daemon.uri, read_only=True)
    other.open()
    try:
        seen = read_tree(other, machine.uuid)["a"]
    finally:
        other.close()
    assert seen.annotations.pinned is not None
    assert seen.annotations.pinned.by == this_user()
    assert seen.remarks == ours


def test_the_layers_in_use_since_a_revert_are_kept(host: EmbeddedHost) -> None:
    """libvirt 9.9 and later notes them in the current snapshot, and without them the next revert would lose data."""
    machine = host.make_machine(running=False)
    for number, name in enumerate(("a", "b")):
        machine.write(number)
        machine.change(Take(name, capture=Capture.DISKS))
    reverted(machine, "a")
    before, contents, recorded = machine.tree(), machine.contents(), texts(machine)
    assert before.current == "a"
    assert bool(before["a"].revert_overlays) == host.connection.host.external_snapshots
    machine.change(Describe(("a",), note="here we are", pinned=True))
    assert machine.tree().current == "a"
    assert machine.tree()["a"].revert_overlays == before["a"].revert_overlays
    assert texts(machine) == recorded
    wait_for_the_next_second()
    machine.change(Revert("b"))
    assert {name: content for name, content in machine.contents().items() if name in ("a", "b")} == {
        name: contents[name] for name in ("a", "b")
    }


def test_the_next_snapshot_is_not_what_the_reverted_one_was(host: EmbeddedHost) -> None:
    """A revert carries our element into the machine, and from there into what anybody takes next."""
    machine = host.make_machine(running=False)
    machine.change(Take("good", description="a note", capture=Capture.INTERNAL))
    machine.change(Describe(("good",), pinned=True, known_good=True))
    machine.change(Revert("good", take_safety_snapshot=False))
    machine.change(Take("ours", capture=Capture.INTERNAL))
    machine.virsh_take("foreign")
    tree = machine.tree()
    for name in ("ours", "foreign"):
        assert tree[name].annotations.pinned is None
        assert tree[name].annotations.known_good is None
    assert tree["good"].annotations.pinned is not None


def test_what_somebody_else_said_meanwhile_stays(host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.change(Take("a", capture=Capture.INTERNAL))
    plan = machine.plan(Describe(("a",), note="mine"))
    pin = machine.plan(Describe(("a",), pinned=True))
    machine.change(Describe(("a",), note="theirs"))
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert "the note or a mark of “a” is another by now" in str(operation.error)
    assert run_plan(host.connection, pin).error is None, "that was about something else"
    assert machine.tree()["a"].description == "theirs"
    assert machine.tree()["a"].annotations.pinned is not None


def test_undo_after_a_restart_says_what_was_said_before(host: EmbeddedHost, tmp_path: Path) -> None:
    machine = host.make_machine(running=False)
    machine.change(Take("a", description="first", capture=Capture.DISKS))
    machine.change(Take("b", capture=Capture.DISKS))
    machine.change(Describe(("a",), pinned=True))
    before = [snapshot.remarks for snapshot in machine.tree()]

    def run(intention: Intention, undoes: Operation | None = None) -> Operation:
        with_journal = Journal(tmp_path / "journal.sqlite3")
        try:
            return run_plan(
                host.connection,
                machine.plan(intention),
                journal=with_journal,
                undoes=None if undoes is None else undoes.id,
            )
        finally:
            with_journal.close()

    def last() -> Operation:
        after_restart = Journal(tmp_path / "journal.sqlite3")
        try:
            found = last_undoable(after_restart.recent(10), machine.uuid)
        finally:
            after_restart.close()
        assert found is not None
        return found

    def undo() -> None:
        operation = last()
        assert operation.plan.undo is not None
        assert run(TakeBack(operation.plan.undo), operation).error is None

    run(Describe(("a",), note="second"))
    run(Describe(("a", "b"), known_good=True, pinned=False))
    run(Rename("a", "begin"))
    assert list(machine.tree().snapshots) == ["begin", "b"]
    undo()
    assert list(machine.tree().snapshots) == ["a", "b"]
    undo()
    assert machine.tree()["a"].annotations.known_good is None
    assert machine.tree()["a"].description == "second"
    undo()
    assert [snapshot.remarks for snapshot in machine.tree()] == before


def test_deletes_keep_what_is_said_of_the_others(host: EmbeddedHost) -> None:
    machine = host.make_machine()
    for number, name in enumerate(("a", "b", "c", "d")):
        machine.write(number)
        machine.change(Take(name, description=f"the note of {name}", capture=Capture.DISKS))
    machine.change(Describe(("a", "d"), pinned=True))
    machine.change(Describe(("c",), known_good=True))
    before = {snapshot.name: (snapshot.remarks, snapshot.annotations) for snapshot in machine.tree()}
    machine.change(Delete(("b",)))
    machine.change(Delete(("c",), by_own_jobs=True))
    after = {snapshot.name: (snapshot.remarks, snapshot.annotations) for snapshot in machine.tree()}
    assert after == {name: before[name] for name in ("a", "d")}


def test_describing_needs_no_look_at_images(host: EmbeddedHost) -> None:
    """Where storage hangs, or a host has a thousand machines, a note is planned as quickly; and by the same rules."""
    machine = host.make_machine()
    machine.change(Take("a", capture=Capture.DISKS))
    machine.change(Describe(("a",), pinned=True))
    back = TakeBack(Undo("", rename=("a", "b")))
    for intention in (Describe(("a",), note="x", pinned=False), Rename("a", "b"), back):
        assert only_describes(intention)
        whole = machine.plan(intention)
        light = make_plan(intention, read_to_describe(host.connection, machine.uuid))
        assert not light.is_refused
        assert (light.steps, light.undo) == (whole.steps, whole.undo)
    assert not only_describes(TakeBack(Undo("", delete=("a",))))


@pytest.mark.parametrize("by_own_jobs", [False, True])
def test_a_mark_set_meanwhile_keeps_a_snapshot_from_a_delete_of_several(host: EmbeddedHost, by_own_jobs: bool) -> None:
    machine = host.make_machine()
    for number, name in enumerate(("a", "b", "c")):
        machine.write(number)
        machine.change(Take(name, capture=Capture.DISKS))
    plan = machine.plan(Delete(("a", "b"), by_own_jobs=by_own_jobs))
    machine.change(Describe(("b",), known_good=True))
    before = machine.contents()
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert "somebody has marked “b” to be kept" in str(operation.error)
    after = machine.contents()
    assert "b" in after
    assert {name: before[name] for name in after} == after
    assert not machine.plan(Delete(("b",))).is_refused


# Names


def chain(host: RealHost, *, running: bool = False, capture: Capture = Capture.DISKS) -> Machine:
    """a - b - c, external, each with content of its own, and more in use."""
    machine = host.make_machine(running=running)
    for number, name in enumerate(("a", "b", "c")):
        machine.write(number)
        machine.change(Take(name, description=f"about {name}", capture=capture))
    machine.change(Describe(("a", "b", "c"), pinned=True))
    machine.write(9)
    return machine


def as_renamed(contents: dict[str, dict[str, str]], old: str, new: str) -> dict[str, dict[str, str]]:
    return {new if name == old else name: content for name, content in contents.items()}


@pytest.mark.parametrize(("name", "running"), [("b", True), ("c", False)])
def test_a_renamed_snapshot_is_what_it_was(host: EmbeddedHost, name: str, running: bool) -> None:
    machine = chain(host, running=running)
    before, contents = machine.tree(), machine.contents()
    picture = b"\x89PNG\r\n\x1a\n of the screen"
    pictures = Thumbnails.of(host.uri, machine.uuid)
    pictures.keep(name, before[name].created, picture)
    operation = machine.change(Rename(name, "renamed"))
    tree = machine.tree()
    assert pictures.read("renamed", before[name].created) == picture
    assert tree.current == ("renamed" if name == "c" else "c")
    assert tree["renamed"] == replace(before[name], name="renamed"), "its marks speak of the new name"
    assert tree["renamed"].annotations.pinned is not None
    assert [tree.parents[child] for child in before.children(name)] == ["renamed" for _ in before.children(name)]
    assert machine.contents() == as_renamed(contents, name, "renamed")

    assert operation.plan.undo is not None
    machine.change(TakeBack(operation.plan.undo))
    assert machine.tree() == before
    machine.change(Rename(name, "renamed"))

    wait_for_the_next_second()
    machine.change(Revert("renamed"))
    safety = next(snapshot.name for snapshot in machine.tree() if snapshot.annotations.safety)
    machine.change(Delete(("renamed",)))
    left = machine.contents()
    for kept in {"a", "b", "c"} - {name}:
        assert left[kept] == contents[kept]
    assert safety in left
    machine.check_images()


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_rename_keeps_the_layers_in_use_since_a_revert(host: EmbeddedHost, name: str) -> None:
    machine = reverted(chain(host), "a")
    if name == "b":  # the parent of what is renamed has been reverted to
        assert machine.tree().current == "a"
    before, contents = machine.tree(), machine.contents()
    machine.change(Rename(name, "renamed"))
    tree = machine.tree()
    current = "renamed" if name == "a" else "a"
    assert tree.current == current
    assert tree[current].revert_overlays == before["a"].revert_overlays
    assert machine.contents() == as_renamed(contents, name, "renamed")
    wait_for_the_next_second()
    machine.change(Revert("c"))
    after = machine.contents()
    for kept, content in as_renamed(contents, name, "renamed").items():
        if kept in ("renamed", "a", "b", "c"):
            assert after[kept] == content, "what was in use before the revert was removed, and nothing else"


@pytest.mark.parametrize("moment", [Moment.BEGUN, Moment.ACTED])
def test_a_rename_whose_program_was_killed_is_finished(daemon: LibvirtDaemon, journal: Journal, moment: Moment) -> None:
    machine = chain(daemon)
    contents = machine.contents()
    run_and_kill(daemon.uri, machine.plan(Rename("b", "renamed")), journal.path, moment, 0)
    recover(machine, journal)
    assert list(machine.tree().snapshots) == ["a", "renamed", "c"]
    assert machine.contents() == as_renamed(contents, "b", "renamed")


def rename_cut_short(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, journal: Journal, name: str, made: int
) -> Operation:
    """libvirt is told of it in several calls, and goes away after so many of them."""
    calls = 0

    def giving_up(real: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            nonlocal calls
            calls += 1
            if calls > made:
                raise libvirt.libvirtError("the link broke")
            return real(*given)

        return call

    with monkeypatch.context() as patched:
        for owner, method in ((libvirt.virDomain, "snapshotCreateXML"), (libvirt.virDomainSnapshot, "delete")):
            patched.setattr(owner, method, giving_up(getattr(owner, method)))
        operation = run_plan(machine.connection, ask(machine, journal, Rename(name, "renamed")), journal=journal)
    assert operation.state is OperationState.INTERRUPTED
    return operation


HALF_WAY = [("b", 1), ("b", 2), ("c", 1)]
"""What is renamed, and after how many calls libvirt knows both names and is told no more."""


@pytest.mark.parametrize(("name", "made"), HALF_WAY)
def test_a_rename_cut_short_between_two_words_to_libvirt_is_finished(
    host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch, journal: Journal, name: str, made: int
) -> None:
    machine = chain(host)
    contents, before = machine.contents(), machine.tree()
    rename_cut_short(machine, monkeypatch, journal, name, made)
    assert {name, "renamed"} <= machine.tree().snapshots.keys()
    assert "unfinished-operation" in {each.rule for each in ask(machine, journal, Delete((name,))).refusals}
    recover(machine, journal)
    tree = machine.tree()
    assert tree["renamed"] == replace(before[name], name="renamed")
    assert tree.current == ("renamed" if name == "c" else "c")
    assert machine.contents() == as_renamed(contents, name, "renamed")


@pytest.mark.parametrize("to_the_new_name", [False, True])
@pytest.mark.parametrize(("name", "made"), HALF_WAY)
def test_a_rename_that_was_left_half_done_can_be_finished_later(
    host: EmbeddedHost,
    monkeypatch: pytest.MonkeyPatch,
    journal: Journal,
    name: str,
    made: int,
    to_the_new_name: bool,
) -> None:
    """With one of the two names gone, nobody could tell any more what stands on the other."""
    machine = chain(host, running=True, capture=Capture.DISKS_AND_MEMORY)
    before, contents = machine.tree(), machine.contents()
    rename_cut_short(machine, monkeypatch, journal, name, made)
    left = run_plan(host.connection, ask(machine, journal, Recover(leave=True)), journal=journal)
    assert left.error is None
    old, new = (name, "renamed") if to_the_new_name else ("renamed", name)
    for each in (old, new):
        assert {finding.rule for finding in machine.plan(Delete((each,))).refusals} == {"two-names"}
    machine.change(Rename(old, new))
    tree = machine.tree()
    assert tree[new] == replace(before[name], name=new)
    assert [tree.parents[child] for child in before.children(name)] == [new for _ in before.children(name)]
    assert tree.current == (new if name == "c" else "c")
    assert machine.contents() == as_renamed(contents, name, new)


def test_both_names_of_one_snapshot_may_go_together(
    host: EmbeddedHost, monkeypatch: pytest.MonkeyPatch, journal: Journal
) -> None:
    machine = chain(host, running=True, capture=Capture.DISKS_AND_MEMORY)
    contents = machine.contents()
    rename_cut_short(machine, monkeypatch, journal, "b", 1)
    run_plan(host.connection, ask(machine, journal, Recover(leave=True)), journal=journal)
    machine.change(Describe(("b", "renamed"), pinned=False))
    machine.change(Delete(("b", "renamed")))
    assert unchanged(contents, machine.contents(), "b")
    machine.check_images()


def test_a_rename_is_not_made_of_a_tree_that_changed(host: EmbeddedHost) -> None:
    machine = chain(host)
    plan = machine.plan(Rename("c", "renamed"))
    machine.change(Take("d", capture=Capture.DISKS))
    operation = run_plan(host.connection, plan)
    assert operation.state is OperationState.FAILED
    assert "another parent or other children" in str(operation.error)
    plan = machine.plan(Rename("d", "renamed"))
    machine.change(Take("renamed", capture=Capture.DISKS))
    (step,) = plan.steps
    assert isinstance(step, RenameSnapshot)
    assert find_renamed(host.connection, machine.handle, step).state is StepState.CHANGED
    assert run_plan(host.connection, plan).state is OperationState.FAILED
    assert list(machine.tree().snapshots) == ["a", "b", "c", "d", "renamed"]


def test_an_internal_snapshot_keeps_its_name(host: EmbeddedHost) -> None:
    machine = host.make_machine(running=False)
    machine.change(Take("a", capture=Capture.INTERNAL))
    plan = machine.plan(Rename("a", "b"))
    assert [refusal.rule for refusal in plan.refusals] == ["rename-internal"]
    assert machine.tree()["a"].annotations.pinned != Mark()
    assert machine.tree()["a"].consistency is Consistency.OFFLINE
