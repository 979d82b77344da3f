"""The worker: order, coalescing, standing back, cancelling, failing and closing."""

import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.jobs.worker import Job, Priority, ShouldStop, Worker
from snaptree.model.errors import CancelledError, SnapTreeError

TIMEOUT = 20.0


class Answers:
    """The thread that hears of results: the test's own, when it asks for the next one."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.heard: list[object] = []

    def next(self) -> object:
        """Wait for one delivery and return what it said (None if it said nothing)."""
        before = len(self.heard)
        self.calls.get(timeout=TIMEOUT)()
        return self.heard[-1] if len(self.heard) > before else None


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def worker(answers: Answers) -> Iterator[Worker]:
    worker = Worker("test-worker", answers.calls.put)
    yield worker
    worker.close()
    assert worker.join(TIMEOUT)


class Gate:
    """Work that says when it began and ends when it is let go."""

    def __init__(self, says: object = "gate") -> None:
        self.says = says
        self.began = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _should_stop: ShouldStop) -> object:
        self.began.set()
        assert self.opened.wait(TIMEOUT)
        return self.says


def submit(
    worker: Worker,
    answers: Answers,
    work: Callable[[ShouldStop], object],
    priority: Priority = Priority.BACKGROUND,
    key: object = None,
) -> Job:
    return worker.submit(work, on_done=answers.heard.append, on_failed=answers.heard.append, priority=priority, key=key)


def say(what: object) -> Callable[[ShouldStop], object]:
    return lambda _should_stop: what


def busy(worker: Worker, answers: Answers) -> Gate:
    """Occupy the worker, so that what follows queues up."""
    gate = Gate()
    submit(worker, answers, gate, Priority.USER)
    assert gate.began.wait(TIMEOUT)
    return gate


def test_the_most_urgent_goes_first_and_the_newest_among_equals(worker: Worker, answers: Answers) -> None:
    gate = busy(worker, answers)
    for name, priority in (
        ("b1", Priority.BACKGROUND),
        ("s1", Priority.ON_SCREEN),
        ("b2", Priority.BACKGROUND),
        ("u1", Priority.USER),
        ("s2", Priority.ON_SCREEN),
    ):
        submit(worker, answers, say(name), priority)
    gate.opened.set()
    assert [answers.next() for _ in range(6)] == ["gate", "u1", "s2", "s1", "b2", "b1"]


def test_what_must_keep_its_order_is_answered_oldest_first(answers: Answers) -> None:
    worker = Worker("in-order", answers.calls.put, oldest_first=True)
    for number in range(5):
        submit(worker, answers, say(number), Priority.USER)
    assert [answers.next() for _ in range(5)] == [0, 1, 2, 3, 4]
    worker.close()
    assert worker.join(TIMEOUT)


@given(st.lists(st.tuples(st.sampled_from(Priority), st.integers(0, 3)), max_size=25))
def test_of_each_key_the_latest_is_answered_once_in_the_order_of_urgency(
    questions: list[tuple[Priority, int]],
) -> None:
    answers = Answers()
    worker = Worker("test-worker", answers.calls.put)
    gate = busy(worker, answers)
    expected: dict[int, tuple[Priority, int]] = {}
    for number, (priority, key) in enumerate(questions):
        submit(worker, answers, say((key, number)), priority, key)
        urgency = min(priority, expected[key][0]) if key in expected else priority
        expected[key] = urgency, number
    gate.opened.set()
    assert answers.next() == "gate"
    heard = [answers.next() for _ in expected]
    assert heard == [
        (key, number) for key, (_, number) in sorted(expected.items(), key=lambda item: (item[1][0], -item[1][1]))
    ]
    worker.close()
    assert worker.join(TIMEOUT)
    assert answers.calls.empty()


def test_a_refresh_replaces_the_one_that_waits_but_not_the_one_that_runs(worker: Worker, answers: Answers) -> None:
    gate = Gate("running")
    submit(worker, answers, gate, key="web-01")
    assert gate.began.wait(TIMEOUT)
    submit(worker, answers, say("replaced"), key="web-01")
    submit(worker, answers, say("latest"), key="web-01")
    gate.opened.set()
    assert [answers.next(), answers.next()] == ["running", "latest"]


def yielding(say_at_end: object, began: threading.Event, asked: threading.Event) -> Callable[[ShouldStop], object]:
    """Long work that asks whether to stop; lets itself end once `asked` is set."""

    def work(should_stop: ShouldStop) -> object:
        began.set()
        while not asked.is_set():
            if should_stop():
                raise CancelledError("Stopped.")
        return say_at_end

    return work


def test_background_work_stands_back_for_what_is_looked_at_and_then_goes_on(worker: Worker, answers: Answers) -> None:
    began, may_end = threading.Event(), threading.Event()
    submit(worker, answers, yielding("background", began, may_end))
    assert began.wait(TIMEOUT)
    submit(worker, answers, say("on screen"), Priority.ON_SCREEN)
    assert answers.next() == "on screen"
    may_end.set()
    assert answers.next() == "background"


def test_work_that_stood_back_often_enough_is_finished(worker: Worker, answers: Answers) -> None:
    stops = 0

    def work(should_stop: ShouldStop) -> object:
        nonlocal stops
        submit(worker, answers, say("urgent"), Priority.USER)
        if should_stop():
            stops += 1
            raise CancelledError("Stopped.")
        return "finished"

    submit(worker, answers, work)
    heard = [answers.next()]
    while heard[-1] != "finished":
        heard.append(answers.next())
    assert stops == 3


def test_work_on_screen_does_not_stand_back(worker: Worker, answers: Answers) -> None:
    began, may_end = threading.Event(), threading.Event()
    submit(worker, answers, yielding("on screen", began, may_end), Priority.ON_SCREEN)
    assert began.wait(TIMEOUT)
    submit(worker, answers, say("user"), Priority.USER)
    may_end.set()
    assert [answers.next(), answers.next()] == ["on screen", "user"]


def test_background_work_that_comes_on_screen_stands_back_no_more(worker: Worker, answers: Answers) -> None:
    began, may_end = threading.Event(), threading.Event()
    job = submit(worker, answers, yielding("was in the background", began, may_end))
    assert began.wait(TIMEOUT)
    assert worker.running is job
    job.priority = Priority.ON_SCREEN
    submit(worker, answers, say("on screen"), Priority.ON_SCREEN)
    may_end.set()
    assert [answers.next(), answers.next()] == ["was in the background", "on screen"]


def test_a_cancelled_question_is_never_asked(worker: Worker, answers: Answers) -> None:
    gate = busy(worker, answers)
    submit(worker, answers, say("dropped")).cancel()
    submit(worker, answers, say("kept"))
    gate.opened.set()
    assert [answers.next(), answers.next()] == ["gate", "kept"]
    assert answers.calls.empty()


def test_work_that_runs_is_told_to_stop_and_nobody_hears_of_it(worker: Worker, answers: Answers) -> None:
    began = threading.Event()
    job = submit(worker, answers, yielding("never", began, threading.Event()), Priority.USER)
    assert began.wait(TIMEOUT)
    job.cancel()
    submit(worker, answers, say("next"))
    assert answers.next() == "next"


def test_an_answer_that_nobody_wants_any_more_is_dropped_on_delivery(worker: Worker, answers: Answers) -> None:
    job = submit(worker, answers, say("late"))
    delivery = answers.calls.get(timeout=TIMEOUT)
    job.cancel()
    delivery()
    assert answers.heard == []


def test_only_a_waiting_question_can_be_withdrawn(worker: Worker, answers: Answers) -> None:
    gate = Gate()
    running = submit(worker, answers, gate)
    assert gate.began.wait(TIMEOUT)
    waiting = submit(worker, answers, say("withdrawn"))
    assert worker.withdraw(waiting)
    assert not worker.withdraw(waiting)
    assert not worker.withdraw(running)
    gate.opened.set()
    assert answers.next() == "gate"


def test_a_failure_reaches_its_asker(worker: Worker, answers: Answers) -> None:
    error = SnapTreeError("The host is on fire.", hint="Use water.")

    def work(_should_stop: ShouldStop) -> object:
        raise error

    submit(worker, answers, work)
    assert answers.next() is error


def test_a_mistake_reaches_its_asker_and_is_raised_where_it_is_logged_and_the_thread_goes_on(
    worker: Worker, answers: Answers
) -> None:
    def work(_should_stop: ShouldStop) -> object:
        raise ZeroDivisionError("oops")

    submit(worker, answers, work)
    failure = answers.next()
    assert isinstance(failure, SnapTreeError)
    assert failure.summary == "SnapTree made a mistake: oops."
    assert "ZeroDivisionError" in failure.details
    with pytest.raises(ZeroDivisionError):
        answers.next()
    submit(worker, answers, say("still here"))
    assert answers.next() == "still here"


def test_cancelling_without_being_asked_is_a_failure_not_a_loop(worker: Worker, answers: Answers) -> None:
    def work(_should_stop: ShouldStop) -> object:
        raise CancelledError("The user gave up.")

    submit(worker, answers, work)
    assert isinstance(answers.next(), CancelledError)


def test_closing_drops_what_waits_stops_what_runs_and_lets_go_of_what_it_held() -> None:
    answers, ended_on = Answers(), queue.SimpleQueue[str]()
    worker = Worker("closing", answers.calls.put, at_end=lambda: ended_on.put(threading.current_thread().name))
    began = threading.Event()
    submit(worker, answers, yielding("never", began, threading.Event()))
    assert began.wait(TIMEOUT)
    submit(worker, answers, say("never asked"))
    worker.close()
    assert worker.join(TIMEOUT)
    assert ended_on.get(timeout=TIMEOUT) == "closing"
    assert answers.calls.empty()
    assert submit(worker, answers, say("too late")).is_cancelled


def test_a_worker_that_was_never_asked_has_no_thread_to_wait_for() -> None:
    worker = Worker("idle", Answers().calls.put)
    worker.close()
    assert worker.join(0)


def test_closing_does_not_wait_for_work_that_blocks() -> None:
    answers = Answers()
    worker = Worker("blocked", answers.calls.put)
    gate = busy(worker, answers)
    worker.close()
    assert not worker.join(0.01)
    gate.opened.set()
    assert worker.join(TIMEOUT)
    delivery = answers.calls.get(timeout=TIMEOUT)
    delivery()
    assert answers.heard == []


def test_questions_may_come_from_many_threads(worker: Worker, answers: Answers) -> None:
    def ask(first: int) -> None:
        for number in range(first, first + 50):
            submit(worker, answers, say(number), Priority(number % 3))

    threads = [threading.Thread(target=partial(ask, 50 * index)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(str(answers.next()) for _ in range(200)) == sorted(str(number) for number in range(200))
