"""Words of commands to be copied: shells read them back as they were."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snaptree.model.text import shell_word

SHELLS = [shell for shell in ("bash", "zsh") if shutil.which(shell)]
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def read_back(shell: str, words: str) -> list[bytes]:
    """The arguments that a shell makes of the words of a command."""
    command = [shell, "-c", f"printf '%s\\0' {words}"]
    done = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    return done.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=30)
@given(names=st.lists(NAMES, min_size=1))
def test_shells_read_back_what_is_printed(shell: str, names: list[str]) -> None:
    words = " ".join(map(shell_word, names))
    assert words.isprintable()
    assert read_back(shell, words) == [name.encode() for name in names]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("plain", "plain"),
        ("two words é ☃", "'two words é ☃'"),
        ("it's", """'it'"'"'s'"""),
        ("two words & \u202e é ☃", r"$'two words & \u202e é ☃'"),
        ("it's \x1b[1m\\", r"$'it\'s \x1b[1m\\'"),
        ("\n1\x85\U000e0001f", r"$'\x0a1\u0085\U000e0001f'"),
        ("\udcff!", r"$'\xff!'"),
    ],
)
def test_what_is_not_printed_as_it_is_stands_in_escapes(shell: str, name: str, word: str) -> None:
    assert shell_word(name) == word
    assert read_back(shell, word) == [os.fsencode(name)]
