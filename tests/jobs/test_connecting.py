"""Getting through to a host: pauses that grow, and credentials that are asked for once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from snaptree.hosts.connection import Connection
from snaptree.jobs.connecting import Connector, CredentialsRequest
from snaptree.model.errors import AccessDeniedError, ConnectionLostError, SnapTreeError

AUTH = """<node><auth><user password='{password}'>anna</user></auth>
  <domain type='test'><name>web-01</name><memory>1024</memory><os><type>hvm</type></os></domain></node>"""


def nobody_answers(request: CredentialsRequest) -> None:
    raise AssertionError(request.questions)


class User:
    """Answers at once what a host asks."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.asked = 0

    def __call__(self, request: CredentialsRequest) -> None:
        self.asked += 1
        request.answer([self.password if question.is_secret else "anna" for question in request.questions])


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> SnapTreeError:
    """Nobody is there."""
    error = ConnectionLostError("Cannot connect: Connection refused.")

    def fail(_connection: Connection) -> Any:
        raise error

    monkeypatch.setattr(Connection, "open", fail)
    return error


def test_pauses_double_up_to_half_a_minute(refused: SnapTreeError, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Connector, "_pause", lambda _connector, seconds: pauses.append(seconds))
    reports: list[tuple[SnapTreeError, float]] = []
    connector = Connector("test:///default", read_only=False, ask=nobody_answers)
    with pytest.raises(ConnectionLostError):
        connector.open_patiently(
            was_connected=True,
            report=lambda error, retry_at: reports.append((error, retry_at - time.time())),
            should_stop=lambda: len(pauses) == 8,
        )
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert [error for error, _ in reports] == [refused] * 8
    assert [round(wait) for _, wait in reports] == pauses


def test_a_pause_can_be_cut_short(refused: SnapTreeError) -> None:
    connector = Connector("test:///default", read_only=False, ask=nobody_answers)
    reports: list[float] = []
    stop = threading.Event()

    def report(_error: SnapTreeError, retry_at: float) -> None:
        reports.append(retry_at)
        if len(reports) == 6:  # by then the pauses would have taken half a minute
            stop.set()
        connector.hurry()

    began = time.monotonic()
    with pytest.raises(ConnectionLostError):
        connector.open_patiently(was_connected=True, report=report, should_stop=stop.is_set)
    assert time.monotonic() - began < 10


def test_closing_ends_a_pause(refused: SnapTreeError) -> None:
    connector = Connector("test:///default", read_only=False, ask=nobody_answers)
    closed = threading.Event()

    def report(_error: SnapTreeError, _retry_at: float) -> None:
        closed.set()
        connector.close()

    with pytest.raises(ConnectionLostError):
        connector.open_patiently(was_connected=True, report=report, should_stop=closed.is_set)


def test_what_was_never_reached_and_cannot_be_is_not_tried_again() -> None:
    connector = Connector("not a uri", read_only=False, ask=nobody_answers)
    with pytest.raises(SnapTreeError):
        connector.open_patiently(was_connected=False, report=nobody_reports, should_stop=lambda: False)


def nobody_reports(error: SnapTreeError, _retry_at: float) -> None:
    raise AssertionError(error)


def test_credentials_that_worked_are_not_asked_for_again(tmp_path: Path) -> None:
    host = tmp_path / "host.xml"
    host.write_text(AUTH.format(password="old"))
    user = User("old")
    connector = Connector(f"test://{host}", read_only=False, ask=user)
    for _ in range(2):
        connection, why_read_only = connector.open()
        assert why_read_only is None
        connection.close()
    connector.open_for_changes(read_only=False).close()
    assert user.asked == 2  # the name, and the password


def test_credentials_that_stopped_working_are_asked_for(tmp_path: Path) -> None:
    host = tmp_path / "host.xml"
    host.write_text(AUTH.format(password="old"))
    user = User("old")
    connector = Connector(f"test://{host}", read_only=False, ask=user)
    connector.open()[0].close()
    host.write_text(AUTH.format(password="new"))
    user.password = "new"
    connector.open()[0].close()
    assert user.asked == 4


def test_wrong_credentials_are_forgotten(tmp_path: Path) -> None:
    host = tmp_path / "host.xml"
    host.write_text(AUTH.format(password="right"))
    user = User("wrong")
    connector = Connector(f"test://{host}", read_only=False, ask=user)
    with pytest.raises(AccessDeniedError):
        connector.open()
    user.password = "right"
    connector.open()[0].close()
    assert user.asked == 4


def test_after_closing_nobody_is_asked(tmp_path: Path) -> None:
    host = tmp_path / "host.xml"
    host.write_text(AUTH.format(password="right"))
    connector = Connector(f"test://{host}", read_only=False, ask=nobody_answers)
    connector.close()
    with pytest.raises(AccessDeniedError):
        connector.open()


def test_only_the_first_answer_counts() -> None:
    request = CredentialsRequest("test:///default", ())
    request.answer(["first"])
    request.answer(None)
    assert request.wait() == ["first"]
