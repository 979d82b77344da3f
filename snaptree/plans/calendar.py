"""systemd's calendar expressions: whether it would take one, where it is not there to be asked.

The grammar is that of systemd.time(7), and where that says little, of systemd 252's own reader.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zoneinfo import TZPATH

from snaptree.plans.wording import quoted

_WORDS: Final = {
    *("minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly", "annually", "anually"),
    *("biannually", "bi-annually", "semiannually", "semi-annually"),
}
_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEKDAY: Final = "(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday|mon|tue|wed|thu|fri|sat|sun)"
_DAYS: Final = rf"{_WEEKDAY}(?:(?:\.\.|-){_WEEKDAY})?"
_MOST_PARTS: Final = 241
"""Of a list."""


def _list_of(number: str) -> str:
    """A list of numbers and ranges, each of which may be repeated; or any."""
    part = rf"{number}(?:\.\.{number})?(?:/{number})?"
    return rf"(\*|{part}(?:,{part})*)"


_LIST: Final = _list_of(r"\d+")
_LIST_OF_SECONDS: Final = _list_of(r"\d+(?:\.\d+)?")
_EXPRESSION: Final = re.compile(
    rf"(?:(?P<weekdays>{_DAYS}(?:,{_DAYS})*),?(?: +|$))?"
    rf"(?:@(?P<seconds>\d+)"
    rf"|(?:(?:(?P<year>{_LIST})-)?(?P<month>{_LIST})(?P<before>[-~])(?P<day>{_LIST})(?: +|$))?"
    rf"(?:(?P<hour>{_LIST}):(?P<minute>{_LIST})(?::(?P<second>{_LIST_OF_SECONDS}))?)?)",
    re.ASCII,
)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(?:\.\.(\d+(?:\.\d+)?))?(?:/(\d+(?:\.\d+)?))?")
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")

_MOST: Final = (1 << 31) - 1
"""No number of systemd's is larger."""
_MILLIONTHS: Final = 1_000_000
_END_OF_TIME: Final = 7_258_118_400
"""Seconds since 1970: the year 2200, which systemd does not know."""


def calendar_problem(when: str) -> str:
    """Why systemd would take this for no calendar expression; empty if it would take it."""
    return "" if _is_calendar(when) else no_time(when)


def no_time(when: str) -> str:
    """Tell that systemd takes this for no calendar expression, and what one looks like."""
    return f"{quoted(when)} is no time that systemd knows. Write it like daily, hourly or *-*-* 02:00."


def _is_calendar(when: str) -> bool:
    if not when.isascii():
        return False
    text = _without_zone(when).lower()
    if text in _WORDS:
        return True
    match = _EXPRESSION.fullmatch(text)
    if match is None or not text:
        return False
    said = match.groupdict()
    return (
        int((said["seconds"] or "0").lstrip("0")[:12] or 0) < _END_OF_TIME
        and _are_weekdays(said["weekdays"] or "")
        and _Numbers(1970, 2199, are_years=True).has(said["year"])
        and _Numbers(1, 12).has(said["month"])
        and _Numbers(1, 31, are_from_end=said["before"] == "~").has(said["day"])
        and _Numbers(0, 23).has(said["hour"])
        and _Numbers(0, 59).has(said["minute"])
        and _Numbers(0, 60 * _MILLIONTHS - 1, unit=_MILLIONTHS).has(said["second"])
    )


def _without_zone(when: str) -> str:
    """What stands before a time zone."""
    text, space, last = when.rpartition(" ")
    is_ours = last.lower() in ("utc", *map(str.lower, time.tzname))
    return text if space and (is_ours or _is_zone(last)) else when


def _is_zone(name: str) -> bool:
    """Whether this computer knows a time zone of this name: systemd looks there, and not into Python's own tables."""
    return bool(_ZONE.fullmatch(name)) and any(Path(directory, name).is_file() for directory in TZPATH)


def _are_weekdays(text: str) -> bool:
    """Whether no range of them goes backwards."""
    ranges = [[_WEEKDAYS.index(day[:3]) for day in re.split(r"\.\.|-", part)] for part in text.split(",") if part]
    return all(days == sorted(days) for days in ranges)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Those that one place of an expression may have, in units."""

    least: int
    most: int
    unit: int = 1
    are_years: bool = False
    are_from_end: bool = False
    """Days, counted from the end of the month: the 28th at most, which every month has."""

    def has(self, text: str | None) -> bool:
        """Whether all of a list is among them, and whatever is repeated comes twice at least."""
        if text is None or text == "*":
            return True
        texts = text.split(",")
        found = [part for each in texts if (part := self._part(each)) is not None]
        if len(found) < len(texts) or len(texts) > _MOST_PARTS:
            return False
        # systemd takes three days off for each part of a list, as its reader calls itself.
        less = 3 if self.are_from_end else 0
        parts = enumerate(sorted(set(found)), start=1)
        return all(self._has_part(*part, most=self.most - number * less) for number, part in parts)

    def _part(self, text: str) -> tuple[int, int, int] | None:
        """The first number of a part, the last one or -1, and the step or 0; None if it is no part at all."""
        match = _PART.fullmatch(text)
        if match is None:
            return None
        first, last, step = (-1 if number is None else self._number(number) for number in match.groups())
        if max(first, last, step) > _MOST or step == 0:
            return None
        if self.are_years:
            first, last = _year(first), _year(last)
        if last < 0:
            return first, -1, max(step, 0)
        if step < 0 and self.unit > 1 and first + self.unit > last:
            return None  # of seconds, a range of one can't be meant
        step = self.unit if step < 0 else step
        if last > first:
            last -= (last - first) % step
        return (first, -1, 0) if last == first else (first, last, step)

    def _has_part(self, first: int, last: int, step: int, *, most: int) -> bool:
        if last >= 0:
            return self.least <= first < last <= most and step <= most - self.least
        is_repeated = first - step >= self.least if self.are_from_end else first + step <= most
        return self.least <= first <= most and is_repeated

    def _number(self, text: str) -> int:
        """A number, rounded; what is too long to be any good is too large."""
        whole, _, fraction = text.partition(".")
        digits = f"{fraction:0<7}"
        rounded = int(digits[:6]) + (digits[6] >= "5") if fraction else 0
        return int(whole.lstrip("0")[:12] or 0) * self.unit + rounded


def _year(number: int) -> int:
    """One of two digits is of a century: 12 is 2012, 89 is 1989."""
    return number + 2000 if 0 <= number < 70 else number + 1900 if 70 <= number < 100 else number
