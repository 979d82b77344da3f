"""A thread that works through questions, the most urgent first, and never keeps anybody waiting. No Qt."""

from __future__ import annotations

import heapq
import itertools
import threading
import traceback
from collections.abc import Callable, Hashable
from enum import IntEnum
from functools import partial
from typing import TypeVar

from snaptree.model.errors import CancelledError, SnapTreeError

T = TypeVar("T")

ShouldStop = Callable[[], bool]
"""Handed to long work, which asks it now and then and raises CancelledError soon after it turns true."""

Deliver = Callable[[Callable[[], None]], None]
"""Runs a callable on the thread that is to hear of results."""

_MAXIMUM_YIELDS = 3
"""A job that stood back this often is finished whatever else waits, so that nothing waits for ever."""


class Priority(IntEnum):
    """How urgent a question is: smaller comes first."""

    USER = 0
    """Somebody pressed something and waits."""
    ON_SCREEN = 1
    """What is looked at."""
    BACKGROUND = 2
    """What might be looked at later. Stands back for anything more urgent, even half-way."""


class Job:
    """A question put to a worker. Cancelling it means that nobody wants the answer any more."""

    def __init__(self, run: Callable[[ShouldStop], None], priority: Priority, key: Hashable | None) -> None:
        self.priority = priority
        """May change while the job runs: what began in the background may have come on screen, and the reverse."""
        self.key = key
        self.run = run
        self.yields = False
        """It was told to stop in favour of something more urgent."""
        self.times_yielded = 0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Forget the question: if it waits it is never asked, if it runs it is told to stop, no callback is called."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the answer any more."""
        return self._cancelled.is_set()


def not_told(_error: SnapTreeError) -> None:
    """What nobody depends on need not be known."""


class Worker:
    """One daemon thread and its queue. All methods return at once and may be called from any thread.

    Among equally urgent questions the newest goes first: it is what the user looks at now (`oldest_first` is for
    what must keep its order). A question with the `key` of one that still waits takes its place.

    Answers and failures are delivered by `deliver`. What no SnapTreeError announces is a mistake of ours: it reaches
    `on_failed` as a SnapTreeError, and is then raised on the delivering thread, where the program's exception hook
    logs and shows it.
    """

    def __init__(
        self, name: str, deliver: Deliver, *, oldest_first: bool = False, at_end: Callable[[], None] | None = None
    ) -> None:
        """The thread starts with the first question. `at_end` runs last on it, to let go of what it used."""
        self._deliver = deliver
        self._at_end = at_end
        self._numbers = itertools.count(step=1 if oldest_first else -1)
        self._queue: list[tuple[Priority, int, Job]] = []
        self._waiting: dict[Hashable, Job] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        # A daemon: a libvirt call that blocks for ever must not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._has_started = False
        self._running: Job | None = None

    def submit(
        self,
        work: Callable[[ShouldStop], T],
        *,
        on_done: Callable[[T], None],
        on_failed: Callable[[SnapTreeError], None],
        priority: Priority,
        key: Hashable | None = None,
    ) -> Job:
        """Queue `work`. It is called on the worker's thread, one of the two callbacks on the delivering one."""

        def run(should_stop: ShouldStop) -> None:
            try:
                answer = work(should_stop)
            except CancelledError as error:
                if job.is_cancelled or self._is_closed or self._queue_again(job):
                    return
                self._answer(job, on_failed, error)
            except SnapTreeError as error:
                self._answer(job, on_failed, error)
            except Exception as error:  # noqa: BLE001  whatever it is, the thread goes on and the user hears of it
                self._answer(job, on_failed, _our_mistake(error))
                self._deliver(partial(_raise, error))
            else:
                self._answer(job, on_done, answer)

        job = Job(run, priority, key)
        with self._changed:
            if self._is_closed:
                job.cancel()
                return job
            self._enqueue(job)
            self._changed.notify()
            if not self._has_started:
                self._has_started = True
                self._thread.start()
        return job

    def _enqueue(self, job: Job) -> None:
        if job.key is not None:
            replaced = self._waiting.get(job.key)
            if replaced is not None and not replaced.is_cancelled:
                replaced.cancel()
                # Who asked for it urgently still waits for it.
                job.priority = min(job.priority, replaced.priority)
            self._waiting[job.key] = job
        heapq.heappush(self._queue, (job.priority, next(self._numbers), job))

    @property
    def running(self) -> Job | None:
        """What is being worked on at this moment."""
        return self._running

    def withdraw(self, job: Job) -> bool:
        """Take back a question unless its turn came already. Returns whether it was still waiting."""
        with self._changed:
            waits = any(queued is job for _, _, queued in self._queue) and not job.is_cancelled
            if waits:
                job.cancel()
            return waits

    def close(self) -> None:
        """Drop what waits and tell what runs to stop. Nothing is delivered from now on."""
        with self._changed:
            self._is_closed = True
            for _, _, job in self._queue:
                job.cancel()
            self._changed.notify()

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the thread to end after `close`. Returns whether it did."""
        if self._has_started:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if not job.is_cancelled:
                self._running = job
                job.run(partial(self._should_stop, job))
                self._running = None
        if self._at_end is not None:
            self._at_end()

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._queue)
            if self._is_closed:
                return None
            _, _, job = heapq.heappop(self._queue)
            if job.key is not None and self._waiting.get(job.key) is job:
                del self._waiting[job.key]
            return job

    def _should_stop(self, job: Job) -> bool:
        if job.is_cancelled or self._is_closed:
            return True
        if job.priority is Priority.BACKGROUND and not job.yields and job.times_yielded < _MAXIMUM_YIELDS:
            with self._changed:
                job.yields = bool(self._queue) and self._queue[0][0] < job.priority
        return job.yields

    def _queue_again(self, job: Job) -> bool:
        """Put a job back that stopped because something more urgent came; unless a newer one asks the same."""
        if not job.yields:
            return False
        job.yields = False
        job.times_yielded += 1
        with self._changed:
            if job.key is None or job.key not in self._waiting:
                self._enqueue(job)
        return True

    def _answer(self, job: Job, callback: Callable[[T], None], answer: T) -> None:
        def call_unless_cancelled() -> None:
            if not (job.is_cancelled or self._is_closed):
                callback(answer)

        self._deliver(call_unless_cancelled)


def _our_mistake(error: Exception) -> SnapTreeError:
    return SnapTreeError(
        f"SnapTree made a mistake: {error or type(error).__name__}.",
        hint="Please report it with the details.",
        details="".join(traceback.format_exception(error)),
    )


def _raise(error: Exception) -> None:
    raise error
