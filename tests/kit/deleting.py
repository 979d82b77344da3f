"""A SnapTree that deletes snapshots and may be killed: python -m tests.kit.deleting URI UUID JOURNAL BYTES NAME...

Merges by its own block jobs, at so many bytes per second. Prints a line whenever it got on.
"""

from __future__ import annotations

import sys
from pathlib import Path

from snaptree.hosts.connection import Connection
from snaptree.hosts.journal import Journal
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation
from snaptree.plans.intention import Delete
from snaptree.plans.operation import Operation
from snaptree.plans.planner import make_plan


def say(operation: Operation) -> None:
    """Somebody waits for it."""
    sys.stdout.write(f"{operation.steps_done}\n")
    sys.stdout.flush()


def main() -> None:
    uri, uuid, journal, bandwidth, *names = sys.argv[1:]
    connection = Connection(uri)
    connection.open()
    plan = make_plan(Delete(tuple(names), by_own_jobs=True), read_situation(connection, uuid))
    run_plan(
        connection,
        plan,
        journal=Journal(Path(journal)),
        bandwidth=lambda: int(bandwidth),
        on_progress=say,
    )


if __name__ == "__main__":
    main()
