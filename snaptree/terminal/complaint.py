"""Errors on the terminal: one line, before anything heavy is imported."""

from __future__ import annotations

import sys

from snaptree.model.errors import SnapTreeError
from snaptree.terminal.escaping import plain


def complain(error: SnapTreeError) -> None:
    """One line: what, why and what to do."""
    sys.stderr.write(f"snaptree: {plain(' '.join(str(error).split()))}\n")
