"""The journal: what was begun and how it ended is known whatever happens to the program."""

from __future__ import annotations

import dataclasses
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
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import Action, DeleteSnapshot, Plan, RemoveLeftover, Undo

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
    journal.step_begins(first.id, 0)
    journal.step_is_done(first.id, 0)
    error = SnapTreeError("It failed.", hint="Do this.", details="raw")
    journal.finish(dataclasses.replace(first, state=OperationState.FAILED, finished=first.started + 1, error=error))
    second = journal.begin(dataclasses.replace(PLAN, host_uri="qemu:///session"))
    journal.finish(dataclasses.replace(second, state=OperationState.DONE, finished=second.started + 2))

    newest, oldest = journal.recent()
    assert len(oldest.step_seconds) == 1
    assert 0 <= oldest.step_seconds[0] < 60
    assert newest.step_seconds == ()
    assert (newest.state, newest.can_undo, newest.steps_done) == (OperationState.DONE, True, 0)
    assert (oldest.state, oldest.plan, oldest.steps_done) == (OperationState.FAILED, PLAN, 1)
    assert oldest.error is not None
    assert (oldest.error.summary, oldest.error.hint, oldest.error.details) == ("It failed.", "Do this.", "raw")
    assert [operation.id for operation in journal.recent(host_uri="qemu:///system")] == [first.id]

    journal.mark_undone(second.id)
    assert not journal.recent()[0].can_undo, "Undo is offered once"


CRASHES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.hosts.test_journal import PLAN
from snaptree.hosts.journal import Journal, journal_path
journal = Journal(Path(sys.argv[1]))
operation = journal.begin(PLAN)
journal.step_begins(operation.id, 0)
journal.step_is_done(operation.id, 0)
journal.step_begins(operation.id, 1)
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
    (interrupted,) = journal.unfinished()
    assert interrupted.state is OperationState.INTERRUPTED
    assert (interrupted.plan, interrupted.steps_done) == (PLAN, 1)


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
