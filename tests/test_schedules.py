"""Schedules for real: what `run-schedule` does to machines, and that systemd, locks and the desktop play along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from snaptree.cli import main
from snaptree.hosts.journal import Journal, journal_path
from snaptree.hosts.notifying import notify
from snaptree.hosts.schedule_runs import last_run
from snaptree.hosts.timers import Manager, next_time, time_problem, timer_state, times_after, units_for, write_units
from snaptree.model.errors import SnapTreeError
from snaptree.plans.intention import Describe, Take
from snaptree.plans.schedule import Schedule, TakeKind
from snaptree.plans.timer_units import units_of
from snaptree.terminal import schedule_run
from tests.kit.machines import EmbeddedHost, Machine, unchanged

Run = Callable[..., tuple[int, str, str]]
Write = Callable[[str], Path]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `snaptree` in this process, which holds the embedded host: its status, and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def write(tmp_path: Path, host: EmbeddedHost) -> Write:
    """Write schedules for the embedded host into the user's file."""

    def write(text: str) -> Path:
        file = tmp_path / "config" / "snaptree" / "policies.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("HOST", f'connect = "{host.uri}"'))
        return file

    return write


def marked(machine: Machine) -> dict[str, str]:
    """Which schedule took each snapshot."""
    return {snapshot.name: snapshot.annotations.schedule for snapshot in machine.tree()}


@pytest.mark.qemu
def test_it_takes_of_each_of_its_machines_and_prunes_what_it_took_itself(
    host: EmbeddedHost, run: Run, write: Write
) -> None:
    """The content of everything that stays is as it was."""
    web, off = host.make_machine(name="sched-web"), host.make_machine(name="sched-off", running=False)
    other = host.make_machine(name="other", running=False)
    write("""
[schedule.nightly]
HOST
when = "daily"
machines = ["sched-*"]
take = "disk-only"
name = "{schedule}-{date}"
note = "by itself"
keep-last = 2
""")
    web.virsh_take_disk_only("by-hand")
    for seed in range(3):
        web.write(seed)
        status, out, err = run("run-schedule", "nightly")
        assert (status, err) == (0, "")
        assert "sched-off: took nightly-" in out
    assert "2 snapshots taken, 2 deleted." in out
    names = list(marked(web))
    assert names[0] == "by-hand"
    assert marked(web) == {"by-hand": "", names[1]: "nightly", names[2]: "nightly"}
    assert len(marked(off)) == 2
    assert marked(other) == {}
    newest = web.tree()[names[2]]
    assert newest.description == "by itself"
    assert newest.annotations.taken_by

    before = web.contents()
    web.virsh_take_disk_only("kept")
    assert run("run-schedule", "nightly")[0] == 0
    after = web.contents()
    (added,) = after.keys() - before.keys() - {"kept"}
    assert unchanged(before, {name: what for name, what in after.items() if name in before}, names[1])
    assert list(marked(web)) == ["by-hand", names[2], "kept", added]
    web.check_images()

    status, out, _ = run("history", "sched-web", "--json", "-c", host.uri)
    assert {each["schedule"] for each in json.loads(out)} == {"nightly"}
    _, out, _ = run("history", "sched-web", "-c", host.uri)
    assert "(schedule “nightly”)" in out


@pytest.mark.qemu
def test_a_failure_of_one_machine_stops_no_other_and_is_seen_in_the_status(
    host: EmbeddedHost, run: Run, write: Write
) -> None:
    raw = host.make_machine(name="a-raw", disks=("raw",), running=False)
    good = host.make_machine(name="b-good", running=False)
    write("""
[schedule.hourly]
HOST
when = "hourly"
machines = ["a-raw", "b-good"]
take = "internal"
""")
    status, out, err = run("run-schedule", "hourly", "--json")
    document = json.loads(out)
    assert status == document["status"] == 3, "refused, and nothing failed"
    assert "a-raw: not taken: refused:" in err
    assert [each["take"]["refusals"] == [] for each in document["machines"]] == [False, True]
    assert document["says"] == "1 snapshot taken, 0 deleted; not all done: a-raw."
    assert (marked(raw), list(marked(good).values())) == ({}, ["hourly"])
    (listed,) = json.loads(run("schedule", "list", "--json")[1])
    assert (listed["last"]["status"], listed["last"]["running"]) == (3, False)
    assert listed["last"]["says"] == document["says"]

    # Nothing is taken or noted by a dry run.
    status, out, _ = run("run-schedule", "hourly", "-n")
    assert status == 3
    assert "This was a dry run." in out
    assert len(marked(good)) == 1

    # What cannot be reached, or is not there, is a failure as well.
    write('[schedule.hourly]\nHOST\nwhen = "hourly"\nmachines = ["nobody-*"]\ntake = "best"\n')
    status, _, err = run("run-schedule", "hourly")
    assert status == 1
    assert "No virtual machine is one of the schedule's: nobody-*." in err
    assert run("run-schedule", "daily")[0] == 1


@pytest.mark.qemu
def test_it_prunes_at_its_hours_only_and_says_what_stands_in_the_way(
    host: EmbeddedHost, run: Run, write: Write, journal_of_host: Journal
) -> None:
    machine = host.make_machine(name="pruned", running=False)
    for name in ("one", "two"):
        machine.change(Take(name, schedule="tidy"))
    text = '[schedule.tidy]\nHOST\nwhen = "hourly"\nmachines = ["pruned"]\nkeep-last = 1\nlimit = "50 MiB"\n'
    write(f'{text}between = "{_another_hour()}"\n')
    status, out, _ = run("run-schedule", "tidy")
    assert status == 0, "that is no failure"
    assert "pruned: not pruned: it is not between" in out
    assert list(marked(machine)) == ["one", "two"]
    last = last_run("tidy")
    assert last is not None
    assert last.says.startswith("0 snapshots taken, 0 deleted. It was not between ")
    assert last.says.endswith(", so nothing was pruned.")
    assert out.splitlines()[-1] == last.says

    write(text)
    plan = machine.plan(Take("cut-short"))
    journal_of_host.step_begins(journal_of_host.begin(plan).id, 0, was_active=False)
    _let_die(journal_of_host)
    status, _, err = run("run-schedule", "tidy")
    assert status == 3
    assert "pruned: not pruned: refused:" in err
    assert "interrupted" in err
    assert run("recover", "pruned", "--leave", "-y", "-c", host.uri)[0] == 0
    assert run("run-schedule", "tidy")[0] == 0
    assert list(marked(machine)) == ["two"]


TOGETHER = """
[schedule.nightly]
HOST
when = "daily"
machines = ["app-*"]
take = "disk-only"
together = true
name = "{schedule}-{date}"
note = "both"
"""


def groups(machines: tuple[Machine, ...]) -> list[dict[str, str]]:
    """Which group each snapshot belongs to, of each machine."""
    return [{each.name: each.annotations.group for each in machine.tree()} for machine in machines]


@pytest.mark.qemu
def test_machines_are_taken_together_and_a_group_is_pruned_as_one(
    host: EmbeddedHost, run: Run, write: Write, journal_of_host: Journal
) -> None:
    """The content of everything that stays is as it was."""
    pair = host.make_machine(name="app-db"), host.make_machine(name="app-web", running=False)
    db, web = pair
    write(f"{TOGETHER}keep-last = 1\n")
    status, out, err = run("run-schedule", "nightly", "--json")
    document = json.loads(out)
    assert (status, err, document["says"]) == (0, "", "2 snapshots taken, 0 deleted.")
    assert [each["take"]["result"]["state"] for each in document["machines"]] == ["done", "done"]
    first, other = groups(pair)
    assert first == other, "one name, one group"
    ((pinned, group),) = first.items()
    assert group.startswith(f"{pinned}@")
    for machine in pair:
        taken = machine.tree()[pinned]
        assert (taken.annotations.schedule, taken.description) == ("nightly", "both")
    assert "(schedule “nightly”)" in run("history", "app-web", "-c", host.uri)[1]

    # What refuses one of them refuses all.
    plan = web.plan(Take("cut-short"))
    journal_of_host.step_begins(journal_of_host.begin(plan).id, 0, was_active=False)
    _let_die(journal_of_host)
    status, out, err = run("run-schedule", "nightly")
    assert status == 3
    assert "app-web: not taken: refused:" in err
    assert "app-db: not taken: nothing is taken without app-web\n" in out
    assert groups(pair) == [first, first]
    assert run("recover", "app-web", "--leave", "-y", "-c", host.uri)[0] == 0

    # One of them is pinned, so its partner stays as well; the next group goes from both.
    web.change(Describe((pinned,), pinned=True))
    db.write(1)
    status, out, _ = run("run-schedule", "nightly", "--json")
    assert status == 0
    reasons = {each["name"]: each["reasons"] for each in json.loads(out)["machines"][0]["prune"]["decisions"]}
    assert reasons[pinned] == [f"its group “{group}” is kept"]
    goes = {machine.name: machine.tree().current for machine in pair}
    db.write(2)
    web.write(3)
    before = [machine.contents() for machine in pair]
    status, out, err = run("run-schedule", "nightly")
    assert (status, err) == (0, "")
    assert "2 snapshots taken, 2 deleted." in out
    after = [machine.contents() for machine in pair]
    for machine, was, now in zip(pair, before, after, strict=True):
        stays = {name: what for name, what in now.items() if name in was}
        assert unchanged(was, stays, *filter(None, [goes[machine.name]]))
        assert machine.tree()[pinned].annotations.group == group
        machine.check_images()
    assert groups(pair)[0] == groups(pair)[1]
    assert len(groups(pair)[0]) == 2


@pytest.mark.qemu
def test_what_was_taken_of_one_is_taken_back_if_another_one_fails(
    host: EmbeddedHost, run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = host.make_machine(name="app-db", running=False), host.make_machine(name="app-web", running=False)
    write(TOGETHER)
    planned = json.loads(run("run-schedule", "nightly", "-n", "--json")[1])
    (step,) = planned["machines"][1]["take"]["steps"]
    blocked = Path(step["overlays"]["vda"])

    class Blocking(Journal):
        """It blocks the second machine's new layer when the first one is taken."""

        def step_is_done(self, operation: int, number: int, *, paused: float | None = None) -> None:
            super().step_is_done(operation, number, paused=paused)
            blocked.mkdir(exist_ok=True)

    monkeypatch.setattr(schedule_run, "Journal", Blocking)
    status, out, err = run("run-schedule", "nightly", "--json")
    document = json.loads(out)
    assert status == 1
    assert document["says"] == "0 snapshots taken, 0 deleted; not all done: app-db, app-web."
    assert "snaptree: app-db and app-web: not taken: app-web: " in err
    assert "What was done to app-db was taken back." in err
    assert [each["take"]["error"] is None for each in document["machines"]] == [False, False]
    assert document["machines"][0]["take"]["taken_back"]["result"]["state"] == "done"
    assert groups(pair) == [{}, {}]
    write(TOGETHER.replace("app-*", "app-w*"))
    status, _, err = run("run-schedule", "nightly")
    assert status == 1
    assert "app-web: not taken: A group needs two machines at least." in err


@pytest.fixture
def journal_of_host(host: EmbeddedHost) -> Iterator[Journal]:
    journal = Journal(journal_path(host.uri))
    yield journal
    journal.close()


def _let_die(journal: Journal) -> None:
    """Let an operation count as that of a program which is no more."""
    import sqlite3

    with sqlite3.connect(journal.path) as database:
        database.execute("UPDATE operations SET owner_pid = 0 WHERE state = 'running'")
    database.close()


def _another_hour() -> str:
    """Hours of the day that are far from now."""
    import datetime as dt

    later = dt.datetime.now().astimezone() + dt.timedelta(hours=10)
    return f"{later:%H:%M}-{later + dt.timedelta(hours=1):%H:%M}"


# One run at a time

_HOLDS_THE_LOCK = """
import sys
from snaptree.hosts.schedule_runs import begun_now, note_run, only_run
with only_run("tidy"):
    note_run("tidy", begun_now())
    print("here", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run() -> Iterator[subprocess.Popen[str]]:
    """A run of the schedule `tidy` in a process of its own, under way."""
    command = [sys.executable, "-c", _HOLDS_THE_LOCK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.qemu
def test_a_second_run_is_refused_and_one_that_was_killed_leaves_no_lock(
    host: EmbeddedHost, run: Run, write: Write
) -> None:
    machine = host.make_machine(name="once", running=False)
    write('[schedule.tidy]\nHOST\nwhen = "hourly"\nmachines = ["once"]\ntake = "best"\n')
    with another_run() as other:
        status, _, err = run("run-schedule", "tidy")
        assert status == 5
        assert err == (
            "snaptree: The schedule tidy is running already. Nothing was done. Wait until that run has ended.\n"
        )
        assert marked(machine) == {}
        assert "is running" in run("schedule", "list")[1]
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert "was cut short" in run("schedule", "list")[1]
        assert run("run-schedule", "tidy")[0] == 0
    assert list(marked(machine).values()) == ["tidy"]


# The file, and systemd


def test_a_schedule_is_added_listed_and_removed_and_the_file_stays_its_owners(tmp_path: Path, run: Run) -> None:
    file, units = tmp_path / "config" / "snaptree" / "policies.toml", tmp_path / "units"
    file.parent.mkdir(parents=True)
    mine = "# Mine.\n[policy.weekly]\nkeep-weekly = 8  # two months\n\n# The rest of the file.\n"
    file.write_text(mine)
    file.chmod(0o600)
    there = ("--units-in", str(units))
    add = ("schedule", "add", "nightly", "--when", "*-*-* 02:00", "web-*", "db-01", "--take", "disk-only", *there)
    more = ("--together", "--quiesce-if-possible", "--policy", "weekly", "--limit", "50", "--between", "01:00-05:00")
    status, out, err = run(*add, *more, "-c", f"qemu+unix:///session?socket={tmp_path}")
    assert status == 0
    assert err.startswith("snaptree: warning: whether its machines are there is not known: Cannot connect to")
    assert "systemctl" in out
    text = file.read_text()
    assert text.startswith(mine)
    assert file.stat().st_mode & 0o777 == 0o600
    assert text.endswith(
        """
[schedule.nightly]
connect = "qemu+unix:///session?socket=TMP"
when = "*-*-* 02:00"
machines = ["web-*", "db-01"]
take = "disk-only"
together = true
quiesce = "if-possible"
policy = "weekly"
limit = "50 MiB"
between = "01:00-05:00"
""".replace("TMP", str(tmp_path))
    )
    assert "Policies: weekly. Schedules: nightly." in run("policy", "check")[1]
    status, _, err = run(*add)
    assert status == 1
    assert "There is a schedule nightly already." in err
    (listed,) = json.loads(run("schedule", "list", "--json", *there)[1])
    assert (listed["schedule"], listed["timer"], listed["last"]) == ("nightly", "written", None)
    assert listed["together"]
    assert listed["next"].endswith("T02:00:00Z" if next_time("02:00 UTC") == next_time("02:00") else "Z")

    # What its owner changes is written anew when asked for.
    file.write_text(text.replace("02:00", "03:00"))
    _, out, err = run("schedule", "list", *there)
    assert "takes together, prunes" in out
    assert "'snaptree schedule add nightly' writes it anew" in err
    assert run("schedule", "add", "nightly", *there)[0] == 0
    assert "OnCalendar=*-*-* 03:00\n" in (units / "snaptree-nightly.timer").read_text()

    # Its units are known without being told where they are.
    assert json.loads(run("schedule", "list", "--json")[1])[0]["timer"] == "written"
    status, out, _ = run("schedule", "remove", "nightly")
    assert status == 0
    assert f"{units / 'snaptree-nightly.timer'} is removed.\n" in out
    assert file.read_text() == mine
    assert [*units.iterdir()] == []
    assert run("schedule", "remove", "nightly", *there)[0] == 1


def test_hours_at_which_it_never_runs_are_told_and_refuse_nothing(tmp_path: Path, run: Run) -> None:
    units = ("--units-in", str(tmp_path / "units"), "-c", f"qemu+unix:///system?socket={tmp_path}")
    prunes = ("--keep-last", "2", "--between", "22:00-06:00", *units)
    says = "warning: The schedule “noon” prunes between 22:00 and 06:00 only, and never runs then: it prunes nothing."
    status, out, err = run("schedule", "add", "noon", "--when", "*-*-* 12:00", *prunes)
    assert (status, says in err) == (0, True)
    assert "The schedule noon is written" in out
    status, out, err = run("policy", "check")
    assert (status, says in err) == (0, True)
    assert "no mistakes" in out
    for name, when in (("night", "*-*-* 05:59"), ("often", "*:0/7")):
        status, _, err = run("schedule", "add", name, "--when", when, *prunes)
        assert (status, err) == (0, "")


def test_units_that_cant_be_removed_are_named_and_nothing_is_half_removed(tmp_path: Path, run: Run) -> None:
    units = tmp_path / "my units"
    assert run("schedule", "add", "a", "--when", "daily", "--take", "best", "--units-in", str(units))[0] == 0
    service = units / "snaptree-a.service"
    service.unlink()
    service.mkdir()
    status, _, err = run("schedule", "remove", "a")
    assert status == 1
    assert f"then try again: rm '{service}'" in err
    assert "[schedule.a]" in (tmp_path / "config" / "snaptree" / "policies.toml").read_text()
    service.rmdir()
    assert run("schedule", "remove", "a")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a b", "--when", "daily", "--take", "best"), "names no schedule"),
        (("../../x", "--when", "daily", "--take", "best"), "names no schedule"),
        (("a", "--take", "best"), "does not say when, as in --when daily."),
        (("a", "--when", "daily"), "neither takes nor prunes"),
        (
            ("a", "--when", "daily", "--take", "live", "--together"),
            "a is not added: Machines are taken together with disks only or with memory: --take disk-only or memory.",
        ),
        (
            ("a", "--when", "daily", "--keep-last", "3", "--quiesce"),
            "--quiesce is about what it takes, but",
        ),
        (("a", "--when", "daily", "--take", "best", "--snapshot-name", "x"), "--snapshot-name: “x” is the same name"),
        (("a", "--when", "every now and then", "--take", "best"), "is no time that systemd knows"),
        (("a", "--when", "daily\nUser=root", "--take", "best"), "is no time that systemd knows"),
        (("a", "--when", "daily", "--policy", "none"), "There is no policy “none”"),
        (("a",), "There is no schedule “a” yet"),
    ],
)
def test_what_is_no_schedule_is_not_written(arguments: tuple[str, ...], says: str, tmp_path: Path, run: Run) -> None:
    status, _, err = run("schedule", "add", *arguments, "--units-in", str(tmp_path / "units"))
    assert status == 1
    assert says in err
    assert ", line " not in err
    assert not (tmp_path / "config" / "snaptree" / "policies.toml").exists()
    assert not (tmp_path / "units").exists()


_NEVER = "A schedule is never for a demo estate. Give the address of a host: --connect URI."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--demo", "schedule", "add"), _NEVER),
        (("--demo-dir", "x", "schedule", "add"), _NEVER),
        (("schedule", "add", "--demo-dir", "x"), "unrecognized arguments: --demo-dir"),
    ],
)
def test_no_schedule_is_for_a_demo(
    arguments: tuple[str, ...], says: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments, "a", "--when", "daily", "--take", "best")
    assert caught.value.code == 2
    usage, _, error = capsys.readouterr().err.partition("error:")
    assert "--demo-dir" not in usage
    assert says in error


@pytest.mark.parametrize("is_demo", [True, False])
def test_the_address_of_a_demo_is_known_by_its_directory(is_demo: bool, run: Run, tmp_path: Path) -> None:
    (tmp_path / "my estate").mkdir()
    if is_demo:
        marker = {"program": "snaptree", "format": 1, "state": "ready"}
        (tmp_path / "my estate" / "demo-estate.json").write_text(json.dumps(marker))
    uri, units = f"qemu:///embed?root={quote(str(tmp_path / 'my estate'))}", tmp_path / "units"
    add = ("schedule", "add", "a", "--when", "daily", "--take", "best", "-c", uri, "--units-in", str(units))
    status, _, err = run(*add)
    assert (status, err) == ((1, f"snaptree: {_NEVER}\n") if is_demo else (0, ""))
    assert units.exists() is not is_demo
    assert (tmp_path / "config" / "snaptree" / "policies.toml").exists() is not is_demo


@pytest.mark.qemu
def test_machines_that_are_not_there_are_told_of(host: EmbeddedHost, run: Run, tmp_path: Path) -> None:
    for name in ("web-01", "db-01"):
        host.make_machine(name=name, running=False)
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    units = ("--units-in", str(tmp_path / "units"))
    add = ("schedule", "add", "a", "--when", "daily", "--take", "best", "-c", host.uri, *units)
    status, _, err = run(*add, "wbe-01", "x")
    assert status == 1
    assert "No virtual machine is named “wbe-01” and “x” (did you mean “web-01”?)." in err
    assert not file.exists()
    status, _, err = run(*add, "wbe-01", "db-*")
    assert status == 0
    assert err.startswith("snaptree: warning: No virtual machine is named “wbe-01” (did you mean “web-01”?). It runs")
    file.write_text(file.read_text().replace("wbe-01", "web-01"))
    assert run("schedule", "add", "a", *units)[2] == ""


def test_a_mistake_is_in_the_way_of_nothing_else(tmp_path: Path, run: Run) -> None:
    nobody = f"qemu+unix:///system?socket={tmp_path}"
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    file.parent.mkdir(parents=True)
    whole = f'[schedule.good]\nconnect = "{nobody}"\nwhen = "daily"\ntake = "best"\n[policy.good]\nkeep-last = 1\n'
    file.write_text(f'{whole}[policy.bad]\nkeep-last = -1\n[schedule.bad]\nwhen = "25:00"\npolicy = "bad"\n')
    mistakes = f'{file}: line 8: “keep-last” is a number of snapshots, or "all".\n{file}: line 10: “25:00” is no time'
    status, out, err = run("policy", "check")
    assert (status, out) == (1, "")
    assert err.startswith(mistakes)
    status, out, err = run("policy", "check", "--json")
    told = json.loads(out)
    assert (status, [each["line"] for each in told], {each["file"] for each in told}) == (1, [8, 10], {str(file)})
    assert told[0]["says"] == '“keep-last” is a number of snapshots, or "all".'
    assert err.startswith(mistakes)
    status, out, err = run("policy", "show")
    assert (status, out.splitlines()[0]) == (1, "good  (all machines)")
    assert err.startswith(mistakes)

    # The rest is used, with a warning.
    warning = f"snaptree: warning: {file}, line 8: “keep-last” is"
    for arguments in (("prune", "--policy", "good", "-c", nobody), ("run-schedule", "good")):
        status, out, err = run(*arguments)
        assert status == 1
        assert out == ""
        assert err.startswith(warning)
        assert err.count(f"Cannot connect to {nobody}") == 1
    status, out, err = run("schedule", "list", "--json")
    good, bad = json.loads(out)
    assert (status, good["schedule"], good["mistakes"], bad["schedule"]) == (1, "good", [], "bad")
    assert bad["mistakes"] == [told[1], told[0]], "its own, then those of its policy"
    assert err.startswith(warning)
    status, out, _ = run("schedule", "list")
    assert (status, out.splitlines()[-1].split(" is no time")[0]) == (
        1,
        "bad has mistakes, so it does not run: line 10: “25:00”",
    )
    new = ("schedule", "add", "new", "--when", "daily", "--take", "best", "--units-in", str(tmp_path / "units"))
    assert run(*new)[0] == 0

    # What has mistakes is refused with its lines, and can be removed.
    assert run("prune", "--policy", "bad")[2].startswith(f"snaptree: {file}, line 8: ")
    status, _, err = run("run-schedule", "bad")
    assert status == 1
    assert err.startswith(f"snaptree: {file}, line 10: “25:00” is no time that systemd knows.")
    assert "line 8: “keep-last”" in err
    said = last_run("bad")
    assert said is not None
    assert (said.status, said.is_under_way) == (1, False)
    assert "There is a schedule bad already." in run("schedule", "add", "bad", "--when", "daily")[2]
    assert run("schedule", "remove", "bad")[0] == 0
    assert last_run("bad") is None
    assert "25:00" not in file.read_text()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[policy.a]\nkeep-last = 1\n# \xff\n", ", line 3: what stands there is no text in UTF-8. Save the file"),
        (b"[policy.a]\nkeep-last\n", ", line 2: Expected '=' after a key in a key/value pair."),
        (None, " is a directory, where the file of policies should be. Move it away"),
    ],
)
def test_a_file_that_cant_be_read_at_all_is_refused_with_what_to_do(
    content: bytes | None, says: str, tmp_path: Path, run: Run
) -> None:
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    file.parent.mkdir(parents=True)
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    for command in (("schedule", "list"), ("prune", "--policy", "a"), ("run-schedule", "a"), ("check",)):
        status, out, err = run(*command)
        assert (status, out) == (1, "")
        assert err.startswith(f"snaptree: {file}{says}")
    assert run("policy", "check")[0] == 1
    status, out, err = run("policy", "check", "--json")
    (mistake,) = json.loads(out)
    assert (status, mistake["file"]) == (1, str(file))
    assert mistake["says"] in err
    status, out, _ = run("schedule", "list", "--json")
    documents = [{"schedule": None, "mistakes": [mistake]}] if mistake["line"] else []
    assert (status, json.loads(out or "[]")) == (1, documents), "what can't be read is an error like any other"


def test_a_file_without_mistakes_has_an_empty_list_of_them(run: Run, write: Write) -> None:
    assert run("policy", "check", "--json")[:2] == (0, "[]\n")
    write("[policy.good]\nkeep-last = 1\n")
    assert run("policy", "check", "--json")[:2] == (0, "[]\n")


def verify(directory: Path, *options: str) -> str:
    """What systemd says against the units in a directory."""
    files = [str(file) for file in sorted(directory.iterdir())]
    runtime = {"XDG_RUNTIME_DIR": str(directory)} if "--user" in options else {}
    done = subprocess.run(
        ["systemd-analyze", *options, "verify", *files],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | runtime,
    )
    assert (done.returncode == 0) == (done.stderr == ""), done
    return done.stderr


@pytest.mark.parametrize("is_system", [True, False])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, is_system: bool) -> None:
    schedule = Schedule("nightly", "*-*-* 02:00", take=TakeKind.BEST)
    manager = Manager(is_system, tmp_path / "units")
    units = units_for(schedule, tmp_path / "a file.toml", manager)
    write_units(units, manager)
    assert verify(manager.directory, *([] if is_system else ["--user"])) == ""
    assert timer_state(units, manager) == "written"


def test_hostile_paths_come_through_to_systemd_as_they_are(tmp_path: Path) -> None:
    schedule = Schedule("nightly", "daily", take=TakeKind.BEST)
    python, arguments = tmp_path / "a %h $HOME ;é #" / "python", ["%n", "$PATH", "\"b\" 'c' \\x41"]
    manager = Manager(True, tmp_path / "units")
    environment = {"XDG_STATE_HOME": "%h \\ $x"}
    write_units(units_of(schedule, [str(python), *arguments], environment, is_system=True), manager)
    assert f"Command {python} is not executable" in verify(manager.directory)
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    assert verify(manager.directory) == ""
    with pytest.raises(SnapTreeError, match="whose path has quotes"):
        units_of(schedule, ["/a'b/python"], {}, is_system=True)


def test_systemd_is_asked_what_a_time_means() -> None:
    assert time_problem("Mon..Fri *-*-* 22:30") == ""
    assert "is no time that systemd knows" in time_problem("every now and then")
    moment = next_time("2099-01-01 00:00 Europe/Berlin")
    assert moment == 4070905200
    assert next_time("2001-01-01") is None
    assert times_after("daily UTC", 86_400, 3) == (172_800, 259_200, 345_600)
    assert times_after("1970-01-03 UTC", 86_400, 3) == (172_800,)


def test_where_systemd_is_not_times_are_judged_all_the_same(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setenv("PATH", "")
    assert time_problem("Mon..Fri *-*-* 22:30") == ""
    status, _, err = run("schedule", "add", "a", "--when", "Fri..Mon", "--take", "best")
    assert status == 1
    assert "--when: “Fri..Mon” is no time that systemd knows" in err
    assert times_after("daily", 0, 3) == ()


# The desktop

_DESKTOP = """
import json
from PySide6.QtCore import ClassInfo, QCoreApplication, QObject, Slot
from PySide6.QtDBus import QDBusConnection

@ClassInfo({"D-Bus Interface": "org.freedesktop.Notifications"})
class Desktop(QObject):
    @Slot("QString", "uint", "QString", "QString", "QString", "QStringList", "QVariantMap", "int", result="uint")
    def Notify(self, *values):
        print(json.dumps(values), flush=True)
        return 1

application, desktop, bus = QCoreApplication([]), Desktop(), QDBusConnection.sessionBus()
bus.registerObject("/org/freedesktop/Notifications", desktop, QDBusConnection.RegisterOption.ExportAllSlots)
print(json.dumps(bus.registerService("org.freedesktop.Notifications")), flush=True)
application.exec()
"""


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """A session bus of the test's own with a desktop on it, which says what it was told."""
    daemon = ["dbus-daemon", "--session", "--nofork", "--print-address"]
    with subprocess.Popen(daemon, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as bus:
        assert bus.stdout is not None
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.stdout.readline().strip())
        with subprocess.Popen([sys.executable, "-c", _DESKTOP], stdout=subprocess.PIPE, text=True) as shown:
            assert shown.stdout is not None
            assert json.loads(shown.stdout.readline()) is True
            yield lambda: json.loads(shown.stdout.readline())  # type: ignore[union-attr]  # it is piped
            shown.kill()
        bus.kill()


def test_the_desktop_is_told_of_failures(desktop: Callable[[], Any], tmp_path: Path, run: Run) -> None:
    file = tmp_path / "config" / "snaptree" / "policies.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        f'[schedule.away]\nwhen = "daily"\ntake = "best"\nconnect = "qemu+unix:///system?socket={tmp_path}"\n'
    )
    assert run("run-schedule", "away")[0] == 1
    application, _, _, summary, body, _, hints, _ = desktop()
    assert (application, summary) == ("SnapTree", "The schedule away failed")
    assert str(tmp_path) in body
    assert hints["urgency"] == 2
    assert notify("Done", "<b> & -x")
    assert desktop()[4] == "&lt;b&gt; &amp; -x"


def test_where_there_is_no_desktop_nobody_minds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert not notify("Failed", "whatever")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path}/nobody")
    assert not notify("Failed", "whatever")
