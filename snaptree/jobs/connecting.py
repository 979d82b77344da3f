"""Getting through to a host, and again when it broke: credentials, pauses, read-only where no more is allowed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from snaptree.hosts.connection import Connection, CredentialQuestion
from snaptree.jobs.worker import ShouldStop
from snaptree.model.errors import AccessDeniedError, ConnectionLostError, SnapTreeError

LONGEST_WAIT_SECONDS = 30.0

ReportFailure = Callable[[SnapTreeError, float], None]
"""Hears why an attempt failed and when the next one follows, in seconds since 1970."""


class CredentialsRequest:
    """What a host wants to know before it lets us in. The thread that connects waits for `answer`."""

    def __init__(self, uri: str, questions: tuple[CredentialQuestion, ...]) -> None:
        self.uri = uri
        self.questions = questions
        self._answers: list[str] | None = None
        self._answered = threading.Event()

    def answer(self, answers: list[str] | None) -> None:
        """Answer in the order asked; None gives up. Only the first answer counts."""
        if not self._answered.is_set():
            self._answers = answers
            self._answered.set()

    def wait(self) -> list[str] | None:
        """Block until somebody answers."""
        self._answered.wait()
        return self._answers


class Connector:
    """Opens connections to one host. Opening blocks; `hurry` and `close` may come from any thread.

    Credentials that worked are kept in memory, for the second connection and for the next time the link breaks.
    """

    def __init__(self, uri: str, *, read_only: bool, ask: Callable[[CredentialsRequest], None]) -> None:
        """`ask` must return at once, and see to it that the request is answered."""
        self.uri = uri
        self._read_only = read_only
        self._ask = ask
        self._known_answers: dict[tuple[CredentialQuestion, ...], list[str]] = {}
        self._hurry = threading.Event()
        self._lock = threading.Lock()
        self._is_closed = False
        self._gave_up = False
        self._requests: set[CredentialsRequest] = set()

    def open(self) -> tuple[Connection, AccessDeniedError | None]:
        """Connect, read-only if the host does not allow more; then the error says why. Raises SnapTreeError."""
        self._gave_up = False
        try:
            return self._open(self._read_only), None
        except AccessDeniedError as denied:
            if self._read_only or self._gave_up:
                raise
            try:
                return self._open(True), denied
            except SnapTreeError:
                raise denied from None

    def open_for_changes(self, read_only: bool) -> Connection:
        """Connect once more, for changes: looking must not wait for them. Raises SnapTreeError."""
        return self._open(read_only)

    def open_patiently(
        self, *, was_connected: bool, report: ReportFailure, should_stop: ShouldStop
    ) -> tuple[Connection, AccessDeniedError | None]:
        """As `open`, again and again with pauses of 1, 2, 4 ... 30 seconds, as long as that may help."""

        def may_help(error: BaseException) -> bool:
            # A host that was connected comes back; one that never was may be a typing mistake.
            return isinstance(error, ConnectionLostError) or (
                was_connected and isinstance(error, SnapTreeError) and not self._gave_up
            )

        def tell(state: RetryCallState) -> None:
            assert state.outcome is not None
            assert state.next_action is not None
            error = state.outcome.exception()
            assert isinstance(error, SnapTreeError)
            report(error, time.time() + state.next_action.sleep)

        self._hurry.clear()
        retrying = Retrying(
            retry=retry_if_exception(may_help),
            wait=wait_exponential(max=LONGEST_WAIT_SECONDS),
            sleep=self._pause,
            stop=lambda _state: should_stop(),
            before_sleep=tell,
            reraise=True,
        )
        return retrying(self.open)

    def hurry(self) -> None:
        """Try again now instead of waiting."""
        self._hurry.set()

    def close(self) -> None:
        """Give up waiting, for time to pass and for credentials."""
        with self._lock:
            self._is_closed = True
            requests = list(self._requests)
        for request in requests:
            request.answer(None)
        self._hurry.set()

    def _pause(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        if not self._is_closed:
            self._hurry.clear()

    def _open(self, read_only: bool) -> Connection:
        given: dict[tuple[CredentialQuestion, ...], list[str]] = {}

        def answers(asked: list[CredentialQuestion]) -> list[str] | None:
            questions = tuple(asked)
            known = None if questions in given else self._known_answers.get(questions)
            answers = self._wait_for_answers(questions) if known is None else known
            if answers is not None:
                given[questions] = answers
            return answers

        # The user is asked for what they want, never for less.
        asks = self._read_only or not read_only
        connection = Connection(self.uri, read_only=read_only, ask=answers if asks else None)
        try:
            connection.open()
        except SnapTreeError as error:
            connection.close()
            had_answers = bool(self._known_answers)
            self._known_answers.clear()
            if isinstance(error, AccessDeniedError) and had_answers and asks:
                return self._open(read_only)  # what was right once is not any more: ask
            raise
        self._known_answers.update(given)
        return connection

    def _wait_for_answers(self, questions: tuple[CredentialQuestion, ...]) -> list[str] | None:
        request = CredentialsRequest(self.uri, questions)
        with self._lock:
            if self._is_closed:
                return None
            self._requests.add(request)
        self._ask(request)
        answers = request.wait()
        with self._lock:
            self._requests.discard(request)
        self._gave_up = answers is None
        return answers
