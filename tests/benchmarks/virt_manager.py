"""Start virt-manager so that it opens a machine's snapshot page at once, for which it has no option of its own.

Run as a script with virt-manager's own arguments, and by its Python: `--connect URI --show-domain-editor VM`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

SOURCES = "/usr/share/virt-manager"


def main() -> None:
    sys.path.insert(0, SOURCES)
    virt_manager: Any = importlib.import_module("virtManager.virtmanager")
    import_gtk = virt_manager._import_gtk

    def import_gtk_and_change_it(arguments: list[str]) -> Any:
        rest = import_gtk(arguments)
        window: Any = importlib.import_module("virtManager.vmwindow")
        window.vmmVMWindow.activate_config_page = press_snapshots
        return rest

    virt_manager._import_gtk = import_gtk_and_change_it
    virt_manager.runcli()


def press_snapshots(window: Any) -> None:
    """Press the button that a user would press."""
    window.widget("control-snapshots").set_active(True)


if __name__ == "__main__":
    main()
