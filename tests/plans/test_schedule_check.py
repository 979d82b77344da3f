"""What is found about schedules: those that fail or that nothing runs, and no alarm about any other."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.troubles import Kind, Severity
from snaptree.plans.advice import Advice
from snaptree.plans.check import Surroundings, check_host
from snaptree.plans.hours import Hours
from snaptree.plans.policy_file import Problem
from snaptree.plans.schedule import Schedule, TakeKind
from snaptree.plans.schedule_check import BrokenSchedule, SeenSchedule, check_schedule
from snaptree.plans.thresholds import Thresholds
from snaptree.plans.timer_units import TimerState

HOUR, DAY = 3_600, 86_400
NOW = 1_780_000_000  # 28 May 2026, 20:26:40 UTC
NIGHTLY = Schedule("nightly", "*-*-* 02:00", machines=("web-*", "db-01"), take=TakeKind.BEST)
SOUND = SeenSchedule(
    NIGHTLY,
    TimerState.ENABLED,
    ("web-01", "db-01"),
    started=NOW - 10 * HOUR,
    due=(NOW + 14 * HOUR, NOW + 38 * HOUR, NOW + 62 * HOUR),
    able_since=NOW - 9 * DAY,
)
MISSED = replace(SOUND, started=NOW - 4 * DAY, due=(NOW - 3 * DAY, NOW - 2 * DAY, NOW - DAY))


def found(seen: SeenSchedule) -> list[Advice]:
    return [*check_schedule(seen, NOW, dt.UTC)]


def only(seen: SeenSchedule, kind: Kind) -> Advice:
    (advice,) = found(seen)
    assert (advice.kind, advice.severity, advice.cure) == (kind, Severity.WARNING, None)
    return advice


def test_nothing_is_found_where_all_is_well() -> None:
    assert found(SOUND) == []
    assert found(replace(SOUND, started=None)) == [], "it is yet to run for the first time"
    assert check_host([], Surroundings(), Thresholds(), NOW).host == ()


def test_a_run_that_failed_is_told_with_its_reason_and_where_to_read_more() -> None:
    advice = only(replace(SOUND, failure="db-01 is away."), Kind.SCHEDULE_FAILED)
    assert advice.text == "The last run of the schedule “nightly” failed, 28 May 2026, 10:26: db-01 is away."
    assert "snaptree run-schedule nightly" in advice.remedy
    assert "journalctl -u snaptree-nightly" in advice.remedy
    own = only(replace(SOUND, failure="No.", is_system=False), Kind.SCHEDULE_FAILED)
    assert "journalctl --user -u" in own.remedy


@pytest.mark.parametrize(
    ("timer", "text", "remedy"),
    [
        (TimerState.MISSING, "The schedule “nightly” has no timer", "'snaptree schedule add nightly' writes it."),
        (TimerState.WRITTEN, "is not enabled, so nothing runs it.", "systemctl enable --now snaptree-nightly.timer"),
        (TimerState.OUTDATED, "has other times than the file", "'snaptree schedule add nightly' writes it anew."),
    ],
)
def test_a_schedule_that_nothing_runs_is_told(timer: TimerState, text: str, remedy: str) -> None:
    for seen in (replace(SOUND, timer=timer, started=None, due=()), replace(MISSED, timer=timer)):
        advice = only(seen, Kind.SCHEDULE_NOT_RUN)
        assert text in advice.text
        assert remedy in advice.remedy


def test_what_something_else_runs_needs_no_timer() -> None:
    for timer in (TimerState.MISSING, TimerState.WRITTEN):
        assert found(replace(SOUND, timer=timer)) == []
        assert found(replace(SOUND, timer=timer, due=())) == [], "nobody knows when it was due"


def test_a_run_that_is_overdue_is_told() -> None:
    advice = only(MISSED, Kind.SCHEDULE_NOT_RUN)
    assert advice.text == (
        "The schedule “nightly” did not run since 24 May 2026, 20:26, and was to do so 3 times by 27 May 2026, 20:26."
    )
    assert "systemctl status snaptree-nightly.timer" in advice.remedy
    never = only(replace(MISSED, started=None, is_system=False), Kind.SCHEDULE_NOT_RUN)
    assert "never ran" in never.text
    assert "enable-linger" in never.remedy


@pytest.mark.parametrize(
    "otherwise",
    [
        {"able_since": None},
        {"able_since": NOW - HOUR / 2},
        {"asleep": 23.5 * HOUR},
        {"is_under_way": True},
        {"due": ()},
        {"due": (NOW - 3 * DAY, NOW - 2 * DAY)},
        {"due": (NOW - 3 * DAY, NOW - 2 * DAY, NOW - HOUR / 2)},
    ],
)
def test_nothing_is_overdue_that_could_not_run_or_of_which_that_is_not_known(otherwise: dict[str, object]) -> None:
    assert found(replace(MISSED, **otherwise)) == []  # type: ignore[arg-type]  # fields of several types


@given(st.floats(0, 30 * DAY), st.floats(0, 30 * DAY), st.floats(0, 30 * DAY))
def test_a_computer_that_was_off_or_asleep_has_an_hour_to_catch_up(up: float, asleep: float, ago: float) -> None:
    due = (NOW - ago - 2, NOW - ago - 1, NOW - ago)
    seen = replace(MISSED, due=due, able_since=NOW - up, asleep=asleep)
    assert bool(found(seen)) == (min(up, ago) - asleep > HOUR)


def test_machines_that_are_not_there_are_told_with_those_that_may_be_meant() -> None:
    advice = only(replace(SOUND, domains=("web-01", "db-1")), Kind.SCHEDULE_NAMES)
    assert "“db-01” (did you mean “db-1”?)" in advice.text


def test_hours_that_never_come_while_it_runs_are_told() -> None:
    noon = replace(NIGHTLY, between=Hours.parse("22:00-06:00"))
    days = tuple(float(DAY * day + 12 * HOUR) for day in range(20_000, 21_500))
    advice = only(replace(SOUND, schedule=noon, coming=days), Kind.SCHEDULE_HOURS)
    assert advice.text == (
        "The schedule “nightly” prunes between 22:00 and 06:00 only, and never runs then: it prunes nothing."
    )
    assert "“between”" in advice.remedy

    # One time is enough; where nobody can say when it runs, or only for a part of a day, nothing is said.
    seconds = tuple(float(20_000 * DAY + 12 * HOUR + second) for second in range(1_500))
    for coming in ((*days[1:], days[-1] + 12 * HOUR), (), seconds):
        assert found(replace(SOUND, schedule=noon, coming=coming)) == []
    assert found(replace(SOUND, coming=days)) == [], "it may prune at any time"


def test_what_has_mistakes_does_not_run_and_a_host_tells_it_all() -> None:
    broken = BrokenSchedule("tidy", "policies.toml", (Problem(3, "“x” is nothing."),))
    around = Surroundings(schedules=(broken, MISSED), unusable_file="policies.toml, line 1: it is none.")
    said = check_host([], around, Thresholds(), NOW).host
    assert [each.kind for each in said] == [Kind.POLICY_FILE, Kind.SCHEDULE_NOT_RUN, Kind.SCHEDULE_NOT_RUN]
    assert said[0].text == "The file of policies can't be used: policies.toml, line 1: it is none."
    assert said[1].text.endswith("“tidy” has mistakes, so it does not run: policies.toml, line 3: “x” is nothing.")
