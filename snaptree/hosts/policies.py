"""Where the user's policies are: one TOML file that people edit."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from platformdirs import user_config_path

from snaptree.hosts.timers import time_problem
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
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise SnapTreeError(
            f"The policies can't be written to {path}: {error.strerror}.",
            hint=f"Let this account write to {file.parent}, or name another file: --file PATH.",
        ) from error


def policies_text(path: Path) -> str | None:
    """The file as it is written; None where there is none. Raises SnapTreeError if it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SnapTreeError(
            f"{path}, line {line}: what stands there is no text in UTF-8.",
            hint="Save the file in that encoding; an editor can, and iconv.",
        ) from error
    except IsADirectoryError as error:
        raise SnapTreeError(
            f"{path} is a directory, where the file of policies should be.",
            hint="Move it away, or name the file: --file PATH.",
        ) from error
    except PermissionError as error:
        raise SnapTreeError(
            f"This account may not read the policies in {path}.",
            hint="Let its owner allow that (chmod), or run this as that user.",
        ) from error
    except OSError as error:
        raise SnapTreeError(
            f"The policies in {path} can't be read: {error.strerror}.", hint="Look at the file and its directory."
        ) from error


def load_policies(path: Path | None = None) -> PolicyFile:
    """Read policies, by default the user's; there are none where there is no such file. systemd is asked about times.

    Raises PolicyFileError if the file is no TOML, SnapTreeError if it can't be read.
    """
    file = path or policies_path()
    text = policies_text(file)
    if text is None and path is not None:
        raise SnapTreeError(f"There is no file {file}.", hint="Check the path.")
    return policies_in(text or "", file)


def policies_in(text: str, path: Path) -> PolicyFile:
    """The policies of a text that stands, or is to stand, in a file. Raises PolicyFileError if it is no TOML."""
    return read_policies(text, str(path), time_problem=time_problem)
