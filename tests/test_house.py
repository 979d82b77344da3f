"""The house: imports run one way, and each room keeps to its materials (CONTRIBUTING.md draws the map)."""

from __future__ import annotations

import ast
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

import snaptree
from snaptree import resources

PACKAGE = Path(snaptree.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

ROOMS = ("model", "images", "plans", "hosts", "jobs", "ui")
"""Each may import from itself and from those to its left."""

DOORS = {"cli", "terminal", "words", "demo", "__main__"}
"""What stands beside the rooms: they may import from every room."""

OPEN_TO_ALL = {"resources", "__version__"}
"""What belongs to no room and imports from none."""

MAY_ENTER = {
    ("ui", "demo"),
    ("ui", "words"),
    ("cli", "terminal"),
    ("cli", "demo"),
    ("terminal", "demo"),
    ("terminal", "words"),
    ("__main__", "cli"),
}
"""Doors that open into each other, and from the window: (who imports, what)."""


def name_of(module: Path) -> str:
    """`snaptree.model.tree` for its file."""
    parts = ("snaptree", *module.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    """The room of a module's name: `model` of `snaptree.model.tree`; empty for `snaptree` itself."""
    return [*name.split("."), ""][1]


def imports_of(module: Path, *, at_import_only: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of whatever a module imports, be it for types only, or not before a function is called."""
    package = name_of(module).split(".")
    if module.name != "__init__.py":
        package = package[:-1]

    def walk(node: ast.AST) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, node.module] if node.module else base)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif at_import_only and (isinstance(node, ast.FunctionDef) or is_for_types(node)):
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(module.read_text(encoding="utf-8"), module))


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def may_import(importer: str, imported: str) -> bool:
    """Whether a module of one room may import from another."""
    if importer == imported or imported in OPEN_TO_ALL or (importer, imported) in MAY_ENTER:
        return True
    if imported not in ROOMS:
        return False
    return importer in DOORS or (importer in ROOMS and ROOMS.index(imported) <= ROOMS.index(importer))


def is_of(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_run_one_way(module: Path) -> None:
    room = room_of(name_of(module))
    wrong = [
        f"{module}:{line} imports {name}"
        for line, name in imports_of(module)
        if is_of(name, "snaptree") and not may_import(room, room_of(name))
    ]
    assert not wrong


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_each_room_keeps_to_its_materials(module: Path) -> None:
    room = room_of(name_of(module))
    for line, name in imports_of(module):
        where = f"{module}:{line} imports {name}"
        assert not name.endswith(".*"), where
        if is_of(name, "libvirt", "libvirt_qemu", "libvirtmod"):
            assert room == "hosts", where
        if is_of(name, "PySide6", "shiboken6"):
            assert room == "ui" or (room == "jobs" and is_of(name, "PySide6.QtCore")), where


def test_every_room_is_there_and_says_what_it_is() -> None:
    for room in ROOMS:
        text = (PACKAGE / room / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), room
    known = {*ROOMS, *DOORS, *OPEN_TO_ALL, ""}
    assert {room_of(name_of(module)) for module in MODULES} <= known, "a room that is on no map"


def test_the_terminal_starts_without_window_and_host() -> None:
    """`snaptree --help` must not wait for libraries that it does not need."""
    slow = ["PySide6", "libvirt", "numpy", "rich", "snaptree.ui", "snaptree.hosts", "snaptree.jobs"]
    program = f"import sys, snaptree.cli; print(*[name for name in {slow} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert found.stdout.split() == []


def test_the_command_line_opens_the_window_only_when_asked() -> None:
    for module in (PACKAGE / "cli.py", *(PACKAGE / "terminal").glob("*.py")):
        eager = [name for _, name in imports_of(module, at_import_only=True)]
        assert not [name for name in eager if is_of(name, "snaptree.ui", "snaptree.jobs", "PySide6")]


def test_resources_are_found_and_can_be_drawn() -> None:
    icons = sorted((resources.directory() / "icons").glob("*.svg"))
    assert icons
    for icon in icons:
        assert ET.parse(icon).getroot().tag == "{http://www.w3.org/2000/svg}svg", icon
        assert resources.path(f"icons/{icon.name}") == icon


def test_every_tooltip_is_plain_text() -> None:
    """Qt takes a tooltip for markup if it looks like it: so each is made by `tooltip`, or is a text of ours."""

    def is_harmless(text: ast.expr) -> bool:
        if isinstance(text, ast.Call):
            return isinstance(text.func, ast.Name) and text.func.id == "tooltip"
        return isinstance(text, ast.Constant) and "<" not in str(text.value)

    calls = [
        (module.name, call)
        for module in MODULES
        if room_of(name_of(module)) == "ui"
        for call in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "setToolTip"
    ]
    assert calls
    assert [f"{name}:{call.lineno}" for name, call in calls if not is_harmless(call.args[0])] == []


def test_nothing_lists_snapshots_by_the_call_that_reads_past_its_end() -> None:
    used = [module for module in MODULES if "snapshotListNames(" in module.read_text(encoding="utf-8")]
    assert used == []
