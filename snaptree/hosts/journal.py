"""The journal: every plan that was run, step by step, in SQLite.

It is written before and after each step, so that a crash, a lost link or a cancel leaves a known state, and
it is where `Undo` and the history come from.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from platformdirs import user_state_path

from snaptree.model.errors import SnapTreeError
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Plan
from snaptree.plans.plan_json import plan_from_record, plan_to_record
from snaptree.plans.speed import NOT_MEASURED, Speed, measured

_SCHEMA_VERSION = 1
_LATE = 50
"""Operations from which is learned how long the next ones take."""
_SCHEMA = """
CREATE TABLE operations (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    domain_uuid TEXT NOT NULL,
    domain TEXT NOT NULL,
    action TEXT NOT NULL,
    plan TEXT NOT NULL,
    state TEXT NOT NULL,
    started REAL NOT NULL,
    finished REAL,
    undone INTEGER NOT NULL DEFAULT 0,
    error_summary TEXT NOT NULL DEFAULT '',
    error_hint TEXT NOT NULL DEFAULT '',
    error_details TEXT NOT NULL DEFAULT '',
    owner_pid INTEGER NOT NULL,
    owner_started REAL NOT NULL
);
CREATE TABLE steps (
    operation INTEGER NOT NULL REFERENCES operations (id),
    number INTEGER NOT NULL,
    started REAL NOT NULL,
    finished REAL,
    PRIMARY KEY (operation, number)
);
CREATE INDEX operations_by_domain ON operations (domain_uuid, started);
"""


def journal_path(host_uri: str) -> Path:
    """Where the journal of a host is: one for each user, `$XDG_STATE_HOME/snaptree/journal.sqlite3` on Linux.

    An embedded driver's machines live in its root only, and with the demo estate that goes: so does their journal.
    """
    uri = urlsplit(host_uri)
    root = parse_qs(uri.query).get("root")
    if uri.path == "/embed" and root:
        return Path(root[0]) / "state" / "journal.sqlite3"
    return user_state_path("snaptree") / "journal.sqlite3"


class Journal:
    """The journal. Safe to use from several threads, and from several processes at a time."""

    def __init__(self, path: Path) -> None:
        """Open the journal at `path`. Raises SnapTreeError if it can't be written."""
        self.path = path
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._database = sqlite3.connect(self.path, timeout=10, check_same_thread=False, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            try:
                # A commit is one write and one flush, and outlives a power cut as it does by default.
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                version = self._prepare()
            except sqlite3.Error:
                self._database.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise SnapTreeError(
                f"The journal {self.path} cannot be opened: {error}.",
                hint="Changes are only made when they can be recorded. Check the directory's owner and free space.",
            ) from error
        if version > _SCHEMA_VERSION:
            self.close()
            raise SnapTreeError(
                f"The journal {self.path} was written by a newer SnapTree.", hint="Use that version, or move it away."
            )

    def _prepare(self) -> int:
        """Make the tables if there are none yet; return the version that made them."""
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        return int(version)

    def close(self) -> None:
        """Close the database; safe to call twice."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. Raises SnapTreeError if it can't be recorded."""
        try:
            with self._transaction() as database:
                yield database
        except sqlite3.Error as error:
            raise SnapTreeError(
                f"The journal {self.path} cannot be written: {error}.",
                hint="Changes are only made when they can be recorded. Look at the file and at its disk's free space.",
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction, taken for writing at once, so that two processes never deadlock half-way."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def begin(self, plan: Plan) -> Operation:
        """Record that a plan starts now."""
        started = time.time()
        with self._writing() as database:
            cursor = database.execute(
                "INSERT INTO operations (host, domain_uuid, domain, action, plan, state, started, owner_pid,"
                " owner_started) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    plan.host_uri,
                    plan.domain_uuid,
                    plan.domain,
                    plan.action.value,
                    json.dumps(plan_to_record(plan)),
                    OperationState.RUNNING.value,
                    started,
                    *this_process(),
                ),
            )
        assert cursor.lastrowid is not None
        return Operation(id=cursor.lastrowid, plan=plan, state=OperationState.RUNNING, started=started)

    def step_begins(self, operation: int, number: int) -> None:
        """Record that a step is about to act."""
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO steps (operation, number, started) VALUES (?, ?, ?)",
                (operation, number, time.time()),
            )

    def step_is_done(self, operation: int, number: int) -> None:
        """Record that a step acted and its result was verified."""
        with self._writing() as database:
            database.execute(
                "UPDATE steps SET finished = ? WHERE operation = ? AND number = ?", (time.time(), operation, number)
            )

    def finish(self, operation: Operation) -> None:
        """Record how an operation ended."""
        error = operation.error
        with self._writing() as database:
            database.execute(
                "UPDATE operations SET state = ?, finished = ?, error_summary = ?, error_hint = ?, error_details = ?"
                " WHERE id = ?",
                (
                    operation.state.value,
                    operation.finished,
                    error.summary if error else "",
                    error.hint if error else "",
                    error.details if error else "",
                    operation.id,
                ),
            )

    def mark_undone(self, operation: int) -> None:
        """Record that an operation was taken back, so that Undo is offered once."""
        with self._writing() as database:
            database.execute("UPDATE operations SET undone = 1 WHERE id = ?", (operation,))

    def recent(self, limit: int = 100, *, host_uri: str | None = None) -> tuple[Operation, ...]:
        """The latest operations, newest first; those whose program died in the middle count as interrupted.

        Raises SnapTreeError if the journal can't be read (any more).
        """
        try:
            with self._lock:
                rows = self._database.execute(
                    "SELECT operations.*, (SELECT count(finished) FROM steps WHERE operation = operations.id)"
                    " AS steps_done,"
                    " (SELECT json_group_array(finished - started) FROM (SELECT started, finished FROM steps"
                    " WHERE operation = operations.id AND finished IS NOT NULL ORDER BY number)) AS step_seconds"
                    " FROM operations WHERE ?1 IS NULL OR host = ?1 ORDER BY id DESC LIMIT ?2",
                    (host_uri, limit),
                ).fetchall()
        except sqlite3.Error as error:
            raise SnapTreeError(
                f"The journal {self.path} cannot be read: {error}.", hint="Look at the file and its disk."
            ) from error
        return tuple(operation for row in rows if (operation := _operation(row)) is not None)

    def speed(self, host_uri: str) -> Speed:
        """How long changes took on a host of late."""
        return measured(self.recent(_LATE, host_uri=host_uri))

    def unfinished(self) -> tuple[Operation, ...]:
        """Operations that a crash of the program cut short."""
        return tuple(operation for operation in self.recent(1000) if operation.state is OperationState.INTERRUPTED)


def speed_of(host_uri: str) -> Speed:
    """As `Journal.speed`, for who may not write: no journal is made where there is none."""
    path = journal_path(host_uri)
    if not path.exists():
        return NOT_MEASURED
    journal = Journal(path)
    try:
        return journal.speed(host_uri)
    finally:
        journal.close()


def _operation(row: sqlite3.Row) -> Operation | None:
    """One row as a value; None if a plan of another version can't be understood."""
    try:
        plan = plan_from_record(json.loads(row["plan"]))
    except (ValueError, KeyError, TypeError):
        return None
    state = OperationState(row["state"])
    if state is OperationState.RUNNING and not is_running(row["owner_pid"], row["owner_started"]):
        state = OperationState.INTERRUPTED
    error = (
        SnapTreeError(row["error_summary"], hint=row["error_hint"], details=row["error_details"])
        if row["error_summary"]
        else None
    )
    return Operation(
        id=row["id"],
        plan=plan,
        state=state,
        started=row["started"],
        finished=row["finished"],
        error=error,
        undone=bool(row["undone"]),
        steps_done=row["steps_done"],
        step_seconds=tuple(json.loads(row["step_seconds"])),
    )


def this_process() -> tuple[int, float]:
    """Our process id, and when we started: `is_running` knows us by both."""
    pid = int(Path("/proc/self").readlink().name)
    return pid, _start_time(pid) or 0.0


def is_running(pid: int, started: float) -> bool:
    """Whether that very process still runs: a process id alone may have been given out again."""
    return _start_time(pid) == started


def _start_time(pid: int) -> float | None:
    """When a process started, in clock ticks since boot (proc(5), /proc/PID/stat, field 22); None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return float(stat.rpartition(")")[2].split()[19])
