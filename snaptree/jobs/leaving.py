"""The end of the program, whatever hosts are doing."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End the program now, after everything that must be kept has been closed.

    Python would join threads that wait for a host that hangs, and libvirt's callbacks would meet an interpreter
    that is being taken apart.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
