"""Where the user's policies are: one TOML file that people edit."""

from __future__ import annotations

import shutil
from pathlib import Path

from platformdirs import user_config_path

from snaptree.model.errors import SnapTreeError
from snaptree.plans.policy_file import PolicyFile, read_policies


def policies_path() -> Path:
    """The user's file of policies: `$XDG_CONFIG_HOME/snaptree/policies.toml` on Linux."""
    return user_config_path("snaptree") / "policies.toml"


def write_policies(path: Path, text: str) -> None:
    """Write the file anew, at once or not at all. A link stays one. Raises SnapTreeError if that can't be done."""
    file = path.resolve()
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        if file.exists():
            shutil.copymode(file, part)
        part.replace(file)
    except OSError as error:
        raise SnapTreeError(f"{path} can't be written: {error}.", hint="Check the directory's owner.") from error


def policies_text(path: Path) -> str | None:
    """The file as it is written; None where there is none. Raises SnapTreeError if it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SnapTreeError(f"The policies in {path} can't be read: {error}.") from error


def load_policies(path: Path | None = None) -> PolicyFile:
    """Read policies, by default the user's; there are none where there is no such file.

    Raises PolicyFileError with every mistake in the file, SnapTreeError if it can't be read.
    """
    file = path or policies_path()
    text = policies_text(file)
    if text is None and path is not None:
        raise SnapTreeError(f"There is no file {file}.", hint="Check the path.")
    return read_policies(text or "", str(file))
