"""Carrying out a prune: in the hours in which that may be done, and no longer."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from snaptree.hosts.connection import Connection
from snaptree.hosts.reading import never
from snaptree.hosts.running import Run, begin_run
from snaptree.model.errors import SnapTreeError
from snaptree.plans.hours import Hours
from snaptree.plans.plan import Plan


class OutOfHoursError(SnapTreeError):
    """Not the time of the day at which this may be done. Nothing was."""


def begin_in_hours(
    between: Hours | None,
    connection: Connection,
    plan: Plan,
    *,
    cancelled: Callable[[], bool] = never,
    **options: Any,
) -> Run:
    """As `begin_run`; what is not done when the hours are over is cancelled as soon as that is possible.

    Raises OutOfHoursError if they are not now.
    """
    if between is not None and not are_now(between):
        raise OutOfHoursError(f"It is not {between.in_words}.", hint="Nothing was done.")
    return begin_run(connection, plan, cancelled=lambda: cancelled() or not are_now(between), **options)


def are_now(between: Hours | None) -> bool:
    """Whether it is one of these hours, on this computer's clock; any is, if there are none."""
    return between is None or between.allow(dt.datetime.now().astimezone())
