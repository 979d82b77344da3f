"""The choices of the take dialog: one line says what each costs, and what is none says why."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PySide6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from snaptree.model.estate import DomainState
from snaptree.model.figures import Confidence, Figure
from snaptree.plans.intention import Capture, Take
from snaptree.plans.plan import Action, Finding, Forecast, Freeze, Plan
from snaptree.plans.planner import make_plan
from snaptree.ui.take_choices import Kind, TakeChoices, forecast_line, why_not
from tests.plans.situations import a_machine, disk
from tests.ui.values import MIB, URI

FORECAST = Forecast(
    peak_extra=Figure(MIB // 4, Confidence.UPPER_BOUND), pause_seconds=0.0, growth=3 * MIB, free=1024 * MIB
)
POSSIBLE = Plan(Action.TAKE, URI, "web", "web-01", ("new",), forecast=FORECAST)
REFUSED = replace(POSSIBLE, refusals=(Finding("raw", "vda is raw.", "Take an external one."),))


@pytest.mark.parametrize(
    ("forecast", "says"),
    [
        (FORECAST, "≤ 256.0 KiB now, then about 3.0 MiB a day; no pause; 1.0 GiB free"),
        (replace(FORECAST, growth=None, free=None), "≤ 256.0 KiB now; no pause"),
        (
            replace(FORECAST, likely_extra=5 * MIB, growth=0, pause_seconds=0.3),
            "About 5.0 MiB now; pause of about 0.3 s; 1.0 GiB free",
        ),
        (
            replace(FORECAST, growth=None, free=None, pause_seconds=None, seconds=40.0),
            "≤ 256.0 KiB now; pause not known yet; takes about 40 seconds",
        ),
    ],
)
def test_a_choice_says_what_it_costs(forecast: Forecast, says: str) -> None:
    assert forecast_line(forecast, is_active=True) == says


def test_nobody_is_there_to_pause_while_it_is_off() -> None:
    assert "pause" not in forecast_line(FORECAST, is_active=False)


@pytest.mark.parametrize(
    ("rate", "says"), [(0, "it hardly changes its memory"), (3 * MIB, "it changes 3.0 MiB a second of its memory")]
)
def test_what_the_guest_changes_is_said_where_it_matters(rate: int, says: str) -> None:
    assert f"; {says}; " in forecast_line(FORECAST, is_active=True, dirty_rate=rate)


def test_memory_of_a_machine_that_is_off_is_no_choice() -> None:
    off = replace(POSSIBLE, warnings=(Finding("no-memory-to-save", "web-01 is off."), Finding("long-chain", "Long.")))
    assert why_not(off) == "web-01 is off."
    assert why_not(replace(POSSIBLE, warnings=(Finding("long-chain", "Long."),))) == ""
    assert why_not(REFUSED) == "vda is raw. Take an external one."


def test_what_can_be_again_is_offered_again(qtbot: QtBot) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    choices = TakeChoices(parent, is_active=True)
    inside = choices.buttons[Kind.INTERNAL]
    choices.show_plans({Kind.INTERNAL: REFUSED}, None)
    assert not inside.isEnabled()
    assert inside.accessibleDescription() == "Not now: vda is raw. Take an external one."
    choices.show_plans({Kind.INTERNAL: POSSIBLE}, None)
    assert inside.isEnabled()
    assert inside.accessibleDescription().endswith("1.0 GiB free")
    inside.click()
    choices.show_plans({Kind.INTERNAL: REFUSED}, None)
    assert inside.isEnabled(), "what is chosen stays in reach"
    assert choices.kind is Kind.INTERNAL


@pytest.mark.parametrize(
    ("kind", "take", "says"),
    [
        (Kind.FROZEN, Take(capture=Capture.DISKS, quiesce=Freeze.IF_POSSIBLE), "They can't be frozen now"),
        (Kind.MEMORY, Take(capture=Capture.DISKS_AND_MEMORY, excluded_disks=("vdb",)), "it is not brought back"),
        (Kind.MEMORY, Take(capture=Capture.DISKS_AND_MEMORY), "A revert goes on exactly where the guest is now"),
        (Kind.DISKS, Take(capture=Capture.DISKS), "A revert is like switching it on after a power cut"),
    ],
)
def test_what_a_choice_means_is_what_it_comes_to_here(qtbot: QtBot, kind: Kind, take: Take, says: str) -> None:
    parent = QWidget()
    qtbot.addWidget(parent)
    choices = TakeChoices(parent, is_active=True)
    running = a_machine(disk("vda"), disk("vdb"), state=DomainState.RUNNING).build()
    choices.show_plans({kind: make_plan(take, running)}, None)
    assert says in choices.buttons[kind].accessibleDescription()
