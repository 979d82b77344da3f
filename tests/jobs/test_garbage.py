"""Garbage is collected on the window's thread while hosts are open, and by Python otherwise."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
from PySide6.QtCore import QObject, Qt

from snaptree.jobs.garbage import GarbageCollector, collector
from tests.jobs.conftest import Listener


class Circle(QObject):
    """An object of Qt's that only the garbage collector can destroy, which says on which thread that happened."""

    def __init__(self) -> None:
        super().__init__()
        self.itself = self


@pytest.fixture
def held(qapp: object) -> Iterator[GarbageCollector]:
    held = collector()
    held.hold()
    yield held
    held.release()


def make_garbage(circles: int) -> list[weakref.ref[Circle]]:
    return [weakref.ref(Circle()) for _ in range(circles)]


def allocate(values: int) -> list[list[int]]:
    """What a thread that reads does: many objects that stay."""
    return [[number] for number in range(values)]


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_no_worker_destroys_objects_of_the_window(held: GarbageCollector) -> None:
    garbage = make_garbage(10)
    kept: list[object] = []
    in_a_thread(lambda: kept.append(allocate(100_000)))
    assert all(circle() is not None for circle in garbage)
    held.collect_all()
    assert all(circle() is None for circle in garbage)


def test_young_garbage_goes_in_small_bites(held: GarbageCollector) -> None:
    held.collect_all()
    garbage = make_garbage(10)
    held.collect_young()
    assert garbage[0]() is not None, "not worth it yet"
    kept = allocate(6_000)
    held.collect_young()
    assert garbage[0]() is None
    assert kept


def test_a_large_tree_is_not_looked_through_while_the_window_is_used(held: GarbageCollector) -> None:
    kept = allocate(50_000)
    garbage = make_garbage(1)
    held.collect_young()
    assert gc.get_freeze_count() > 50_000
    held.collect_all()
    assert garbage[0]() is None, "it goes with the next full collection"
    assert kept


def test_a_window_that_loses_the_focus_has_time(held: GarbageCollector) -> None:
    garbage = make_garbage(1)
    held._state_changed(Qt.ApplicationState.ApplicationActive)
    assert garbage[0]() is not None
    held._state_changed(Qt.ApplicationState.ApplicationInactive)
    assert garbage[0]() is None


def test_python_collects_again_when_no_host_is_open(listen: Callable[..., Listener]) -> None:
    interval = sys.getswitchinterval()
    first, second = listen("test:///default"), listen("test:///default")
    assert gc.isenabled()
    first.open()
    second.open()
    assert not gc.isenabled()
    first.backend.close()
    assert not gc.isenabled()
    second.backend.close()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert sys.getswitchinterval() == interval
    collector().collect_young()
