"""Changes to a file of policies that leave everything else in it as its owner wrote it, comments included.

TOML libraries that keep comments count one that stands above a table to the table before it: taking that one out would
take the comment too, and a new one would come between. So the text is changed, and read again to see what came of it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from snaptree.model.errors import SnapTreeError
from snaptree.plans.policy_file import table_begun_by


def with_table(text: str, place: tuple[str, str], values: Mapping[str, Any]) -> str:
    """A file's text with one more table at its end. Names and keys are bare ones.

    Values are texts, numbers, lists, or true or false. Raises SnapTreeError if the file has no place for it.
    """
    lines = [f"[{'.'.join(place)}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    gap = "" if not text.strip() else "\n" if text.endswith("\n") else "\n\n"
    kind, name = place
    wanted = tomllib.loads(text)
    wanted[kind] = {**wanted.get(kind, {}), name: dict(values)}
    return _checked(text + gap + "\n".join(lines) + "\n", wanted, f"[{kind}.{name}] can't be added to the file")


def without_table(text: str, place: tuple[str, str]) -> str:
    """A file's text without one of its tables, which it has. Raises SnapTreeError if that is written in another way."""
    kind, name = place
    lines = text.split("\n")
    begins = next((number for number, line in enumerate(lines) if table_begun_by(line) == place), None)
    wanted = tomllib.loads(text)
    del wanted[kind][name]
    wanted = {key: value for key, value in wanted.items() if key != kind or value}
    what = f"[{kind}.{name}] can't be taken out of the file"
    if begins is None:
        raise SnapTreeError(f"{what}: it is not a table of its own.", hint="Take it out by hand.")
    next_begins = (number for number in range(begins + 1, len(lines)) if table_begun_by(lines[number]))
    ends = next(next_begins, len(lines))
    while lines[ends - 1].strip()[:1] in ("", "#"):  # what stands above the next table is about that one
        ends -= 1
    while begins and ends < len(lines) and not lines[begins - 1].strip() and not lines[ends].strip():
        ends += 1  # one blank line is enough
    return _checked("\n".join(lines[:begins] + lines[ends:]), wanted, what)


def _value(value: Any) -> str:
    """A value as TOML, which for these kinds is JSON but for one character that JSON lets stand."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _checked(text: str, wanted: Mapping[str, Any], what: str) -> str:
    """A text, if it says what is wanted."""
    try:
        says = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SnapTreeError(f"{what}: {error}.", hint="Change it by hand.") from error
    if says != wanted:
        raise SnapTreeError(f"{what}: something else in it would change.", hint="Change it by hand.")
    return text
