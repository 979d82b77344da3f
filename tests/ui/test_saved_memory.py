"""The memory of snapshots in the window: what it is, and giving it up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PySide6.QtWidgets import QLabel

from snaptree.model.estate import Consistency, MemorySnapshot
from snaptree.plans.intention import Capture, Take
from snaptree.ui.actions import Actions
from snaptree.ui.availability import Selection
from snaptree.ui.inspector import Inspector
from tests.kit.machines import EmbeddedHost, unchanged
from tests.ui.conftest import Driver
from tests.ui.test_inspector import inspector as inspector
from tests.ui.test_inspector import show
from tests.ui.values import MIB, layers_for, machine, snapshot


def saved_memory(inspector: Inspector) -> tuple[str, str]:
    """What the inspector says of it, in short and in full."""
    (fact,) = [fact for fact in inspector.facts.facts if fact.title == "Saved memory"]
    return fact.value, fact.explanation


def test_what_saved_memory_takes_and_why(inspector: Inspector) -> None:
    one = replace(snapshot("one", memory=True), nominal_memory=64 * MIB)
    shown = machine([one])
    assert shown.tree is not None
    for compression, value, why in (
        ("raw", "5.0 MiB of 64.0 MiB", "At least 59.0 MiB of that were zeros"),
        ("zstd", "5.0 MiB of 64.0 MiB, zstd", "It is compressed with zstd."),
        ("", "5.0 MiB of 64.0 MiB", "The guest had 64.0 MiB of RAM."),
    ):
        layers = replace(layers_for(shown.tree), memory_compressions={one.memory_file or "": compression})
        show(inspector, Selection(machine([one], layers=layers), ("one",)))
        said = saved_memory(inspector)
        assert said[0] == value
        assert why in said[1]
    assert saved_memory(inspector)[1].count("zeros") == 0


def test_it_can_be_dropped_where_it_is_in_a_file(inspector: Inspector) -> None:
    button, actions = inspector.drop_memory, inspector._actions
    show(inspector, Selection(machine([snapshot("one", memory=True)]), ("one",)))
    assert not button.isHidden()
    assert button.isEnabled()
    assert button.text() == "Drop Its Memory (frees 5.0 MiB)"
    assert actions.drop_memory.text() == "Drop Its &Memory… (frees 5.0 MiB)"
    show(inspector, Selection(machine([snapshot("one", memory=True, internal=True)]), ("one",)))
    assert not button.isHidden()
    assert not button.isEnabled()
    assert "Drop memory: The memory of “one” lies inside the image" in inspector.reasons.text()
    for nothing in (Selection(machine([snapshot("one")]), ("one",)), Selection(machine([snapshot("one")]))):
        show(inspector, nothing)
        assert button.isHidden()
        assert not actions.drop_memory.isEnabled()
        assert "Drop memory" not in inspector.reasons.text()


@pytest.mark.qemu
def test_a_preview_says_what_goes_and_then_it_goes(open_window: Callable[..., Driver], host: EmbeddedHost) -> None:
    made = host.make_machine()
    made.write(1)
    made.change(Take("one", capture=Capture.DISKS_AND_MEMORY))
    made.write(2)
    before, file = made.contents(), Path(made.tree()["one"].memory_file or "")
    driver = open_window(host.uri)
    driver.show_machine(host.uri, made.uuid)
    driver.view.select(["one"])
    actions: Actions = driver.window.actions_
    driver.until(actions.drop_memory.isEnabled)
    driver.window.inspector.drop_memory.click()
    dialog = driver.plan_dialog()
    assert any(f"Remove {file}" in label.text() for label in dialog.view.findChildren(QLabel))
    dialog.run_button.click()
    driver.last_operation()
    driver.until(lambda: driver.machine.tree is not None and driver.machine.tree["one"].memory is MemorySnapshot.NO)
    driver.settle()
    assert not file.exists()
    assert unchanged(before, made.contents())
    assert made.tree()["one"].consistency is Consistency.CRASH
    assert driver.window.inspector.drop_memory.isHidden()
    assert driver.window.inspector.subtitle.text().startswith("external, crash-consistent")
    assert driver.view.selected_names() == ("one",)
