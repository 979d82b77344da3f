"""`snaptree check` on real machines: what it finds, and that the commands that it prints cure it."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from snaptree.cli import main
from snaptree.hosts.policies import policies_path
from snaptree.hosts.schedule_runs import LastRun, note_run
from snaptree.hosts.timers import Manager
from snaptree.model.troubles import Kind, Severity
from snaptree.plans.advice import Advice, Cure
from snaptree.plans.intention import Capture, Delete, Prune, Recover, Revert, Take
from snaptree.plans.plan import StateAfter
from snaptree.plans.policy import Duration, Period, Policy, Scope
from snaptree.terminal.checks import command_of, findings_on, print_findings
from snaptree.terminal.console import console
from snaptree.terminal.policy_options import add_policy_options, arguments_of, policy_of
from tests.kit.machines import MIB, EmbeddedHost, Machine, make_image, run_tool, unchanged

qemu = pytest.mark.qemu
Snaptree = Callable[..., tuple[int, str]]


@pytest.fixture
def snaptree(host: EmbeddedHost, capsys: pytest.CaptureFixture[str]) -> Snaptree:
    """Run a command, as somebody whom nobody can ask."""

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["--connect", host.uri, *arguments])
        return status, capsys.readouterr().out

    return run


@pytest.fixture
def machine(host: EmbeddedHost) -> Machine:
    """A machine that is off."""
    return host.make_machine(running=False)


def take(machine: Machine, *names: str, capture: Capture = Capture.DISKS) -> None:
    for number, name in enumerate(names):
        machine.write(number, offset=number * MIB // 2, length=MIB)
        machine.change(Take(name, capture=capture))


def age(machine: Machine, name: str, days: int) -> None:
    """Let a snapshot that is not the current one be so much older."""
    found = machine.handle.snapshotLookupByName(name)
    text = found.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
    created = machine.tree()[name].created - days * 86_400
    older = re.sub(r"<creationTime>\d+<", f"<creationTime>{created}<", text)
    machine.handle.snapshotCreateXML(older, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def found(snaptree: Snaptree, *arguments: str) -> dict[str, dict[str, Any]]:
    """What is found, by its kind."""
    _, out = snaptree("check", *arguments, "--json")
    return {each["kind"]: each for each in json.loads(out)}


def cured(snaptree: Snaptree, command: list[str]) -> None:
    """Do as a finding says, as it is printed."""
    assert command[0] == "snaptree"
    assert main([*command[1:], "-n"]) == 0
    assert main([*command[1:], "-y"]) == 0


@qemu
def test_on_a_sound_host_nothing_is_found(machine: Machine, snaptree: Snaptree) -> None:
    take(machine, "a")
    assert snaptree("check") == (0, "Nothing found: 1 machine looked at.\n")
    assert snaptree("check", machine.name, "--json") == (0, "[]\n")


@qemu
def test_a_deep_chain_is_cured_by_the_command_that_is_printed(machine: Machine, snaptree: Snaptree) -> None:
    take(machine, "a", "b", "c", "d")
    before = machine.contents()
    status, out = snaptree("check", "--max-depth", "3")
    assert status == 4
    assert f"{machine.name}: warning: Disk vda stands on a chain of 5 layers" in out
    command = found(snaptree, "--max-depth", "3")["deep-chain"]["command"]
    assert f"  {shlex.join(command)}\n" in out
    assert command[3:] == ["prune", machine.name, "--keep-last", "2", "--maximum-depth", "3", "--by-hand"]
    cured(snaptree, command)
    assert snaptree("check", "--max-depth", "3")[0] == 0
    left = machine.contents()
    assert {"c", "d"} < set(left), "the newest are kept"
    assert unchanged(before, left, *before.keys() - left.keys())


@qemu
def test_a_snapshot_whose_layer_is_gone_is_forgotten(machine: Machine, snaptree: Snaptree) -> None:
    take(machine, "root", "left")
    machine.change(Take("left-2", capture=Capture.DISKS))
    machine.change(Revert("root", take_safety_snapshot=False, state_after=StateAfter.OFF))
    before = machine.contents()
    (layer,) = (disk.frozen for disk in machine.tree()["left-2"].disks if disk.frozen)
    Path(layer).unlink()
    assert snaptree("check")[0] == 4
    finding = found(snaptree, machine.name)["missing-image"]
    assert (finding["severity"], finding["domain"]) == ("error", machine.name)
    assert layer in finding["text"]
    cured(snaptree, finding["command"])
    assert snaptree("check")[0] == 0
    assert unchanged(before, machine.contents(), "left-2")


@qemu
def test_an_internal_snapshot_that_is_gone_is_forgotten_and_a_strange_one_left_alone(
    host: EmbeddedHost, machine: Machine, snaptree: Snaptree, capsys: pytest.CaptureFixture[str]
) -> None:
    take(machine, "a", "b", capture=Capture.INTERNAL)
    image = str(machine.active_layers()["vda"])
    run_tool("qemu-img", "snapshot", "-d", "b", image)
    run_tool("qemu-img", "snapshot", "-c", "by-hand", image)
    kinds = found(snaptree)
    assert snaptree("check")[0] == 4
    assert "“b”" in kinds["stale-snapshot"]["text"]
    assert kinds["orphan"]["command"] is None
    assert main(["--connect", host.uri, "revert", machine.name, "b", "-n"]) == 3
    refusal = capsys.readouterr().err
    assert refusal.count("Refused:") == 1
    assert f"(snaptree delete {machine.name} b)" in refusal
    cured(snaptree, kinds["stale-snapshot"]["command"])
    assert [each.name for each in machine.tree()] == ["a"]
    assert found(snaptree).keys() == {"orphan"}
    assert "by-hand" in run_tool("qemu-img", "snapshot", "-l", image)
    assert snaptree("check")[0] == 0, "what is only good to know wakes nobody"


@qemu
def test_old_snapshots_are_pruned_and_what_is_pinned_is_not_spoken_of(machine: Machine, snaptree: Snaptree) -> None:
    take(machine, "old", "pinned", "young")
    machine.change(Take("now", capture=Capture.DISKS))
    assert snaptree("pin", machine.name, "pinned", "-y")[0] == 0
    for name in ("old", "pinned"):
        age(machine, name, days=100)
    before = machine.contents()
    finding = found(snaptree)["old-snapshots"]
    assert (finding["severity"], snaptree("check")[0]) == ("note", 0), "somebody took it by hand"
    assert "“old”" in finding["text"]
    assert "pinned”" not in finding["text"]
    assert found(snaptree, "--max-age", "1y") == {}
    cured(snaptree, finding["command"])
    assert found(snaptree) == {}
    assert unchanged(before, machine.contents(), "old")


@qemu
def test_a_layer_that_nobody_refers_to_is_told_of(machine: Machine, host: EmbeddedHost, snaptree: Snaptree) -> None:
    left = make_image(machine.directory / "left.qcow2", backing=machine.directory / "disk0.qcow2")
    used = make_image(machine.directory / "used.qcow2", backing=machine.directory / "disk0.qcow2")
    base = make_image(machine.directory / "template.qcow2")
    assert found(snaptree) == {}, "it may be in the making"
    for path in (left, used, base):
        os.utime(path, (0, 0))
    host.make_machine(running=False, backing=used)
    finding = found(snaptree)["orphan"]
    assert (finding["severity"], finding["domain"], finding["command"]) == ("note", None, None)
    _, out = snaptree("check")
    assert str(left) in out
    assert str(used) not in out
    assert str(base) not in out, "somebody may make machines of it"


@qemu
def test_thresholds_stand_in_the_users_file(machine: Machine, snaptree: Snaptree) -> None:
    take(machine, "a", "b")
    policies_path().parent.mkdir(parents=True, exist_ok=True)
    policies_path().write_text("[check]\nmax-depth = 2\n", encoding="utf-8")
    assert found(snaptree).keys() == {"deep-chain"}
    assert found(snaptree, "--max-depth", "3") == {}
    policies_path().write_text("[check]\nmax-depht = 2\n", encoding="utf-8")
    assert snaptree("check")[0] == 1


@qemu
def test_a_schedule_that_nothing_runs_that_fails_or_that_is_overdue_is_told(
    machine: Machine, host: EmbeddedHost, snaptree: Snaptree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = host.make_machine(name="raw-01", disks=("raw",), running=False)
    text = '[schedule.{name}]\nconnect = "{uri}"\nwhen = "daily"\nmachines = ["{machines}"]\ntake = "internal"\n'
    here = text.format(name="nightly", uri=host.uri, machines="raw-*")
    policies_path().parent.mkdir(parents=True, exist_ok=True)
    policies_path().write_text(here + text.format(name="other", uri="qemu:///system", machines="x"), encoding="utf-8")
    status, out = snaptree("check")
    assert status == 4
    assert f"{host.uri}: warning: The schedule “nightly” has no timer, so nothing runs it.\n" in out
    assert "other" not in out, "it is another host's"
    (finding,) = json.loads(snaptree("check", "--json")[1])
    assert (finding["kind"], finding["domain"], finding["command"]) == ("schedule-not-run", None, None)
    assert snaptree("check", machine.name) == (0, "Nothing found: 1 machine looked at.\n")

    units = tmp_path / "units"
    assert main(["schedule", "add", "nightly", "--units-in", str(units)]) == 0
    assert "systemctl" in found(snaptree)["schedule-not-run"]["remedy"]
    wants = units / "timers.target.wants"
    wants.mkdir()
    (wants / "snaptree-nightly.timer").symlink_to("../snaptree-nightly.timer")
    assert snaptree("check") == (0, "Nothing found: 2 machines looked at.\n")

    assert main(["run-schedule", "nightly"]) == 3
    failed = found(snaptree)
    assert failed.keys() == {"schedule-failed"}
    assert "0 snapshots taken, 0 deleted; not all done: raw-01." in failed["schedule-failed"]["text"]

    long_ago = time.time() - 4 * 86_400
    note_run("nightly", LastRun(long_ago, 1, 1.0, long_ago, 0, "All done."))
    for path in units.rglob("*"):
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    assert found(snaptree) == {}, "whether systemd was there to run it is not known"
    monkeypatch.setattr(Manager, "runs_since", long_ago)
    assert "and was to do so 3 times" in found(snaptree)["schedule-not-run"]["text"]

    policies_path().write_text(here.replace("daily", "hourly").replace("raw-*", raw.name + "x"), encoding="utf-8")
    both = found(snaptree)
    assert both.keys() == {"schedule-not-run", "schedule-names"}
    assert "has other times than the file" in both["schedule-not-run"]["text"]
    assert f"(did you mean “{raw.name}”?)" in both["schedule-names"]["text"]
    policies_path().write_text(here.replace("daily", "25:00"), encoding="utf-8")
    assert "has mistakes, so it does not run: " in found(snaptree)["schedule-not-run"]["text"]


# Commands


@pytest.mark.parametrize(
    ("domain", "intention", "command"),
    [
        ("web-01", Prune(Policy({Period.LAST: 5}, maximum_depth=20)), "prune web-01 --keep-last 5 --maximum-depth 20"),
        ("-x", Prune(Policy({Period.LAST: 5})), "prune --keep-last 5 -- -x"),
        ("web-01", Delete(("a b", "c")), "delete web-01 'a b' c"),
        ("web-01", Delete(("-a",)), "delete -- web-01 -a"),
        ("web-01", Recover(), "recover web-01"),
    ],
)
def test_a_cure_is_a_command(domain: str, intention: Prune | Delete | Recover, command: str) -> None:
    assert shlex.join(command_of(Cure("uuid", domain, intention))) == command


counts = st.dictionaries(st.sampled_from(list(Period)), st.integers(-1, 99))
durations = st.builds(Duration, st.integers(0, 9), st.integers(0, 9), st.integers(0, 99), st.integers(0, 99)).filter(
    lambda each: each != Duration()
)
texts = st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple)
policies = st.builds(
    Policy,
    counts.map(MappingProxyType),
    within=st.none() | durations,
    keep_forks=st.booleans(),
    minimum_age=st.none() | durations,
    maximum_depth=st.none() | st.integers(1, 99),
    free_at_least=st.none() | st.integers(0, 1 << 50),
    scope=st.builds(Scope, texts, texts, texts, texts, st.booleans()),
)

PARSER = argparse.ArgumentParser()
add_policy_options(PARSER)


@given(policies)
def test_a_policy_as_options_is_the_same_policy(policy: Policy) -> None:
    said = policy_of(PARSER.parse_args(arguments_of(policy)))
    assert (said, dict(said.counts)) == (policy, dict(policy.counts))


def test_a_command_that_is_printed_is_safe_and_works_whatever_is_in_names(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("two words & \u202e é ☃", "it's\n\x1b[1m", "plain")
    cure = Cure("uuid", "snapvm", Delete(names))
    advice = Advice(Kind.OLD_SNAPSHOTS, Severity.WARNING, "Old.", "Why.", "Words.", cure)
    print_findings(console(), findings_on("qemu:///system", "snapvm", [advice], ()), 1)
    command = capsys.readouterr().out.splitlines()[-1]
    assert command == r"  snaptree delete snapvm $'two words & \u202e é ☃' $'it\'s\x0a\x1b[1m' plain"
    shown = subprocess.run(
        ["bash", "-c", f"set -- {command}; printf '%s\\0' \"${{@:4}}\""],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert tuple(shown.stdout.split("\0")[:-1]) == names


def test_commands_are_never_broken_into_lines() -> None:
    cure = Cure("uuid", "web-01", Delete(tuple(f"a-long-name-{number}" for number in range(9))))
    advice = Advice(Kind.OLD_SNAPSHOTS, Severity.WARNING, "Many snapshots are old. " * 5, "Why. " * 30, "Words.", cure)
    out = Console(file=io.StringIO(), width=40, force_terminal=True, color_system=None, soft_wrap=True)
    (finding,) = findings_on("qemu:///system", "web-01", [advice], ("--connect", "qemu:///system"))
    print_findings(out, [finding], 1)
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert f"  {shlex.join(finding.command)}" in lines
    assert all(len(line) <= 40 for line in lines if "snaptree" not in line)
