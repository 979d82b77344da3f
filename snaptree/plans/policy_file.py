"""The file of policies and schedules: TOML that people write, with every mistake named by its line.

What is whole can be used, whatever else is wrong; what has a mistake is refused where somebody wants it.

[policy.two-weeks]
machines = ["web-*", "db-01"]   # patterns like those of files; all if it is left out
names = ["auto-*"]              # of what schedules took; any if it is left out
by-hand = false                 # true: of what nobody scheduled, too, and of safety snapshots if names are given
keep-last = 5
keep-daily = 14
keep-within = "2d"
maximum-depth = 20

[check]                         # from where on `snaptree check` and the window speak of it
max-depth = 25
max-age = "90d"
days-left = 14
max-growth = "1 GiB"            # a day

[schedule.nightly]
when = "*-*-* 02:00"            # as systemd.time(7) has it
machines = ["web-*"]
take = "disk-only"
together = true                 # all at one time, or none
quiesce = "if-possible"
policy = "two-weeks"            # or keep-last and the like; it only prunes what it took
limit = "50 MiB"                # per second
between = "01:00-05:00"
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

from snaptree.model.errors import SnapTreeError
from snaptree.plans.calendar import calendar_problem
from snaptree.plans.hours import Hours
from snaptree.plans.plan import Freeze
from snaptree.plans.policy import ALL, Duration, Period, Policy, Scope
from snaptree.plans.schedule import (
    DEFAULT_HOST,
    Notify,
    Schedule,
    TakeKind,
    is_named_by,
    names_problem,
    schedule_name_problem,
    together_problem,
)
from snaptree.plans.thresholds import Thresholds
from snaptree.plans.wording import not_in_xml, quoted

_Named = TypeVar("_Named")

_SIZE: Final = re.compile(r"(\d{1,18}(?:\.\d+)?) ?([KMGTP]i?)?B?", re.ASCII | re.IGNORECASE)
_HEADER: Final = re.compile(r"\s*\[([^\[\]#]+)\]\s*(?:#.*)?")
_KEY: Final = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([\w-]+))\s*[=.]""")


_MOST_TOLD: Final = 3
"""Mistakes in one error."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in a file. `line` counts from 1; 0 where it is about the whole."""

    line: int
    text: str
    key: str = ""
    """Of a table, which it is about; empty where that is the table itself."""

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


class PolicyFileError(SnapTreeError):
    """A file of policies, or a part of it that is wanted, can't be used; with every mistake in that."""

    def __init__(self, where: str, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__(told(where, problems), hint="'snaptree policy check' names all that is wrong.")


def told(where: str, problems: tuple[Problem, ...]) -> str:
    """Mistakes in a file as a line, the first few of them."""
    more = f" (and {len(problems) - _MOST_TOLD} more)" if len(problems) > _MOST_TOLD else ""
    return f"{where}, {' '.join(map(str, problems[:_MOST_TOLD]))}{more}"


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy of the file, with the machines that it is for."""

    name: str
    policy: Policy
    machines: tuple[str, ...] = ()
    """Patterns of names; empty for all."""

    def is_for(self, domain: str) -> bool:
        """Whether a machine of this name is one of its."""
        return is_named_by(self.machines, domain)


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """All that a file says, but for what has mistakes."""

    policies: Mapping[str, NamedPolicy] = field(default_factory=lambda: MappingProxyType({}))
    schedules: Mapping[str, Schedule] = field(default_factory=lambda: MappingProxyType({}))
    thresholds: Thresholds = field(default_factory=Thresholds)
    where: str = ""
    """What the file is called in errors."""
    problems: tuple[Problem, ...] = ()
    """Every mistake, by its line."""
    refused: Mapping[tuple[str, ...], tuple[Problem, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """What can't be used, and why: ("policy", NAME), ("schedule", NAME), ("check",), or ("policy",) for all of them."""
    addresses: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Of the host of each schedule that can't be used."""

    def policy(self, name: str) -> NamedPolicy:
        """A policy by its name. Raises PolicyFileError if it has mistakes, SnapTreeError if there is none."""
        self.require("policy", name)
        return _named(name, self.policies, "policy", "policy show")

    def schedule(self, name: str) -> Schedule:
        """A schedule by its name. Raises PolicyFileError if it has mistakes, SnapTreeError if there is none."""
        self.require("schedule", name)
        return _named(name, self.schedules, "schedule", "schedule list")

    def require(self, *place: str) -> None:
        """Raise PolicyFileError if what stands there has mistakes."""
        for size in range(len(place), 0, -1):
            if problems := self.refused.get(place[:size]):
                raise PolicyFileError(self.where, problems)


def _named(name: str, known: Mapping[str, _Named], what: str, lister: str) -> _Named:
    found = known.get(name)
    if found is None:
        close = get_close_matches(name, known, n=1)
        hint = f"Did you mean {quoted(close[0])}?" if close else f"'snaptree {lister}' lists those that exist."
        raise SnapTreeError(f"There is no {what} {quoted(name)}.", hint=hint)
    return found


def read_policies(text: str, where: str, *, time_problem: Callable[[str], str] = calendar_problem) -> PolicyFile:
    """Read a file's text; `where` names it in errors. Raises PolicyFileError if it is no TOML.

    `time_problem` says why something is no time for systemd; nothing if it is one.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyFileError(where, (_no_toml(text, error),)) from error
    reader = _Reader(text, time_problem)
    policies = reader.policies(document)
    return PolicyFile(
        MappingProxyType(policies),
        MappingProxyType(reader.schedules(document, policies)),
        reader.thresholds(document),
        where,
        tuple(sorted(reader.problems, key=lambda each: each.line)),
        MappingProxyType(reader.refused),
        MappingProxyType(reader.addresses),
    )


def _no_toml(text: str, error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        return Problem(0, "Lists stand in each other too deep.")
    says = str(error)
    at = re.search(r"at line (\d+)", says)
    last = len(text.rstrip().split("\n")) if "end of document" in says else 0
    return Problem(int(at[1]) if at else last, f"{re.sub(r' .at .*', '', says)}.")


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
    if not texts:
        raise SnapTreeError("names nothing: leave it out if it is to be all.")
    return tuple(texts)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise SnapTreeError("is a text.")
    return value


def _note(value: Any) -> str:
    if character := not_in_xml(_text(value)):
        raise SnapTreeError(f"has the character {character} in it, which libvirt can't write down.")
    return str(value)


def _rate(value: Any) -> int:
    rate = parse_size(_text(value))
    if rate < 1:
        raise SnapTreeError('is how much to copy per second, like "50 MiB".')
    return rate


def _hours(value: Any) -> Hours:
    return Hours.parse(_text(value))


def _one_of(words: type[StrEnum]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value not in [word.value for word in words]:
            raise SnapTreeError(f"is one of {', '.join(words)}.")
        return words(value)

    return read


_COUNTS: Final = {f"keep-{period.value}": period for period in Period}
_Readers = Mapping[str, Callable[[Any], Any]]
_KEEPS: Final[_Readers] = MappingProxyType(
    {
        **dict.fromkeys(_COUNTS, _count),
        "keep-within": _duration,
        "keep-forks": _flag,
        "minimum-age": _duration,
        "maximum-depth": _positive,
        "free-at-least": _bytes,
    }
)
_POLICY: Final[_Readers] = MappingProxyType(
    {
        **_KEEPS,
        "machines": _texts,
        "names": _texts,
        "tags": _texts,
        "owners": _texts,
        "schedules": _texts,
        "by-hand": _flag,
    }
)
_THRESHOLDS: Final[_Readers] = MappingProxyType(
    {"max-depth": _positive, "max-age": _duration, "days-left": partial(_positive, of="days"), "max-growth": _bytes}
)
_SCHEDULE: Final[_Readers] = MappingProxyType(
    {
        **_KEEPS,
        "when": _text,
        "connect": _text,
        "machines": _texts,
        "take": _one_of(TakeKind),
        "together": _flag,
        "quiesce": _one_of(Freeze),
        "name": _text,
        "note": _note,
        "policy": _text,
        "limit": _rate,
        "between": _hours,
        "notify": _one_of(Notify),
    }
)
_OF_TAKES: Final = ("together", "quiesce", "name", "note")
_OF_PRUNES: Final = ("limit", "between")
_FIELDS: Final = ("keep-forks", "minimum-age", "maximum-depth", "free-at-least")
_SCOPE: Final = ("names", "tags", "owners", "schedules", "by-hand")


class _Reader:
    def __init__(self, text: str, time_problem: Callable[[str], str]) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        for number, place in _places(text):
            for size in range(len(place) + 1):
                self._lines.setdefault(place[:size], number)  # where it, or what is in it, is first spoken of
        self._time_problem = time_problem
        self.problems: list[Problem] = []
        self.refused: dict[tuple[str, ...], tuple[Problem, ...]] = {}
        self.addresses: dict[str, str] = {}

    def policies(self, document: Mapping[str, Any]) -> dict[str, NamedPolicy]:
        for name in document.keys() - {"policy", "schedule", "check"}:
            says = "tables are named [policy.NAME], [schedule.NAME] or [check]."
            self._complain((name,), f"there is no {quoted(name)} here: {says}")
        tables = self._tables(document, "policy", "policies")
        found = {name: self._named_policy(name, table) for name, table in tables}
        return {name: policy for name, policy in found.items() if ("policy", name) not in self.refused}

    def thresholds(self, document: Mapping[str, Any]) -> Thresholds:
        table = document.get("check", {})
        with self._refusing("check"):
            if not isinstance(table, dict):
                self._complain(("check",), "what is checked stands below [check].")
                table = {}
            values = dict(self._values(("check",), table, _THRESHOLDS, "that is checked"))
        return Thresholds(**{key.replace("-", "_"): value for key, value in values.items()})

    def schedules(self, document: Mapping[str, Any], policies: Mapping[str, NamedPolicy]) -> dict[str, Schedule]:
        found = {}
        for name, table in self._tables(document, "schedule", "schedules"):
            with self._refusing("schedule", name):
                schedule = self._schedule(name, table, policies)
            if schedule is not None:
                found[name] = schedule
                continue
            # What its policy has wrong is in its way as well, and said once.
            used = ("policy", str(table["policy"])) if "policy" in table else ()
            more = self.refused.get(used, self.refused.get(used[:1], ()))
            self.refused["schedule", name] = (*self.refused.get(("schedule", name), ()), *more)
            self.addresses[name] = str(table.get("connect", DEFAULT_HOST))
        return found

    @contextmanager
    def _refusing(self, *place: str) -> Iterator[None]:
        """What is complained of meanwhile is in the way of what stands there."""
        before = len(self.problems)
        yield
        if found := self.problems[before:]:
            self.refused[place] = tuple(found)

    def _tables(self, document: Mapping[str, Any], kind: str, every: str) -> list[tuple[str, Mapping[str, Any]]]:
        tables = document.get(kind, {})
        with self._refusing(kind):
            if not isinstance(tables, dict):
                self._complain((kind,), f"{every} are named [{kind}.NAME].")
                return []
        for name in [name for name, table in tables.items() if not isinstance(table, dict)]:
            with self._refusing(kind, name):
                self._complain((kind, name), f"{every} are named [{kind}.NAME].")
        return [(name, table) for name, table in tables.items() if isinstance(table, dict)]

    def _named_policy(self, name: str, table: Mapping[str, Any]) -> NamedPolicy:
        with self._refusing("policy", name):
            values = dict(self._values(("policy", name), table, _POLICY, "that a policy says"))
            scope = Scope(**{key.replace("-", "_"): values[key] for key in _SCOPE if key in values})
            policy = _policy_of(values, scope)
            if not policy.lets_go and len(values) == len(table):
                self._complain(("policy", name), f"the policy {quoted(name)} lets nothing go: say what to keep.")
        return NamedPolicy(name, policy, values.get("machines", ()))

    def _schedule(self, name: str, table: Mapping[str, Any], policies: Mapping[str, NamedPolicy]) -> Schedule | None:
        """A schedule, or None if it says what it can't."""
        place, before = ("schedule", name), len(self.problems)
        values = dict(self._values(place, table, _SCHEDULE, "that a schedule says"))
        if problem := schedule_name_problem(name):
            self._complain(place, problem)
        if "when" not in table:
            self._complain(place, f'the schedule {quoted(name)} does not say when, as in when = "daily".')
        if "when" in values and (problem := self._time_problem(values["when"])):
            self._complain((*place, "when"), problem)
        if "name" in values and (problem := names_problem(values["name"], name)):
            self._complain((*place, "name"), problem)
        if len(values) == len(table):
            self._check_what_it_does(place, values)
        named, is_usable = self._policy_named(place, values, policies)
        if len(self.problems) > before or not is_usable:
            return None
        policy = _policy_of(values, Scope()) if named is None else named.policy
        said = {key: value for key, value in values.items() if key not in _KEEPS and key != "policy"}
        said |= {"names": said.pop("name")} if "name" in said else {}
        return Schedule(
            name,
            policy=_for_own(policy, name) if policy.lets_go else None,
            pruned_machines=() if named is None else named.machines,
            **said,
        )

    def _check_what_it_does(self, place: tuple[str, str], values: Mapping[str, Any]) -> None:
        keeps = [key for key in values if key in _KEEPS]
        prunes = "policy" in values or _policy_of(values, Scope()).lets_go
        if "policy" in values and keeps:
            self._complain((*place, keeps[0]), f"{quoted(keeps[0])} does not stand beside a policy's name: write one.")
        if "take" not in values and not prunes:
            self._complain(place, f"the schedule {quoted(place[1])} neither takes nor prunes: say what.")
        for key in values.keys() & _OF_TAKES if "take" not in values else ():
            self._complain((*place, key), f"{quoted(key)} is about what it takes, but there is no “take”.")
        for key in values.keys() & {*_OF_PRUNES, *keeps} if not prunes else ():
            self._complain((*place, key), f"{quoted(key)} is about pruning, but nothing says what to keep.")
        freezes = values.get("quiesce", Freeze.NO) is not Freeze.NO
        if freezes and values.get("take", TakeKind.BEST) not in (TakeKind.BEST, TakeKind.DISK_ONLY):
            self._complain((*place, "quiesce"), 'file systems are frozen for disks only: take = "disk-only".')
        if values.get("together") and "take" in values:
            key, problem = together_problem(values["take"], values.get("name", ""), values.get("machines", ()))
            if problem:
                self._complain((*place, key), problem)

    def _policy_named(
        self, place: tuple[str, str], values: Mapping[str, Any], policies: Mapping[str, NamedPolicy]
    ) -> tuple[NamedPolicy | None, bool]:
        """The policy that a schedule names, and whether what it says of one can be used."""
        name = values.get("policy")
        if name is None:
            return None, True
        if ("policy", name) in self.refused or ("policy",) in self.refused:
            return None, False
        try:
            return _named(name, policies, "policy", "policy show"), True
        except SnapTreeError as error:
            self._complain((*place, "policy"), f"{error.summary} {error.hint}")
            return None, False

    def _values(
        self, place: tuple[str, ...], table: Mapping[str, Any], readers: _Readers, what: str
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
        self.problems.append(Problem(line, text, place[2] if len(place) > 2 else ""))


def _policy_of(values: Mapping[str, Any], scope: Scope) -> Policy:
    """The policy that the keys of a table say."""
    counts = {period: values[key] for key, period in _COUNTS.items() if key in values}
    fields = {key.replace("-", "_"): values[key] for key in _FIELDS if key in values}
    return Policy(MappingProxyType(counts), values.get("keep-within"), scope=scope, **fields)


def _for_own(policy: Policy, schedule: str) -> Policy:
    """A policy of the file, for nothing but what a schedule took itself."""
    return replace(policy, scope=replace(policy.scope, schedules=(schedule,), by_hand=False))


def table_begun_by(line: str) -> tuple[str, ...] | None:
    """The table that a line begins, as people write it; None if it is another line."""
    header = _HEADER.fullmatch(line)
    return None if header is None else tuple(part.strip().strip("\"'") for part in header[1].split("."))


def _places(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The lines on which tables and their keys begin, as people write them: TOML's parser keeps none."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), start=1):
        if begun := table_begun_by(line):
            table = begun
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, next(filter(None, key.groups()), ""))
