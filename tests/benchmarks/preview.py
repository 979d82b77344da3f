"""The prune sheet while somebody moves a slider: from the moved slider to rows, reasons and totals on the screen.

The machine is made of plain values, a line of external snapshots that were analysed. Beside it stands what working it
out takes by itself, and for how long the window heard nothing meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from PySide6.QtCore import QCoreApplication, QEvent, QObject

from snaptree.jobs.host_backend import HostBackend, TreeReading
from snaptree.model.estate import Annotations, DomainState
from snaptree.model.merging import LayerTree
from snaptree.model.tree import SnapshotTree
from snaptree.plans.policy import Period
from snaptree.plans.prune import prune
from snaptree.ui.estate import HostEntry
from snaptree.ui.prune_dialog import PruneDialog
from tests.benchmarks.comparison import Comparison, in_turn
from tests.benchmarks.window import Deafness, open_window, run_until
from tests.ui.values import CONNECTED, analysed, chain, costs_for, layers_for, machine

AIM_SECONDS = 0.1
_MOVES = range(1, 11)
"""Where the slider is moved to, in each run."""


@dataclass(frozen=True)
class _Moves:
    """Seconds, of moves of a slider: from the one to what is painted then, on average; and the longest stall."""

    shown: float
    stall: float


class _Paints(QObject):
    """Whether the tree of a sheet was painted as it is to be: it may be in the moment in which that is known."""

    def __init__(self, dialog: PruneDialog) -> None:
        super().__init__(dialog)
        self.is_shown = False
        self._dialog = dialog
        dialog.tree.viewport().installEventFilter(self)

    def eventFilter(self, _watched: QObject, event: QEvent) -> bool:
        self.is_shown |= event.type() is QEvent.Type.Paint and self._dialog.is_up_to_date
        return False


def measure(runs: int, sizes: tuple[int, ...]) -> Iterator[Comparison]:
    """Yield comparisons for one machine of each size."""
    for size in sizes:
        with _sheet(size) as dialog:
            moves, alone = in_turn(partial(_move, dialog), partial(_alone, dialog), runs)
        what, shown = f"{size:,} snapshots", tuple(move.shown for move in moves)
        yield Comparison(f"{what}: shown anew", shown, aim=AIM_SECONDS)
        yield Comparison(f"{what}: the same, beside", shown, tuple(alone), "worked out only")
        yield Comparison(f"{what}: longest stall", tuple(move.stall for move in moves))


@contextmanager
def _sheet(size: int) -> Iterator[PruneDialog]:
    """A sheet on the screen, for a machine of which a schedule took that many snapshots."""
    snapshots = [replace(each, annotations=Annotations(schedule="nightly")) for each in chain(size)]
    tree = SnapshotTree.build(snapshots, snapshots[-1].name)
    with open_window() as session:
        shown = machine(snapshots, snapshots[-1].name, state=DomainState.OFF)
        backend = HostBackend(CONNECTED.uri)
        entry = HostEntry(backend, "", session.window)
        backend.host_changed.emit(CONNECTED)
        backend.domains_changed.emit((shown.domain,))
        backend.tree_changed.emit(shown.id.uuid, TreeReading(tree, complete=True))
        backend.costs_changed.emit(shown.id.uuid, costs_for(tree, analysed(layers_for(tree))))
        known = entry.machine(shown.id.uuid)
        assert known is not None
        dialog = PruneDialog(entry, known, session.window)
        dialog.open()
        run_until(lambda: dialog.is_up_to_date)
        assert dialog.prune_button.isEnabled(), "nothing was worked out"
        yield dialog
        dialog.close()
        backend.close()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def _move(dialog: PruneDialog) -> _Moves:
    deafness, paints = Deafness(), _Paints(dialog)
    deafness.start()
    slider, total = dialog.form.sliders[Period.LAST], 0.0
    for place in _MOVES:
        began = time.perf_counter()
        slider.setValue(place if slider.value() != place else 0)
        paints.is_shown = False
        run_until(lambda: paints.is_shown)
        total += time.perf_counter() - began
    return _Moves(total / len(_MOVES), deafness.stop())


def _alone(dialog: PruneDialog) -> float:
    """Seconds for the same, worked out once and not shown."""
    policy, known = dialog.form.policy(), dialog.tree.decided.shown.machine
    assert policy is not None
    assert known is not None
    assert known.tree is not None
    assert known.costs is not None
    layer_tree = LayerTree(known.tree, known.costs.layers)
    prune(policy, layer_tree, int(time.time()))  # as in the sheet: what is asked of layers is asked once
    began = time.perf_counter()
    prune(policy, layer_tree, int(time.time()))
    return time.perf_counter() - began
