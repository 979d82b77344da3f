"""Times of schedules: what systemd takes is taken where it can't be asked, and what it refuses is refused."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snaptree.plans.calendar import calendar_problem


def _lists(*numbers: str) -> st.SearchStrategy[str]:
    """Lists of numbers and ranges, mostly of good ones."""
    number = st.sampled_from([*numbers, *numbers, "0", "99", "999999999999999999999"])
    part = st.one_of(
        number,
        st.builds("{}..{}".format, number, number),
        st.builds("{}/{}".format, number, number),
        st.builds("{}..{}/{}".format, number, number, number),
    )
    return st.one_of(st.just("*"), part, st.lists(part, min_size=1, max_size=3).map(",".join))


_YEARS = _lists("12", "89", "1969", "1970", "2030", "2199", "2200")
_MONTHS = _lists("1", "2", "11", "12", "13")
_DAYS = _lists("1", "7", "28", "29", "31", "32")
_WEEKDAY = st.sampled_from(["Mon", "tue", "Wednesday", "THU", "Fri", "Saturday", "Sun", "Monda"])
_WEEKDAYS = st.one_of(_WEEKDAY, st.builds("{}..{}".format, _WEEKDAY, _WEEKDAY), st.builds("{}-Sun".format, _WEEKDAY))
_BEFORE = st.builds(
    lambda days, end: ",".join(days) + end,
    st.lists(_WEEKDAYS, min_size=1, max_size=3),
    st.sampled_from(["", " ", " ", "  ", ",", ", ", "..", " ,"]),
)
_DATES = st.one_of(
    st.builds("{}-{}-{}{}".format, _YEARS, _MONTHS, _DAYS, st.sampled_from([" ", " ", "  ", "", "T"])),
    st.builds("{}-{}~{} ".format, _YEARS, _MONTHS, _DAYS),
    st.builds("{}{}{} ".format, _MONTHS, st.sampled_from(["-", "~", "/"]), _DAYS),
    st.sampled_from(["@0", "@7258118399", "@7258118400", "@", "@1x", "@99999999999999999999999"]),
)
_MINUTES = _lists("1", "15", "59", "60")
_TIMES = st.one_of(
    st.builds("{}:{}".format, _lists("1", "8", "23", "24"), _MINUTES),
    st.builds(
        "{}:{}:{}".format, _lists("1", "8", "23", "24"), _MINUTES, _lists("1", "0.5", "59.9999999", "59.5", "1.")
    ),
)
_NOTHING = st.just("")
_GOOD_ZONES = st.sampled_from([" UTC", " utc", " Europe/Berlin", " Etc/GMT+1", " CET", " GMT+1", " Europe", "  UTC"])
_BAD_ZONES = st.sampled_from(
    [" europe/berlin", " Nowhere/X", " Mon", " /Europe/Berlin", " ../zone.tab", " ", "\n", "é"]
)
_ZONES = st.one_of(_NOTHING, _NOTHING, _GOOD_ZONES, _BAD_ZONES)
_WORDS = st.sampled_from(["minutely", "daily", "DAILY", "quarterly", "anually", "bi-annually", "fortnightly", "day"])
_EXPRESSIONS = st.one_of(
    st.builds("{}{}{}{}".format, _NOTHING | _BEFORE, _NOTHING | _DATES, _NOTHING | _TIMES, _ZONES),
    st.builds("{}{}".format, _WORDS, _ZONES),
    st.text("0123456789*-~:/,. MonFri", max_size=14),
)


def _is_taken(when: str) -> bool:
    """Whether systemd takes it."""
    command = ["systemd-analyze", "calendar", "--", when]
    return subprocess.run(command, capture_output=True, check=False, env={**os.environ, "TZ": "UTC"}).returncode == 0


@given(_EXPRESSIONS)
@example("*~1..1")
@example("*:0..5/10")
@example("1:00:0..0.5")
@example("*:*:*/5")
@example("*-*~1,28 ")
@example("*-*~1,1,28")
@example("12/12-*-*")
@example("*-*~7..29/7")
@example("*:*:0..0.999999")
def test_what_systemd_takes_is_a_time_and_nothing_else_is(when: str) -> None:
    assert (calendar_problem(when) == "") == _is_taken(when)


@pytest.mark.parametrize("when", ["daily", "Mon..Fri *-*-* 22:30:00", "*-*-1/2 2:00..8", "2:00 Etc/GMT+1", "Mon *-*~1"])
def test_times_are_taken_without_asking_systemd(when: str) -> None:
    assert calendar_problem(when) == ""


@pytest.mark.parametrize(
    "when",
    ["", " ", "daily\n", "daily\nUser=x", "%h", "$(reboot)", "nightly", "24:00", "*-13-*", "a" * 9999, "Fri..Mon"],
)
def test_what_is_no_time_is_refused_without_asking_systemd(when: str) -> None:
    assert calendar_problem(when).endswith("is no time that systemd knows. Write it like daily, hourly or *-*-* 02:00.")
