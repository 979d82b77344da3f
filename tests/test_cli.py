"""The terminal commands on the demo estate, as a user or a script runs them: real programs, real machines."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.crashing import Moment, command_and_kill

pytestmark = pytest.mark.qemu


class Terminal:
    """A user's shell with a kept demo estate."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *arguments: str, demo: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `snaptree` with nothing to read from; standard output and error apart."""
        where = ["--demo-dir", str(self.directory)] if demo else []
        return subprocess.run(
            [sys.executable, "-m", "snaptree", *where, *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=150,
        )

    def json(self, *arguments: str) -> Any:
        """Run with `--json` and return the document; the command must succeed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def stop(self) -> None:
        """End the machines that a kept estate leaves running."""
        for pid_file in (self.directory / "run" / "qemu").glob("*.pid"):
            if pid_file.name != "driver.pid":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid_file.read_text()), signal.SIGKILL)

    def virsh(self, *arguments: str) -> str:
        """What virsh says of the same estate."""
        command = ["virsh", "-q", "-c", f"qemu:///embed?root={self.directory}", *arguments]
        for _ in range(3):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != -signal.SIGSEGV:  # virsh 9.0 sometimes crashes while it closes an embedded driver
                break
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    # Sockets below it need a short path.
    directory = Path(tempfile.mkdtemp(prefix="snaptree-cli-"))
    terminal = Terminal(directory / "demo")
    assert terminal.run("list").returncode == 0
    yield terminal
    terminal.stop()
    shutil.rmtree(directory)


def names(tree: dict[str, Any]) -> list[str]:
    return [snapshot["name"] for snapshot in tree["snapshots"]]


def test_list_shows_every_machine_with_its_totals(terminal: Terminal) -> None:
    (host,) = terminal.json("list")
    assert host["totals"]["disk"] > 0
    machines = {machine["domain"]: machine for machine in host["domains"]}
    assert machines["web-01"]["snapshots"] >= 40
    assert machines["web-01"]["depth"] == len(terminal.json("cost", "web-01")["disks"][0]["layers"]), "in layers"
    assert machines["fresh-01"]["snapshots"] == 0
    assert sum(machine["totals"]["disk"] for machine in machines.values()) > host["totals"]["disk"], (
        "the clones' common base counts once for the host"
    )
    text = terminal.run("list").stdout
    assert all(re.search(rf"^{machine} ", text, re.MULTILINE) for machine in machines)


def test_tree_as_json_has_the_keys_that_scripts_rely_on(terminal: Terminal) -> None:
    tree = terminal.json("tree", "web-01")
    assert set(tree) == {"domain", "host", "state", "current", "totals", "looks_at", "troubles", "snapshots"}
    assert len(tree["snapshots"]) >= 40
    assert tree["current"] in names(tree)
    for snapshot in tree["snapshots"]:
        assert set(snapshot) == {
            *("name", "parent", "kind", "state", "created", "consistency", "pinned", "written", "frees"),
            *("memory", "confidence", "frees_confidence", "memory_confidence", "saved_memory", "disks", "note"),
            *(
                "taken_by",
                "group",
                "schedule",
                "impact",
                "pinned_by",
                "pinned_at",
                "known_good",
                "known_good_by",
                "known_good_at",
                "half_deleted",
                "doubtful",
            ),
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", snapshot["created"])
        assert isinstance(snapshot["written"], int)
        assert snapshot["written"] > 0
        (disk,) = snapshot["disks"]
        status = Path(disk["layer"]).stat()
        assert snapshot["written"] == status.st_blocks * 512, "allocated, not apparent"


@pytest.mark.parametrize("machine", ["web-01", "db-01", "ci-runner-01", "clone-01", "legacy-01", "fresh-01"])
def test_the_tree_agrees_with_virsh(terminal: Terminal, machine: str) -> None:
    tree = terminal.json("tree", machine)
    theirs = terminal.virsh("snapshot-list", machine, "--name").split()
    assert sorted(names(tree)) == sorted(theirs)
    for line in terminal.virsh("snapshot-list", machine, "--parent").splitlines():
        name, parent = line.split()[0], line.split()[-1]
        ours = next(snapshot for snapshot in tree["snapshots"] if snapshot["name"] == name)
        assert (ours["parent"] or "-") in (parent, "-")


def test_the_drawn_tree_has_a_row_for_each_snapshot_and_now(terminal: Terminal) -> None:
    text = terminal.run("tree", "ci-runner-01").stdout
    rows = [line for line in text.splitlines() if re.match(r"[│┼┬─ ]*[●◉○]", line)]
    assert len(rows) == len(terminal.json("tree", "ci-runner-01")["snapshots"]) + 1
    assert rows[-1].startswith("○")
    assert "Now" in rows[-1]
    assert any("●─╮" in row for row in rows), "a fork is drawn"


def test_a_lost_layer_is_said_by_every_command(terminal: Terminal) -> None:
    lost = Path(terminal.json("tree", "clone-02")["snapshots"][-1]["disks"][0]["layer"])
    aside = lost.rename(lost.with_name("aside"))
    try:
        tree = terminal.json("tree", "clone-02")
        assert [each["severity"] for each in tree["troubles"] if str(lost) in each["text"]] == ["error"]
        text = terminal.run("tree", "clone-02").stdout.splitlines()
        assert text[1].startswith("error: ")
        assert any(line.startswith("error: ") and str(lost) in line for line in text)
        (host,) = terminal.json("list")
        by_name = {machine["domain"]: machine["troubles"] for machine in host["domains"]}
        assert by_name["clone-02"] == tree["troubles"]
        assert by_name["fresh-01"] == []
        lines = terminal.run("list").stdout.splitlines()
        assert any(line.startswith("clone-02 ! ") for line in lines)
        assert any(line.startswith("clone-02: error: ") for line in lines)
        assert any(re.match("fresh-01  +running", line) for line in lines)
    finally:
        aside.rename(lost)
    assert terminal.json("tree", "clone-02")["troubles"] == []


def test_how_a_running_guest_is_treated_can_be_said(terminal: Terminal) -> None:
    (live,) = terminal.json("take", "clone-01", "x", "--live", "-n")["steps"]
    assert live["live"]
    assert live["memory"] == "external"
    refused = terminal.run("take", "clone-01", "x", "--quiesce", "-n")
    assert refused.returncode == 3
    assert "guest agent" in refused.stderr
    plan = terminal.json("take", "clone-01", "x", "--quiesce-if-possible", "-n")
    assert [step["consistency"] for step in plan["steps"]] == ["crash"]
    assert "not-frozen" in [warning["rule"] for warning in plan["warnings"]]


def test_what_is_taken_and_where_it_goes_can_be_said(terminal: Terminal, tmp_path: Path) -> None:
    places = "--layers-in", str(tmp_path), "--memory-in", f"{tmp_path}/"
    (step,) = terminal.json("take", "fresh-01", "{vm}-{kind}", "--memory", *places, "-n")["steps"]
    assert Path(step["memory_file"]).parent == tmp_path
    assert step["name"] == "fresh-01-memory"
    assert {Path(path).parent for path in step["overlays"].values()} == {tmp_path}
    nowhere = terminal.run("take", "fresh-01", "x", "--layers-in", str(tmp_path / "nowhere"), "-n")
    assert nowhere.returncode == 3
    assert "nowhere" in nowhere.stderr
    nothing = terminal.run("take", "fresh-01", "x", "--disk-only", "--exclude-disk", "vda", "-n")
    assert nothing.returncode == 3
    assert "no disk left" in nothing.stderr
    says = terminal.run("take", "clone-01", "x", "--disk-only", "-n").stdout
    assert re.search(r"^Afterwards the disks grow by about .* a day, as they did\.$", says, re.MULTILINE)
    assert re.search(r"^.* are free where it goes\.$", says, re.MULTILINE)


def test_take_revert_and_delete_plan_first_and_act_with_yes(terminal: Terminal) -> None:
    before = terminal.json("tree", "db-01")
    content = digest_of_now(terminal, "db-01")

    plan = terminal.json("take", "db-01", "mine", "--internal", "--note", "my <b>note</b>", "-n")
    assert plan["refusals"] == []
    assert [step["kind"] for step in plan["steps"]] == ["take"]
    assert set(plan["forecast"]) == {
        *("copies", "frees", "peak_extra", "seconds", "pause_seconds", "likely_extra", "growth_per_day", "free"),
        "confidence",
    }
    assert set(plan["forecast"]["confidence"]) == {"copies", "frees", "peak_extra"}
    assert terminal.json("tree", "db-01") | {"totals": None} == before | {"totals": None}, "a dry run changes nothing"

    done = terminal.json("take", "db-01", "mine", "--internal", "--note", "my <b>note</b>", "-y")
    assert done["result"]["state"] == "done"
    tree = terminal.json("tree", "db-01")
    assert set(names(tree)) == {*names(before), "mine"}
    assert tree["current"] == "mine"
    mine = next(snapshot for snapshot in tree["snapshots"] if snapshot["name"] == "mine")
    assert mine["note"] == "my <b>note</b>"
    assert mine["parent"] == before["current"]
    assert set(mine["impact"]) == {"seconds", "paused", "frozen", "wrote"}
    assert mine["impact"] == done["result"]["impact"]
    assert "mine" in terminal.virsh("snapshot-list", "db-01", "--name").split()

    plan = terminal.json("revert", "db-01", "quarter-end", "-n")
    assert [step["kind"] for step in plan["steps"]] == ["take", "revert"], "the present is saved first"
    assert plan["undo"] is True
    safety = plan["steps"][0]["name"]
    for option, state in (("--running", "running"), ("--paused", "paused"), ("--off", "off")):
        chosen = terminal.json("revert", "db-01", "quarter-end", option, "--drop-managed-save", "-n")
        assert chosen["steps"][-1]["state_after"] == state
        assert [step["kind"] for step in chosen["steps"]] == ["take", "revert"], "there is no managed save to drop"
    result = terminal.run("revert", "db-01", "quarter-end", "-y")
    assert result.returncode == 0, result.stderr
    assert "undone" in result.stdout
    tree = terminal.json("tree", "db-01")
    assert tree["current"] == "quarter-end"
    assert terminal.virsh("snapshot-current", "db-01", "--name").strip() == "quarter-end"
    assert digest_of_now(terminal, "db-01") != content
    (safety,) = set(names(tree)) - {*names(before), "mine"}
    assert terminal.run("revert", "db-01", safety, "--no-safety", "-y").returncode == 0
    assert digest_of_now(terminal, "db-01") == content

    done = terminal.json("delete", "db-01", safety, "mine", "-y")
    assert done["result"]["state"] == "done"
    after = terminal.json("tree", "db-01")
    assert names(after) == names(before)
    assert after["current"] == before["current"]
    assert digest_of_now(terminal, "db-01") == content


def test_deleting_a_layer_of_a_long_chain_merges_it(terminal: Terminal) -> None:
    before = terminal.json("tree", "web-01")
    content = digest_of_now(terminal, "web-01")
    victim = before["snapshots"][10]
    planned = terminal.run("delete", "web-01", victim["name"], "-n", "--json")
    plan = json.loads(planned.stdout)
    if planned.returncode == 3:
        (host,) = terminal.json("list")
        assert (10, 8) <= tuple(map(int, host["libvirt"].split(".")[:2])) < (12, 0)
        assert [refusal["rule"] for refusal in plan["refusals"]] == ["too-deep-to-merge"]
        return
    assert plan["undo"] is False
    result = terminal.run("delete", "web-01", victim["name"], "-y")
    assert result.returncode == 0, result.stderr
    after = terminal.json("tree", "web-01")
    assert names(after) == [name for name in names(before) if name != victim["name"]]
    assert after["snapshots"][10]["parent"] == victim["parent"]
    assert digest_of_now(terminal, "web-01") == content
    assert names(after) == terminal.virsh("snapshot-list", "web-01", "--name", "--topological").split()


# Costs


def test_the_memory_of_a_snapshot_is_told_and_dropped(terminal: Terminal) -> None:
    (memory,) = terminal.json("cost", "clone-01")["memories"]
    file = Path(memory["file"])
    assert (memory["snapshot"], memory["compression"]) == ("deployed", "raw")
    assert memory["disk"] == file.stat().st_blocks * 512
    assert memory["zeros"] == memory["nominal"] - memory["disk"] > 0
    done = terminal.json("drop-memory", "clone-01", "deployed", "--yes")
    assert (done["forecast"]["frees"], done["result"]["state"]) == (memory["disk"], "done")
    assert not file.exists()
    (snapshot,) = [each for each in terminal.json("tree", "clone-01")["snapshots"] if each["name"] == "deployed"]
    assert (snapshot["saved_memory"], snapshot["memory"], snapshot["consistency"]) == (None, 0, "crash")


def test_cost_says_what_comes_back_to_the_byte(terminal: Terminal) -> None:
    """What the host really gets back is what was said, within a cluster for each layer."""
    selected = ("what-if-partitioned", "what-if-without-index")
    said = terminal.json("cost", "db-01", *selected)
    assert said["snapshots"] == list(selected)
    assert said["frees"] > 0
    assert said["copies"] == 0
    before = on_host(terminal, "db-01")
    planned = json.loads(terminal.run("delete", "db-01", *selected, "-n", "--json").stdout)
    assert planned["forecast"]["frees"] == said["frees"]
    assert terminal.run("delete", "db-01", *selected, "-y").returncode == 0
    assert abs(before - on_host(terminal, "db-01") - said["frees"]) <= 2 * 65536


def on_host(terminal: Terminal, machine: str) -> int:
    """Bytes that the layers of a machine's disks take."""
    os.sync()
    lines = terminal.virsh("domblklist", machine).splitlines()
    return sum(Path(line.split(maxsplit=1)[1].strip()).stat().st_blocks * 512 for line in lines if line.strip())


def test_cost_of_a_machine_lists_its_layers_with_who_else_needs_them(terminal: Terminal) -> None:
    (disk,) = terminal.json("cost", "clone-01")["disks"]
    assert [layer["layer"].rsplit("/", 1)[1] for layer in disk["layers"]][-2:] == [
        "clone-01.qcow2",
        "golden-debian.qcow2",
    ]
    base = disk["layers"][-1]
    assert base["read_by"] == ["clone-02", "golden-debian"]
    for layer in disk["layers"]:
        assert 0 < layer["visible"] <= layer["visible"] + layer["covered"] <= layer["disk"]
    table = terminal.run("cost", "clone-01").stdout
    assert "clone-02, golden-debian" in table


def test_cost_of_a_snapshot_that_is_not_there(terminal: Terminal) -> None:
    done = terminal.run("cost", "db-01", "nope")
    assert done.returncode == 1
    assert "has no snapshot named “nope”" in done.stderr


def test_compare_says_what_was_set_otherwise(terminal: Terminal) -> None:
    said = terminal.json("compare", "ci-runner-01", "toolchain", "dependencies")
    assert said["settings"] == [{"what": "Memory", "before": "16 MiB", "after": "32 MiB"}]
    assert (said["before"], said["after"]) == ("toolchain", "dependencies")
    now = terminal.run("compare", "ci-runner-01", "dependencies").stdout
    assert [line.split() for line in now.splitlines()] == [
        ["Setting", "dependencies", "Now"],
        ["Memory", "32", "MiB", "16", "MiB"],
    ]
    xml = terminal.run("compare", "ci-runner-01", "dependencies", "--xml").stdout
    assert xml.splitlines()[:2] == ["--- dependencies", "+++ Now"]
    assert terminal.run("compare", "ci-runner-01", "nope").returncode == 1
    assert "the same" in terminal.run("compare", "ci-runner-01", "toolchain").stdout


def digest_of_now(terminal: Terminal, machine: str) -> str:
    from tests.kit.machines import digest

    line = terminal.virsh("domblklist", machine).splitlines()[0]
    return digest(Path(line.split(maxsplit=1)[1].strip()), "qcow2")


# What goes wrong


def test_refusals_have_their_own_status_and_one_line(terminal: Terminal) -> None:
    done = terminal.run("revert", "legacy-01", "kernel-test", "-n")
    assert done.returncode == 3
    assert done.stderr.startswith("snaptree: Refused: ")
    document = terminal.run("revert", "legacy-01", "kernel-test", "-n", "--json")
    assert document.returncode == 3
    refusals = json.loads(document.stdout)["refusals"]
    assert len(done.stderr.splitlines()) == len(refusals)
    for refusal in refusals:
        assert refusal["reason"] in done.stderr
        assert refusal["remedy"] in done.stderr


def test_a_pipe_without_yes_changes_nothing(terminal: Terminal) -> None:
    done = terminal.run("take", "fresh-01", "unasked")
    assert done.returncode == 3
    assert "--yes" in done.stderr
    assert names(terminal.json("tree", "fresh-01")) == []


@pytest.mark.parametrize(("answer", "taken"), [("n\n", False), ("\n", False), ("y\n", True)])
def test_a_terminal_asks(terminal: Terminal, answer: str, taken: bool) -> None:
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        pytest.skip(f"no pseudo-terminals here, as in roots without /dev/pts: {error}")
    command = [sys.executable, "-m", "snaptree", "--demo-dir", str(terminal.directory), "take", "fresh-01", "asked"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as program:
        os.close(theirs)
        shown = b""
        while b"Go on?" not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, answer.encode())
        while True:
            try:
                if not os.read(ours, 4096):
                    break
            except OSError:
                break  # the program ended, and with it the terminal's other side
    os.close(ours)
    assert b"Opening the demo estate" in shown
    assert b"Building" not in shown, "it is built already"
    assert program.returncode == (0 if taken else 3)
    assert (names(terminal.json("tree", "fresh-01")) == ["asked"]) == taken
    if taken:
        assert terminal.run("delete", "fresh-01", "asked", "-y").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("tree", "nobody"), 1, "web-01"),
        (("delete", "web-01", "nonsense", "-y"), 1, "nonsense"),
        (("delete", "db-01", "patchd", "-y"), 1, "There are: “patched”, "),
        (("revert", "db-01", "quarterend", "-y"), 1, "There are: “quarter-end”, "),
        (("tree",), 2, "VM"),
        (("frobnicate",), 2, "frobnicate"),
        (("take", "web-01", "a/b", "-y"), 3, "a/b"),
        (("take", "web-01", "x", "--memory", "--internal"), 2, "not allowed with"),
        (("take", "web-01", "-n", "--", "--yes"), 3, "“--yes” does not begin with a letter"),
        (("take", "web-01", "", "-n"), 2, "it is empty"),
    ],
)
def test_wrong_input_says_what_is_wrong(terminal: Terminal, arguments: tuple[str, ...], status: int, says: str) -> None:
    done = terminal.run(*arguments)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "" or status == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("take", "fresh-01", "--disk-only", "anywhere", "-n"),
        ("take", "--disk-only", "fresh-01", "-n", "anywhere"),
        ("take", "-n", "--disk-only", "--", "fresh-01", "anywhere"),
        ("take", "fresh-01", "-n", "--disk-only", "--", "anywhere"),
    ],
)
def test_options_stand_anywhere_among_names(terminal: Terminal, arguments: tuple[str, ...]) -> None:
    plan = terminal.json(*arguments) if "--" not in arguments else json.loads(terminal.run("--json", *arguments).stdout)
    (step,) = plan["steps"]
    assert step["name"] == "anywhere"
    assert step["memory"] == "no"


def test_what_stands_after_two_dashes_is_a_name(terminal: Terminal) -> None:
    done = terminal.run("revert", "--", "db-01", "-y")
    assert done.returncode == 1
    assert "“-y”" in done.stderr


@pytest.mark.parametrize("command", ["take", "revert", "delete"])
def test_wrong_usage_of_a_command_shows_its_own_usage(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snaptree", command, "web-01", "some", "--nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: snaptree {command} ")
    assert "--nonsense" in done.stderr


def test_help_says_what_every_status_means(terminal: Terminal) -> None:
    said = " ".join(terminal.run("--help").stdout.split())
    assert "3 refused by a rule, or not agreed to" in said
    assert "4 'check' found something" in said


@pytest.mark.parametrize("uri", ["qemu+unix:///system?socket=/nonexistent", "nonsense:///x"])
def test_a_host_that_does_not_answer(terminal: Terminal, uri: str) -> None:
    done = terminal.run("--connect", uri, "list", demo=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert uri in line
    assert "daemon" in line


def test_several_hosts_at_once_and_options_after_the_command(terminal: Terminal) -> None:
    done = terminal.run("list", "--connect", "test:///default", "-c", "test:///default", "--json", demo=False)
    assert done.returncode == 0, done.stderr
    assert [host["host"] for host in json.loads(done.stdout)] == ["test:///default", "test:///default"]


def test_images_of_a_driver_that_has_none_are_unknown_not_missing(terminal: Terminal) -> None:
    done = terminal.run("list", "-c", "test:///default", "--json", demo=False)
    ((machine,),) = (host["domains"] for host in json.loads(done.stdout))
    assert machine["totals"]["disk"] is None
    assert machine["troubles"] == []


def test_read_only_looks_and_changes_nothing(terminal: Terminal) -> None:
    assert terminal.run("tree", "web-01", "--read-only").returncode == 0
    done = terminal.run("take", "web-01", "x", "-y", "--read-only")
    assert done.returncode == 3
    assert "read-only" in done.stderr


def test_a_reader_that_goes_away_is_no_error_of_ours(terminal: Terminal) -> None:
    command = f"{sys.executable} -m snaptree --demo-dir {terminal.directory} tree web-01 | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("web-01")
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m snaptree --help | true"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


# History, undo, and what was interrupted


def test_what_was_done_is_listed_and_the_last_of_it_taken_back(terminal: Terminal) -> None:
    before = terminal.json("tree", "fresh-01")
    assert terminal.run("take", "fresh-01", "tried", "--internal", "-y").returncode == 0
    newest = terminal.json("history", "fresh-01")[0]
    assert set(newest) == {
        *("id", "host", "domain", "uuid", "action", "snapshots", "who", "started", "finished", "state", "steps"),
        *(
            "steps_done",
            "unfinished",
            "group",
            "schedule",
            "settled_by",
            "undone",
            "can_undo",
            "impact",
            "remark",
            "error",
        ),
    }
    assert (newest["domain"], newest["action"], newest["snapshots"]) == ("fresh-01", "take", ["tried"])
    assert (newest["state"], newest["can_undo"], newest["undone"], newest["error"]) == ("done", True, False, None)
    assert newest["who"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", newest["started"])
    assert re.search(r"fresh-01 +Take “tried” .* yes +done", terminal.run("history").stdout)

    preview = terminal.json("undo", "fresh-01", "-n")
    assert preview["action"] == "undo"
    assert names(terminal.json("tree", "fresh-01")) == ["tried"]
    assert terminal.run("undo", "fresh-01").returncode == 3, "nobody agreed"
    assert terminal.json("undo", "-y")["result"]["state"] == "done"
    assert names(terminal.json("tree", "fresh-01")) == names(before)
    undo, take, *_ = terminal.json("history", "fresh-01")
    assert (undo["action"], undo["can_undo"]) == ("undo", False)
    assert (take["undone"], take["can_undo"]) == (True, False)
    nothing = terminal.run("undo", "fresh-01", "-y")
    assert nothing.returncode == 1
    assert "could be taken back" in nothing.stderr


def test_what_was_interrupted_is_said_refused_beside_and_finished(terminal: Terminal) -> None:
    assert "interrupted" in terminal.run("recover").stdout
    assert terminal.json("recover", "fresh-01") is None
    for name in ("one", "two"):
        assert terminal.run("take", "fresh-01", name, "--internal", "-y").returncode == 0
    demo = ("--demo-dir", str(terminal.directory))
    command_and_kill(Moment.ACTED, 0, *demo, "delete", "fresh-01", "one", "two", "-y")

    assert "A delete was interrupted" in terminal.run("tree", "fresh-01").stdout
    assert "A delete was interrupted" in terminal.run("list").stdout
    (trouble,) = terminal.json("tree", "fresh-01")["troubles"]
    assert trouble["severity"] == "error"
    assert terminal.json("history", "fresh-01")[0]["unfinished"]
    refused = terminal.run("take", "fresh-01", "another", "-y")
    assert refused.returncode == 3
    assert "snaptree recover fresh-01" in refused.stderr
    assert terminal.run("undo", "fresh-01", "-y").returncode == 1

    left = terminal.json("recover", "--leave", "-n")
    assert (left["action"], left["steps"]) == ("leave", [])
    preview = terminal.run("recover", "fresh-01", "-n").stdout
    assert "Done already" in preview
    found = json.loads(terminal.run("check", "fresh-01", "--json").stdout)[0]
    assert (found["kind"], found["severity"]) == ("interrupted", "error")
    assert found["command"] == ["snaptree", *demo, "recover", "fresh-01"]
    finished = terminal.json(*found["command"][3:], "-y")
    assert (finished["action"], finished["result"]["state"]) == ("finish", "done")
    tree = terminal.json("tree", "fresh-01")
    assert (names(tree), tree["troubles"]) == ([], [])
    finish, interrupted, *_ = terminal.json("history", "fresh-01")
    assert (interrupted["state"], interrupted["unfinished"]) == ("interrupted", False)
    assert interrupted["settled_by"] == finish["id"]


def test_what_was_interrupted_can_be_left(terminal: Terminal) -> None:
    demo = ("--demo-dir", str(terminal.directory))
    command_and_kill(Moment.BEGUN, 0, *demo, "take", "fresh-01", "half", "--internal", "-y")
    done = terminal.run("recover", "--leave", "-y")
    assert done.returncode == 0, done.stderr
    assert "Not done, if it is left as it is: Take the snapshot “half”" in done.stdout
    assert terminal.json("tree", "fresh-01")["troubles"] == []
    assert "left as it was" in terminal.run("history", "fresh-01").stdout


def test_what_a_schedules_run_had_begun_when_it_was_killed_is_finished_as_its_own(
    terminal: Terminal, tmp_path: Path
) -> None:
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[schedule.often]\nwhen = "hourly"\nmachines = ["fresh-*"]\ntake = "internal"\nkeep-last = 1\n')
    demo = ("--demo-dir", str(terminal.directory))
    command_and_kill(Moment.BEGUN, 0, *demo, "run-schedule", "often")
    assert "was cut short" in terminal.run("schedule", demo=False).stdout
    again = terminal.run("run-schedule", "often")
    assert again.returncode == 3, "nothing is locked, but there is something to decide"
    assert "fresh-01: not taken: refused: Taking a snapshot was interrupted" in again.stderr
    assert terminal.run("recover", "fresh-01", "-y").returncode == 0
    taken = terminal.json("tree", "fresh-01")["snapshots"]
    assert [snapshot["schedule"] for snapshot in taken] == ["often"]
    done = terminal.json("run-schedule", "often")
    assert done["says"] == "1 snapshot taken, 1 deleted."
    assert names(terminal.json("tree", "fresh-01")) == done["machines"][0]["take"]["snapshots"]
    assert terminal.run("delete", "fresh-01", *done["machines"][0]["take"]["snapshots"], "-y").returncode == 0


def test_a_look_comes_and_goes(terminal: Terminal) -> None:
    machine, snapshot = "ci-runner-01", "release-3-0"
    before = terminal.json("tree", machine)
    made = terminal.json("look", machine, snapshot, "--name", "peek", "--with-networks", "--start", "-y")
    assert (made["action"], made["undo"], made["result"]["state"]) == ("look", True, "done")
    assert [step["kind"] for step in made["steps"]] == ["make-look", "start-look"]
    assert {warning["rule"] for warning in made["warnings"]} == {"look-networks-on", "look-keeps-layers"}
    assert "running" in terminal.virsh("domstate", "peek")
    look = terminal.json("tree", "peek")
    assert (look["looks_at"]["snapshot"], look["looks_at"]["domain"]) == (snapshot, machine)
    assert before["looks_at"] is None
    assert "peek looks at “release-3-0” of ci-runner-01" in terminal.run("list").stdout
    assert re.search(r"release-3-0 .*base of peek", terminal.run("tree", machine).stdout)
    refused = terminal.run("unlook", machine, "-y")
    assert refused.returncode == 3
    assert "did not make" in refused.stderr
    assert terminal.run("undo", machine, "-y").returncode == 0
    assert terminal.run("tree", "peek").returncode == 1
    assert terminal.json("tree", machine) == before
    assert "taken back" in terminal.run("undo", machine, "-y").stderr


def test_a_fork_point_is_deleted_where_virsh_refuses(terminal: Terminal) -> None:
    """Content is proved by QEMU's own tool."""
    from tests.kit.machines import digest

    machine = "ci-runner-01"
    before = terminal.json("tree", machine)
    contents = {each["name"]: digest(Path(each["disks"][0]["layer"]), "qcow2") for each in before["snapshots"]}
    plan = terminal.json("delete", machine, "toolchain", "-n")
    assert {step["kind"] for step in plan["steps"]} == {"merge-layers", "record-layers", "remove-leftover"}
    assert terminal.run("delete", machine, "toolchain", "-y").returncode == 0
    after = terminal.json("tree", machine)
    assert names(after) == [name for name in names(before) if name != "toolchain"]
    for each in after["snapshots"]:
        assert digest(Path(each["disks"][0]["layer"]), "qcow2") == contents[each["name"]]
    assert terminal.virsh("snapshot-list", machine, "--name").split() != []


# Pruning


def test_a_policy_of_options_prunes_and_gives_back_what_it_said(terminal: Terminal) -> None:
    """Content is proved by QEMU's own tool."""
    from tests.kit.machines import digest

    machine, policy = "web-01", ("--keep-last", "5", "--keep-daily", "7")
    images = terminal.directory / "images"

    def on_disk() -> int:
        return sum(path.stat().st_blocks * 512 for path in images.iterdir())

    before = terminal.json("tree", machine)
    contents = {each["name"]: digest(Path(each["disks"][0]["layer"]), "qcow2") for each in before["snapshots"]}
    plan = terminal.json("prune", machine, *policy, "-n")
    goes = set(plan["snapshots"])
    assert {each["name"] for each in plan["decisions"] if not each["keeps"]} == goes
    reasons = {each["name"]: each["reasons"] for each in plan["decisions"]}
    assert reasons["before-php-8-3"] == ["not made by a schedule", "pinned", "known good"]
    taken = on_disk()
    done = terminal.json("prune", machine, *policy, "-y")
    assert done["result"]["state"] == "done"
    after = terminal.json("tree", machine)
    assert set(names(after)) == set(names(before)) - goes
    assert all(
        digest(Path(each["disks"][0]["layer"]), "qcow2") == contents[each["name"]] for each in after["snapshots"]
    )
    layers = terminal.json("cost", machine)["disks"][0]["layers"]
    assert len(layers) == plan["depth"]["after"] == len(after["snapshots"]) + 1
    a_cluster_for_each = 65_536 * len(goes)
    assert abs(taken - on_disk() - plan["forecast"]["frees"]) <= a_cluster_for_each
    again = terminal.json("prune", machine, *policy, "-y")
    assert (again["snapshots"], again["steps"]) == ([], []), "what was kept is kept"


def test_a_policy_of_the_file_is_for_its_machines(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    file.parent.mkdir(parents=True)
    text = '[policy.builds]\nmachines = ["ci-*"]\nnames = ["release-3-0-rc*"]\nkeep-last = 1\n'
    file.write_text(text)
    assert "what schedules took named release-3-0-rc*" in terminal.run("policy").stdout
    said = terminal.run("prune", "--policy", "builds", "-n").stdout
    assert "5 snapshots match the name but were not made by a schedule: write by-hand = true into the policy" in said
    file.write_text(f"{text}by-hand = true\n")
    assert "no mistakes. Policies: builds." in terminal.run("policy", "check").stdout
    assert "keeps the newest 1" in terminal.run("policy").stdout
    assert terminal.json("policy", "show")[0]["machines"] == ["ci-*"]
    both = terminal.run("prune", "--policy", "builds", "--keep-last", "5", "-n")
    assert both.returncode == 1
    assert "The policy builds says what to keep, and --keep-last would say something else." in both.stderr
    (plan,) = terminal.json("prune", "--policy", "builds", "-n")
    assert plan["domain"] == "ci-runner-01"
    assert plan["snapshots"] == [f"release-3-0-rc{number}" for number in range(1, 5)]
    text = terminal.run("prune", "--policy", "builds", "-n").stdout
    assert re.search(r"^goes  release-3-0-rc4 .*no rule keeps it$", text, re.MULTILINE)
    assert re.search(r"^kept  release-3-0 .*its name is not asked for, pinned$", text, re.MULTILINE)
    file.write_text('[policy.builds]\nmachines = ["nothing-*"]\nkeep-last = 1\n')
    nobody = terminal.run("prune", "--policy", "builds", "-n")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "No virtual machine is one of the policy builds: nothing-*." in nobody.stderr
    file.write_text("[policy.builds]\nkeep-last = 1\nkeep-dayly = 2\n")
    wrong = terminal.run("policy", "check")
    assert wrong.returncode == 1
    assert (
        "policies.toml: line 3: “keep-dayly” is nothing that a policy says. Did you mean “keep-daily”?" in wrong.stderr
    )
    assert terminal.run("prune", "--policy", "builds", "-n").returncode == 1


def test_names_do_not_let_go_what_was_made_by_hand_and_say_so(terminal: Terminal) -> None:
    asked = ("prune", "ci-runner-01", "--name", "release-3-0-rc*", "--keep-last", "1", "-n")
    plan = terminal.json(*asked)
    assert (plan["snapshots"], plan["needs_by_hand"]) == ([], 5)
    said = terminal.run(*asked).stdout
    assert "ci-runner-01: all of its" in said
    assert "5 snapshots match the name but were not made by a schedule: add --by-hand." in said
    plan = terminal.json(*asked, "--by-hand")
    assert (plan["snapshots"], plan["needs_by_hand"]) == ([f"release-3-0-rc{number}" for number in range(1, 5)], 0)


def test_machines_are_named_by_patterns(terminal: Terminal) -> None:
    names = [each["domain"] for each in terminal.json("list")[0]["domains"] if each["domain"].startswith("web-")]
    plans = terminal.json("prune", "web-*", names[0], "--keep-last", "5", "-n")
    assert sorted(plan["domain"] for plan in plans) == sorted(names)
    (alone,) = terminal.json("prune", f"{names[0][:-1]}[{names[0][-1]}]", "--keep-last", "5", "-n")
    assert alone["domain"] == names[0], "patterns give a list, whatever fits"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("prune", "web-01"), 1, "Nothing says what to keep"),
        (("prune", "wob-*", "--keep-last", "1"), 1, "No virtual machine's name fits 'wob-*'"),
        (("prune", "web-01", "--keep-daily", "many"), 2, "neither a number nor 'all'"),
        (("prune", "web-01", "--keep-within", "2 days"), 2, "is not a time"),
        (("prune", "web-01", "--keep-last", "1", "--between", "22-6"), 2, "no hours of the day"),
        (("prune", "--policy", "nonsense"), 1, "no policy “nonsense”"),
    ],
)
def test_wrong_policies_say_what_is_wrong(
    terminal: Terminal, arguments: tuple[str, ...], status: int, says: str
) -> None:
    done = terminal.run(*arguments)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
