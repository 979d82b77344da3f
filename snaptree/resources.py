"""Where the files are that travel with the program: icons, style, desktop file."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def directory() -> Path:
    """`snaptree/resources` where the program is installed, `resources` beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "resources"
    return installed if installed.is_dir() else package.parent / "resources"


def path(name: str) -> Path:
    """The path of one resource, such as `icons/take.svg`."""
    return directory() / name
