"""Hours of the day at which work may be done."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from snaptree.model.errors import SnapTreeError
from snaptree.plans.wording import quoted


@dataclass(frozen=True, slots=True)
class Hours:
    """From one time of the day to another, on local clocks; over midnight if the second is earlier."""

    begin: dt.time
    end: dt.time

    @classmethod
    def parse(cls, text: str) -> Hours:
        """Read `22:00-06:00`. Raises SnapTreeError for anything else, and for no time at all."""
        begin, _, end = text.partition("-")
        try:
            hours = cls(*(dt.time.fromisoformat(part.strip().zfill(5)) for part in (begin, end)))
        except ValueError:
            hours = cls(dt.time(), dt.time())
        if hours.begin == hours.end or hours.begin.tzinfo or hours.end.tzinfo:
            raise SnapTreeError(f"{quoted(text)} are no hours of the day.", hint="Write them like 22:00-06:00.")
        return hours

    def allow(self, moment: dt.datetime) -> bool:
        """Whether a moment, on local clocks, is one of these."""
        time = moment.time()
        if self.begin < self.end:
            return self.begin <= time < self.end
        return time >= self.begin or time < self.end

    @property
    def in_words(self) -> str:
        """`between 22:00 and 06:00`."""
        return f"between {self.begin:%H:%M} and {self.end:%H:%M}"

    def foretold(self, moment: dt.datetime, *, waits: bool, machines: int = 1) -> str:
        """What these hours mean for work that somebody is about to agree to at a moment, on local clocks.

        `waits`: who does it waits for them. Else nothing is begun at another time.
        """
        if not waits and not self.allow(moment):
            return f"It is not {self.in_words} now: nothing is begun, and nothing waits for that time."
        begins = "Begins now" if self.allow(moment) else f"Waits until {self.begin:%H:%M}"
        others = ""
        if machines > 1:
            others = " Machines whose turn has not come by then " + (
                "wait for the next day." if waits else "are not begun."
            )
        return (
            f"{begins}, and stops at {self.end:%H:%M}: what has not gone by then stays, and a merge that is cut short"
            f" can be finished.{others}"
        )

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"
