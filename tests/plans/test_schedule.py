"""Schedules: what people write of them, what their timers say, and a file that stays its owner's."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.errors import SnapTreeError
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Capture, Prune, Take
from snaptree.plans.plan import Freeze
from snaptree.plans.policy import Period, Policy, Scope
from snaptree.plans.policy_edit import with_table, without_table
from snaptree.plans.policy_file import PolicyFileError, read_policies
from snaptree.plans.schedule import (
    Notify,
    Schedule,
    TakeKind,
    names_problem,
    schedule_name_problem,
    who_is_missing,
)
from snaptree.plans.timer_units import units_of

GOOD = """\
# What to keep of all that comes by itself.
[policy.two-weeks]
machines = ["web-*"]
names = ["auto-*"]
by-hand = true
keep-daily = 14

[schedule.nightly]   # the one that matters
when = "*-*-* 02:00 Europe/Berlin"
machines = ["web-*", "db-01"]
take = "best"
quiesce = "if-possible"
name = "{schedule}-{vm}-{date}"
note = "by itself #nightly"
policy = "two-weeks"
limit = "50 MiB"
between = "01:00-05:00"
notify = "always"

# Only this.
[schedule.tidy]
when = "daily"
connect = "qemu:///session"
keep-last = 3
"""


def test_a_schedule_is_read_as_it_is_meant() -> None:
    file = read_policies(GOOD, "policies.toml")
    nightly = file.schedule("nightly")
    assert nightly == Schedule(
        "nightly",
        "*-*-* 02:00 Europe/Berlin",
        machines=("web-*", "db-01"),
        take=TakeKind.BEST,
        quiesce=Freeze.IF_POSSIBLE,
        names="{schedule}-{vm}-{date}",
        note="by itself #nightly",
        policy=Policy({Period.DAILY: 14}, scope=Scope(names=("auto-*",), schedules=("nightly",))),
        pruned_machines=("web-*",),
        limit=50 << 20,
        between=Hours.parse("01:00-05:00"),
        notify=Notify.ALWAYS,
    )
    assert nightly.taking == Take(
        "nightly-{vm}-{date}", "by itself #nightly", Capture.DISKS, quiesce=Freeze.IF_POSSIBLE, schedule="nightly"
    )
    assert [name for name in ("web-01", "db-01", "db-02") if nightly.is_for(name)] == ["web-01", "db-01"]
    assert nightly.policy is not None
    assert nightly.pruning("web-01") == Prune(nightly.policy, by_own_jobs=True, limit=50 << 20, schedule="nightly")
    assert nightly.pruning("db-01") is None, "its policy is not for that machine"
    tidy = file.schedule("tidy")
    assert (tidy.taking, tidy.connect) == (None, "qemu:///session")
    assert tidy.policy == Policy({Period.LAST: 3}, scope=Scope(schedules=("tidy",)))


@pytest.mark.parametrize(
    ("kind", "capture", "live"),
    [
        ("best", Capture.BEST, False),
        ("disk-only", Capture.DISKS, False),
        ("memory", Capture.DISKS_AND_MEMORY, False),
        ("live", Capture.DISKS_AND_MEMORY, True),
        ("internal", Capture.INTERNAL, False),
    ],
)
def test_each_kind_is_taken_as_by_hand(kind: str, capture: Capture, live: bool) -> None:
    text = f'[schedule.a]\nwhen = "daily"\ntake = "{kind}"\n'
    taking = read_policies(text, "policies.toml").schedule("a").taking
    assert taking == Take("a-{date}-{time}", capture=capture, live=live, schedule="a")


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('take = "best"', "line 1: the schedule “a” does not say when"),
        ('when = "daily"', "line 1: the schedule “a” neither takes nor prunes"),
        ('when = "daily"\ntake = "all"', "line 3: “take” is one of best, disk-only, memory, live, internal."),
        ('when = "daily"\ntake = ["best"]', "line 3: “take” is one of"),
        ('when = "daily\\nUser=x"\ntake = "best"', "line 2: “daily"),
        ('when = "Fri..Mon"\ntake = "best"', "line 2: “Fri..Mon” is no time that systemd knows."),
        (
            'when = "daily"\ntake = "best"\nnote = "a\\u001b[31m"',
            "line 4: “note” has the character “\\x1b” (U+001B) in it",
        ),
        ('when = 2\ntake = "best"', "line 2: “when” is a text."),
        ('when = "daily"\ntakes = "best"', "line 3: “takes” is nothing that a schedule says. Did you mean “take”?"),
        ('when = "daily"\npolicy = "b"\n', "line 3: There is no policy “b”."),
        ('when = "daily"\npolicy = "keep"\nkeep-last = 3', "line 4: “keep-last” does not stand beside"),
        ('when = "daily"\nkeep-last = 3\nquiesce = "required"', "line 4: “quiesce” is about what it takes"),
        ('when = "daily"\ntake = "best"\nlimit = "5 MiB"', "line 4: “limit” is about pruning"),
        ('when = "daily"\ntake = "best"\nminimum-age = "2d"', "line 4: “minimum-age” is about pruning"),
        ('when = "daily"\nkeep-last = 3\nlimit = "0"', "line 4: “limit” is how much to copy per second"),
        ('when = "daily"\nkeep-last = 3\nbetween = "22-6"', "line 4: “22-6” are no hours of the day."),
        ('when = "daily"\ntake = "memory"\nquiesce = "required"', "line 4: file systems are frozen for disks only"),
        ('when = "daily"\ntake = "memory"\ntogether = 1', "line 4: “together” is true or false."),
        ('when = "daily"\nkeep-last = 3\ntogether = true', "line 4: “together” is about what it takes"),
        ('when = "daily"\ntogether = true\ntake = "best"', "line 4: machines are taken together with disks only or"),
        ('when = "daily"\ntake = "live"\ntogether = true', "line 3: machines are taken together with disks only or"),
        (
            'when = "daily"\ntake = "memory"\ntogether = true\nname = "{vm}-{date}"',
            "line 5: what is taken together has one name: “{vm}” can't stand in it.",
        ),
        (
            'when = "daily"\ntake = "memory"\ntogether = true\nmachines = ["db-01"]',
            "line 5: a group needs two machines at least",
        ),
        ('when = "daily"\ntake = "best"\nname = "nightly"', "line 4: “nightly” is the same name each time."),
        ('when = "daily"\ntake = "best"\nname = "{when}-{date}"', "line 4: “{when}” can't be filled in"),
        ('when = "daily"\ntake = "best"\nnotify = "me"', "line 4: “notify” is one of failure, always, never."),
    ],
)
def test_every_mistake_is_named_by_its_line(lines: str, problem: str) -> None:
    file = read_policies(f"[schedule.a]\n{lines}\n[policy.keep]\nkeep-last = 1\n", "policies.toml")
    found = [str(problem) for problem in file.problems]
    assert len(found) == 1, found
    assert found[0].startswith(problem)
    with pytest.raises(PolicyFileError, match=re.escape(problem)):
        file.schedule("a")
    assert file.policy("keep"), "which has no mistake"


@pytest.mark.parametrize("machines", ['machines = ["web", "db"]', 'machines = ["web-*"]', ""])
def test_machines_are_taken_together_if_the_file_says_so(machines: str) -> None:
    text = f'[schedule.a]\nwhen = "daily"\ntake = "disk-only"\n{machines}\n'
    assert not read_policies(text, "policies.toml").schedule("a").together
    assert read_policies(f"{text}together = true\n", "policies.toml").schedule("a").together


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "-a", "a.b", "a%h", "a\n", "ä", "a" * 41, "a;b", "$x"])
def test_names_that_could_be_something_else_name_no_schedule(name: str) -> None:
    assert schedule_name_problem(name)
    file = read_policies(f'[schedule.{_quoted(name)}]\nwhen = "daily"\nkeep-last = 1\n', "policies.toml")
    with pytest.raises(PolicyFileError):
        file.schedule(name)


def test_what_is_wrong_with_its_policy_is_in_the_way_of_a_schedule_and_said_once() -> None:
    schedules = '[schedule.a]\nwhen = "daily"\npolicy = "bad"\n[schedule.b]\nwhen = "daily"\nkeep-last = 1\n'
    file = read_policies(f"{schedules}[policy.bad]\nkeep-last = -1\n", "policies.toml")
    assert [str(problem) for problem in file.problems] == ['line 8: “keep-last” is a number of snapshots, or "all".']
    assert list(file.schedules) == ["b"]
    assert file.addresses == {"a": "qemu:///system"}
    for wanted in (file.schedule, file.policy):
        with pytest.raises(PolicyFileError, match=r"^policies\.toml, line 8: “keep-last”"):
            wanted("a" if wanted == file.schedule else "bad")


def test_machines_that_are_not_there_are_guessed_at() -> None:
    names = ["web-01", "web-02", "db-01"]
    assert who_is_missing((), names) == ""
    assert who_is_missing(("web-*", "db-01"), names) == ""
    said = who_is_missing(("wbe-01", "db-01", "x"), names)
    assert said == "No virtual machine is named “wbe-01” and “x” (did you mean “web-01”?)."
    assert who_is_missing(("x",), []) == "No virtual machine is named “x”."


def _quoted(text: str) -> str:
    return with_table("", ("a", "b"), {"c": text}).partition(" = ")[2].strip()


def test_names_of_snapshots_may_be_templates_of_any_field() -> None:
    assert not names_problem("{schedule}-{date}-{time}", "nightly")
    assert "has a space" in names_problem("{schedule} {date}", "nightly")
    assert "there are {schedule}, {vm}, {date}" in names_problem("{nonsense}-{date}", "nightly")


# The file


def test_a_new_schedule_comes_last_and_everything_else_stays() -> None:
    values = {"when": "daily", "machines": ["web-*"], "keep-last": 3, "note": 'say "no"\\'}
    text = with_table(GOOD, ("schedule", "new"), values)
    assert text.startswith(GOOD)
    assert tomllib.loads(text)["schedule"]["new"] == values
    assert without_table(text, ("schedule", "new")) == GOOD


def test_a_schedule_goes_and_the_comments_of_others_stay() -> None:
    text = without_table(GOOD, ("schedule", "nightly"))
    assert text == GOOD[: GOOD.index("[schedule.nightly]")] + GOOD[GOOD.index("# Only this.") :]
    assert list(read_policies(text, "policies.toml").schedules) == ["tidy"]


@pytest.mark.parametrize(
    "text",
    [
        'schedule = {a = {when = "daily"}}\n',
        '[schedule]\na.when = "daily"\n',
        'x = """\n[schedule.a]\n"""\n[schedule.a] \nwhen = "daily"\n',
        '[schedule.a]\nnote = """\n[policy.b]\n"""\n',
    ],
)
def test_what_is_written_in_another_way_is_left_to_its_owner(text: str) -> None:
    with pytest.raises(SnapTreeError, match="by hand"):
        without_table(text, ("schedule", "a"))


def test_where_there_is_no_place_for_a_table_none_is_added() -> None:
    with pytest.raises(SnapTreeError, match="can't be added"):
        with_table('schedule = {a = {when = "daily"}}\n', ("schedule", "b"), {"when": "daily"})


_VALUES = st.dictionaries(
    st.sampled_from(["when", "note", "machines"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.integers(0, 9)
    | st.booleans()
    | st.lists(st.text("a*\"'#\\]\n")),
)


@given(st.sampled_from(["", GOOD, "# nothing\n", GOOD.rstrip()]), _VALUES)
def test_whatever_a_schedule_says_can_be_added_and_removed_again(text: str, values: dict[str, Any]) -> None:
    more = with_table(text, ("schedule", "new"), values)
    assert more.startswith(text)
    assert tomllib.loads(more)["schedule"]["new"] == values
    assert without_table(more, ("schedule", "new")).rstrip() == text.rstrip()


# The units

NIGHTLY = Schedule("nightly", "*-*-* 02:00", take=TakeKind.DISK_ONLY)


def lines_of(text: str, key: str) -> list[str]:
    """What a unit says of a key."""
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_what_was_missed_is_caught_up_on() -> None:
    units = units_of(NIGHTLY, ["/usr/bin/snaptree"], {}, is_system=False)
    assert set(units.files) == {"snaptree-nightly.service", "snaptree-nightly.timer"}
    assert lines_of(units.timer, "OnCalendar") == ["*-*-* 02:00"]
    assert lines_of(units.timer, "Persistent") == ["true"]
    assert lines_of(units.service, "Type") == ["oneshot"]


@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "S"], include_characters=" "))))
def test_words_come_through_systemds_quoting_as_they_were(words: list[str]) -> None:
    service = units_of(NIGHTLY, ["/usr/bin/python3", *words], {"XDG_STATE_HOME": "/a b/%h"}, is_system=True).service
    (command,) = lines_of(service, "ExecStart")
    assert command.startswith(":"), "no variable is replaced"
    assert shlex.split(command[1:].replace("%%", "%")) == ["/usr/bin/python3", *words]
    assert lines_of(service, "Environment") == ['"XDG_STATE_HOME=/a b/%%h"']


def test_only_what_does_not_start_a_daemon_of_its_own_is_boxed_in() -> None:
    def sandboxed(connect: str, *, is_system: bool) -> bool:
        schedule = replace(NIGHTLY, connect=connect)
        return "ProtectSystem=" in units_of(schedule, ["/usr/bin/snaptree"], {}, is_system=is_system).service

    assert sandboxed("qemu:///system", is_system=True)
    assert not sandboxed("qemu:///session", is_system=True)
    assert not sandboxed("qemu:///system", is_system=False)
