"""The journal: every plan that was run, step by step, in SQLite.

It is written before and after each step, so that a crash, a lost link or a cancel leaves a known state, and
it is where `Undo`, the history and the recovery of what was interrupted come from.
"""

from __future__ import annotations

import getpass
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from platformdirs import user_state_path

from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Impact
from snaptree.plans.operation import Operation, OperationState, Settled
from snaptree.plans.plan import Action, Plan, TakeSnapshot
from snaptree.plans.plan_json import plan_from_record, plan_to_record
from snaptree.plans.speed import NOT_MEASURED, Speed, measured

_LATE = 50
"""Operations from which is learned how long the next ones take."""
_VERSIONS = (
    """
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
""",
    # Version 1 did not ask about what was interrupted: where a machine was changed since, that is over.
    """
ALTER TABLE operations ADD COLUMN settled_by INTEGER REFERENCES operations (id);
ALTER TABLE operations ADD COLUMN undoes INTEGER REFERENCES operations (id);
ALTER TABLE operations ADD COLUMN who TEXT NOT NULL DEFAULT '';
ALTER TABLE steps ADD COLUMN was_active INTEGER;
UPDATE operations SET settled_by = (
    SELECT min(later.id) FROM operations AS later
    WHERE later.host = operations.host AND later.domain_uuid = operations.domain_uuid AND later.id > operations.id
) WHERE state = 'running'
""",
    """
ALTER TABLE operations ADD COLUMN frozen REAL;
ALTER TABLE operations ADD COLUMN impact TEXT;
ALTER TABLE operations ADD COLUMN remark TEXT NOT NULL DEFAULT ''
""",
    "ALTER TABLE steps ADD COLUMN paused REAL",
)
"""What each version of the journal adds to the one before it."""


def journal_path(host_uri: str) -> Path:
    """Where the journal of a host is: one for each user, `$XDG_STATE_HOME/snaptree/journal.sqlite3` on Linux."""
    root = embedded_root(host_uri)
    directory = user_state_path("snaptree") if root is None else root / "state"
    return directory / "journal.sqlite3"


def embedded_root(host_uri: str) -> Path | None:
    """The root of an embedded driver; None for any other host.

    Its machines live there only, and with the demo estate that goes: so does what is known of them.
    """
    uri = urlsplit(host_uri)
    root = parse_qs(uri.query).get("root")
    return Path(root[0]) if uri.path == "/embed" and root else None


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
                # A commit is one write, and one flush where it has to outlive a power cut.
                self._database.execute("PRAGMA journal_mode = WAL")
                version = self._prepare()
            except sqlite3.Error:
                self._database.close()
                raise
        except (OSError, sqlite3.Error) as error:
            raise SnapTreeError(
                f"The journal {self.path} cannot be opened: {error}.",
                hint="Changes are only made when they can be recorded. Check the directory's owner and free space.",
            ) from error
        if version > len(_VERSIONS):
            self.close()
            raise SnapTreeError(
                f"The journal {self.path} was written by a newer SnapTree.", hint="Use that version, or move it away."
            )

    def _prepare(self) -> int:
        """Bring the tables up to this version, all or nothing; return the version that was found."""
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            for additions in _VERSIONS[version:]:
                for statement in additions.split(";"):
                    database.execute(statement)
            if version < len(_VERSIONS):
                database.execute(f"PRAGMA user_version = {len(_VERSIONS)}")
        return int(version)

    def close(self) -> None:
        """Close the database; safe to call twice."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _writing(self, *, before_acting: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction. Raises SnapTreeError if it can't be recorded.

        What is written `before_acting` outlives a power cut, with all that was written earlier. What is written
        afterwards survives any program's death, but a power cut may take the last of it: recovery asks reality how far
        the last step that began is.
        """
        try:
            with self._transaction(is_flushed=before_acting) as database:
                yield database
        except sqlite3.Error as error:
            raise SnapTreeError(
                f"The journal {self.path} cannot be written: {error}.",
                hint="Changes are only made when they can be recorded. Look at the file and at its disk's free space.",
            ) from error

    @contextmanager
    def _transaction(self, *, is_flushed: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction, taken for writing at once, so that two processes never deadlock half-way."""
        with self._lock:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if is_flushed else 'NORMAL'}")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def begin(self, plan: Plan, *, undoes: int | None = None) -> Operation:
        """Record that a plan starts now, perhaps one that takes operation `undoes` back.

        What it recovers is settled by it from now on: cut short, it is the one to be finished. Raises SnapTreeError if
        another SnapTree changes the machine, or an operation on it was interrupted that this one does not recover.
        """
        started = time.time()
        with self._writing() as database:
            for row in database.execute(
                f"{_SELECT} WHERE {_OPEN} AND o.host = ? AND o.domain_uuid = ?", (plan.host_uri, plan.domain_uuid)
            ).fetchall():
                _refuse_beside(row, plan)
            if plan.recovers is not None:
                recovered = database.execute(
                    "SELECT settled_by, undoes FROM operations WHERE id = ?", (plan.recovers,)
                ).fetchone()
                if recovered is None or recovered["settled_by"] is not None:
                    raise SnapTreeError(
                        f"The interrupted operation on {plan.domain} was finished or left by somebody else meanwhile.",
                        hint="Refresh, and look at the machine.",
                    )
                undoes = recovered["undoes"]
            number = self._insert(database, plan, OperationState.RUNNING, started, undoes)
            database.execute("UPDATE operations SET settled_by = ? WHERE id = ?", (number, plan.recovers))
            _take_over(database, number, plan)
        return Operation(id=number, plan=plan, state=OperationState.RUNNING, started=started, who=this_user())

    def given_up(self, operation: Operation) -> None:
        """Record what waited, was agreed to, and never began: `operation.error` says why."""
        error = operation.error
        assert error is not None
        with self._writing() as database:
            number = self._insert(database, operation.plan, operation.state, operation.started)
            database.execute(
                "UPDATE operations SET finished = ?, error_summary = ?, error_hint = ? WHERE id = ?",
                (operation.finished, error.summary, error.hint, number),
            )

    def _insert(
        self,
        database: sqlite3.Connection,
        plan: Plan,
        state: OperationState,
        started: float,
        undoes: int | None = None,
    ) -> int:
        """Write a new operation, and return its number."""
        cursor = database.execute(
            "INSERT INTO operations (host, domain_uuid, domain, action, plan, state, started, undoes, who,"
            " owner_pid, owner_started) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                plan.host_uri,
                plan.domain_uuid,
                plan.domain,
                plan.action.value,
                json.dumps(plan_to_record(plan)),
                state.value,
                started,
                undoes,
                this_user(),
                *this_process(),
            ),
        )
        number = cursor.lastrowid
        assert number is not None
        return number

    def step_begins(self, operation: int, number: int, *, was_active: bool) -> None:
        """Record that a step is about to act, and whether QEMU runs for the machine then."""
        with self._writing(before_acting=True) as database:
            database.execute(
                "INSERT OR REPLACE INTO steps (operation, number, started, was_active) VALUES (?, ?, ?, ?)",
                (operation, number, time.time(), was_active),
            )

    def step_is_done(self, operation: int, number: int, *, paused: float | None = None) -> None:
        """Record that a step acted and its result was verified; `paused`: seconds that the guest stood still for it."""
        with self._writing() as database:
            database.execute(
                "UPDATE steps SET finished = ?, paused = ? WHERE operation = ? AND number = ?",
                (time.time(), paused, operation, number),
            )

    def may_be_frozen(self, operation: int) -> None:
        """Record that the guest's file systems may be frozen from now on: they have to be thawed, whatever happens."""
        with self._writing(before_acting=True) as database:
            database.execute("UPDATE operations SET frozen = ? WHERE id = ?", (time.time(), operation))

    def is_thawed(self, operation: int) -> None:
        """Record that nothing of an operation's is frozen any more."""
        with self._writing() as database:
            database.execute("UPDATE operations SET frozen = NULL WHERE id = ?", (operation,))

    def remark(self, operation: int, sentence: str) -> None:
        """Record what became of an operation that was cut short, for whoever looks at it."""
        with self._writing() as database:
            database.execute("UPDATE operations SET remark = ? WHERE id = ?", (sentence, operation))

    def left_frozen(self, host_uri: str) -> tuple[Operation, ...]:
        """Operations that are over and whose file systems nobody is known to have thawed, oldest first."""
        found = self._select("o.frozen IS NOT NULL AND o.host = ? ORDER BY o.id", (host_uri,))
        return tuple(operation for operation in found if operation.state.is_over)

    def finish(self, operation: Operation) -> None:
        """Record how an operation ended. What it took back is not offered to be taken back again."""
        error = operation.error
        with self._writing() as database:
            database.execute(
                "UPDATE operations SET state = ?, finished = ?, impact = ?, remark = ?, error_summary = ?,"
                " error_hint = ?, error_details = ? WHERE id = ?",
                (
                    operation.state.value,
                    operation.finished,
                    None if operation.impact is None else json.dumps(asdict(operation.impact)),
                    operation.remark,
                    error.summary if error else "",
                    error.hint if error else "",
                    error.details if error else "",
                    operation.id,
                ),
            )
            if operation.state is OperationState.DONE and operation.plan.action is not Action.LEAVE:
                database.execute(
                    "UPDATE operations SET undone = 1 WHERE id = (SELECT undoes FROM operations WHERE id = ?)",
                    (operation.id,),
                )
            if operation.state is OperationState.DONE and operation.plan.action is Action.UNLOOK:
                database.execute(
                    "UPDATE operations SET undone = 1 WHERE json_extract(plan, '$.undo.removes') = ?",
                    (operation.plan.domain_uuid,),
                )

    def recent(
        self,
        limit: int = 100,
        *,
        host_uri: str | None = None,
        domain_uuid: str | None = None,
        domain: str | None = None,
    ) -> tuple[Operation, ...]:
        """The latest operations, newest first; those whose program died in the middle count as interrupted.

        `domain` is the machine's name at that time.
        """
        return self._select(
            "(?1 IS NULL OR o.host = ?1) AND (?2 IS NULL OR o.domain_uuid = ?2) AND (?3 IS NULL OR o.domain = ?3)"
            " ORDER BY o.id DESC LIMIT ?4",
            (host_uri, domain_uuid, domain, limit),
        )

    def _select(self, where: str, values: tuple[object, ...]) -> tuple[Operation, ...]:
        rows = self._rows(where, values)
        return tuple(operation for row in rows if (operation := _operation(row)) is not None)

    def _rows(self, where: str, values: tuple[object, ...]) -> list[sqlite3.Row]:
        """Raises SnapTreeError if the journal can't be read (any more)."""
        try:
            with self._lock:
                return self._database.execute(f"{_SELECT} WHERE {where}", values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: sqlite3.Error) -> SnapTreeError:
        return SnapTreeError(f"The journal {self.path} cannot be read: {error}.", hint="Look at the file and its disk.")

    def speed(self, host_uri: str) -> Speed:
        """How long changes took on a host of late."""
        return measured(self.recent(_LATE, host_uri=host_uri))

    def unfinished(self, *, host_uri: str | None = None, domain_uuid: str | None = None) -> tuple[Operation, ...]:
        """Operations that were cut short and are neither finished nor left as they are, newest first."""
        return tuple(each for each in self._open(host_uri, domain_uuid) if each.is_unfinished)

    def left(self, host_uri: str, domain_uuid: str) -> tuple[Operation, ...]:
        """Operations on a machine that were cut short and then left as they were."""
        return self._select(
            "settler.action = ? AND o.host = ? AND o.domain_uuid = ?", (Action.LEAVE.value, host_uri, domain_uuid)
        )

    def operation(self, number: int) -> Operation | None:
        """One operation by its number; None if there is none, or none that this version understands."""
        return next(iter(self._select("o.id = ?", (number,))), None)

    def version(self) -> int:
        """A number that is another one once somebody else has written to the journal (SQLite's data_version)."""
        try:
            with self._lock:
                (version,) = self._database.execute("PRAGMA data_version").fetchone()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        return int(version)

    def done_elsewhere(self, host_uri: str, limit: int) -> tuple[Operation, ...]:
        """The latest operations of other programs of this user's on a host, newest first."""
        return self._select(
            "o.host = ? AND NOT (o.owner_pid = ? AND o.owner_started = ?) ORDER BY o.id DESC LIMIT ?",
            (host_uri, *this_process(), limit),
        )

    def running_elsewhere(self, host_uri: str, domain_uuid: str) -> Operation | None:
        """What another program of this user's does to a machine right now."""
        rows = self._rows(f"{_OPEN} AND o.host = ? AND o.domain_uuid = ?", (host_uri, domain_uuid))
        return next((found for row in rows if _is_elsewhere(row) and (found := _operation(row)) is not None), None)

    def is_torn(self, group: str) -> bool:
        """Whether snapshots were to be taken together, and not all of them are known to have been."""
        members = self._select("o.action = ? AND json_extract(o.plan, '$.group') = ?", (Action.TAKE.value, group))
        return any(
            isinstance(step, TakeSnapshot) and number >= operation.steps_done
            for operation in members
            for number, step in enumerate(operation.plan.steps)
        )

    def _open(self, host_uri: str | None, domain_uuid: str | None) -> tuple[Operation, ...]:
        return self._select(
            f"{_OPEN} AND (?1 IS NULL OR o.host = ?1) AND (?2 IS NULL OR o.domain_uuid = ?2) ORDER BY o.id DESC",
            (host_uri, domain_uuid),
        )


_SELECT = """
SELECT o.*, settler.action AS settled_how,
    (SELECT count(finished) FROM steps WHERE operation = o.id) AS steps_done,
    (SELECT json_group_array(json_array(finished - started, paused)) FROM (SELECT * FROM steps
        WHERE operation = o.id AND finished IS NOT NULL ORDER BY number)) AS step_times,
    (SELECT count(*) FROM steps WHERE operation = o.id) AS steps_begun,
    (SELECT was_active FROM steps WHERE operation = o.id ORDER BY number DESC LIMIT 1) AS was_active
FROM operations AS o LEFT JOIN operations AS settler ON settler.id = o.settled_by"""
_OPEN = "o.state IN ('running', 'interrupted') AND o.settled_by IS NULL"


@contextmanager
def journal_of(host_uri: str) -> Iterator[Journal | None]:
    """The journal of a host, for who may not write: None where there is none yet."""
    path = journal_path(host_uri)
    if not path.exists():
        yield None
        return
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()


def unfinished_on(host_uri: str, domain_uuid: str) -> Operation | None:
    """What was interrupted on a machine, for who only looks: None as well where the journal can't be read."""
    try:
        with journal_of(host_uri) as journal:
            found = () if journal is None else journal.unfinished(host_uri=host_uri, domain_uuid=domain_uuid)
    except SnapTreeError:
        return None
    return next(iter(found), None)


def speed_of(host_uri: str) -> Speed:
    """As `Journal.speed`, for who may not write: no journal is made where there is none."""
    with journal_of(host_uri) as journal:
        return NOT_MEASURED if journal is None else journal.speed(host_uri)


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
    step_times = json.loads(row["step_times"])
    return Operation(
        id=row["id"],
        plan=plan,
        state=state,
        started=row["started"],
        finished=row["finished"],
        error=error,
        undone=bool(row["undone"]),
        steps_done=row["steps_done"],
        step_seconds=tuple(seconds for seconds, _ in step_times),
        step_pauses=tuple(paused for _, paused in step_times),
        steps_begun=row["steps_begun"],
        was_active=None if row["was_active"] is None else bool(row["was_active"]),
        settled=None if row["settled_by"] is None else Settled(row["settled_by"], Action(row["settled_how"])),
        who=row["who"],
        impact=None if row["impact"] is None else Impact(**json.loads(row["impact"])),
        remark=row["remark"],
    )


def _take_over(database: sqlite3.Connection, number: int, plan: Plan) -> None:
    """Let a step in which an operation was interrupted count as begun in the one that finishes it, too."""
    row = database.execute(f"{_SELECT} WHERE o.id = ?", (plan.recovers,)).fetchone()
    interrupted = None if row is None else _operation(row)
    if interrupted is None or interrupted.steps_begun <= interrupted.steps_done:
        return
    step = interrupted.plan.steps[interrupted.steps_done]
    if step in plan.steps:
        database.execute(
            "INSERT INTO steps (operation, number, started, was_active)"
            " SELECT ?, ?, started, was_active FROM steps WHERE operation = ? AND number = ?",
            (number, plan.steps.index(step), interrupted.id, interrupted.steps_done),
        )


def _refuse_beside(row: sqlite3.Row, plan: Plan) -> None:
    """Raise SnapTreeError if a plan must not begin beside an operation on the same machine."""
    if _is_elsewhere(row):
        raise SnapTreeError(
            f"Another SnapTree (process {row['owner_pid']}) is changing {plan.domain}.",
            hint="Nothing was done. Wait until it has ended, and plan again.",
        )
    operation = _operation(row)
    if operation is not None and operation.is_unfinished and operation.id != plan.recovers:
        raise SnapTreeError(
            f"An operation on {plan.domain} was interrupted, and is neither finished nor left as it is.",
            hint="Nothing was done. Finish it, or leave it as it is; then plan again.",
        )


def _is_elsewhere(row: sqlite3.Row) -> bool:
    """Whether another process than this one is at work on an operation."""
    owner = row["owner_pid"], row["owner_started"]
    return row["state"] == OperationState.RUNNING and owner != this_process() and is_running(*owner)


def this_user() -> str:
    """The name of the user who runs this program; empty if there is none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""  # a user id without a name


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
