"""What policies keep: restic's own examples, and random calendars against what the words say."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Annotations, DomainState, Mark, Snapshot
from snaptree.model.tree import SnapshotTree
from snaptree.plans.policy import ALL, Decision, Duration, Period, Policy, Scope, decide, kept_with_groups, tags_of

BERLIN = ZoneInfo("Europe/Berlin")
UTC = ZoneInfo("UTC")
BY_SCHEDULE = Annotations(schedule="nightly")


def counted(numbers: Mapping[str, int]) -> Mapping[Period, int]:
    return MappingProxyType({Period(name): number for name, number in numbers.items()})


def policy(*, within: str = "", minimum_age: str = "", keep_forks: bool = True, **counts: int) -> Policy:
    """`policy(daily=7, within="1m")`."""
    return Policy(
        counted(counts),
        Duration.parse(within) if within else None,
        minimum_age=Duration.parse(minimum_age) if minimum_age else None,
        keep_forks=keep_forks,
    )


def taken(moments: Iterable[dt.datetime], annotations: Annotations = BY_SCHEDULE) -> list[Snapshot]:
    """A line of snapshots, the oldest first."""
    line: list[Snapshot] = []
    for number, moment in enumerate(sorted(moments, key=dt.datetime.timestamp)):  # clocks are put back, too
        parent = line[-1].name if line else None
        created = int(moment.timestamp())
        line.append(Snapshot(f"s{number}", parent, created, DomainState.OFF, annotations=annotations))
    return line


def decisions(
    rules: Policy, snapshots: list[Snapshot], zone: dt.tzinfo = UTC, *, later: int = 60, by_hand: tuple[str, ...] = ()
) -> dict[str, Decision]:
    tree = SnapshotTree.build(snapshots, snapshots[-1].name if snapshots else None)
    now = max((each.created for each in snapshots), default=0) + later
    return decide(rules, tree, now, zone=zone, kept=dict.fromkeys(by_hand, "kept by hand"))


def kept(rules: Policy, snapshots: list[Snapshot], zone: dt.tzinfo = UTC, *, later: int = 60) -> dict[dt.date, str]:
    """Days and reasons of what is kept."""
    dates = {each.name: dt.datetime.fromtimestamp(each.created, zone).date() for each in snapshots}
    found = decisions(rules, snapshots, zone, later=later)
    return {dates[each.name]: each.reason for each in found.values() if each.keeps}


# restic's documentation, "Removing snapshots according to a policy"

SUNDAYS = [dt.datetime(2019, 9, 1, 11, tzinfo=UTC) + dt.timedelta(weeks=week) for week in range(12)]


def test_the_last_four_sundays() -> None:
    last_four = [dt.date(2019, 10, 27), dt.date(2019, 11, 3), dt.date(2019, 11, 10), dt.date(2019, 11, 17)]
    assert kept(policy(daily=4), taken(SUNDAYS)) == dict.fromkeys(last_four, "daily")


def test_a_hundred_years_of_daily_snapshots() -> None:
    first = dt.date(1970, 1, 2)
    last = dt.date(2069, 11, 17)  # a Sunday
    days = [first + dt.timedelta(days=number) for number in range((last - first).days + 1)]
    line = taken(dt.datetime(day.year, day.month, day.day, 3, tzinfo=UTC) for day in days)
    found = kept(policy(daily=7, weekly=5, monthly=12, yearly=75), line)
    daily = [day for day, reason in found.items() if "daily" in reason]
    assert daily == days[-7:]
    weekly = [day for day, reason in found.items() if "weekly" in reason]
    assert weekly == [last - dt.timedelta(weeks=number) for number in range(4, -1, -1)]
    assert len(set(weekly) - set(daily)) == 4, "the seven dailies include one weekly"
    monthly = [day for day, reason in found.items() if "monthly" in reason]
    assert len(monthly) == 12
    assert all((day + dt.timedelta(days=1)).day == 1 for day in monthly[:-1])
    yearly = [day for day, reason in found.items() if "yearly" in reason]
    assert yearly[:-1] == [dt.date(year, 12, 31) for year in range(2069 - 74, 2069)]
    assert len(found) < 7 + 4 + 12 + 75


def test_where_there_are_too_few_the_oldest_is_kept_as_well() -> None:
    twice_a_day = [dt.datetime(2020, 2, day, hour, tzinfo=UTC) for day in (27, 28, 29) for hour in (3, 15)]
    found = decisions(policy(daily=5), taken(twice_a_day))
    assert {name: each.reason for name, each in found.items() if each.keeps} == {
        "s0": "oldest daily",
        "s1": "daily",
        "s3": "daily",
        "s5": "daily",
    }


def test_within_is_counted_from_the_newest_not_from_today() -> None:
    line = taken(SUNDAYS)
    a_year_later = 365 * 86_400
    assert list(kept(policy(within="14d"), line, later=a_year_later)) == [dt.date(2019, 11, 10), dt.date(2019, 11, 17)]


def test_an_empty_policy_lets_nothing_go() -> None:
    for rules in (policy(), policy(last=0, daily=0), policy(minimum_age="1d")):
        assert all(each.keeps for each in decisions(rules, taken(SUNDAYS)).values())


# What is kept whatever the rules say


def test_marks_forks_and_hands_keep() -> None:
    base = dt.datetime(2026, 1, 1, tzinfo=UTC).timestamp()

    def one(name: str, parent: str | None, day: int, **marks: Any) -> Snapshot:
        annotations = Annotations(schedule="nightly", **marks)
        return Snapshot(name, parent, int(base) + day * 86_400, DomainState.OFF, annotations=annotations)

    snapshots = [
        one("pinned", None, 0, pinned=Mark()),
        one("good", "pinned", 1, known_good=Mark()),
        one("fork", "good", 2),
        one("branch", "fork", 3),
        one("by-hand", "fork", 4),
        one("plain", "by-hand", 5),
        one("last", "plain", 6),
    ]
    found = decisions(policy(last=1), snapshots, by_hand=("by-hand",))
    assert {name: each.reason for name, each in found.items()} == {
        "pinned": "pinned",
        "good": "known good",
        "fork": "a fork",
        "branch": "no rule keeps it",
        "by-hand": "kept by hand",
        "plain": "no rule keeps it",
        "last": "last",
    }
    assert not decisions(policy(last=1, keep_forks=False), snapshots)["fork"].keeps


def test_what_is_young_is_kept() -> None:
    found = kept(policy(last=1, minimum_age="2w"), taken(SUNDAYS))
    assert found == {dt.date(2019, 11, 10): "younger than 14d", dt.date(2019, 11, 17): "last, younger than 14d"}


def test_a_clock_that_went_mad_lets_nothing_go_and_counts_for_nothing() -> None:
    line = taken(SUNDAYS)
    newest = line[-1]
    strange = [
        Snapshot("future", newest.name, newest.created + 10**6, DomainState.OFF, annotations=BY_SCHEDULE),
        Snapshot("never", "future", 0, DomainState.OFF, annotations=BY_SCHEDULE),
        Snapshot("far", "never", 10**17, DomainState.OFF, annotations=BY_SCHEDULE),
    ]
    tree = SnapshotTree.build([*line, *strange], "far")
    found = decide(policy(last=1), tree, newest.created + 60, zone=UTC)
    assert [name for name, each in found.items() if each.keeps] == [newest.name, "future", "never", "far"]


def test_what_was_taken_together_stays_together() -> None:
    together = Annotations(schedule="nightly", group="before the move")
    web, db = taken(SUNDAYS[:3]), taken(SUNDAYS[:3])
    web[0], db[0] = (replace(line[0], annotations=together) for line in (web, db))
    db[0] = replace(db[0], annotations=replace(together, pinned=Mark()))
    machines = [(SnapshotTree.build(line, "s2"), decisions(policy(last=1), line)) for line in (web, db)]
    assert kept_with_groups(machines) == [{"s0": "its group “before the move” is kept"}, {}]
    db[0] = web[0]
    machines = [(SnapshotTree.build(line, "s2"), decisions(policy(last=1), line)) for line in (web, db)]
    assert kept_with_groups(machines) == [{}, {}]


# Scope


def snapshot(name: str = "auto-1", note: str = "", **marks: Any) -> Snapshot:
    return Snapshot(name, None, 1_000, DomainState.OFF, description=note, annotations=Annotations(**marks))


@pytest.mark.parametrize(
    ("scope", "it", "why_not"),
    [
        (Scope(), snapshot(schedule="nightly"), ""),
        (Scope(), snapshot(), "not made by a schedule"),
        (Scope(by_hand=True), snapshot(), ""),
        (Scope(names=("auto-*",)), snapshot(), "not made by a schedule"),
        (Scope(names=("auto-*",)), snapshot(schedule="nightly"), ""),
        (Scope(names=("auto-*",), by_hand=True), snapshot(), ""),
        (Scope(names=("auto-*",), by_hand=True), snapshot("AUTO-1"), "its name is not asked for"),
        (Scope(names=("x", "auto-?"), by_hand=True), snapshot(), ""),
        (Scope(tags=("old",)), snapshot(note="#old"), "not made by a schedule"),
        (Scope(owners=("amina",)), snapshot(taken_by="amina"), "not made by a schedule"),
        (Scope(schedules=("hourly",)), snapshot(schedule="nightly"), "made by another schedule"),
        (Scope(schedules=("hourly",), by_hand=True), snapshot(), "not made by a schedule"),
        (Scope(owners=("amina",), by_hand=True), snapshot(taken_by="amina"), ""),
        (Scope(owners=("amina",), by_hand=True), snapshot(taken_by="björn"), "taken by somebody else"),
        (Scope(tags=("old",), by_hand=True), snapshot(note="Before the move. #old #db"), ""),
        (Scope(tags=("old",), by_hand=True), snapshot(note="issue#old, #older"), "not tagged so"),
        (Scope(by_hand=True), snapshot(safety=True), "a safety snapshot"),
        (Scope(names=("auto-*",)), snapshot(safety=True), "a safety snapshot"),
        (Scope(names=("auto-*",), by_hand=True), snapshot(safety=True), ""),
        (Scope(names=("web-*",), by_hand=True), snapshot(safety=True), "its name is not asked for"),
    ],
)
def test_scope(scope: Scope, it: Snapshot, why_not: str) -> None:
    assert scope.why_not(it) == why_not


scopes = st.builds(
    Scope,
    names=st.sampled_from([(), ("auto-*",), ("auto-1", "x"), ("*",)]),
    tags=st.sampled_from([(), ("old",)]),
    owners=st.sampled_from([(), ("amina",)]),
    schedules=st.sampled_from([(), ("nightly",), ("hourly",)]),
    by_hand=st.booleans(),
)
snapshots_of_all_kinds = st.builds(
    snapshot,
    st.sampled_from(["auto-1", "before-upgrade"]),
    note=st.sampled_from(["", "#old"]),
    schedule=st.sampled_from(["", "nightly"]),
    safety=st.booleans(),
    taken_by=st.sampled_from(["", "amina"]),
)


@given(scopes, snapshots_of_all_kinds)
def test_nothing_but_by_hand_lets_go_what_no_schedule_made(scope: Scope, it: Snapshot) -> None:
    is_in = not scope.why_not(it)
    made_by_schedule = bool(it.annotations.schedule) and not it.annotations.safety
    assert made_by_schedule or scope.by_hand or not is_in
    assert not (is_in and it.annotations.safety and not scope.names), (
        "a safety snapshot has to be asked for by its name"
    )
    needs = scope.needing_by_hand([it]) == (it.name,)
    assert needs == (not is_in and not replace(scope, by_hand=True).why_not(it))
    nowhere = ("elsewhere",)
    narrowed = [
        replace(scope, names=nowhere),
        replace(scope, tags=nowhere),
        replace(scope, owners=nowhere),
        replace(scope, schedules=nowhere),
    ]
    if it.annotations.safety:
        narrowed = narrowed[1:]
    assert is_in or all(each.why_not(it) for each in narrowed), "saying more lets no more go"


def test_what_is_out_of_scope_is_kept_and_not_counted() -> None:
    line = taken(SUNDAYS)
    line[-1] = Snapshot(line[-1].name, line[-1].parent, line[-1].created, DomainState.OFF)  # by hand
    found = decisions(policy(last=1), line)
    assert {name: each.reason for name, each in found.items() if each.keeps} == {
        "s10": "last",
        "s11": "not made by a schedule",
    }


def test_tags() -> None:
    assert tags_of(snapshot(note="#a, b#c ##d #e-f\n#ü")) == {"a", "e-f", "ü"}


# Durations


@pytest.mark.parametrize(
    ("text", "moment", "before"),
    [
        ("1m", "2024-03-31T12:00", "2024-02-29T12:00"),
        ("1y", "2024-02-29T12:00", "2023-02-28T12:00"),
        ("1d", "2026-03-29T12:00", "2026-03-28T12:00"),  # clocks went forward in between
        ("24h", "2026-03-29T12:00", "2026-03-28T11:00"),
        ("1y2m3w4d5h", "2026-06-30T06:00", "2025-04-05T01:00"),
        ("99999999y", "2026-06-30T06:00", "0001-01-01T00:00"),
        ("99999999999999999999h", "2026-06-30T06:00", "0001-01-01T00:00"),
    ],
)
def test_a_duration_before_a_moment(text: str, moment: str, before: str) -> None:
    found = Duration.parse(text).before(dt.datetime.fromisoformat(moment).replace(tzinfo=BERLIN))
    assert found.replace(tzinfo=None).isoformat(timespec="minutes") == before


@pytest.mark.parametrize("text", ["", "d", "1", "1d1y", "-1d", "1.5d", "0d", "0y0h", "1d 2h", "1 day", "١d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(SnapTreeError, match="is not a time"):
        Duration.parse(text)


def test_a_duration_is_written_as_it_is_read() -> None:
    for text in ("1y", "18m", "9d", "36h", "1y2m3d4h"):
        assert str(Duration.parse(text)) == text


# Properties: what the words say, counted in another way


@st.composite
def calendars(draw: st.DrawFn) -> list[dt.datetime]:
    """Moments around a change of clocks, the end of a year or a leap day, in Berlin."""
    around = draw(st.sampled_from(["2026-03-29", "2026-10-25", "2024-02-29", "2020-12-31", "2021-01-03"]))
    start = dt.datetime.fromisoformat(around).replace(tzinfo=BERLIN).timestamp()
    scale = draw(st.sampled_from([3_600, 86_400, 7 * 86_400, 31 * 86_400, 366 * 86_400]))
    steps = draw(st.lists(st.floats(-6, 6), min_size=1, max_size=24))
    return [dt.datetime.fromtimestamp(int(start + step * scale), BERLIN) for step in steps]


counts = st.sampled_from([0, 0, 1, 2, 3, 5, ALL])
FORMATS = {
    Period.HOURLY: "%Y-%m-%d %H %z",
    Period.DAILY: "%Y-%m-%d",
    Period.WEEKLY: "%G-%V",
    Period.MONTHLY: "%Y-%m",
    Period.YEARLY: "%Y",
}


@given(calendars(), st.fixed_dictionaries({period.value: counts for period in Period}))
def test_every_period_has_its_newest_and_nothing_else_is_kept(
    moments: list[dt.datetime], how_many: dict[str, int]
) -> None:
    line = taken(moments)
    found = decisions(Policy(counted(how_many)), line, BERLIN)
    if not any(how_many.values()):
        assert all(each.keeps for each in found.values())
        return
    at = {each.name: dt.datetime.fromtimestamp(each.created, BERLIN) for each in line}
    wanted: set[str] = set()
    for period, number in ((Period(name), number) for name, number in how_many.items()):
        newest: dict[str, str] = {}
        for each in line:  # from the oldest on: the newest of each part stays
            part = each.name if period is Period.LAST else at[each.name].strftime(FORMATS[period])
            newest[part] = each.name
        in_order = [each.name for each in line if each.name in newest.values()]
        chosen = in_order if number == ALL else in_order[len(in_order) - min(number, len(in_order)) :]
        wanted.update(chosen)
        if number == ALL or number > len(in_order):
            wanted.add(line[0].name)
    assert {name for name, each in found.items() if each.keeps} == wanted


@given(calendars(), counts, st.sampled_from([Period.DAILY, Period.WEEKLY, Period.MONTHLY]), st.integers(0, 3))
def test_one_more_snapshot_or_a_higher_number_keeps_no_less(
    moments: list[dt.datetime], number: int, period: Period, more: int
) -> None:
    line = taken(moments)
    few = decisions(Policy(counted({period.value: number, "last": 1})), line, BERLIN)
    higher = ALL if number == ALL else number + more
    many = decisions(Policy(counted({period.value: higher, "last": 1})), line, BERLIN)
    assert {name for name, each in few.items() if each.keeps} <= {name for name, each in many.items() if each.keeps}


@given(calendars(), st.sampled_from(["1h", "1d", "1w", "1m", "1y"]))
def test_within_keeps_just_what_is_younger(moments: list[dt.datetime], text: str) -> None:
    line = taken(moments)
    limit = Duration.parse(text).before(dt.datetime.fromtimestamp(line[-1].created, BERLIN)).timestamp()
    found = decisions(policy(within=text), line, BERLIN)
    assert {name for name, each in found.items() if each.keeps} == {each.name for each in line if each.created > limit}
