"""What the terminal says about snapshots: pins, marks, notes and names, on a real machine, in this process."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snaptree.cli import main
from snaptree.hosts.journal import this_user
from snaptree.plans.intention import Capture, Take
from tests.kit.machines import EmbeddedHost, Machine

pytestmark = pytest.mark.qemu

Snaptree = Callable[..., tuple[int, str, str]]


@pytest.fixture
def machine(host: EmbeddedHost) -> Machine:
    """A machine that is off, with external snapshots a and b."""
    made = host.make_machine(running=False)
    made.change(Take("a", description="first", capture=Capture.DISKS))
    made.change(Take("b", capture=Capture.DISKS))
    return made


@pytest.fixture
def snaptree(host: EmbeddedHost, machine: Machine, capsys: pytest.CaptureFixture[str]) -> Snaptree:
    """Run a command on it: `snaptree("pin", "a")`. Nobody is there to be asked."""

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["--connect", host.uri, command, machine.name, *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def snapshot(snaptree: Snaptree, name: str) -> dict[str, Any]:
    _, out, _ = snaptree("tree", "--json")
    return next(each for each in json.loads(out)["snapshots"] if each["name"] == name)


def test_pins_are_set_without_a_question_and_honoured(snaptree: Snaptree, machine: Machine) -> None:
    before = machine.tree()
    status, out, _ = snaptree("pin", "a", "-n")
    assert status == 0
    assert "Pin “a”" in out
    assert machine.tree() == before
    status, out, _ = snaptree("pin", "a", "b")
    assert status == 0
    assert "Pin “a”" in out
    assert "Can be undone: Unpin “a” and “b”." in out
    a = snapshot(snaptree, "a")
    assert a["pinned"] is True
    assert a["pinned_by"] == this_user()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", a["pinned_at"])
    assert (a["known_good"], a["known_good_by"], a["known_good_at"]) == (False, None, None)
    assert "so already" in snaptree("pin", "a")[1]
    status, _, error = snaptree("delete", "a", "b", "--yes")
    assert status == 3
    assert "“a” and “b” are pinned" in error
    assert error.count("Refused") == 1
    assert snaptree("undo")[0] == 0, "an undo of that asks as little"
    assert machine.tree() == before


def test_known_good_comes_and_goes(snaptree: Snaptree, machine: Machine) -> None:
    status, out, _ = snaptree("known-good", "b", "--json")
    assert status == 0
    assert json.loads(out)["result"]["state"] == "done"
    assert snapshot(snaptree, "b")["known_good_by"] == this_user()
    assert "known good" in snaptree("tree")[1]
    assert snaptree("known-good", "b", "--no")[0] == 0
    assert machine.tree()["b"].annotations.known_good is None


def test_notes_are_printed_written_and_removed(snaptree: Snaptree) -> None:
    assert snaptree("note", "a") == (0, "first\n", "")
    assert snaptree("note", "b") == (0, "", "")
    assert snaptree("note", "a", "one\ntwo & <b>")[0] == 0
    assert snaptree("note", "a")[1] == "one\ntwo & <b>\n"
    assert json.loads(snaptree("note", "a", "--json")[1])["note"] == "one\ntwo & <b>"
    assert snaptree("note", "a", "")[0] == 0
    assert snaptree("note", "a")[1] == ""
    assert snaptree("undo")[0] == 0
    assert snaptree("note", "a")[1] == "one\ntwo & <b>\n"
    status, _, error = snaptree("note", "nowhere")
    assert status == 1
    assert "There are: “a” and “b”" in error


def test_a_note_is_written_in_an_editor(
    snaptree: Snaptree, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "an editor.py"
    program.write_text("import sys\nwith open(sys.argv[1], 'a') as file:\n    file.write('more\\n')\n")
    monkeypatch.setenv("VISUAL", f"{sys.executable} '{program}'")
    assert snaptree("note", "a", "--edit")[0] == 0
    assert machine.tree()["a"].description == "first\nmore"
    monkeypatch.setenv("VISUAL", "false")
    status, _, error = snaptree("note", "a", "--edit")
    assert status == 1
    assert "the editor failed" in error
    assert machine.tree()["a"].description == "first\nmore"


def test_a_snapshot_is_renamed_and_undo_renames_it_back(snaptree: Snaptree, machine: Machine) -> None:
    before = machine.tree()
    status, _, error = snaptree("rename", "a", "a b")
    assert status == 3
    assert "a space" in error
    assert snaptree("rename", "a", "base")[0] == 0
    assert list(machine.tree().snapshots) == ["base", "b"]
    assert "Rename “a” to “base”" in snaptree("history")[1]
    status, out, _ = snaptree("undo")
    assert status == 0
    assert "can't be undone" not in out
    assert machine.tree() == before
