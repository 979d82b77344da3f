"""A program that changes a machine and is killed at a chosen moment, without a sleep: it stands still and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import plan_to_record

CHECKOUT = Path(__file__).parents[2]

_STANDS_STILL = """
import json, os, sys
from pathlib import Path
from snaptree.hosts import journal as journals

moment = sys.argv[1]
which, _, number = sys.argv[2].rpartition(":")
number = int(number)

def is_here(here, operation, step):
    return (moment, number) == (here, step) and which in ("", str(operation))

def stand_still():
    os.write(1, b"here\\n")
    sys.stdin.read()

class Journal(journals.Journal):
    def step_begins(self, operation, step, **known):
        if is_here("before", operation, step):
            stand_still()
        super().step_begins(operation, step, **known)
        if is_here("begun", operation, step):
            stand_still()

    def step_is_done(self, operation, step, **known):
        if is_here("acted", operation, step):
            stand_still()
        super().step_is_done(operation, step, **known)

    def finish(self, operation):
        if moment == "ended":
            stand_still()
        super().finish(operation)

journals.Journal = Journal
"""

_RUNS_A_PLAN = """
from snaptree.hosts.connection import Connection
from snaptree.hosts.running import run_plan
from snaptree.plans.plan_json import plan_from_record

uri, path, record = sys.argv[3:]
connection = Connection(uri)
connection.open()
options = {}
if moment == "merging":
    def look(operation):
        if operation.progress is not None and operation.progress.total and operation.progress.step == number:
            stand_still()
    # A first piece is copied at once, and then QEMU waits for very long.
    options = {"bandwidth": lambda: 64 * 1024, "on_progress": look}
operation = run_plan(connection, plan_from_record(json.loads(record)), journal=Journal(Path(path)), **options)
print(operation.state, operation.error, flush=True)
"""

_RUNS_A_COMMAND = """
from snaptree.cli import main

sys.stdout = sys.stderr
sys.exit(main(sys.argv[3:]))
"""


class Moment(StrEnum):
    """Where in a step the program dies."""

    BEFORE = "before"
    """The step is not in the journal yet."""
    BEGUN = "begun"
    """It is, and nothing was done."""
    MERGING = "merging"
    """A block job of our own copies, slowly. Of plans only."""
    ACTED = "acted"
    """It did all it has to do, and the journal does not know."""
    ENDED = "ended"
    """All steps are in the journal, and their end is not."""


def run_and_kill(uri: str, plan: Plan, journal: Path, moment: Moment, step: int) -> None:
    """Run a plan in a program of its own, until it is there; then kill it by SIGKILL."""
    with standing_still(uri, plan, journal, moment, step):
        pass


@contextmanager
def standing_still(uri: str, plan: Plan, journal: Path, moment: Moment, step: int) -> Iterator[None]:
    """As `run_and_kill`, but meanwhile something may be done while that program stands there."""
    with _there(_RUNS_A_PLAN, moment, step, uri, str(journal), json.dumps(plan_to_record(plan))):
        yield


def command_and_kill(moment: Moment, step: int | str, *arguments: str) -> None:
    """As `run_and_kill`, for a command of the terminal. "2:0" is the first step of the journal's second operation."""
    with _there(_RUNS_A_COMMAND, moment, step, *arguments):
        pass


@contextmanager
def _there(program: str, moment: Moment, step: int | str, *arguments: str) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", _STANDS_STILL + program, moment.value, str(step), *arguments],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        try:
            assert said == "here\n", said
            yield
        finally:
            running.kill()
