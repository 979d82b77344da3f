"""Hours of the day at which work may be done."""

from __future__ import annotations

import datetime as dt

import pytest

from snaptree.model.errors import SnapTreeError
from snaptree.plans.hours import Hours


@pytest.mark.parametrize(
    ("text", "allowed", "not_allowed"),
    [
        ("22:00-06:00", ("22:00", "23:59", "00:00", "05:59"), ("06:00", "12:00", "21:59")),
        ("1:30-04:00", ("01:30", "03:59"), ("01:29", "04:00", "23:00")),
        (" 12:00 - 00:00 ", ("12:00", "23:59"), ("00:00", "11:59")),
    ],
)
def test_hours(text: str, allowed: tuple[str, ...], not_allowed: tuple[str, ...]) -> None:
    hours = Hours.parse(text)
    for times, expected in ((allowed, True), (not_allowed, False)):
        assert [hours.allow(dt.datetime.fromisoformat(f"2026-11-26T{time}:00")) for time in times] == [expected] * len(
            times
        )
    assert Hours.parse(str(hours)) == hours


@pytest.mark.parametrize(
    "text", ["", "22:00", "22-6", "22:00-22:00", "25:00-06:00", "22:00-06:00-07:00", "22:00Z-06:00"]
)
def test_what_is_no_hours(text: str) -> None:
    with pytest.raises(SnapTreeError, match="no hours of the day"):
        Hours.parse(text)


@pytest.mark.parametrize(
    ("time", "waits", "machines", "expected"),
    [
        ("21:59", True, 1, "Waits until 22:00, and stops at 06:00: what has not gone by then stays,"),
        ("23:00", True, 1, "Begins now, and stops at 06:00: what has not gone by then stays,"),
        ("23:00", False, 2, "Machines whose turn has not come by then are not begun."),
        ("12:00", True, 2, "Machines whose turn has not come by then wait for the next day."),
        (
            "12:00",
            False,
            2,
            "It is not between 22:00 and 06:00 now: nothing is begun, and nothing waits for that time.",
        ),
    ],
)
def test_what_hours_mean_is_told_beforehand(time: str, waits: bool, machines: int, expected: str) -> None:
    moment = dt.datetime.fromisoformat(f"2026-11-26T{time}:00")
    foretold = Hours.parse("22:00-06:00").foretold(moment, waits=waits, machines=machines)
    assert expected in foretold
    assert ("Machines" in foretold) == (machines > 1 and "It is not" not in foretold)
