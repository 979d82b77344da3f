"""The bar of a plan of several steps: it goes by bytes where the plan forecast them, and never back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.hosts.overall import Overall
from snaptree.model.figures import exact
from snaptree.plans.operation import Progress
from snaptree.plans.plan import Action, Forecast, Plan


def plan(copies: int | None = None) -> Plan:
    forecast = Forecast() if copies is None else Forecast(copies=exact(copies))
    return Plan(Action.PRUNE, "", "", "web-01", (), forecast=forecast)


def test_steps_count_by_the_bytes_that_they_copy() -> None:
    overall = Overall(plan(100))
    told = [
        Progress("Merge", 0, 4),
        Progress("Merge", 0, 4, done=40, total=80),
        Progress("Record", 1, 4),
        Progress("Remove", 2, 4),
        Progress("Merge", 3, 4, done=10, total=20),
        Progress("Merge", 3, 4, done=20, total=20),
    ]
    assert [overall.share(each) for each in told] == [None, 0.4, 0.8, 0.8, 0.9, 1.0]


def test_without_a_forecast_all_steps_count_the_same() -> None:
    overall = Overall(plan())
    told = [Progress("", 0, 4, done=1, total=2), Progress("", 1, 4), Progress("", 3, 4, share=0.5)]
    assert [overall.share(each) for each in told] == [pytest.approx(each) for each in (0.125, 0.25, 0.875)]


def test_the_only_step_says_itself_how_far_all_is() -> None:
    assert Overall(plan(100)).share(Progress("", 0, 1, done=50, total=100)) is None


@given(
    st.none() | st.integers(0, 1000),
    st.lists(
        st.tuples(
            st.booleans(),
            st.none() | st.integers(0, 1000),
            st.none() | st.integers(0, 1000),
            st.none() | st.floats(0, 1),
        )
    ),
)
def test_it_never_goes_back(
    forecast: int | None, told: list[tuple[bool, int | None, int | None, float | None]]
) -> None:
    overall, step, before = Overall(plan(forecast)), 0, 0.0
    for is_next, done, total, share in told:
        step += is_next
        now = overall.share(Progress("", step, len(told) + 2, done, total, share)) or 0.0
        assert before <= now <= 1.0
        before = now
