"""Where the user's policies are: one TOML file that people edit."""

from __future__ import annotations

from pathlib import Path

from platformdirs import user_config_path

from snaptree.model.errors import SnapTreeError
from snaptree.plans.policy_file import PolicyFile, read_policies


def policies_path() -> Path:
    """The user's file of policies: `$XDG_CONFIG_HOME/snaptree/policies.toml` on Linux."""
    return user_config_path("snaptree") / "policies.toml"


def load_policies(path: Path | None = None) -> PolicyFile:
    """Read policies, by default the user's; there are none where there is no such file.

    Raises PolicyFileError with every mistake in the file, SnapTreeError if it can't be read.
    """
    file = path or policies_path()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if path is None:
            return PolicyFile()
        raise SnapTreeError(f"There is no file {file}.", hint="Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SnapTreeError(f"The policies in {file} can't be read: {error}.") from error
    return read_policies(text, str(file))
