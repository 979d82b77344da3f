"""One host behind the window: it reads, watches and changes on threads of its own, and tells by Qt signals."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from PySide6.QtCore import QObject, Qt, QTimer, Signal, Slot

from snaptree.hosts.connection import Connection
from snaptree.hosts.freezing import LeftFrozen, thaw_left
from snaptree.hosts.group_running import GroupOutcome, run_group
from snaptree.hosts.journal import Journal
from snaptree.hosts.layers import analysed, read_layers, with_earlier_analysis
from snaptree.hosts.pruning import OutOfHoursError, are_now, begin_in_hours
from snaptree.hosts.reading import list_domains, read_tree
from snaptree.hosts.running import Run, begin_run
from snaptree.hosts.settings import compare_moments
from snaptree.hosts.thumbnails import Thumbnails
from snaptree.hosts.watching import Changes
from snaptree.jobs import garbage
from snaptree.jobs.advisor import Advisor
from snaptree.jobs.connecting import Connector, CredentialsRequest
from snaptree.jobs.planner import Planner, not_connected
from snaptree.jobs.postman import Postman
from snaptree.jobs.session import Session
from snaptree.jobs.worker import Job, Priority, ShouldStop, Worker, not_told
from snaptree.model.costs import DomainCosts, SelectionCost, domain_costs, selection_cost
from snaptree.model.errors import CancelledError, ConnectionLostError, SnapTreeError, VanishedError
from snaptree.model.estate import Domain, DomainLayers, Host, ImageKey, SnapshotKind
from snaptree.model.merging import ALONE, Elsewhere
from snaptree.model.settings import Comparison, layers_of_one_disk
from snaptree.model.tree import SnapshotTree
from snaptree.plans.advice import HostAdvice, Observed
from snaptree.plans.facts import Facts
from snaptree.plans.group import GroupPlan
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Prune, take_back
from snaptree.plans.operation import Operation, OperationState, Pause, Progress, Settled, undoes_look
from snaptree.plans.plan import Action, Plan
from snaptree.plans.plan_words import describe_step
from snaptree.plans.prune_many import PlannedPrune, no_more_than
from snaptree.plans.situation import glance
from snaptree.plans.speed import NOT_MEASURED, Speed
from snaptree.plans.wording import machines_named, plain

__all__ = ["CostReading", "CredentialsRequest", "HostBackend", "HostStatus", "Phase", "TreeReading"]

COUNTS_EVERY_MS = 250
"""Snapshot counts come in with the trees; the list is told of them no more often than this."""
LIVE_COSTS_SECONDS = 10.0
"""A machine on screen that runs is measured this often, as it writes."""
EARLIER_OPERATIONS = 20
"""What was done before this start, and is shown."""
LOOK_ELSEWHERE_MS = 2_000
"""Between two looks for what other programs of this user's do, such as schedules: one number, as a rule."""
THAW_AGAIN_MS = 30_000
"""Between two attempts to thaw what an operation left frozen."""
ADVICE_AFTER_MS = 500
"""After costs are news: those of several machines come together."""
ADVICE_AT_LATEST_SECONDS = 30.0
"""While machines are still being read, those that were are checked no more often than this: it takes their time."""
ADVICE_AGAIN_MS = 600_000
"""Snapshots grow old, and file systems full."""
HOURS_EVERY_MS = 10_000
"""Between two looks at the clock, while something waits for its hours."""
PROGRESS_SECONDS = 0.1
"""Between two reports of an operation's progress."""

_NO_SNAPSHOTS = SnapshotTree.build((), None)
_LIST = "list"
_ELSEWHERE = "elsewhere"
_ADVICE = "advice"
_JOURNAL = "journal"
_DONE_ELSEWHERE = "done-elsewhere"
_COMPARISON = "comparison"

_Outcome = TypeVar("_Outcome")

_operation_numbers = itertools.count(-1, -1)
"""An operation has its number before it is in the journal; below zero, it can't be taken for the journal's."""


class Phase(StrEnum):
    """How a host's connection is doing."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    LOST = "lost"
    """It was connected, and is tried again by itself; what was read stays on screen."""
    FAILED = "failed"
    """It could not be reached. Tried again by itself only if `retry_at` says so."""
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The state of a host's connection. `host` is what it last was; `retry_at` in seconds since 1970, UTC.

    `error` says why it is lost or failed. With a connected host it says why the connection is read-only although
    that was not asked for, or why the machines could not be listed.
    """

    uri: str
    phase: Phase
    host: Host | None = None
    error: SnapTreeError | None = None
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class TreeReading:
    """A machine's snapshots; not `complete` while more of them are being read."""

    tree: SnapshotTree
    complete: bool


@dataclass(frozen=True, slots=True)
class CostReading:
    """A machine's layers, and what they and its snapshots cost."""

    layers: DomainLayers
    costs: DomainCosts
    elsewhere: Elsewhere = ALONE
    speed: Speed = NOT_MEASURED
    of_no_use: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Snapshots that nobody can rely on to go back to, each with the reason in a word or two."""

    def selection(self, tree: SnapshotTree, names: Collection[str]) -> SelectionCost:
        """What deleting exactly these snapshots of the machine frees and copies."""
        return selection_cost(tree, self.layers, names, self.elsewhere)


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """What drives an operation that is not over."""

    submit: Callable[[], Job]
    """Queues it again, once it goes on."""
    job: Job | None
    """None while it is told of."""
    undoes: Operation | None
    control: _Control


@dataclass(frozen=True, slots=True)
class _InJournal:
    """What the journal knows of a host."""

    earlier: tuple[Operation, ...]
    unfinished: tuple[Operation, ...]
    left_frozen: bool
    """Somebody's file systems may be frozen still."""


class _Control:
    """What the user wants of changes that are run in one go. Read by the change thread."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        """How many bytes per second they may copy; None if as many as they can."""
        self.cancelled = threading.Event()
        self.paused = threading.Event()
        self.ends = False
        """Once it is paused it is cancelled."""

    def on(self, operation: Operation) -> Operation:
        """A report with what was asked of it meanwhile."""
        if operation.progress is None:
            return operation
        pause = Pause.NO
        if self.paused.is_set():
            pause = Pause.ENDS if self.ends else Pause.ASKED
        progress = replace(operation.progress, limit=self.limit, pause=pause)
        return replace(operation, progress=progress)


@dataclass(slots=True)
class _Waiting:
    """A prune whose hours are still to come."""

    intention: Prune
    agreed: Plan
    limit: int | None
    between: Hours
    is_being_planned: bool = False


def _progress_elsewhere(operation: Operation) -> Progress | None:
    """How far an operation of another program is, as far as the journal tells."""
    steps, number = operation.plan.steps, operation.steps_done
    if operation.state.is_over or number >= len(steps):
        return None
    return Progress(
        describe_step(steps[number]), number, len(steps), why_not_cancel="Another program does it: stop that one."
    )


def _how_far(operation: Operation) -> tuple[object, ...]:
    """What is worth telling of an operation of another program."""
    return operation.state, operation.steps_done, operation.undone, operation.settled


class HostBackend(QObject):
    """Reads, watches and changes one host. Lives on the window's thread; nothing here blocks it.

    Four workers: one reads lists and trees, which libvirt answers whatever a machine is doing; one measures and
    plans, which may have to wait for a busy machine or for storage; one analyses what is in images, which takes long
    for large ones; one makes changes, in the order asked for, over a connection of its own. What they hand over are
    frozen values; what equals the last reading is the same object and is not told again. State changes on the
    window's thread only; the workers at most look at it.
    """

    host_changed = Signal(object)
    """HostStatus"""
    domains_changed = Signal(object)
    """tuple[Domain, ...], all machines by natural name"""
    tree_changed = Signal(str, object)
    """UUID, TreeReading; also after `reading_failed`, once reading works again"""
    costs_changed = Signal(str, object)
    """UUID, CostReading"""
    reading_failed = Signal(str, object)
    """UUID, SnapTreeError"""
    operation_changed = Signal(object)
    """Operation"""
    done_elsewhere = Signal(object)
    """Operation of another program of this user's, such as a schedule: it began, went on or ended"""
    history_read = Signal(object)
    """tuple[Operation, ...], newest first: what was done before this start; once"""
    unfinished_changed = Signal(object)
    """Mapping of UUID to Operation: what was interrupted, and is neither finished nor left as it is"""
    advice_changed = Signal(object)
    """HostAdvice: what should be looked at"""
    credentials_needed = Signal(object)
    """CredentialsRequest: somebody must answer it"""

    def __init__(
        self, uri: str, *, read_only: bool = False, journal: Journal | None = None, parent: QObject | None = None
    ) -> None:
        super().__init__(parent)
        self.uri = uri
        self._journal = journal
        self._status = HostStatus(uri, Phase.CLOSED)
        self._is_closed = False
        self._session: Session | None = None

        self._domains: dict[str, Domain] = {}
        self._told_domains: tuple[Domain, ...] | None = None
        self._trees: dict[str, TreeReading] = {}
        self._costs: dict[str, CostReading] = {}
        self._speed: Speed | None = None
        """None if it has to be asked for."""
        self._unread: set[str] = set()
        """Machines whose tree could not be read the last time."""
        self._unmeasured: set[str] = set()
        """Machines whose costs could not be measured the last time."""
        self._vanished: dict[str, VanishedError] = {}
        """Machines that libvirt did not find: the next list tells whether they are gone or have failed."""
        self._must_read_all = True
        """With the next list, trees that are known already are read once more."""
        self._looked_at: str | None = None

        self._operations: dict[int, Operation] = {}
        self._changes: dict[int, _Change] = {}
        """What drives the operations that are not over."""
        self._for_later: dict[int, _Waiting] = {}
        """Operations that are queued when their hours have come."""
        self._given_up: list[Operation] = []
        """What waited when it was told to end, and is not in the journal yet."""
        self._paused: dict[str, tuple[Operation, ...]] = {}  # the change thread's own: by UUID, what stands still
        self._journal_numbers: dict[int, int] = {}
        self._being_undone: set[int] = set()
        self._unfinished: Mapping[str, Operation] = MappingProxyType({})
        self._history: dict[int, Operation] | None = None
        """What was done before this start or elsewhere, by number; None until that was read."""
        self._of_others: dict[int, Operation] = {}
        """What was told of operations of other programs, by the journal's number."""
        self._last_earlier = 0
        """The journal's number of the last operation that was there at the start."""
        self._journal_version: int | None = None
        """The journal as it was looked at last; None before that."""

        self._read_session: Session | None = None  # the read thread's own
        self._change_connection: Connection | None = None  # the change thread's own

        self._postman = Postman()
        self._postman.posted.connect(self._run_posted, Qt.ConnectionType.QueuedConnection)
        self._post = self._postman.post
        self._connector = Connector(uri, read_only=read_only, ask=self._ask)
        self._reader = Worker(f"read {uri}", self._post, at_end=self._close_session)
        self._measurer = Worker(f"measure {uri}", self._post)
        # Of no lower priority to the kernel: set aside with the interpreter's lock in hand, it would stop the window.
        self._analyst = Worker(f"analyse {uri}", self._post)
        self._changer = Worker(f"change {uri}", self._post, oldest_first=True, at_end=self._close_change_connection)
        self._workers = (self._reader, self._measurer, self._analyst, self._changer)

        self.planner = Planner(
            uri,
            self._measurer,
            self._post,
            journal=journal,
            session=lambda: self._session,
            speed=self._speed_now,
            layers=self._known_layers,
            name=self._name_of,
            parent=self,
        )
        """Says what would come of what somebody wants."""

        self._advisor = Advisor()  # the analysing thread's own
        self._advice: HostAdvice | None = None
        self._advice_due = 0.0
        """As time.monotonic() gives it: when there is to be some, though not all is read."""
        self._garbage = garbage.collector()
        self._counts_timer = QTimer(self, singleShot=True, interval=COUNTS_EVERY_MS)
        self._counts_timer.timeout.connect(self._tell_domains)
        self._live_timer = QTimer(self, singleShot=True)
        self._live_timer.timeout.connect(self._measure_what_is_on_screen)
        self._elsewhere_timer = QTimer(self, singleShot=True, interval=COUNTS_EVERY_MS)
        self._elsewhere_timer.timeout.connect(self._reckon_all_again)
        self._advice_timer = QTimer(self, singleShot=True)
        self._advice_timer.timeout.connect(self._advise)
        self._look_elsewhere_timer = QTimer(self, singleShot=True, interval=LOOK_ELSEWHERE_MS)
        self._look_elsewhere_timer.timeout.connect(self._look_elsewhere)
        self._thaw_timer = QTimer(self, singleShot=True, interval=THAW_AGAIN_MS)
        self._thaw_timer.timeout.connect(self._read_journal)
        self._hours_timer = QTimer(self, interval=HOURS_EVERY_MS)
        self._hours_timer.timeout.connect(self.begin_what_waits)

    @Slot(object)
    def _run_posted(self, call: Callable[[], None]) -> None:
        if not self._is_closed:
            call()
        self._garbage.collect_young()

    # What is known

    @property
    def status(self) -> HostStatus:
        """How the connection is doing."""
        return self._status

    def domains(self) -> tuple[Domain, ...]:
        """All machines of the host, by natural name."""
        return tuple(self._domains.values())

    def domain(self, uuid: str) -> Domain | None:
        """One machine, or None if the host does not list it."""
        return self._domains.get(uuid)

    def tree(self, uuid: str) -> SnapshotTree | None:
        """The snapshots of a machine as last read, perhaps not all of them yet; None before that."""
        reading = self._trees.get(uuid)
        return None if reading is None else reading.tree

    def costs(self, uuid: str) -> CostReading | None:
        """What a machine's snapshots cost; None before that was measured."""
        return self._costs.get(uuid)

    def operations(self) -> tuple[Operation, ...]:
        """The operations since the start, oldest first."""
        return tuple(self._operations.values())

    def unfinished(self) -> Mapping[str, Operation]:
        """By UUID, what was interrupted on a machine. `Recover` finishes it, or leaves it as it is."""
        return self._unfinished

    def _known_layers(self, uuid: str) -> DomainLayers | None:
        costs = self._costs.get(uuid)
        return None if costs is None else costs.layers

    def _name_of(self, uuid: str) -> str:
        domain = self._domains.get(uuid)
        return uuid if domain is None else domain.name

    # Connecting

    def open(self) -> None:
        """Connect, list the machines and go on reading. `host_changed` tells how that went."""
        if self._is_closed:
            return
        if self._status.phase is Phase.CLOSED:
            self._garbage.hold()
            self._connect()
        elif self._status.phase is Phase.FAILED:
            self._connect()

    def reconnect_now(self) -> None:
        """Try again at once: instead of waiting, or after giving up."""
        if self._status.retry_at is not None:
            self._connector.hurry()
        else:
            self.open()

    def close(self) -> None:
        """Stop everything and disconnect; returns at once. Nothing is told any more but that it is closed."""
        if self._is_closed:
            return
        self._withdraw_what_waits()
        if self._status.phase is not Phase.CLOSED:
            self._set_status(Phase.CLOSED)
            self._garbage.release()
        self._is_closed = True
        self._session = None
        self._counts_timer.stop()
        self._live_timer.stop()
        self._elsewhere_timer.stop()
        self._advice_timer.stop()
        self._thaw_timer.stop()
        self._look_elsewhere_timer.stop()
        self._hours_timer.stop()
        for worker in self._workers:
            worker.close()
        self._connector.close()

    def wait_until_closed(self, seconds: float) -> bool:
        """After `close`: block until all threads have ended, or so many seconds. Returns whether they have."""
        deadline = time.monotonic() + seconds
        return all(worker.join(max(0.0, deadline - time.monotonic())) for worker in self._workers)

    def record_given_up(self) -> None:
        """After `close`: write into the journal what waited and was never begun. Blocks for a moment."""
        given_up, self._given_up = self._given_up, []
        if self._journal is not None:
            for operation in given_up:
                with suppress(SnapTreeError):  # nobody is left who could be told
                    self._journal.given_up(operation)

    def _connect(self) -> None:
        was_connected = self._status.phase is Phase.LOST
        if not was_connected:
            self._set_status(Phase.CONNECTING, host=self._status.host)
        self._reader.submit(
            partial(self._open_session, was_connected),
            on_done=self._connected,
            on_failed=self._not_connected,
            priority=Priority.USER,
        )

    def _open_session(self, was_connected: bool, should_stop: ShouldStop) -> Session:
        """On the read thread."""
        self._close_session()
        connection, why_read_only = self._connector.open_patiently(
            was_connected=was_connected,
            report=lambda error, retry_at: self._post(partial(self._waiting, error, retry_at)),
            should_stop=should_stop,
        )
        self._read_session = Session(
            connection,
            why_read_only,
            on_change=lambda changes: self._post(partial(self._changed_outside, changes)),
            on_lost=lambda session, why: self._post(partial(self._lost, session, why)),
        )
        return self._read_session

    def _close_session(self) -> None:
        """On the read thread."""
        session, self._read_session = self._read_session, None
        if session is not None:
            session.close()

    def _ask(self, request: CredentialsRequest) -> None:
        """On the thread that connects."""
        self._post(partial(self.credentials_needed.emit, request))

    def _connected(self, session: Session) -> None:
        self._advice_due = time.monotonic() + ADVICE_AT_LATEST_SECONDS
        self._session = session
        self._set_status(Phase.CONNECTED, host=session.host, error=session.why_read_only)
        self._must_read_all = True
        self._thaw_timer.stop()
        session.watcher.look_at(self._looked_at)
        self._read_list(Priority.USER)
        if self._looked_at is not None:
            self._read_tree(self._looked_at, Priority.ON_SCREEN)
        self._read_journal()

    def _waiting(self, error: SnapTreeError, retry_at: float) -> None:
        phase = Phase.LOST if self._status.phase is Phase.LOST else Phase.FAILED
        self._set_status(phase, host=self._status.host, error=error, retry_at=retry_at)

    def _not_connected(self, error: SnapTreeError) -> None:
        self._set_status(Phase.FAILED, host=self._status.host, error=error)

    def _lost(self, session: Session, why: str) -> None:
        if session is not self._session:
            return
        self._session = None
        error = ConnectionLostError(
            f"The connection to {self.uri} was lost: {why}.",
            hint="It is tried again by itself. What the host was doing goes on there.",
        )
        self._set_status(Phase.LOST, host=session.host, error=error)
        self._connect()

    def _set_status(
        self,
        phase: Phase,
        *,
        host: Host | None = None,
        error: SnapTreeError | None = None,
        retry_at: float | None = None,
    ) -> None:
        status = HostStatus(self.uri, phase, host, error, retry_at)
        if status != self._status:
            self._status = status
            self.host_changed.emit(status)

    # Reading

    def look_at(self, uuid: str | None) -> None:
        """Say which machine is on screen: it is read first, and looked after most closely."""
        if uuid == self._looked_at:
            return
        before, self._looked_at = self._looked_at, uuid
        if self._session is None:
            return
        self._session.watcher.look_at(uuid)
        running = self._reader.running
        if running is not None and running.key == before:
            running.priority = Priority.BACKGROUND
        if uuid is None:
            return
        reading = self._trees.get(uuid)
        if reading is not None and reading.complete:
            self._measure(uuid, Priority.ON_SCREEN)
        elif running is not None and running.key == uuid:
            running.priority = Priority.ON_SCREEN
        else:
            self._read_tree(uuid, Priority.ON_SCREEN)

    def refresh(self) -> None:
        """Read everything again: the list and what is on screen now, the rest in the background."""
        if self._session is None:
            return
        self._must_read_all = True
        self._read_list(Priority.USER)
        if self._looked_at is not None:
            self._read_tree(self._looked_at, Priority.ON_SCREEN)
        self._read_journal()

    def _read_journal(self) -> None:
        """What was done before, once; and what was interrupted."""
        journal = self._journal
        if journal is None:
            return
        wants_history = self._history is None

        def work(_should_stop: ShouldStop) -> _InJournal:
            earlier = journal.recent(EARLIER_OPERATIONS, host_uri=self.uri) if wants_history else ()
            return _InJournal(earlier, journal.unfinished(host_uri=self.uri), bool(journal.left_frozen(self.uri)))

        self._measurer.submit(
            work, on_done=self._journal_read, on_failed=self._list_failed, priority=Priority.ON_SCREEN, key=_JOURNAL
        )

    def _journal_read(self, found: _InJournal) -> None:
        if self._history is None:
            ours = set(self._journal_numbers.values())
            known = [self._earlier(each) for each in found.earlier if each.state.is_over and each.id not in ours]
            self._history = {each.id: each for each in known}
            self._last_earlier = max((each.id for each in found.earlier), default=0)
            if known:
                self.history_read.emit(tuple(known))
            self._look_elsewhere_timer.start()
        by_machine = MappingProxyType({each.plan.domain_uuid: each for each in reversed(found.unfinished)})
        if by_machine != self._unfinished:
            self._unfinished = by_machine
            self.unfinished_changed.emit(by_machine)
        if found.left_frozen:
            self._thaw_left()
        else:
            self._thaw_timer.stop()

    def _look_elsewhere(self) -> None:
        """Ask the journal what other programs of this user's do, if it was written to since the last time."""
        journal, seen = self._journal, self._journal_version
        if journal is None:
            return
        if any(not operation.state.is_over for operation in self._of_others.values()):
            seen = None  # who dies writes nothing

        def work(_should_stop: ShouldStop) -> tuple[int, tuple[Operation, ...]]:
            version = journal.version()
            return version, () if version == seen else journal.done_elsewhere(self.uri, EARLIER_OPERATIONS)

        self._measurer.submit(
            work,
            on_done=self._looked_elsewhere,
            on_failed=lambda _error: self._look_elsewhere_timer.start(),
            priority=Priority.ON_SCREEN,
            key=_DONE_ELSEWHERE,
        )

    def _looked_elsewhere(self, answer: tuple[int, tuple[Operation, ...]]) -> None:
        self._journal_version, found = answer
        has_ended = False
        for operation in reversed(found):
            before = self._of_others.get(operation.id)
            if before is None and operation.state.is_over and operation.id <= self._last_earlier:
                continue
            if before is not None and _how_far(before) == _how_far(operation):
                continue
            has_ended |= operation.state.is_over
            self._tell_elsewhere(operation, before)
        if has_ended:
            self._read_journal()  # it may have been interrupted
        self._look_elsewhere_timer.start()

    def _tell_elsewhere(self, operation: Operation, before: Operation | None) -> None:
        now = self._earlier(operation) if before is None else replace(operation, id=before.id)
        now = replace(now, progress=_progress_elsewhere(operation))
        self._of_others[operation.id] = now
        self._history = {**(self._history or {}), now.id: now}
        self.done_elsewhere.emit(now)

    def _thaw_left(self) -> None:
        """Thaw what was left frozen: at once, and if that fails, again and again. The journal says what came of it."""
        session, journal = self._session, self._journal
        if session is None or session.host.read_only or journal is None or self._thaw_timer.isActive():
            return

        def work(_should_stop: ShouldStop) -> tuple[LeftFrozen, ...]:
            with self._connection_for_changes() as connection:
                return thaw_left(connection, journal)

        self._thaw_timer.start()
        self._changer.submit(
            work,
            on_done=lambda _left: self._read_journal(),
            on_failed=self._list_failed,
            priority=Priority.USER,
        )

    def _in_journal(self, operation: Operation) -> int | None:
        """The journal's number of an operation, also of one that was just read there; None if it is not in it."""
        number = operation.id
        return self._journal_numbers.get(number, number if number > 0 else None)

    def _earlier(self, operation: Operation) -> Operation:
        """An operation out of the journal, with a number that no other journal's may have."""
        number = next(_operation_numbers)
        self._journal_numbers[number] = operation.id
        return replace(operation, id=number)

    def _changed_outside(self, changes: Changes) -> None:
        if changes.list_changed:
            self._read_list(Priority.ON_SCREEN)
        for uuid in changes.domains:
            self._read_tree(uuid, Priority.ON_SCREEN if uuid == self._looked_at else Priority.BACKGROUND)

    def _read_list(self, priority: Priority) -> None:
        session = self._session
        if session is None:
            return

        def work(_should_stop: ShouldStop) -> tuple[tuple[Domain, ...], dict[str, VanishedError]]:
            vanished = dict(self._vanished)  # before the list: it knows better
            with session.using() as connection:
                return list_domains(connection), vanished

        self._reader.submit(work, on_done=self._listed, on_failed=self._list_failed, priority=priority, key=_LIST)

    def _listed(self, answer: tuple[tuple[Domain, ...], dict[str, VanishedError]]) -> None:
        if self._session is None:
            return
        domains, vanished = answer
        self._set_status(Phase.CONNECTED, host=self._session.host, error=self._session.why_read_only)
        for uuid in self._domains.keys() - {domain.uuid for domain in domains}:
            self._forget(uuid)
        self._domains = {domain.uuid: self._with_count(domain) for domain in domains}
        # The watcher tells of changes in trees that were read; what is listed and can't be found is asked for once.
        unread = [
            domain
            for domain in domains
            if (self._must_read_all or domain.uuid not in self._trees) and domain.uuid not in vanished
        ]
        # Of equally urgent questions the newest is answered first: ask for the top of the list last.
        for domain in reversed(unread):
            if domain.snapshot_count != 0:
                self._read_tree(domain.uuid, Priority.BACKGROUND)
        # After that: who hears of a machine may look at it, which is to be the same question.
        self._tell_domains()
        for domain in unread:
            if domain.snapshot_count == 0:
                self._tree_arrived(domain.uuid, _NO_SNAPSHOTS)
        self._must_read_all = False
        for uuid, error in vanished.items():
            self._vanished.pop(uuid, None)
            if uuid in self._domains:
                self.reading_failed.emit(uuid, error)

    def _list_failed(self, error: SnapTreeError) -> None:
        if self._session is not None and not isinstance(error, ConnectionLostError):
            self._set_status(Phase.CONNECTED, host=self._session.host, error=error)

    def _forget(self, uuid: str) -> None:
        for known in (self._trees, self._costs):
            known.pop(uuid, None)
        for failed in (self._unread, self._unmeasured):
            failed.discard(uuid)
        self._vanished.pop(uuid, None)
        self._advise_soon()
        if self._session is not None:
            self._session.watcher.forget(uuid)

    def _with_count(self, domain: Domain) -> Domain:
        reading = self._trees.get(domain.uuid)
        if domain.snapshot_count is not None or reading is None or not reading.complete:
            return domain
        return replace(domain, snapshot_count=len(reading.tree))

    def _tell_domains(self) -> None:
        domains = self.domains()
        if domains != self._told_domains:
            self._told_domains = domains
            self.domains_changed.emit(domains)

    def _read_tree(self, uuid: str, priority: Priority) -> None:
        session = self._session
        if session is None:
            return

        def part(tree: SnapshotTree) -> None:
            if uuid == self._looked_at:
                self._post(partial(self._part_arrived, uuid, tree))

        def work(should_stop: ShouldStop) -> SnapshotTree:
            with session.using() as connection:
                tree = read_tree(connection, uuid, on_part=part, cancelled=should_stop)
            known = self.tree(uuid)
            if known == tree and known is not None:
                return known
            Thumbnails.of(self.uri, uuid).keep_only(tree)
            return tree

        self._reader.submit(
            work,
            on_done=partial(self._tree_arrived, uuid),
            on_failed=partial(self._reading_failed, session, self._unread, uuid),
            priority=priority,
            key=uuid,
        )

    def _part_arrived(self, uuid: str, tree: SnapshotTree) -> None:
        known = self._trees.get(uuid)
        if uuid in self._domains and (known is None or not known.complete):
            self._trees[uuid] = TreeReading(tree, complete=False)
            self.tree_changed.emit(uuid, self._trees[uuid])

    def _tree_arrived(self, uuid: str, tree: SnapshotTree) -> None:
        if uuid not in self._domains:
            return  # it vanished while it was read
        known = self._trees.get(uuid)
        if known is None or known.tree is not tree or not known.complete or uuid in self._unread:
            self._unread.discard(uuid)
            self._trees[uuid] = TreeReading(tree, complete=True)
            self.tree_changed.emit(uuid, self._trees[uuid])
            self._count(uuid, len(tree))
        if self._session is not None:
            self._session.watcher.showing(uuid, tree)
        self._measure(uuid, Priority.ON_SCREEN if uuid == self._looked_at else Priority.BACKGROUND)

    def _count(self, uuid: str, snapshots: int) -> None:
        domain = self._domains[uuid]
        if domain.snapshot_count != snapshots:
            self._domains[uuid] = replace(domain, snapshot_count=snapshots)
            if not self._counts_timer.isActive():
                self._counts_timer.start()

    def _reading_failed(self, session: Session, failed: set[str], uuid: str, error: SnapTreeError) -> None:
        if isinstance(error, ConnectionLostError) and session is not self._session:
            return  # that is told already
        failed.add(uuid)
        if isinstance(error, VanishedError):
            self._vanished[uuid] = error
            self._read_list(Priority.ON_SCREEN)
        else:
            self.reading_failed.emit(uuid, error)

    def _measure(self, uuid: str, priority: Priority) -> None:
        """Look at a machine's images, then at what is in them."""
        session, reading = self._session, self._trees.get(uuid)
        if session is None or reading is None or not reading.complete or self._is_changing(uuid):
            return

        def work(_should_stop: ShouldStop) -> tuple[CostReading, float]:
            began = time.monotonic()
            with session.using() as connection:
                layers = read_layers(connection, uuid, reading.tree)
            known = self._costs.get(uuid)
            if known is not None:
                layers = with_earlier_analysis(layers, known.layers)
            return self._reckon(uuid, reading.tree, layers), began

        self._measurer.submit(
            work,
            on_done=partial(self._measured, uuid, priority),
            on_failed=partial(self._reading_failed, session, self._unmeasured, uuid),
            priority=priority,
            key=uuid,
        )

    def _measured(self, uuid: str, priority: Priority, measured: tuple[CostReading, float]) -> None:
        costs, began = measured
        if uuid not in self._domains:
            return
        if uuid in self._unmeasured:
            self._unmeasured.discard(uuid)
            if uuid in self._trees and uuid not in self._unread:
                self.tree_changed.emit(uuid, self._trees[uuid])
        self._tell_costs(uuid, costs)
        if costs.layers.images:
            self._analyse(uuid, priority, began)
        else:
            self._measure_again(uuid, began)

    def _analyse(self, uuid: str, priority: Priority, began: float) -> None:
        """Read what is in a machine's images."""
        session, reading, known = self._session, self._trees.get(uuid), self._costs.get(uuid)
        if session is None or reading is None or known is None:
            return

        def work(should_stop: ShouldStop) -> CostReading:
            with session.using() as connection:
                layers = analysed(connection, known.layers, should_stop)
            return self._reckon(uuid, reading.tree, layers)

        def done(costs: CostReading) -> None:
            if uuid in self._domains and self._costs.get(uuid) is known:
                self._tell_costs(uuid, costs)
                self._measure_again(uuid, began)

        self._analyst.submit(
            work,
            on_done=done,
            on_failed=partial(self._reading_failed, session, self._unmeasured, uuid),
            priority=priority,
            key=uuid,
        )

    def _reckon(self, uuid: str, tree: SnapshotTree, layers: DomainLayers) -> CostReading:
        """On a worker: the reading that is known already if nothing is new."""
        elsewhere = self._elsewhere(uuid, tree, layers)
        of_no_use = self._of_no_use(uuid, tree, layers)
        reckoned = CostReading(layers, domain_costs(tree, layers, elsewhere), elsewhere, self._speed_now(), of_no_use)
        known = self._costs.get(uuid)
        return known if known == reckoned and known is not None else reckoned

    def _of_no_use(self, uuid: str, tree: SnapshotTree, layers: DomainLayers) -> Mapping[str, str]:
        host, domain = self._status.host, self._domains.get(uuid)
        if host is None or domain is None:
            return MappingProxyType({})
        return Facts(glance(host, domain, tree, layers)).of_no_use

    def _speed_now(self) -> Speed:
        """On a worker: how long merges took of late. Asked of the journal after each change."""
        known = self._speed
        if known is None and self._journal is not None:
            with suppress(SnapTreeError):  # costs are known all the same; a change, which must be recorded, will say so
                known = self._journal.speed(self.uri)
        return NOT_MEASURED if known is None else known

    def _elsewhere(self, uuid: str, tree: SnapshotTree, layers: DomainLayers) -> Elsewhere:
        """On a worker: what other machines read of these images, as far as they were measured."""
        if all(snapshot.kind is SnapshotKind.INTERNAL for snapshot in tree):
            return ALONE  # there is no layer that might go
        ours = {layers.key(path) for path in layers.images}
        users: dict[ImageKey, set[str]] = {}
        domains, measured = dict(self._domains), dict(self._costs)
        for other, reading in measured.items():
            if other != uuid and other in domains:
                for key in ours & reading.costs.images.keys():
                    users.setdefault(key, set()).add(domains[other].name)
        named = MappingProxyType({key: frozenset(names) for key, names in users.items()})
        unmeasured = [domain.name for domain in domains.values() if domain.uuid not in measured and domain.uuid != uuid]
        if unmeasured:
            return Elsewhere(named, f"the disks of {machines_named(unmeasured)} may stand on it: not looked at yet")
        unknown = [
            domains[other].name
            for other, reading in measured.items()
            if other != uuid and other in domains and any(chain.problem for chain in reading.layers.chains)
        ]
        if unknown:
            return Elsewhere(named, f"the disks of {machines_named(unknown)} can't be followed: they may stand on it")
        return Elsewhere(named)

    def _tell_costs(self, uuid: str, costs: CostReading) -> None:
        before = self._costs.get(uuid)
        if before is costs:
            return
        self._costs[uuid] = costs
        self._speed = costs.speed
        self.costs_changed.emit(uuid, costs)
        self._advise_soon()
        if before is None or before.costs.images.keys() != costs.costs.images.keys():
            self._elsewhere_timer.start()

    def _reckon_all_again(self) -> None:
        """What some machines read changed: others may have shared it, or share it now."""

        def work(should_stop: ShouldStop) -> list[tuple[str, CostReading, CostReading]]:
            found = []
            for uuid, known in list(self._costs.items()):
                if should_stop():
                    raise CancelledError("Working out costs was cancelled.")
                reading = self._trees.get(uuid)
                if reading is not None and self._elsewhere(uuid, reading.tree, known.layers) != known.elsewhere:
                    found.append((uuid, known, self._reckon(uuid, reading.tree, known.layers)))
            return found

        def done(found: list[tuple[str, CostReading, CostReading]]) -> None:
            for uuid, known, costs in found:
                if self._costs.get(uuid) is known:
                    self._tell_costs(uuid, costs)

        self._analyst.submit(
            work, on_done=done, on_failed=self._list_failed, priority=Priority.BACKGROUND, key=_ELSEWHERE
        )

    def _advise_soon(self) -> None:
        if not self._advice_timer.isActive() or self._advice_timer.interval() > ADVICE_AFTER_MS:
            self._advice_timer.start(ADVICE_AFTER_MS)

    def _advise(self) -> None:
        """Find what should be looked at, of what is known by now."""
        session = self._session
        if session is None:
            return
        seen = {
            uuid: Observed(session.host, domain, self._trees[uuid].tree, costs.layers, costs.costs, costs.elsewhere)
            for uuid, costs in self._costs.items()
            if (domain := self._domains.get(uuid)) is not None
            and uuid in self._trees
            and costs.costs.snapshots.keys() == self._trees[uuid].tree.snapshots.keys()  # else they are soon again
        }
        waits_for = self._domains.keys() - seen.keys() - self._unread - self._unmeasured
        if waits_for and time.monotonic() < self._advice_due:
            self._advise_soon()
            return
        self._advice_due = time.monotonic() + ADVICE_AT_LATEST_SECONDS
        is_settled = len(seen) == len(self._domains) and not self._changes and not self._unfinished

        def work(_should_stop: ShouldStop) -> HostAdvice:
            with session.using() as connection:
                return self._advisor.advise(connection, seen, is_settled=is_settled)

        self._analyst.submit(work, on_done=self._advised, on_failed=not_told, priority=Priority.BACKGROUND, key=_ADVICE)

    def _advised(self, advice: HostAdvice) -> None:
        if advice != self._advice:
            self._advice = advice
            self.advice_changed.emit(advice)
        if not self._advice_timer.isActive():
            self._advice_timer.start(ADVICE_AGAIN_MS)

    def _measure_again(self, uuid: str, began: float) -> None:
        """While a machine on screen runs, look at it now and then, the less often the longer that takes."""
        if uuid == self._looked_at and self._domains[uuid].state.is_active:
            seconds = time.monotonic() - began
            self._live_timer.start(int(1000 * max(LIVE_COSTS_SECONDS, 10 * seconds)))

    def _measure_what_is_on_screen(self) -> None:
        if self._looked_at is not None:
            self._measure(self._looked_at, Priority.ON_SCREEN)

    def compare(
        self,
        uuid: str,
        before: str | None,
        after: str | None,
        on_ready: Callable[[Comparison | SnapTreeError], None],
        *,
        only_latest: bool = False,
    ) -> None:
        """Read what differs in the settings of two snapshots, or of one and *Now* (None).

        `on_ready` hears of it on this thread, unless the backend is closed, or, with `only_latest`, the next such
        question comes before this one's turn.
        """
        session, tree, costs = self._session, self.tree(uuid), self._costs.get(uuid)
        if session is None:
            self._post(partial(on_ready, not_connected(self.uri)))
            return

        def work(_should_stop: ShouldStop) -> Comparison:
            # Which images are layers of one disk is told by what they stand on.
            same_disk = None if tree is None or costs is None else layers_of_one_disk(tree, costs.layers)
            with session.using() as connection:
                return compare_moments(connection, uuid, before, after, same_disk, with_xml=not only_latest)

        self._reader.submit(
            work,
            on_done=on_ready,
            on_failed=on_ready,
            priority=Priority.ON_SCREEN if only_latest else Priority.USER,
            key=_COMPARISON if only_latest else None,
        )

    # Changing

    def run(self, plan: Plan, *, undoes: Operation | None = None) -> Operation:
        """Queue a plan, perhaps one that takes another operation back.

        `operation_changed` tells how it goes; the machine is read again once it is over.
        """
        return self._queue(plan, undoes=undoes)

    def run_group(self, group: GroupPlan, *, undoes: Mapping[str, Operation] = MappingProxyType({})) -> None:
        """Queue plans that are run together; by UUID, what they take back. Each machine's is an operation."""
        queued = tuple(self._new_operation(plan) for plan in group.members)

        def run(connection: Connection, **options: Any) -> GroupOutcome:
            if self._journal is None:
                raise SnapTreeError("Machines are changed together only where that can be recorded.")
            numbers = {uuid: number for uuid, each in undoes.items() if (number := self._in_journal(each)) is not None}
            return run_group(connection, group, journal=self._journal, undoes=numbers, **options)

        self._submit(queued, run, partial(self._changed_together, queued), undoes)

    def cancel(self, operation_id: int) -> None:
        """Take an operation back while it is queued; ask it to stop if it runs. It says itself whether it can."""
        if self._for_later.pop(operation_id, None) is not None:
            operation = self._operations[operation_id]
            self._over(replace(operation, state=OperationState.CANCELLED, finished=time.time()))
        change = self._changes.get(operation_id)
        if change is None:
            return
        change.control.cancelled.set()
        self.go_on(operation_id)  # to its end
        if change.job is not None and self._changer.withdraw(change.job):
            for number in [number for number, each in self._changes.items() if each.job is change.job]:
                operation = self._operations[number]
                self._over(replace(operation, state=OperationState.CANCELLED, finished=time.time()))

    def cancel_when_whole(self, operation_id: int) -> None:
        """As `cancel`, but as soon as nothing is half done. Until then `go_on` takes that back.

        What is paused stands there already. What can't be paused is cancelled at once.
        """
        change, operation = self._changes.get(operation_id), self._operations[operation_id]
        is_still = operation.progress is not None and operation.progress.pause is Pause.PAUSED
        if change is None or is_still or not operation.can_pause or operation.state is not OperationState.RUNNING:
            self.cancel(operation_id)
            return
        change.control.ends = True
        change.control.paused.set()
        self._went_on(operation)

    def give_up_what_waits(self) -> None:
        """Cancel what waits for its hours, as the program is about to end. What waits for its turn is left to that."""
        for number, waiting in [*self._for_later.items()]:
            del self._for_later[number]
            given_up = self._never_begun(number, f"for its hours, {waiting.between.in_words}")
            self._given_up.append(given_up)
            self._over(given_up)

    def _withdraw_what_waits(self) -> None:
        """As it is closed: what has not begun by now never will."""
        for number, waiting in self._for_later.items():
            self._given_up.append(self._never_begun(number, f"for its hours, {waiting.between.in_words}"))
        jobs = {change.job for change in self._changes.values() if change.job is not None}
        withdrawn = {job for job in jobs if self._changer.withdraw(job)}
        for number, change in self._changes.items():
            if change.job in withdrawn and self._operations[number].state is OperationState.QUEUED:
                self._given_up.append(self._never_begun(number, "for the work before it"))

    def _never_begun(self, number: int, waited_for: str) -> Operation:
        why = CancelledError(f"Given up while it waited {waited_for}: SnapTree was closed.", hint="Nothing was done.")
        operation = replace(self._operations[number], remark="", is_for_later=False)
        return replace(operation, state=OperationState.CANCELLED, finished=time.time(), error=why)

    def limit(self, operation_id: int, bytes_per_second: int | None) -> None:
        """Let a running operation copy so much at most, or as much as it can. Merges of our own heed it at once."""
        change = self._changes.get(operation_id)
        if change is not None:
            change.control.limit = bytes_per_second

    def pause(self, operation_id: int) -> None:
        """Let an operation stand still as soon as no step is half done. Others go on meanwhile, on other machines."""
        change = self._changes.get(operation_id)
        if change is not None and self._operations[operation_id].can_pause and not change.control.paused.is_set():
            change.control.paused.set()
            self._went_on(self._operations[operation_id])

    def go_on(self, operation_id: int) -> None:
        """Let an operation go on that is paused, or shall be."""
        change = self._changes.get(operation_id)
        if change is None or not change.control.paused.is_set():
            return
        change.control.paused.clear()
        change.control.ends = False
        operation = self._operations[operation_id]
        progress = operation.progress
        if progress is not None and progress.pause is Pause.PAUSED:
            self._take_up(operation_id)
            does = "Is cancelled" if change.control.cancelled.is_set() else "Goes on"
            progress = replace(progress, doing=f"{does} as soon as it is its turn", remark="")
        self._went_on(replace(operation, progress=progress))

    def undo(self, operation: Operation, may_run: Callable[[Plan | SnapTreeError], bool] = lambda _plan: True) -> None:
        """Plan to take a finished operation back, and run that. `operation_changed` tells of both operations.

        `may_run` hears on this thread of the plan, or why there is none, and says whether to go on by itself.
        """
        undo = operation.plan.undo
        if not operation.can_undo or undo is None or operation.id in self._being_undone:
            return
        self._being_undone.add(operation.id)
        uuid, intention = take_back(operation.plan)
        self.planner.plan(uuid, intention, partial(self._run_undo, operation, may_run))

    def _run_undo(
        self, undoes: Operation, may_run: Callable[[Plan | SnapTreeError], bool], plan: Plan | SnapTreeError
    ) -> None:
        if not may_run(plan):
            self._being_undone.discard(undoes.id)
            return
        if isinstance(plan, Plan):
            self._queue(plan, undoes=undoes)
            return
        self._being_undone.discard(undoes.id)
        nothing = Plan(
            Action.UNDO, self.uri, undoes.plan.domain_uuid, undoes.plan.domain, snapshots=undoes.plan.snapshots
        )
        self._not_begun(nothing, plan)

    def leave_out(self, plan: Plan) -> None:
        """Tell that a refused plan is not run, where others are that it was shown with."""
        refusal = plan.refusals[0]
        self._not_begun(plan, SnapTreeError(refusal.reason, hint=refusal.remedy, details=refusal.rule))

    def _not_begun(self, plan: Plan, error: SnapTreeError) -> None:
        now, failed = time.time(), OperationState.FAILED
        self._tell_operation(Operation(next(_operation_numbers), plan, failed, started=now, finished=now, error=error))

    def prune(self, planned: PlannedPrune, *, limit: int | None = None, between: Hours | None = None) -> Operation:
        """Queue a prune that somebody has agreed to; before its hours it waits for them, and is planned anew then.

        `limit` is in bytes per second. What the user asks for meanwhile, on whatever machine, comes first.
        """
        operation = self._new_operation(planned.plan)
        waiting = None if between is None else _Waiting(planned.intention, planned.plan, limit, between)
        if waiting is None or are_now(waiting.between):
            self._queue(planned.plan, operation=operation, limit=limit, waiting=waiting)
        else:
            self._wait(operation, waiting)
        return operation

    def _wait(self, operation: Operation, waiting: _Waiting) -> None:
        self._for_later[operation.id] = waiting
        remark = f"Waits until {waiting.between.begin:%H:%M}, and stops at {waiting.between.end:%H:%M}"
        self._tell_operation(replace(operation, remark=remark, is_for_later=True))
        self._hours_timer.start()

    def begin_what_waits(self) -> None:
        """Begin the first operation whose hours have come; the next one follows when that is planned."""
        if not self._for_later:
            self._hours_timer.stop()
        if self._session is None or any(waiting.is_being_planned for waiting in self._for_later.values()):
            return
        for number, waiting in self._for_later.items():
            if are_now(waiting.between):
                waiting.is_being_planned = True
                self.planner.plan(waiting.agreed.domain_uuid, waiting.intention, partial(self._begin, number))
                return

    def _begin(self, number: int, plan: Plan | SnapTreeError) -> None:
        """Its hours have come: run what is left of what was agreed to."""
        waiting = self._for_later.pop(number, None)
        operation = replace(self._operations[number], remark="", is_for_later=False)
        if waiting is None:
            pass  # cancelled meanwhile
        elif isinstance(plan, SnapTreeError):
            self._over(replace(operation, state=OperationState.FAILED, finished=time.time(), error=plan))
        elif (less := no_more_than(waiting.intention, plan, waiting.agreed)) is not None:
            self._for_later[number] = replace(waiting, intention=less)
            self.planner.plan(plan.domain_uuid, less, partial(self._begin, number))
            return
        else:
            waiting.is_being_planned = False
            self._queue(plan, operation=replace(operation, plan=plan), limit=waiting.limit, waiting=waiting)
        self.begin_what_waits()

    def _queue(
        self,
        plan: Plan,
        *,
        undoes: Operation | None = None,
        operation: Operation | None = None,
        limit: int | None = None,
        waiting: _Waiting | None = None,
    ) -> Operation:
        queued = self._new_operation(plan) if operation is None else operation
        begun: list[Run] = []
        control = _Control(limit)

        def run(connection: Connection, **options: Any) -> Operation | None:
            if not begun:
                number = None if undoes is None else self._in_journal(undoes)
                begin = begin_run if waiting is None else partial(begin_in_hours, waiting.between)
                begun.append(begin(connection, plan, journal=self._journal, undoes=number, **options))
            return begun[0].until_paused(control.paused.is_set)

        def failed(error: SnapTreeError) -> None:
            if any(each.id == queued.id for each in self._paused.get(plan.domain_uuid, ())):
                self._stands_still(queued.id, error.summary)  # it could not go on, because of the connection
            elif isinstance(error, OutOfHoursError) and waiting is not None:
                self._changes.pop(queued.id, None)
                self._wait(queued, waiting)  # the work before it took too long: another day
            else:
                self._not_changed((queued,), error)

        known = {} if undoes is None else {plan.domain_uuid: undoes}
        done = partial(self._changed_or_paused, queued.id)
        self._submit((queued,), run, done, known, control=control, on_failed=failed, is_urgent=operation is None)
        return queued

    def _new_operation(self, plan: Plan) -> Operation:
        return Operation(next(_operation_numbers), plan, OperationState.QUEUED, started=time.time())

    def _submit(
        self,
        queued: tuple[Operation, ...],
        run: Callable[..., _Outcome],
        on_done: Callable[[_Outcome], None],
        undoes: Mapping[str, Operation],
        *,
        control: _Control | None = None,
        on_failed: Callable[[SnapTreeError], None] | None = None,
        is_urgent: bool = True,
    ) -> None:
        """Queue operations that are run in one go."""
        control = control or _Control()
        submit = partial(
            self._changer.submit,
            partial(self._change, queued, run, control),
            on_done=on_done,
            on_failed=on_failed or partial(self._not_changed, queued),
            priority=Priority.USER if is_urgent else Priority.ON_SCREEN,
        )
        for operation in queued:
            self._changes[operation.id] = _Change(submit, None, undoes.get(operation.plan.domain_uuid), control)
        for operation in queued:
            self._tell_operation(operation)  # first: a limit that somebody sets now holds from the first byte on
        job = submit()
        for operation in queued:
            self._changes[operation.id] = replace(self._changes[operation.id], job=job)

    def _change(
        self,
        queued: tuple[Operation, ...],
        run: Callable[..., _Outcome],
        control: _Control,
        should_stop: ShouldStop,
    ) -> _Outcome:
        """On the change thread."""
        numbers = {operation.plan.domain_uuid: operation.id for operation in queued}
        told = dict.fromkeys(numbers, 0.0)
        newest: dict[str, Operation] = {}

        def tell(operation: Operation) -> None:
            now, uuid = time.monotonic(), operation.plan.domain_uuid
            newest[uuid] = operation
            if not operation.state.is_over and now - told[uuid] >= PROGRESS_SECONDS:
                told[uuid] = now
                self._post(partial(self._went_on, replace(operation, id=numbers[uuid])))

        for uuid in numbers:
            if (paused := self._paused.get(uuid, queued)) is not queued:
                raise SnapTreeError(
                    f"Another change of {plain(paused[0].plan.domain)} is paused half-way.",
                    hint="Nothing was done. Let that go on, or cancel it; then try again.",
                )
        with ExitStack() as stack:
            connection = stack.enter_context(self._connection_for_changes())
            for uuid in numbers:
                stack.enter_context(self._watching_paused(uuid))
            for uuid in numbers:
                self._paused.pop(uuid, None)
            outcome = run(
                connection,
                on_progress=tell,
                cancelled=lambda: control.cancelled.is_set() or should_stop(),
                bandwidth=lambda: control.limit,
            )
        if outcome is None:
            self._paused |= dict.fromkeys(numbers, queued)
            for uuid, operation in newest.items():
                self._post(partial(self._went_on, replace(operation, id=numbers[uuid])))
        return outcome

    @contextmanager
    def _connection_for_changes(self) -> Iterator[Connection]:
        """On the change thread: its own connection, opened when it is first needed and after it broke."""
        session = self._session
        if session is None:
            raise not_connected(self.uri)
        if session.host.driver == "TEST":
            # Each connection to libvirt's test driver may be a world of its own: changes belong to the one shown.
            with session.using() as connection:
                yield connection
            return
        if self._change_connection is None or not self._change_connection.is_alive():
            self._close_change_connection()
            self._change_connection = self._connector.open_for_changes(session.host.read_only)
        yield self._change_connection

    def _close_change_connection(self) -> None:
        """On the change thread."""
        connection, self._change_connection = self._change_connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _watching_paused(self, uuid: str) -> Iterator[None]:
        """On the change thread."""
        session = self._session
        if session is None:
            yield
        else:
            with session.watcher.paused(uuid):
                yield

    def _is_changing(self, uuid: str) -> bool:
        """Whether an operation of ours runs on a machine: libvirt would let other questions about it wait."""
        return any(
            (operation := self._operations[number]).state is OperationState.RUNNING
            and operation.plan.domain_uuid == uuid
            and not (operation.progress is not None and operation.progress.pause is Pause.PAUSED)
            for number in self._changes
        )

    def _went_on(self, operation: Operation) -> None:
        change = self._changes.get(operation.id)
        if change is not None:
            self._tell_operation(change.control.on(operation))

    def _changed_or_paused(self, number: int, operation: Operation | None) -> None:
        if operation is not None:
            self._changed(number, operation)
        elif (control := self._changes[number].control).paused.is_set() and not control.ends:
            self._stands_still(number)
        elif control.paused.is_set():
            control.cancelled.set()
            control.paused.clear()
            self._take_up(number)
        else:  # it was told to go on, or to end, in the very moment
            self._take_up(number)

    def _take_up(self, number: int) -> None:
        change = self._changes[number]
        self._changes[number] = replace(change, job=change.submit())

    def _stands_still(self, number: int, remark: str = "") -> None:
        """It is paused between two steps, as the user wants it or because it could not go on."""
        operation, control = self._operations[number], self._changes[number].control
        control.paused.set()
        before = operation.progress
        still = Progress(
            doing="Paused",
            step=0 if before is None else before.step,
            steps=len(operation.plan.steps),
            overall=None if before is None else before.overall,
            can_cancel=True,
            remark=remark,
            limit=control.limit,
            pause=Pause.PAUSED,
        )
        self._tell_operation(replace(operation, progress=still, state=OperationState.RUNNING))
        self._read_tree(operation.plan.domain_uuid, Priority.ON_SCREEN)

    def _changed(self, number: int, operation: Operation) -> None:
        self._journal_numbers[number] = operation.id
        self._over(replace(operation, id=number))
        recovered = operation.plan.recovers
        for earlier in [known for known, in_journal in self._journal_numbers.items() if in_journal == recovered]:
            settled = self._operations.get(earlier) or (self._history or {}).get(earlier)
            if settled is not None:
                self._tell_operation(replace(settled, settled=Settled(operation.id, operation.plan.action)))

    def _changed_together(self, queued: tuple[Operation, ...], outcome: GroupOutcome) -> None:
        numbers = {each.plan.domain_uuid: each.id for each in queued}
        for operation in outcome.members:
            self._changed(numbers[operation.plan.domain_uuid], operation)
        for operation in outcome.taken_back:
            self._changed(next(_operation_numbers), operation)
            if operation.state is OperationState.DONE and operation.plan.recovers is None:
                done = self._operations[numbers[operation.plan.domain_uuid]]
                self._tell_operation(replace(done, undone=True))

    def _not_changed(self, queued: tuple[Operation, ...], error: SnapTreeError) -> None:
        """Nothing was done: the host could not be reached, or the journal not be written."""
        for each in queued:
            operation, now = self._operations[each.id], time.time()
            self._over(replace(operation, state=OperationState.FAILED, finished=now, progress=None, error=error))

    def _over(self, operation: Operation) -> None:
        change = self._changes.pop(operation.id, None)
        undoes = None if change is None else change.undoes
        self._speed = None
        self._tell_operation(operation)
        if undoes is not None:
            self._being_undone.discard(undoes.id)
            if operation.state is OperationState.DONE:
                self._tell_operation(replace(undoes, undone=True))
        known = (self._history or {}) | self._operations
        for earlier in [each for each in known.values() if not each.undone and undoes_look(operation, each)]:
            self._tell_operation(replace(earlier, undone=True))
        self._read_list(Priority.ON_SCREEN)
        self._read_tree(operation.plan.domain_uuid, Priority.ON_SCREEN)
        self._read_journal()

    def _tell_operation(self, operation: Operation) -> None:
        self._operations[operation.id] = operation
        self.operation_changed.emit(operation)
