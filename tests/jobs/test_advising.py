"""Advice behind the window: what is found follows what was read, and never mixes two readings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from snaptree.hosts import layers
from snaptree.hosts.connection import Connection
from snaptree.hosts.policies import policies_path
from snaptree.jobs import host_backend
from snaptree.jobs.advisor import Advisor
from snaptree.model.troubles import Kind
from snaptree.plans.advice import HostAdvice
from tests.jobs.conftest import Listener
from tests.kit.machines import EmbeddedHost, remove

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("brisk")]


def test_a_tree_is_not_checked_with_the_costs_of_another(
    host: EmbeddedHost, listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage may answer slowly, when a snapshot was taken that is seen already."""
    monkeypatch.setattr(host_backend, "ADVICE_AFTER_MS", 1)
    monkeypatch.setattr(host_backend, "ADVICE_AT_LATEST_SECONDS", 0.0)
    machine, other = host.make_machine(), host.make_machine(running=False)
    machine.virsh_take_disk_only("one")
    is_slow, goes_on = threading.Event(), threading.Event()

    def read_layers(*arguments: Any) -> Any:
        if is_slow.is_set():
            assert goes_on.wait(60)
        return layers.read_layers(*arguments)

    monkeypatch.setattr(host_backend, "read_layers", read_layers)
    listener = listen(host.uri)
    heard: list[HostAdvice] = []
    listener.backend.advice_changed.connect(heard.append)
    listener.open()
    listener.until(lambda: heard and machine.uuid in heard[-1].machines)

    is_slow.set()
    try:
        machine.virsh_take_disk_only("two")
        listener.until(lambda: listener.names(machine.uuid) == ["one", "two"])
        remove(other.handle)  # which is news, so that the host is checked again
        listener.until(lambda: machine.uuid not in heard[-1].machines)
    finally:
        goes_on.set()
    listener.until(lambda: machine.uuid in heard[-1].machines)


def test_a_file_that_cant_be_used_is_told_of_every_host_but_a_demo(host: EmbeddedHost) -> None:
    policies_path().parent.mkdir(parents=True, exist_ok=True)
    policies_path().write_text("[policy.a]\nkeep-last\n", encoding="utf-8")

    def kinds(uri: str) -> list[Kind]:
        with closing(Connection(uri)) as connection:
            connection.open()
            return [each.kind for each in Advisor().advise(connection, {}, is_settled=True).host]

    assert kinds("test:///default") == [Kind.POLICY_FILE]
    assert kinds(host.uri) == []
    policies_path().unlink()
    assert kinds("test:///default") == []
