"""A policy as options of a command. Nothing heavy is imported to build a parser."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from snaptree.model.errors import SnapTreeError

if TYPE_CHECKING:
    from snaptree.plans.hours import Hours
    from snaptree.plans.policy import Duration, Policy
    from snaptree.plans.thresholds import Thresholds

_Value = TypeVar("_Value")

PERIODS: Final = {
    "last": "the newest N",
    "hourly": "the newest of each of the last N hours that have any",
    "daily": "the newest of each of the last N days that have any",
    "weekly": "the newest of each of the last N weeks that have any",
    "monthly": "the newest of each of the last N months that have any",
    "yearly": "the newest of each of the last N years that have any",
}


def add_policy_options(parser: ArgumentParser) -> None:
    """Let a command take a policy as options."""
    add_keep_options(parser)
    scope = parser.add_argument_group(
        "which snapshots", "Only those that a schedule took, unless --by-hand says otherwise. Others are kept."
    )
    scope.add_argument("--name", metavar="PATTERN", action="append", dest="names", help="named so, as in 'auto-*'")
    scope.add_argument("--tag", metavar="TAG", action="append", dest="tags", help="with #TAG in their note")
    scope.add_argument("--owner", metavar="USER", action="append", dest="owners", help="taken by this user")
    scope.add_argument("--schedule", metavar="NAME", action="append", dest="schedules", help="taken by this schedule")
    scope.add_argument(
        "--by-hand",
        action="store_true",
        help="those too that no schedule took; safety snapshots only if a --name fits them as well",
    )


def add_keep_options(parser: ArgumentParser) -> None:
    """Let a command take what is to be kept of the snapshots that it speaks of."""
    keep = parser.add_argument_group("what to keep", "A snapshot that any of these keeps is kept.")
    for period, text in PERIODS.items():
        keep.add_argument(f"--keep-{period}", metavar="N", type=_count, help=f"{text}; 'all' for no end")
    keep.add_argument(
        "--keep-within", metavar="TIME", type=_duration, help="all not so much older than the newest: 1y6m2w3d12h"
    )
    keep.add_argument("--minimum-age", metavar="TIME", type=_duration, help="nothing younger goes")
    keep.add_argument("--drop-forks", action="store_true", help="those too from which several others descend may go")
    less = parser.add_argument_group("how much goes", "Of what no rule keeps, the cheapest, and no more than it takes.")
    less.add_argument("--maximum-depth", metavar="N", type=_positive, help="for disks to stand on N layers at most")
    less.add_argument("--free-at-least", metavar="SIZE", type=_size, help="for so much to come back")


def policy_of(options: Namespace) -> Policy:
    """The policy that options say."""
    from snaptree.plans.policy import Period, Policy, Scope

    given = vars(options)
    counts = {period: number for period in Period if (number := given[f"keep_{period.value}"]) is not None}
    return Policy(
        MappingProxyType(counts),
        options.keep_within,
        keep_forks=not options.drop_forks,
        minimum_age=options.minimum_age,
        maximum_depth=options.maximum_depth,
        free_at_least=options.free_at_least,
        scope=Scope(
            names=tuple(options.names or ()),
            tags=tuple(options.tags or ()),
            owners=tuple(options.owners or ()),
            schedules=tuple(options.schedules or ()),
            by_hand=options.by_hand,
        ),
    )


def arguments_of(policy: Policy) -> tuple[str, ...]:
    """The options that say a policy: what `policy_of` reads."""
    from snaptree.plans.policy import ALL

    scope = policy.scope
    valued = [
        *((f"--keep-{period.value}", "all" if number == ALL else number) for period, number in policy.counts.items()),
        ("--keep-within", policy.within),
        ("--minimum-age", policy.minimum_age),
        ("--maximum-depth", policy.maximum_depth),
        ("--free-at-least", policy.free_at_least),
        *(("--name", name) for name in scope.names),
        *(("--tag", tag) for tag in scope.tags),
        *(("--owner", owner) for owner in scope.owners),
        *(("--schedule", schedule) for schedule in scope.schedules),
    ]
    flags = {"--drop-forks": not policy.keep_forks, "--by-hand": scope.by_hand}
    # A value that begins with a dash is no option.
    said = (
        (f"{option}={value}",) if str(value).startswith("-") else (option, str(value))
        for option, value in valued
        if value is not None
    )
    return (*chain.from_iterable(said), *(flag for flag, is_set in flags.items() if is_set))


def add_check_options(parser: ArgumentParser) -> None:
    """Let a command take as options what stands in the table [check] of the user's file."""
    group = parser.add_argument_group("from where on it counts", "By default as [check] says in your file of policies.")
    group.add_argument("--max-depth", metavar="N", type=_positive, help="disks on more than N layers (25)")
    group.add_argument("--max-age", metavar="TIME", type=_duration, help="snapshots that are older (90d)")
    group.add_argument("--days-left", metavar="N", type=_positive, help="file systems full in N days (14)")
    group.add_argument("--max-growth", metavar="SIZE", type=_size, help="guests that write more a day (1 GiB)")


def thresholds_of(options: Namespace, otherwise: Thresholds) -> Thresholds:
    """What options say, and where they say nothing what holds otherwise."""
    from dataclasses import fields, replace

    names = [each.name for each in fields(otherwise)]
    return replace(otherwise, **{name: value for name in names if (value := vars(options)[name]) is not None})


def keep_table(options: Namespace) -> dict[str, Any]:
    """What is to be kept, as the file of policies says it."""
    given = vars(options)
    counts = {f"keep-{period}": given[f"keep_{period}"] for period in PERIODS}
    said = {key: number for key, number in counts.items() if number is not None}
    table: dict[str, Any] = {key: "all" if number < 0 else number for key, number in said.items()}
    times = {"keep-within": options.keep_within, "minimum-age": options.minimum_age}
    table |= {key: str(time) for key, time in times.items() if time is not None}
    table |= {"keep-forks": False} if options.drop_forks else {}
    table |= {"maximum-depth": options.maximum_depth} if options.maximum_depth is not None else {}
    return table | ({} if options.free_at_least is None else {"free-at-least": size_text(options.free_at_least)})


def size_text(number: int) -> str:
    """Bytes as the file of policies says them, exactly: `1536 MiB`."""
    power = next(power for power in (4, 3, 2, 1, 0) if number % 1024**power == 0)
    return f"{number // 1024**power} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def hours(text: str) -> Hours:
    """Hours of the day, as argparse reads them."""
    from snaptree.plans.hours import Hours

    return _asked(Hours.parse, text)


def _duration(text: str) -> Duration:
    from snaptree.plans.policy import Duration

    return _asked(Duration.parse, text)


def _size(text: str) -> int:
    from snaptree.plans.policy_file import parse_size

    return _asked(parse_size, text)


def _count(text: str) -> int:
    if text == "all":
        from snaptree.plans.policy import ALL

        return ALL
    if not text.isascii() or not text.isdigit():
        raise ArgumentTypeError(f"'{text}' is neither a number nor 'all'")
    return int(text)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a number above 0")
    return int(text)


def _asked(read: Callable[[str], _Value], text: str) -> _Value:
    """Let argparse say what is wrong with a value."""
    try:
        return read(text)
    except SnapTreeError as error:
        raise ArgumentTypeError(str(error)) from error
