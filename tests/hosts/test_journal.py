"""The journal: what was begun and how it ended is known whatever happens to the program."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snaptree.hosts.journal import Journal, journal_path
from snaptree.model.errors import SnapTreeError
from snaptree.plans.operation import Operation, OperationState, Settled
from snaptree.plans.plan import Action, DeleteSnapshot, Plan, RemoveLeftover, Undo
from snaptree.plans.plan_json import plan_to_record

PLAN = Plan(
    action=Action.DELETE,
    host_uri="qemu:///system",
    domain_uuid="df91bfbd-45b9-4ab9-a1c9-bd92ec8f9fe4",
    domain="web <b>01</b>",
    snapshots=("a", "b"),
    steps=(DeleteSnapshot("a", ("b",), merges=True), RemoveLeftover("/vm/a.mem", "nothing refers to it")),
    undo=Undo("Take it back", revert_to="b"),
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "state" / "journal.sqlite3")
    yield journal
    journal.close()


def test_what_ended_is_remembered_newest_first(journal: Journal) -> None:
    first = journal.begin(PLAN)
    journal.step_begins(first.id, 0, was_active=True)
    journal.step_is_done(first.id, 0, paused=0.25)
    error = SnapTreeError("It failed.", hint="Do this.", details="raw")
    journal.finish(dataclasses.replace(first, state=OperationState.FAILED, finished=first.started + 1, error=error))
    second = journal.begin(dataclasses.replace(PLAN, host_uri="qemu:///session"))
    journal.finish(dataclasses.replace(second, state=OperationState.DONE, finished=second.started + 2))

    newest, oldest = journal.recent()
    assert len(oldest.step_seconds) == 1
    assert 0 <= oldest.step_seconds[0] < 60
    assert oldest.step_pauses == (0.25,)
    assert newest.step_seconds == ()
    assert (newest.state, newest.can_undo, newest.steps_done) == (OperationState.DONE, True, 0)
    assert (oldest.state, oldest.plan, oldest.steps_done) == (OperationState.FAILED, PLAN, 1)
    assert oldest.error is not None
    assert (oldest.error.summary, oldest.error.hint, oldest.error.details) == ("It failed.", "Do this.", "raw")
    assert [operation.id for operation in journal.recent(host_uri="qemu:///system")] == [first.id]

    assert second.who
    back = journal.begin(dataclasses.replace(PLAN, action=Action.UNDO, undo=None), undoes=second.id)
    assert journal.recent()[1].can_undo, "not taken back yet"
    journal.finish(dataclasses.replace(back, state=OperationState.DONE, finished=back.started + 1))
    assert not journal.recent()[1].can_undo, "Undo is offered once"


CRASHES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.hosts.test_journal import PLAN
from snaptree.hosts.journal import Journal, journal_path
journal = Journal(Path(sys.argv[1]))
operation = journal.begin(PLAN)
journal.step_begins(operation.id, 0, was_active=True)
journal.step_is_done(operation.id, 0)
journal.step_begins(operation.id, 1, was_active=False)
print("begun", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_program_had_begun_is_found_as_interrupted(journal: Journal) -> None:
    checkout = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", CRASHES, journal.path, checkout],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        assert [operation.state for operation in journal.recent()] == [OperationState.RUNNING], "it still runs"
        assert not journal.unfinished()
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
    (interrupted,) = journal.unfinished(host_uri=PLAN.host_uri, domain_uuid=PLAN.domain_uuid)
    assert interrupted.state is OperationState.INTERRUPTED
    assert (interrupted.plan, interrupted.steps_done, interrupted.steps_begun) == (PLAN, 1, 2)
    assert interrupted.was_active is False
    assert not journal.unfinished(host_uri="qemu:///session")
    assert not journal.unfinished(domain_uuid="another")


@pytest.fixture
def interrupted(journal: Journal) -> Operation:
    """An operation that was cut short in its second step."""
    operation = journal.begin(PLAN)
    journal.step_begins(operation.id, 0, was_active=True)
    journal.step_is_done(operation.id, 0)
    journal.step_begins(operation.id, 1, was_active=True)
    journal.finish(dataclasses.replace(operation, state=OperationState.INTERRUPTED, finished=operation.started + 1))
    (found,) = journal.unfinished()
    return found


@pytest.mark.parametrize("how", [Action.FINISH, Action.LEAVE])
def test_what_was_interrupted_is_settled_by_who_takes_it_over(
    journal: Journal, interrupted: Operation, how: Action
) -> None:
    with pytest.raises(SnapTreeError, match="interrupted"):
        journal.begin(PLAN)
    recovery = dataclasses.replace(PLAN, action=how, steps=PLAN.steps[1:], recovers=interrupted.id)
    first = journal.begin(recovery)
    assert journal.recent()[1].settled == Settled(first.id, how)
    assert not journal.unfinished()
    with pytest.raises(SnapTreeError, match="somebody else"):
        journal.begin(recovery)

    journal.step_begins(first.id, 0, was_active=True)
    journal.finish(dataclasses.replace(first, state=OperationState.INTERRUPTED, finished=first.started + 1))
    (again,) = journal.unfinished()
    assert again.id == first.id, "cut short itself, it is what has to be finished"
    second = journal.begin(dataclasses.replace(recovery, recovers=again.id))
    journal.finish(dataclasses.replace(second, state=OperationState.DONE, finished=second.started + 1))
    assert not journal.unfinished()
    journal.begin(PLAN)


def test_what_was_half_done_is_not_forgotten_by_who_takes_over_and_does_nothing(
    journal: Journal, interrupted: Operation
) -> None:
    finish = dataclasses.replace(PLAN, action=Action.FINISH, steps=PLAN.steps[1:], recovers=interrupted.id)
    operation = journal.begin(finish)
    journal.finish(dataclasses.replace(operation, state=OperationState.INTERRUPTED, finished=operation.started + 1))
    (found,) = journal.unfinished()
    assert (found.id, found.steps_done, found.steps_begun, found.was_active) == (operation.id, 0, 1, True)
    leave = journal.begin(dataclasses.replace(finish, action=Action.LEAVE, steps=(), recovers=found.id))
    assert leave.id
    assert not journal.unfinished(), "left is left, however that ends"


def test_an_undo_that_is_finished_later_takes_back_what_it_was_to(journal: Journal) -> None:
    taken = journal.begin(PLAN)
    journal.finish(dataclasses.replace(taken, state=OperationState.DONE, finished=taken.started + 1))
    undo = journal.begin(dataclasses.replace(PLAN, action=Action.UNDO), undoes=taken.id)
    journal.step_begins(undo.id, 0, was_active=True)
    journal.finish(dataclasses.replace(undo, state=OperationState.INTERRUPTED, finished=undo.started + 1))
    assert journal.recent()[-1].can_undo
    finish = journal.begin(dataclasses.replace(PLAN, action=Action.FINISH, recovers=undo.id))
    journal.finish(dataclasses.replace(finish, state=OperationState.DONE, finished=finish.started + 1))
    assert journal.recent()[-1].undone


def test_what_had_not_begun_to_act_needs_no_finishing(journal: Journal) -> None:
    operation = journal.begin(PLAN)
    journal.finish(dataclasses.replace(operation, state=OperationState.INTERRUPTED, finished=operation.started + 1))
    assert not journal.unfinished()
    journal.begin(PLAN)


def test_nobody_begins_beside_another_program(journal: Journal) -> None:
    checkout = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", CRASHES, journal.path, checkout],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        running = journal.running_elsewhere(PLAN.host_uri, PLAN.domain_uuid)
        assert running is not None
        assert running.plan == PLAN
        with pytest.raises(SnapTreeError, match=f"process {program.pid}"):
            journal.begin(PLAN)
        journal.begin(dataclasses.replace(PLAN, domain_uuid="another"))
        program.kill()
    assert journal.running_elsewhere(PLAN.host_uri, PLAN.domain_uuid) is None


VERSION_1 = """
CREATE TABLE operations (
    id INTEGER PRIMARY KEY, host TEXT NOT NULL, domain_uuid TEXT NOT NULL, domain TEXT NOT NULL, action TEXT NOT NULL,
    plan TEXT NOT NULL, state TEXT NOT NULL, started REAL NOT NULL, finished REAL, undone INTEGER NOT NULL DEFAULT 0,
    error_summary TEXT NOT NULL DEFAULT '', error_hint TEXT NOT NULL DEFAULT '',
    error_details TEXT NOT NULL DEFAULT '', owner_pid INTEGER NOT NULL, owner_started REAL NOT NULL
);
CREATE TABLE steps (
    operation INTEGER NOT NULL REFERENCES operations (id), number INTEGER NOT NULL, started REAL NOT NULL,
    finished REAL, PRIMARY KEY (operation, number)
);
CREATE INDEX operations_by_domain ON operations (domain_uuid, started);
PRAGMA user_version = 1;
"""
"""The tables as the first SnapTree made them."""


def test_a_journal_of_the_first_version_goes_on(tmp_path: Path) -> None:
    record = plan_to_record(PLAN)
    del record["recovers"]
    path = tmp_path / "journal.sqlite3"
    # One that ended, one cut short and followed by another, one cut short last of all, and one of another machine.
    rows = [("one", "done", 9.0), ("one", "running", None), ("one", "running", None), ("two", "running", None)]
    with sqlite3.connect(path) as database:
        database.executescript(VERSION_1)
        for number, (uuid, state, finished) in enumerate(rows, start=1):
            database.execute(
                "INSERT INTO operations (host, domain_uuid, domain, action, plan, state, started, finished, owner_pid,"
                " owner_started) VALUES (?, ?, 'vm', 'delete', ?, ?, ?, ?, 1, -1)",
                (PLAN.host_uri, uuid, json.dumps(record), state, float(number), finished),
            )
            database.execute("INSERT INTO steps VALUES (?, 0, 1, 2), (?, 1, 2, NULL)", (number, number))
    database.close()

    for _ in range(2):  # migrated once, opened again
        journal = Journal(path)
        assert [operation.id for operation in journal.recent()] == [4, 3, 2, 1]
        assert all(operation.plan == PLAN for operation in journal.recent())
        assert [operation.id for operation in journal.unfinished()] == [4, 3], "the machine was changed since"
        ended = journal.recent()[-1]
        assert (ended.state, ended.steps_done, ended.who, ended.was_active) == (OperationState.DONE, 1, "", None)
        assert journal.speed(PLAN.host_uri) is not None
        journal.close()


def test_a_journal_of_a_newer_snaptree_is_left_alone(journal: Journal) -> None:
    with sqlite3.connect(journal.path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SnapTreeError, match="newer SnapTree"):
        Journal(journal.path)


@pytest.mark.parametrize("what", ["directory", "garbage"])
def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "journal.sqlite3"
    if what == "directory":
        path.mkdir()
    else:
        path.write_bytes(b"this is no database, and was never one" * 100)
    with pytest.raises(SnapTreeError) as failure:
        Journal(path)
    assert str(path) in failure.value.summary
    assert "recorded" in failure.value.hint


def test_a_plan_that_is_not_understood_does_not_hide_the_others(journal: Journal) -> None:
    strange = journal.begin(PLAN)
    known = journal.begin(PLAN)
    with sqlite3.connect(journal.path) as database:
        database.execute("UPDATE operations SET plan = '{}' WHERE id = ?", (strange.id,))
    database.close()
    assert [operation.id for operation in journal.recent()] == [known.id]


def test_an_embedded_drivers_journal_goes_with_its_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    of_the_user = tmp_path / "state" / "snaptree" / "journal.sqlite3"
    for uri in (
        "qemu:///system",
        "qemu:///session",
        "qemu+ssh://host/system?socket=/a/embed&root=/b",
        "test:///default",
    ):
        assert journal_path(uri) == of_the_user
    assert journal_path("qemu:///embed?root=/srv/my%20demo") == Path("/srv/my demo/state/journal.sqlite3")
