"""libvirt's errors in words: what, why, and what to do. Real errors of real libvirt wherever one can be had."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest

from snaptree.hosts.connection import AskCredentials, Connection, CredentialQuestion
from snaptree.hosts.errors import explain
from snaptree.model.errors import ConnectionLostError, ReadOnlyError, SnapTreeError, VanishedError


@pytest.mark.parametrize(
    ("uri", "what", "hint"),
    [
        ("nonsense:///x", "nonsense", "daemon is not running"),
        ("qemu+unix:///system?socket=/nonexistent/socket", "No such file", "daemon is not running"),
        ("qemu+tcp://127.0.0.1:1/system", "Connection refused", "daemon is not running"),
        ("not a uri", "not a uri", "Check"),
    ],
)
def test_a_connection_that_fails_says_what_to_check(uri: str, what: str, hint: str) -> None:
    with pytest.raises(SnapTreeError) as failure:
        Connection(uri).open()
    assert uri in failure.value.summary
    assert what in failure.value.summary
    assert hint in failure.value.hint
    assert "libvirt error" in failure.value.details


def test_a_machine_that_is_not_there_is_named_with_those_that_are() -> None:
    connection = Connection("test:///default")
    connection.open()
    try:
        with pytest.raises(VanishedError) as failure:
            connection.domain_uuid("nobody")
        assert "'nobody'" in failure.value.summary
        assert "test" in failure.value.hint
        with pytest.raises(VanishedError):
            connection.domain("00000000-0000-0000-0000-000000000000")
    finally:
        connection.close()


def test_a_read_only_connection_says_so() -> None:
    connection = Connection("test:///default", read_only=True)
    host = connection.open()
    try:
        assert host.read_only
        domain = connection.handle.listAllDomains()[0]
        with pytest.raises(libvirt.libvirtError) as refused:
            domain.snapshotCreateXML("<domainsnapshot/>")
        error = explain(refused.value, "taking a snapshot")
        assert isinstance(error, ReadOnlyError)
        assert error.hint
    finally:
        connection.close()


def test_calls_on_a_closed_connection_say_that_it_is_lost() -> None:
    connection = Connection("test:///default")
    connection.open()
    connection.close()
    connection.close()
    assert not connection.is_alive()
    with pytest.raises(ConnectionLostError):
        connection.domain("00000000-0000-0000-0000-000000000000")


AUTHENTICATED = """
<node>
  <domain type='test'><name>a</name><memory>8192</memory><os><type>hvm</type></os></domain>
  <auth><user password='secret'>admin</user></auth>
</node>
"""


def test_credentials_are_asked_for_and_given(tmp_path: Path) -> None:
    path = tmp_path / "host.xml"
    path.write_text(AUTHENTICATED)
    asked: list[bool] = []

    def answer(questions: list[CredentialQuestion]) -> list[str]:
        asked.extend(question.is_secret for question in questions)
        return ["secret" if question.is_secret else "admin" for question in questions]

    connection = Connection(f"test://{path}", ask=answer)
    connection.open()
    connection.close()
    assert sorted(asked) == [False, True]

    answers: list[AskCredentials | None] = [None, lambda _: None, lambda questions: ["wrong"] * len(questions)]
    for ask in answers:
        with pytest.raises(SnapTreeError) as failure:
            Connection(f"test://{path}", ask=ask).open()
        assert "password" in failure.value.hint
