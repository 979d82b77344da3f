"""Changes from the terminal: what is read for a plan, the question, and the progress of a run."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from snaptree import words
from snaptree.hosts.connection import Connection
from snaptree.hosts.journal import Journal, journal_of, journal_path
from snaptree.hosts.layers import analysed
from snaptree.hosts.measuring import DirtyRate
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.running import run_plan
from snaptree.hosts.situation import read_situation, read_to_describe
from snaptree.plans.intention import Intention, Recover, Take, only_describes, places_of
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Plan
from snaptree.plans.planner import needs_analysis
from snaptree.plans.situation import Situation
from snaptree.terminal.console import console, plain

_Result = TypeVar("_Result")


def situation_for(connection: Connection, uuid: str, intention: Intention) -> Situation:
    """All that planning this has to know."""
    if only_describes(intention):
        situation = read_to_describe(connection, uuid)
    else:
        situation = read_situation(connection, uuid, places_of(intention))
    if isinstance(intention, Take) and intention.live:
        situation = replace(situation, dirty_rate=DirtyRate(connection, uuid).wait())
    with journal_of(connection.uri) as known:
        situation = with_operations(connection, situation, known, recovers=isinstance(intention, Recover))
        if known is not None:
            situation = replace(situation, speed=known.speed(connection.uri))
    if needs_analysis(intention, situation):
        situation = replace(situation, layers=analysed(connection, situation.layers))
    return situation


def agreed() -> bool:
    """Ask whether to go on. Where nobody can be asked, say so."""
    if not sys.stdin.isatty():
        sys.stderr.write("snaptree: Not run: there is nobody to ask. Give --yes to go on, or --dry-run for the plan.\n")
        return False
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")


def run_with_progress(
    connection: Connection, plan: Plan, *, undoes: int | None = None, limit: int | None = None
) -> Operation:
    """Run a plan, and show how far it is; `limit` is in bytes per second."""
    with closing(Journal(journal_path(connection.uri))) as journal:
        run = partial(run_plan, connection, plan, journal=journal, undoes=undoes)
        return with_progress(plan.domain, run, limit=limit)


class _Doing(ProgressColumn):
    """The step in words. It is long, with files in it, and gives way to the figures."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=False))  # of columns that don't wrap, rich cuts each

    def render(self, task: Task) -> Text:
        """One line."""
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class ProgressBar(Progress):
    """One line on a screen that says how far work is; nothing elsewhere."""

    def __init__(self, name: str, out: Console) -> None:
        figures = TextColumn("{task.fields[how_far]}", markup=False)
        bar = BarColumn(bar_width=20)
        super().__init__(_Doing(), bar, figures, console=out, transient=True, disable=not out.is_terminal)
        self._task = self.add_task(plain(name), total=None, how_far="")

    def show(self, operation: Operation) -> None:
        """Show how far this is."""
        if (progress := operation.progress) is not None:
            self.update(
                self._task,
                description=plain(progress.doing),
                completed=progress.fraction or 0.0,
                total=None if progress.fraction is None else 1.0,
                how_far=words.how_far(progress),
            )


def with_progress(
    name: str, run: Callable[..., _Result], *, limit: int | None = None, stop: threading.Event | None = None
) -> _Result:
    """Run something with a progress bar. The first Ctrl+C asks it to stop where it can, the second gives up waiting.

    `stop` is set by the first Ctrl+C, for who has more to run.
    """
    out = console(stderr=True)
    asked_to_stop = stop or threading.Event()

    def ask_to_stop(_signal: int, _frame: object) -> None:
        if asked_to_stop.is_set():
            raise KeyboardInterrupt
        asked_to_stop.set()
        out.print(
            "Stopping. A merge under way is left half done then, and finished by 'snaptree recover'."
            " Ctrl+C again gives up waiting."
        )

    with ProgressBar(plain(name), out) as bar:
        before = signal.signal(signal.SIGINT, ask_to_stop)
        try:
            return run(
                on_progress=bar.show,
                cancelled=asked_to_stop.is_set,
                bandwidth=lambda: limit,
            )
        finally:
            signal.signal(signal.SIGINT, before)
