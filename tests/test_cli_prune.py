"""`snaptree prune` of several real machines: what is left out is said before, afterwards and by the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from snaptree.cli import main
from snaptree.hosts.connection import Connection
from snaptree.model.errors import SnapTreeError
from snaptree.terminal import changing
from tests.kit.machines import NOW, EmbeddedHost, Machine

pytestmark = pytest.mark.qemu

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def prune(host: EmbeddedHost, capsys: pytest.CaptureFixture[str]) -> Run:
    """Prune to the newest, those made by hand too."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["prune", "-c", host.uri, "--keep-last", "1", "--by-hand", *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def make_machine(host: EmbeddedHost, name: str) -> Machine:
    machine = host.make_machine(name=name)
    for seed, snapshot in enumerate(("a", "b")):
        machine.write(seed)
        machine.virsh_take_disk_only(snapshot)
    return machine


def test_who_is_refused_is_left_out_and_nobody_believes_otherwise(host: EmbeddedHost, prune: Run) -> None:
    good, busy = (make_machine(host, name) for name in ("term-1", "term-2"))
    before = good.contents()
    busy.handle.managedSave()
    status, out, err = prune("term-*", "-n")
    assert status == 3
    assert "\nterm-2: left out, as it is refused\n" in out
    assert "\nIn all, 1 snapshot of 1 machine goes: frees " in out
    assert ".\nterm-2 is left out; the others go on without it.\n" in out
    assert ("takes ?." in out) == ("Not known: the time it takes (" in out)
    assert "Not pruned" not in out, "nothing was tried"
    assert "snaptree: term-2: refused: " in err

    status, out, err = prune("term-*", "-y")
    assert status == 3
    assert out.endswith("\nDone: 1 snapshot of term-1 deleted.\nNot pruned: term-2 (refused).\n")
    assert good.contents() == {name: before[name] for name in ("b", NOW)}
    assert list(busy.tree().snapshots) == ["a", "b"]
    status, out, _ = prune("term-1", "-y")
    assert status == 0
    assert out.startswith("term-1: all of its 1 snapshot stay\n")
    assert "Done" not in out


def test_who_can_not_be_looked_at_stops_no_other(
    host: EmbeddedHost, prune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, lost = (make_machine(host, name) for name in ("term-3", "term-4"))
    look = changing.situation_for

    def look_at(connection: Connection, uuid: str, *more: Any) -> Any:
        if uuid == lost.uuid:
            raise SnapTreeError("Its storage does not answer.", hint="Wait for it.")
        return look(connection, uuid, *more)

    monkeypatch.setattr("snaptree.terminal.pruning.situation_for", look_at)
    status, out, err = prune("term-[34]", "-y", "--json")
    assert status == 1
    assert "snaptree: term-4: not begun: Its storage does not answer. Wait for it." in err
    done, not_begun = json.loads(out)
    assert (done["domain"], done["result"]["state"]) == ("term-3", "done")
    assert (not_begun["domain"], not_begun["not_begun"]) == ("term-4", "Its storage does not answer.")
    assert list(good.tree().snapshots) == ["b"]
    status, out, err = prune("term-4", "-y")
    assert (status, out) == (1, "")
    assert "snaptree: Its storage does not answer. Wait for it." in err
