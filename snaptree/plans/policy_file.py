"""The file of policies: TOML that people write, with every mistake named by its line.

[policy.nightly]
machines = ["web-*", "db-01"]   # patterns like those of files; all if it is left out
names = ["auto-*"]              # by default, what a schedule took
keep-last = 5
keep-daily = 14
keep-within = "2d"
maximum-depth = 20

[check]                         # from where on `snaptree check` and the window speak of it
max-depth = 25
max-age = "90d"
days-left = 14
max-growth = "1 GiB"            # a day
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from snaptree.model.errors import SnapTreeError
from snaptree.plans.policy import ALL, Duration, Period, Policy, Scope
from snaptree.plans.thresholds import Thresholds
from snaptree.plans.wording import quoted

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([KMGTP]i?)?B?", re.ASCII | re.IGNORECASE)
_HEADER: Final = re.compile(r"\s*\[([^\[\]#]+)\]\s*(?:#.*)?")
_KEY: Final = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([\w-]+))\s*[=.]""")


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in a file. `line` counts from 1; 0 where it is about the whole."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


class PolicyFileError(SnapTreeError):
    """A file of policies that can't be used, with every mistake in it."""

    def __init__(self, where: str, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{where}, {problems[0]}{more}", hint="'snaptree policy check' names all that is wrong.")


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy of the file, with the machines that it is for."""

    name: str
    policy: Policy
    machines: tuple[str, ...] = ()
    """Patterns of names; empty for all."""

    def is_for(self, domain: str) -> bool:
        """Whether a machine of this name is one of its."""
        return not self.machines or any(fnmatchcase(domain, pattern) for pattern in self.machines)


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """All that a file says."""

    policies: Mapping[str, NamedPolicy] = field(default_factory=lambda: MappingProxyType({}))
    thresholds: Thresholds = field(default_factory=Thresholds)

    def policy(self, name: str) -> NamedPolicy:
        """A policy by its name. Raises SnapTreeError if there is none."""
        found = self.policies.get(name)
        if found is None:
            close = get_close_matches(name, self.policies, n=1)
            known = f"Did you mean {quoted(close[0])}?" if close else "'snaptree policy show' lists those that exist."
            raise SnapTreeError(f"There is no policy {quoted(name)}.", hint=known)
        return found


def read_policies(text: str, where: str) -> PolicyFile:
    """Read a file's text; `where` names it in errors. Raises PolicyFileError with every mistake that is in it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"at line (\d+)", str(error))
        problem = re.sub(r" \(at .*\)", "", str(error))
        raise PolicyFileError(where, (Problem(int(at[1]) if at else 0, f"{problem}."),)) from error
    reader = _Reader(text)
    policies, thresholds = reader.policies(document), reader.thresholds(document)
    if reader.problems:
        raise PolicyFileError(where, tuple(sorted(reader.problems, key=lambda each: each.line)))
    return PolicyFile(MappingProxyType(policies), thresholds)


def parse_size(text: str) -> int:
    """Bytes from `500 MiB`, `1.5G` or a bare number; units are powers of 1024. Raises SnapTreeError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise SnapTreeError(f"{quoted(text)} is not a size.", hint="Write it like 500 MiB or 1.5 GiB.")
    unit = (match[2] or "")[:1].upper()
    return int(float(match[1]) * 1024 ** (" KMGTP".index(unit) if unit else 0))


def _count(value: Any) -> int:
    if value == "all":
        return ALL
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SnapTreeError('is a number of snapshots, or "all".')
    return value


def _positive(value: Any, of: str = "layers") -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SnapTreeError(f"is a number of {of}, 1 or more.")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise SnapTreeError("is true or false.")
    return value


def _duration(value: Any) -> Duration:
    if not isinstance(value, str):
        raise SnapTreeError('is a time, like "1y6m2w3d12h".')
    return Duration.parse(value)


def _bytes(value: Any) -> int:
    return parse_size(str(value))


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise SnapTreeError('is a list of texts, like ["web-*"].')
    return tuple(texts)


_COUNTS: Final = {f"keep-{period.value}": period for period in Period}
_VALUES: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {
        **dict.fromkeys(_COUNTS, _count),
        "keep-within": _duration,
        "keep-forks": _flag,
        "minimum-age": _duration,
        "maximum-depth": _positive,
        "free-at-least": _bytes,
        "machines": _texts,
        "names": _texts,
        "tags": _texts,
        "owners": _texts,
        "schedules": _texts,
        "by-hand": _flag,
    }
)
_THRESHOLDS: Final[Mapping[str, Callable[[Any], Any]]] = MappingProxyType(
    {"max-depth": _positive, "max-age": _duration, "days-left": partial(_positive, of="days"), "max-growth": _bytes}
)
_FIELDS: Final = ("keep-forks", "minimum-age", "maximum-depth", "free-at-least")
_SCOPE: Final = ("names", "tags", "owners", "schedules", "by-hand")


class _Reader:
    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        for number, place in _places(text):
            for size in range(len(place) + 1):
                self._lines.setdefault(place[:size], number)  # where it, or what is in it, is first spoken of
        self.problems: list[Problem] = []

    def policies(self, document: Mapping[str, Any]) -> dict[str, NamedPolicy]:
        for name in document.keys() - {"policy", "check"}:
            self._complain((name,), f"there is no {quoted(name)} here: policies are named [policy.NAME].")
        tables = document.get("policy", {})
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            self._complain(("policy",), "policies are named [policy.NAME].")
            return {}
        return {name: self._policy(name, table) for name, table in tables.items()}

    def thresholds(self, document: Mapping[str, Any]) -> Thresholds:
        table = document.get("check", {})
        if not isinstance(table, dict):
            self._complain(("check",), "what is checked stands below [check].")
            return Thresholds()
        values = self._values(("check",), table, _THRESHOLDS, "that is checked")
        return Thresholds(**{key.replace("-", "_"): value for key, value in values})

    def _policy(self, name: str, table: Mapping[str, Any]) -> NamedPolicy:
        values = dict(self._values(("policy", name), table))
        counts = {period: values[key] for key, period in _COUNTS.items() if key in values}
        fields = {key.replace("-", "_"): values[key] for key in _FIELDS if key in values}
        scope = Scope(**{key.replace("-", "_"): values[key] for key in _SCOPE if key in values})
        policy = Policy(MappingProxyType(counts), values.get("keep-within"), scope=scope, **fields)
        if not policy.lets_go and len(values) == len(table):
            self._complain(("policy", name), f"the policy {quoted(name)} lets nothing go: say what to keep.")
        return NamedPolicy(name, policy, values.get("machines", ()))

    def _values(
        self,
        place: tuple[str, ...],
        table: Mapping[str, Any],
        readers: Mapping[str, Callable[[Any], Any]] = _VALUES,
        what: str = "that a policy says",
    ) -> Iterator[tuple[str, Any]]:
        for key, value in table.items():
            read = readers.get(key)
            if read is None:
                close = get_close_matches(key, readers, n=1)
                hint = f" Did you mean {quoted(close[0])}?" if close else ""
                self._complain((*place, key), f"{quoted(key)} is nothing {what}.{hint}")
                continue
            try:
                yield key, read(value)
            except SnapTreeError as error:
                says = error.summary if error.summary[0] in "“'\"" else f"{quoted(key)} {error.summary}"
                self._complain((*place, key), f"{says} {error.hint}".strip())

    def _complain(self, place: tuple[str, ...], text: str) -> None:
        line = next((self._lines[place[:size]] for size in range(len(place), 0, -1) if place[:size] in self._lines), 0)
        self.problems.append(Problem(line, text))


def _places(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The lines on which tables and their keys begin, as people write them: TOML's parser keeps none."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, next(filter(None, key.groups()), ""))
