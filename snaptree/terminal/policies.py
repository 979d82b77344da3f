"""What `snaptree policy` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.hosts.timers import coming_times
from snaptree.model.errors import SnapTreeError
from snaptree.plans.policy import ALL, Policy, Scope
from snaptree.plans.policy_file import NamedPolicy, PolicyFile, Problem, told
from snaptree.plans.schedule import Schedule, hours_problem
from snaptree.plans.schedule_check import HOURS_REMEDY
from snaptree.terminal.complaint import complain
from snaptree.terminal.console import plain
from snaptree.terminal.policy_options import PERIODS


def print_policies(out: Console, file: PolicyFile) -> None:
    """Print each policy in words."""
    for each in file.policies.values():
        machines = ", ".join(map(plain, each.machines)) or "all machines"
        out.print(f"{plain(each.name)}  ({machines})", style="bold", soft_wrap=False)
        for sentence in in_words(each.policy):
            out.print(f"  {plain(sentence)}", soft_wrap=False)


def warn_of_mistakes(file: PolicyFile) -> None:
    """Tell of mistakes in a file of which other parts are used."""
    if file.problems:
        hint = "The rest is used. 'snaptree policy check' names all that is wrong."
        complain(SnapTreeError(f"warning: {plain(told(file.where, file.problems))}", hint=hint))


def warn_of_hours(schedules: Iterable[Schedule]) -> None:
    """Tell of schedules that never run at the hours at which they prune."""
    for schedule in schedules:
        if problem := hours_problem(schedule, coming_times(schedule)):
            complain(SnapTreeError(f"warning: {problem}", hint=HOURS_REMEDY))


def names_in(file: PolicyFile) -> str:
    """What a file has, by name: `Policies: a, b. Schedules: none`, as sentences."""
    kinds = (("Policies", file.policies), ("Schedules", file.schedules))
    return " ".join(f"{kind}: {', '.join(map(plain, named)) or 'none'}." for kind, named in kinds)


def mistakes_json(where: str, problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """The document of `policy check --json`: every mistake in a file."""
    return [mistake_json(where, each.text, each.line) for each in problems]


def mistake_json(where: str, says: str, line: int = 0) -> dict[str, Any]:
    """A mistake in a file; without a line it is about the whole."""
    return {"file": where, "line": line or None, "says": says}


def policies_json(file: PolicyFile) -> list[dict[str, Any]]:
    """The document of `policy show --json`."""
    return [_policy_json(each) for each in file.policies.values()]


def _policy_json(each: NamedPolicy) -> dict[str, Any]:
    policy, scope = each.policy, each.policy.scope
    return {
        "policy": each.name,
        "machines": list(each.machines),
        **{f"keep_{period.value}": "all" if number == ALL else number for period, number in policy.counts.items()},
        "keep_within": None if policy.within is None else str(policy.within),
        "keep_forks": policy.keep_forks,
        "minimum_age": None if policy.minimum_age is None else str(policy.minimum_age),
        "maximum_depth": policy.maximum_depth,
        "free_at_least": policy.free_at_least,
        "names": list(scope.names),
        "tags": list(scope.tags),
        "owners": list(scope.owners),
        "schedules": list(scope.schedules),
        "by_hand": scope.by_hand,
    }


def in_words(policy: Policy) -> Iterator[str]:
    """What a policy says, a sentence each."""
    for period, number in policy.counts.items():
        if number:
            yield f"keeps {PERIODS[period.value].replace(' N', ' all' if number == ALL else f' {number}')}"
    if policy.within is not None:
        yield f"keeps all that are less than {policy.within} older than the newest"
    if policy.minimum_age is not None:
        yield f"keeps all that are younger than {policy.minimum_age}"
    yield "keeps what is pinned or known good" + (", and forks" if policy.keep_forks else "")
    if policy.maximum_depth is not None:
        layers = words.count(policy.maximum_depth, "layer")
        yield f"lets no more go than it takes for disks to stand on {layers} at most"
    if policy.free_at_least is not None:
        yield f"lets no more go than it takes for {words.size(policy.free_at_least)} to come back"
    yield f"speaks of {_scope_in_words(policy.scope)}"


def _scope_in_words(scope: Scope) -> str:
    if scope == Scope():
        return "what schedules took"
    parts = [
        ("named", scope.names),
        ("tagged", tuple(f"#{tag}" for tag in scope.tags)),
        ("taken by", scope.owners),
        ("made by schedule", scope.schedules),
    ]
    said = " and ".join(f"{verb} {' or '.join(values)}" for verb, values in parts if values)
    everything = "all snapshots" if scope.names else "all but safety snapshots"
    return f"{everything if scope.by_hand else 'what schedules took'}{f' {said}' if said else ''}"
