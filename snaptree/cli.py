"""The command line: arguments, and the commands of the terminal. The window is imported only to open it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from snaptree import __version__
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.terminal.complaint import complain
from snaptree.terminal.escaping import plain
from snaptree.terminal.policy_options import add_check_options, add_keep_options, add_policy_options, hours

if TYPE_CHECKING:
    from snaptree.hosts.connection import Connection
    from snaptree.model.merging import Elsewhere
    from snaptree.plans.intention import Intention
    from snaptree.plans.operation import Operation
    from snaptree.plans.plan import StateAfter
    from snaptree.plans.policy_file import Problem
    from snaptree.terminal.groups import MakeGroup
    from snaptree.terminal.reading import DomainReading

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_FOUND = 4

_HISTORY = 100
"""Operations that `history` shows, and among which `undo` looks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `snaptree` and return its exit status.

    0 done, 1 an error, 2 wrong usage, 3 refused or not agreed to, 4 `check` found something,
    5 that schedule runs already.
    """
    try:
        try:
            options = _parser().parse_args(arguments)
        finally:
            sys.stdout.flush()  # of --help, too, a reader that went away is noticed here, where it is handled
        with _stopped_by_signals():
            status = int(options.run(options))
            sys.stdout.flush()
            return status
    except CancelledError as error:
        complain(error)
        return EXIT_ERROR
    except SnapTreeError as error:
        complain(error)
        return EXIT_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("snaptree: stopped.\n")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not our error. Keep the interpreter from flushing into it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind like Ctrl+C, so that a throw-away demo estate is cleaned away."""

    def stop(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Arguments


_NO_OPTION = "\0"
"""Before what begins with a dash and stands after `--`, while it is parsed: no argument can have it in it."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints name what was given, and obey nothing of it."""

    def error(self, message: str) -> NoReturn:
        """Say how it is used and what was wrong, and exit."""
        super().error(plain(message))


class _CommandParser(_Parser):
    """The parser of one command: options stand anywhere among its names, and what it does not know is its own error."""

    _is_mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse what stands after the command. Nothing is left over."""
        # argparse comes back here from within the call below; it can't mix where commands have commands.
        if self._is_mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        args = list(args)
        if "--" in args:  # mixing loses it, and takes names that begin with a dash for options
            end = args.index("--")
            args[end:] = [f"{_NO_OPTION}{arg}" if arg.startswith("-") else arg for arg in args[end + 1 :]]
        self._is_mixing = True
        try:
            options, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False
        for key, value in vars(options).items():
            if isinstance(value, str):
                setattr(options, key, value.removeprefix(_NO_OPTION))
            elif isinstance(value, list):
                setattr(
                    options, key, [each.removeprefix(_NO_OPTION) if isinstance(each, str) else each for each in value]
                )
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def _not_empty(name: str) -> str:
    if not name:
        raise argparse.ArgumentTypeError("it is empty: leave it out for the default")
    return name


def _common_options(*, is_for_schedules: bool = False) -> argparse.ArgumentParser:
    """What every command takes. No schedule is for a demo estate, or for several hosts."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    where = common.add_argument_group("where")
    more = "" if is_for_schedules else "; repeatable"
    where.add_argument(
        "-c", "--connect", metavar="URI", action="append", help=f"a libvirt host, such as qemu:///system{more}"
    )
    if not is_for_schedules:
        where.add_argument("--read-only", action="store_true", help="look, but change nothing")
        where.add_argument("--demo", action="store_true", help="a throw-away demo estate of real machines")
        where.add_argument("--demo-dir", metavar="DIR", type=Path, help="the demo estate, kept in DIR and used again")
    common.add_argument("--json", action="store_true", help="print JSON: integers are bytes, times are in UTC")
    return common


def _parser() -> argparse.ArgumentParser:
    common = _common_options()
    changing = argparse.ArgumentParser(add_help=False)
    changing.add_argument("-n", "--dry-run", action="store_true", help="print the plan and stop")
    changing.add_argument("-y", "--yes", action="store_true", help="go on without asking")

    parser = _Parser(
        prog="snaptree",
        parents=[common],
        allow_abbrev=False,
        description="Snapshot trees of libvirt virtual machines: seen, costed and changed safely. "
        "Without a command, the window opens.",
        epilog="Exit status: 0 done, 1 an error, 2 wrong usage, 3 refused by a rule, or not agreed to, "
        "4 'check' found something worse than good to know, 5 that schedule is running already.",
    )
    parser.add_argument("--version", action="version", version=f"snaptree {__version__}")
    parser.set_defaults(run=_open_window)
    commands: Any = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_CommandParser)

    def command(
        name: str,
        text: str,
        run: Callable[[argparse.Namespace], int],
        *,
        changes: bool = False,
        common: argparse.ArgumentParser = common,
    ) -> Any:
        added = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            parents=[common, *([changing] if changes else [])],
            allow_abbrev=False,
        )
        added.set_defaults(run=run)
        return added

    command("list", "hosts and virtual machines with totals", _list)
    tree = command("tree", "the snapshot tree of a virtual machine with its costs", _tree)
    tree.add_argument("vm", metavar="VM")

    cost = command("cost", "what each layer of a virtual machine takes, or what deleting snapshots gives back", _cost)
    cost.add_argument("vm", metavar="VM")
    cost.add_argument("snapshots", metavar="SNAPSHOT", nargs="*", help="say what deleting exactly these frees")

    compare = command("compare", "what was set otherwise at a snapshot than at another one, or than now", _compare)
    compare.add_argument("vm", metavar="VM")
    compare.add_argument("snapshot", metavar="SNAPSHOT")
    compare.add_argument("other", metavar="SNAPSHOT", nargs="?", help="by default the machine as it is now")
    compare.add_argument("--xml", action="store_true", help="print the difference of the definitions, as diff does")

    take = command("take", "take a snapshot", _take, changes=True)
    take.add_argument("vm", metavar="VM")
    take.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        type=_not_empty,
        help="may have {vm}, {date}, {time}, {user} and {kind} in it; by default snapshot-{date}-{time}",
    )
    kind = take.add_mutually_exclusive_group()
    kind.add_argument("--memory", action="store_true", help="external, with the memory in a file of its own")
    kind.add_argument("--disk-only", action="store_true", help="external, disks only")
    kind.add_argument("--internal", action="store_true", help="inside the qcow2 images")
    take.add_argument("--live", action="store_true", help="with memory, and the guest runs on while it is saved")
    _add_freeze_options(take)
    take.add_argument(
        "--exclude-disk", metavar="TARGET", action="append", default=[], help="leave a disk out; repeatable"
    )
    take.add_argument("--layers-in", metavar="DIR", default="", help="where new layers go; by default beside the disks")
    take.add_argument("--memory-in", metavar="DIR", default="", help="where saved memory goes; by default beside them")
    take.add_argument("--note", default="", metavar="TEXT")

    together = command(
        "take-group", "take one snapshot of several machines of a host together", _take_group, changes=True
    )
    together.add_argument("name", metavar="NAME")
    together.add_argument("vms", metavar="VM", nargs="+")
    together.add_argument("--memory", action="store_true", help="external, with the memory in files of their own")
    _add_freeze_options(together)
    together.add_argument("--note", default="", metavar="TEXT")

    back = command("revert-group", "go back to snapshots that were taken together", _revert_group, changes=True)
    back.add_argument(
        "name", metavar="NAME", help="of the snapshots, or of the group in full where several are so named"
    )
    back.add_argument("vms", metavar="VM", nargs="*", help="in this order; by default all that have one, by name")
    back.add_argument("--no-safety", action="store_true", help="take no safety snapshots: the present states are lost")
    _add_states_after(back)

    revert = command("revert", "go back to a snapshot, after a safety snapshot of the present", _revert, changes=True)
    revert.add_argument("vm", metavar="VM")
    revert.add_argument("snapshot", metavar="SNAPSHOT")
    revert.add_argument("--no-safety", action="store_true", help="take no safety snapshot: the present state is lost")
    _add_states_after(revert)
    revert.add_argument(
        "--drop-managed-save",
        action="store_true",
        help="throw away the memory that a managed save put aside; with it there is no revert",
    )

    delete = command("delete", "delete snapshots and merge what they hold", _delete, changes=True)
    delete.add_argument("vm", metavar="VM")
    delete.add_argument("snapshots", metavar="SNAPSHOT", nargs="+")
    delete.add_argument("--subtree", action="store_true", help="and everything that descends from them")
    delete.add_argument(
        "--limit", metavar="MIB", type=_rate, help="copy so many MiB per second at most; merges can then be stopped too"
    )

    prune = command("prune", "delete what a policy lets go, of the machines named or of all", _prune, changes=True)
    prune.add_argument("vms", metavar="VM", nargs="*", help="names or patterns of machines; by default all of the host")
    prune.add_argument("--policy", metavar="NAME", help="a policy of the file, instead of the options below")
    prune.add_argument(
        "--limit", metavar="MIB", type=_rate, help="copy so many MiB per second at most; merges can then be stopped too"
    )
    prune.add_argument(
        "--between",
        metavar="FROM-TO",
        type=hours,
        help="begin and go on only at these hours, as in 22:00-06:00; at others nothing is begun, with exit status 0",
    )
    add_policy_options(prune)
    policy = command("policy", "the policies of your file: show them, or check it for mistakes", _policy)
    policy.add_argument("what", metavar="show|check", choices=("show", "check"), nargs="?", default="show")
    policy.add_argument("--file", metavar="PATH", type=Path, help="another file than your own")

    check = command("check", "what should be looked at, the worst first, with the commands that cure it", _check)
    check.add_argument("vms", metavar="VM", nargs="*")
    add_check_options(check)

    common = _common_options(is_for_schedules=True)
    schedules = command("schedule", "what runs by itself: list, add and remove schedules", _schedules, common=common)
    _add_schedule_commands(schedules, common)
    run = command(
        "run-schedule", "take and prune what a schedule says, now, asking nobody: its timer runs this", _run_schedule
    )
    run.epilog = "Exit status: 0 done, 1 something failed, 3 a rule refused something, 5 it is running already."
    run.add_argument("name", metavar="NAME")
    run.add_argument("-n", "--dry-run", action="store_true", help="print the plans and stop")
    run.add_argument("--file", metavar="PATH", type=Path, help="another file than your own")

    drop = command(
        "drop-memory", "remove the saved memory of a snapshot, and keep its disks", _drop_memory, changes=True
    )
    drop.add_argument("vm", metavar="VM")
    drop.add_argument("snapshot", metavar="SNAPSHOT")

    for name, text, pinned in (
        ("pin", "keep snapshots out of every delete of several, and out of every prune", True),
        ("unpin", "let snapshots be deleted with others again", False),
    ):
        pin = command(name, text, _pin, changes=True)
        pin.add_argument("vm", metavar="VM")
        pin.add_argument("snapshots", metavar="SNAPSHOT", nargs="+")
        pin.set_defaults(pinned=pinned)

    good = command("known-good", "mark snapshots at which the machine was seen to work", _known_good, changes=True)
    good.add_argument("vm", metavar="VM")
    good.add_argument("snapshots", metavar="SNAPSHOT", nargs="+")
    good.add_argument("--no", action="store_true", help="take the mark off")

    note = command("note", "print the note of a snapshot, or write another", _note, changes=True)
    note.add_argument("vm", metavar="VM")
    note.add_argument("snapshot", metavar="SNAPSHOT")
    note.add_argument("text", metavar="TEXT", nargs="?", help="the new note; an empty one removes it")
    note.add_argument("--edit", action="store_true", help="write it in the editor that EDITOR names")

    rename = command("rename", "give an external snapshot another name", _rename, changes=True)
    rename.add_argument("vm", metavar="VM")
    rename.add_argument("snapshot", metavar="SNAPSHOT")
    rename.add_argument("new_name", metavar="NEW")

    look = command("look", "look at a snapshot in a new machine, and leave the old one as it is", _look, changes=True)
    look.add_argument("vm", metavar="VM")
    look.add_argument("snapshot", metavar="SNAPSHOT")
    look.add_argument("--name", default="", help="of the new machine; by default made of both names")
    look.add_argument("--with-networks", action="store_true", help="connected; by default its cables are unplugged")
    look.add_argument("--start", action="store_true", help="start it at once")
    unlook = command("unlook", "remove a machine that 'look' made, with all its files", _unlook, changes=True)
    unlook.add_argument("vm", metavar="VM")

    history = command("history", "what was done, by whom, and what came of it", _history)
    history.add_argument("vm", metavar="VM", nargs="?")
    undo = command(
        "undo", "take back the last change of a virtual machine, or the last one of all", _undo, changes=True
    )
    undo.add_argument("vm", metavar="VM", nargs="?")
    recover = command(
        "recover", "finish an operation that was interrupted, or leave it as it is", _recover, changes=True
    )
    recover.add_argument("vm", metavar="VM", nargs="?")
    recover.add_argument("--leave", action="store_true", help="do nothing more about it, and say what that leaves")
    remove_demo = command(
        "remove-demo", "end the machines of a demo estate that was kept, and remove it", _remove_demo, changes=True
    )
    remove_demo.add_argument("directory", metavar="DIR", type=Path, help="what --demo-dir was given")
    return parser


def _add_schedule_commands(parser: Any, common: argparse.ArgumentParser) -> None:
    parser.set_defaults(what="list", file=None, units_in=None, wrong_usage=parser.error)
    actions: Any = parser.add_subparsers(title="what to do", metavar="list|add|remove")

    def action(what: str, text: str) -> Any:
        added = actions.add_parser(what, help=text, description=text, parents=[common], allow_abbrev=False)
        added.set_defaults(what=what, wrong_usage=added.error)
        added.add_argument("--file", metavar="PATH", type=Path, help="another file of policies than your own")
        added.add_argument("--units-in", metavar="DIR", type=Path, help="write units there, and enable nothing")
        return added

    action("list", "all schedules of your file, with their next and last runs")
    action("remove", "take a schedule out of your file, and remove its timer").add_argument("name", metavar="NAME")
    add = action("add", "write a schedule into your file, and a timer for it; of one that is there, its timer anew")
    add.add_argument("name", metavar="NAME")
    add.add_argument("vms", metavar="VM", nargs="*", help="names or patterns of machines; by default all of the host")
    add.add_argument("--when", help="daily, hourly, '*-*-* 02:00' or whatever else systemd.time(7) has")
    kinds = ("best", "disk-only", "memory", "live", "internal")
    add.add_argument("--take", metavar="KIND", choices=kinds, help=f"take a snapshot: {', '.join(kinds)}")
    add.add_argument(
        "--together", action="store_true", help="of all of them at one time as a group, or of none: disk-only or memory"
    )
    _add_freeze_options(add)
    add.add_argument("--snapshot-name", metavar="NAME", help="of what it takes; by default {schedule}-{date}-{time}")
    add.add_argument("--note", metavar="TEXT", help="on each of them")
    add.add_argument("--policy", metavar="NAME", help="prune by a policy of the file, instead of the options below")
    add.add_argument("--limit", metavar="MIB", type=_rate, help="pruning copies so many MiB per second at most")
    add.add_argument("--between", metavar="FROM-TO", type=hours, help="prune at these hours only, as in 22:00-06:00")
    notify = ("failure", "always", "never")
    add.add_argument("--notify", metavar="WHEN", choices=notify, help=f"tell the desktop: {', '.join(notify)}")
    add_keep_options(add)


def _add_states_after(parser: Any) -> None:
    after = parser.add_mutually_exclusive_group()
    after.add_argument("--running", action="store_true", help="run afterwards, whatever the snapshot's state")
    after.add_argument("--paused", action="store_true", help="be paused afterwards")
    after.add_argument("--off", action="store_true", help="be off afterwards; the guest does not run meanwhile")


def _state_after(options: argparse.Namespace) -> StateAfter:
    from snaptree.plans.plan import StateAfter

    chosen = {StateAfter.RUNNING: options.running, StateAfter.PAUSED: options.paused, StateAfter.OFF: options.off}
    return next((state for state, is_chosen in chosen.items() if is_chosen), StateAfter.AS_CAPTURED)


def _add_freeze_options(parser: Any) -> None:
    freeze = parser.add_mutually_exclusive_group()
    freeze.add_argument(
        "--quiesce",
        action="store_const",
        const="required",
        default="no",
        help="let the guest agent freeze the file systems meanwhile, and take nothing if it can't",
    )
    freeze.add_argument(
        "--quiesce-if-possible",
        action="store_const",
        const="if-possible",
        dest="quiesce",
        help="the same, but take the disks as they are if it can't",
    )


def _rate(text: str) -> int:
    """Bytes per second from a number of MiB."""
    try:
        mebibytes = float(text)
    except ValueError:
        mebibytes = 0.0
    if not 0 < mebibytes < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of MiB above 0")
    return max(1, int(mebibytes * (1 << 20)))


@dataclass(frozen=True, slots=True)
class Where:
    """The hosts that a command line names."""

    uris: tuple[str, ...]
    demo: bool
    demo_directory: Path | None
    read_only: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> Where:
        """Read it from parsed arguments, which leave out what was not given."""
        directory = getattr(options, "demo_dir", None)
        return cls(
            uris=tuple(getattr(options, "connect", ())),
            demo=getattr(options, "demo", False) or directory is not None,
            demo_directory=directory,
            read_only=getattr(options, "read_only", False),
        )

    @property
    def is_given(self) -> bool:
        """Whether the command line named any host."""
        return self.demo or bool(self.uris)


def _wants_json(options: argparse.Namespace) -> bool:
    return bool(getattr(options, "json", False))


# Hosts


@contextmanager
def _addresses(options: argparse.Namespace) -> Iterator[list[str]]:
    """The address of every host that was named; libvirt's own default if none was."""
    where = Where.of(options)
    with ExitStack() as stack:
        uris = list(where.uris)
        if where.demo:
            uris.append(stack.enter_context(_demo_estate(where.demo_directory)))
        yield uris or [os.environ.get("LIBVIRT_DEFAULT_URI") or "qemu:///system"]


@contextmanager
def _connected(options: argparse.Namespace) -> Iterator[list[Connection]]:
    """Connections to every host that was named; libvirt's own default if none was."""
    from snaptree.hosts.connection import Connection

    read_only = Where.of(options).read_only
    with ExitStack() as stack:
        connections = []
        for uri in stack.enter_context(_addresses(options)):
            connection = Connection(uri, read_only=read_only, ask=_ask_on_terminal)
            connection.open()
            stack.callback(connection.close)
            if not read_only:
                _thaw_what_was_left(connection)
            connections.append(connection)
        yield connections


def _thaw_what_was_left(connection: Connection) -> None:
    """Thaw file systems that an interrupted operation left frozen, and say so."""
    from snaptree.hosts.freezing import thaw_left
    from snaptree.hosts.journal import journal_of

    # Who only looks needs no journal, and who changes anything is told that it can't be used.
    with suppress(SnapTreeError), journal_of(connection.uri) as journal:
        for left in () if journal is None else thaw_left(connection, journal):
            complain(SnapTreeError(f"{left.domain}: {left.says}"))


@contextmanager
def _demo_estate(directory: Path | None) -> Iterator[str]:
    """The demo estate's URI, the estate built before and cleaned away (or kept) afterwards."""
    from rich.progress import BarColumn, Progress, TextColumn

    from snaptree.demo import DemoEstate, DemoProgress
    from snaptree.terminal.console import console

    out = console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )

    def on_progress(progress: DemoProgress) -> None:
        bar.update(task, description=progress.doing, completed=progress.done, total=progress.total)

    estate = DemoEstate.prepare(directory)
    try:
        task = bar.add_task(f"{'Opening' if estate.is_built else 'Building'} the demo estate", total=None)
        with bar:
            estate.build(on_progress)
        yield estate.uri
    finally:
        estate.close()


def _ask_on_terminal(questions: Sequence[Any]) -> list[str] | None:
    if not sys.stdin.isatty():
        return None
    import getpass

    return [
        getpass.getpass(f"{question.prompt}: ")
        if question.is_secret
        else input(f"{question.prompt}: ") or question.default
        for question in questions
    ]


def _find(connections: Sequence[Connection], name: str) -> tuple[Connection, str]:
    """The host and UUID of a machine by name. Raises SnapTreeError if it is nowhere, or on several hosts."""
    found = []
    for connection in connections:
        try:
            found.append((connection, connection.domain_uuid(name)))
        except SnapTreeError:
            if len(connections) == 1:
                raise
    if not found:
        raise SnapTreeError(f"No virtual machine is named '{name}' on any of these hosts.", hint="See 'snaptree list'.")
    if len(found) > 1:
        hosts = ", ".join(connection.uri for connection, _ in found)
        raise SnapTreeError(f"'{name}' exists on several hosts: {hosts}.", hint="Give --connect for one of them only.")
    return found[0]


def _find_all(connections: Sequence[Connection], names: Sequence[str]) -> list[tuple[Connection, str, str]]:
    """Machines by names or patterns like those of files, each once: host, UUID and name. A name comes before a pattern.

    Raises SnapTreeError for a pattern that fits none, and as `_find`.
    """
    from fnmatch import fnmatchcase

    from snaptree.hosts.reading import list_domains

    found: dict[tuple[Connection, str], str] = {}
    patterns = {name for name in names if any(character in name for character in "*?[")}
    every = [(each, domain) for each in connections for domain in list_domains(each)] if patterns else []
    for name in names:
        if name not in patterns.difference(domain.name for _, domain in every):
            found[_find(connections, name)] = name
            continue
        fitting = {(each, domain.uuid): domain.name for each, domain in every if fnmatchcase(domain.name, name)}
        if not fitting:
            raise SnapTreeError(f"No virtual machine's name fits '{name}'.", hint="See 'snaptree list'.")
        found |= fitting
    return [(connection, uuid, name) for (connection, uuid), name in found.items()]


def _find_together(connections: Sequence[Connection], names: Sequence[str]) -> tuple[Connection, tuple[str, ...]]:
    """The one host of these machines, and their UUIDs. Raises SnapTreeError if there is no such host."""
    from snaptree.plans.group_planning import of_several_hosts

    found = [_find(connections, name) for name in dict.fromkeys(names)]
    if any(connection is not found[0][0] for connection, _ in found):
        raise of_several_hosts()
    return found[0][0], tuple(uuid for _, uuid in found)


def _read(connection: Connection, uuid: str, elsewhere: Elsewhere | None = None) -> DomainReading:
    """A machine with its costs. Without `elsewhere`, all machines of its host are asked what they stand on."""
    from snaptree.hosts.journal import unfinished_on
    from snaptree.hosts.layers import analysed, read_layers
    from snaptree.hosts.reading import read_domain, read_tree
    from snaptree.hosts.situation import read_elsewhere
    from snaptree.model.costs import domain_costs
    from snaptree.terminal.reading import DomainReading

    tree = read_tree(connection, uuid)
    layers = analysed(connection, read_layers(connection, uuid, tree))
    users = read_elsewhere(connection, uuid, layers) if elsewhere is None else elsewhere
    costs = domain_costs(tree, layers, users)
    unfinished = unfinished_on(connection.uri, uuid)
    return DomainReading(connection.host, read_domain(connection, uuid), tree, layers, costs, users, unfinished)


# Commands


def _list(options: argparse.Namespace) -> int:
    from snaptree.hosts.reading import list_domains
    from snaptree.model.merging import ALONE
    from snaptree.terminal import console, lists

    with _connected(options) as connections:
        readings = [
            # Totals do not depend on who shares an image: no need to ask every machine about every other.
            _read(connection, domain.uuid, ALONE)
            for connection in connections
            for domain in list_domains(connection)
        ]
        if _wants_json(options):
            console.print_json(lists.list_json([connection.host for connection in connections], readings))
        else:
            lists.print_list(console.console(), [connection.host for connection in connections], readings)
    return 0


def _tree(options: argparse.Namespace) -> int:
    from snaptree.terminal import console, trees

    with _connected(options) as connections:
        reading = _read(*_find(connections, options.vm))
        if _wants_json(options):
            console.print_json(trees.tree_json(reading))
        else:
            trees.print_tree(console.console(), reading)
    return 0


def _cost(options: argparse.Namespace) -> int:
    from snaptree.plans.draft import snapshot_named
    from snaptree.terminal import console, costs

    with _connected(options) as connections:
        reading = _read(*_find(connections, options.vm))
        names = tuple(dict.fromkeys(options.snapshots))
        for name in names:
            snapshot_named(reading.domain.name, reading.tree, name)
        if _wants_json(options):
            document = costs.selection_json(reading, names) if names else costs.layers_json(reading)
            console.print_json(document)
        elif names:
            costs.print_selection(console.console(), reading, names)
        else:
            costs.print_layers(console.console(), reading)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from snaptree.hosts.layers import read_layers
    from snaptree.hosts.reading import read_tree
    from snaptree.hosts.settings import compare_moments
    from snaptree.model.settings import layers_of_one_disk
    from snaptree.plans.draft import snapshot_named
    from snaptree.terminal import comparisons, console

    with _connected(options) as connections:
        connection, uuid = _find(connections, options.vm)
        tree = read_tree(connection, uuid)
        for name in filter(None, (options.snapshot, options.other)):
            snapshot_named(options.vm, tree, name)
        same_disk = layers_of_one_disk(tree, read_layers(connection, uuid, tree))
        comparison = compare_moments(connection, uuid, options.snapshot, options.other, same_disk)
        if _wants_json(options):
            console.print_json(comparisons.comparison_json(options.vm, connection.uri, comparison))
        elif options.xml:
            comparisons.print_xml(console.console(), comparison)
        else:
            comparisons.print_comparison(console.console(), comparison)
    return 0


def _take(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Capture, Take
    from snaptree.plans.plan import Freeze

    quiesce = Freeze(options.quiesce)
    capture = Capture.BEST
    if options.internal:
        capture = Capture.INTERNAL
    elif options.memory or (options.live and not options.disk_only):
        capture = Capture.DISKS_AND_MEMORY
    elif options.disk_only or quiesce is not Freeze.NO:
        capture = Capture.DISKS
    intention = Take(
        options.name or "",
        options.note,
        capture,
        quiesce=quiesce,
        excluded_disks=tuple(dict.fromkeys(options.exclude_disk)),
        live=options.live,
        layers_in=options.layers_in,
        memory_in=options.memory_in,
    )
    return _change(options, intention)


def _take_group(options: argparse.Namespace) -> int:
    from snaptree.plans.group_planning import plan_group_take
    from snaptree.plans.intention import Capture, Take
    from snaptree.plans.plan import Freeze

    capture = Capture.DISKS_AND_MEMORY if options.memory else Capture.DISKS
    intention = Take(options.name, options.note, capture, quiesce=Freeze(options.quiesce))
    with _connected(options) as connections:
        connection, uuids = _find_together(connections, options.vms)
        return _change_together(options, connection, uuids, partial(plan_group_take, intention))


def _revert_group(options: argparse.Namespace) -> int:
    from snaptree.hosts.reading import list_domains, read_tree
    from snaptree.model.errors import VanishedError
    from snaptree.plans.group import find_group
    from snaptree.plans.group_planning import plan_group_revert
    from snaptree.plans.intention import Revert

    with _connected(options) as connections:
        if options.vms:
            connection, uuids = _find_together(connections, options.vms)
        elif len(connections) > 1:
            raise SnapTreeError("Several hosts are named.", hint="Name the machines, or give --connect for one host.")
        else:
            connection = connections[0]
            uuids = tuple(domain.uuid for domain in list_domains(connection))
        trees = {}
        for uuid in uuids:
            with suppress(VanishedError):
                trees[uuid] = read_tree(connection, uuid)
        group, members = find_group(options.name, trees)
        intention = Revert("", take_safety_snapshot=not options.no_safety, state_after=_state_after(options))
        uuids = uuids if options.vms else members
        return _change_together(options, connection, uuids, partial(plan_group_revert, group, intention))


def _revert(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Revert

    return _change(
        options,
        Revert(
            options.snapshot,
            take_safety_snapshot=not options.no_safety,
            state_after=_state_after(options),
            drop_managed_save=options.drop_managed_save,
        ),
    )


def _delete(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Delete

    limit = options.limit
    intention = Delete(tuple(options.snapshots), subtree=options.subtree, by_own_jobs=limit is not None, limit=limit)
    return _change(options, intention)


def _prune(options: argparse.Namespace) -> int:
    """Plan for every machine, show all, ask once, and prune one after the other: a failure stops no other."""
    from snaptree.hosts.policies import load_policies
    from snaptree.hosts.reading import list_domains
    from snaptree.terminal import console
    from snaptree.terminal.policies import warn_of_mistakes
    from snaptree.terminal.policy_options import arguments_of, policy_of
    from snaptree.terminal.pruning import prune_machines

    named = None
    policy = policy_of(options)
    if options.policy is not None:
        file = load_policies()
        named = file.policy(options.policy)
        warn_of_mistakes(file)
        if more := arguments_of(policy):
            raise SnapTreeError(
                f"The policy {named.name} says what to keep, and {more[0]} would say something else.",
                hint="Give --policy alone, or all of it by options: 'snaptree policy show' says what that is.",
            )
        policy = named.policy
    if not policy.lets_go:
        raise SnapTreeError(
            "Nothing says what to keep, so nothing goes.", hint="Give --keep-last 7, say, or --policy NAME."
        )
    with _connected(options) as connections:
        if options.vms:
            machines = _find_all(connections, options.vms)
        else:
            every = [(each, domain) for each in connections for domain in list_domains(each)]
            machines = [
                (connection, domain.uuid, domain.name)
                for connection, domain in every
                if named is None or named.is_for(domain.name)
            ]
            if every and not machines and named is not None:
                raise SnapTreeError(
                    f"No virtual machine is one of the policy {named.name}: {', '.join(named.machines)}.",
                    hint="See 'snaptree list', and mend the policy, or name the machines.",
                )
        if not machines and not _wants_json(options):
            console.console().print("There are no virtual machines, so nothing goes.")
        return prune_machines(
            machines,
            policy,
            by_hand="add --by-hand" if named is None else f"write by-hand = true into the policy {named.name}",
            as_json=_wants_json(options),
            is_one=len(options.vms) == 1 and [name for *_, name in machines] == options.vms,
            dry_run=options.dry_run,
            yes=options.yes,
            limit=options.limit,
            between=options.between,
        )


def _policy(options: argparse.Namespace) -> int:
    from snaptree.hosts.policies import load_policies, policies_path
    from snaptree.plans.policy_file import PolicyFileError
    from snaptree.terminal import console, policies

    path = options.file or policies_path()
    checks = options.what == "check"
    problems: tuple[Problem, ...] = ()
    file = None
    try:
        file = load_policies(options.file)
        problems = file.problems
    except PolicyFileError as error:
        problems = error.problems
    except SnapTreeError as error:
        if checks and _wants_json(options):
            console.print_json([policies.mistake_json(str(path), str(error))])
        raise
    for problem in problems:
        sys.stderr.write(console.plain(f"{path}: {problem}") + "\n")
    if checks and _wants_json(options):
        console.print_json(policies.mistakes_json(str(path), problems))
    if file is None or (problems and checks):
        return EXIT_ERROR
    if checks:
        if not _wants_json(options):
            console.console().print(f"{path}: no mistakes. {policies.names_in(file)}")
        policies.warn_of_hours(file.schedules.values())
    elif _wants_json(options):
        console.print_json(policies.policies_json(file))
    elif file.policies:
        policies.print_policies(console.console(), file)
    elif not problems:
        console.console().print(f"There are no policies in {path}.")
    return EXIT_ERROR if problems else 0


def _check(options: argparse.Namespace) -> int:
    """Look at the machines named, or at all of them and what they share."""
    from snaptree.hosts.policies import load_policies
    from snaptree.plans.advice import counted
    from snaptree.terminal import checks, console
    from snaptree.terminal.checking import check_hosts
    from snaptree.terminal.policies import warn_of_mistakes
    from snaptree.terminal.policy_options import thresholds_of

    file = load_policies()
    file.require("check")
    warn_of_mistakes(file)
    thresholds = thresholds_of(options, file.thresholds)
    with _connected(options) as connections:
        named = [_find(connections, name) for name in dict.fromkeys(options.vms)]
        places = [(connection, _options_for(connection.uri, options)) for connection in connections]
        findings, machines = check_hosts(places, named, thresholds, file, _read)
    if _wants_json(options):
        console.print_json(checks.findings_json(findings))
    else:
        checks.print_findings(console.console(), findings, machines)
    return EXIT_FOUND if counted(each.advice for each in findings) else 0


def _options_for(uri: str, options: argparse.Namespace) -> tuple[str, ...]:
    """The options by which another command finds a host that this one was told of."""
    where = Where.of(options)
    if uri in where.uris:
        return "--connect", uri
    if where.demo_directory is not None:
        return "--demo-dir", str(where.demo_directory.resolve())
    return ("--demo",) if where.demo else ()


def _schedules(options: argparse.Namespace) -> int:
    from snaptree.terminal.schedules import add_schedule, list_schedules, never_for_a_demo, remove_schedule

    def connected(uri: str) -> AbstractContextManager[list[Connection]]:
        return _connected(argparse.Namespace(connect=[uri], read_only=True))

    where = Where.of(options)
    # Of what stands before the command: it has no such options itself.
    if where.demo:
        options.wrong_usage(str(never_for_a_demo()))
    if len(where.uris) > 1:
        options.wrong_usage("a schedule is for one host: give its address, --connect URI")
    match options.what:
        case "add":
            return add_schedule(options, connected)
        case "remove":
            return remove_schedule(options)
    return list_schedules(options, as_json=_wants_json(options))


def _run_schedule(options: argparse.Namespace) -> int:
    from snaptree.hosts.policies import load_policies
    from snaptree.terminal.policies import warn_of_mistakes
    from snaptree.terminal.schedule_run import run_schedule, tell_of_failure

    try:
        file = load_policies(options.file)
        schedule = file.schedule(options.name)
        warn_of_mistakes(file)
        if not Where.of(options).is_given:
            options.connect = [schedule.connect]
        connected = partial(_connected, options)
        return run_schedule(schedule, connected, as_json=_wants_json(options), dry_run=options.dry_run)
    except SnapTreeError as error:
        tell_of_failure(options.name, error, dry_run=options.dry_run)
        raise


def _drop_memory(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import DropMemory

    return _change(options, DropMemory(options.snapshot))


def _pin(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Describe

    return _change(options, Describe(tuple(options.snapshots), pinned=options.pinned))


def _known_good(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Describe

    return _change(options, Describe(tuple(options.snapshots), known_good=not options.no))


def _note(options: argparse.Namespace) -> int:
    """Print the note of a snapshot, or write another one."""
    from snaptree.hosts.reading import read_tree
    from snaptree.plans.draft import snapshot_named
    from snaptree.plans.intention import Describe
    from snaptree.terminal import console

    with _connected(options) as connections:
        connection, uuid = _find(connections, options.vm)
        text = options.text
        if text is None:
            note = snapshot_named(options.vm, read_tree(connection, uuid), options.snapshot).description
            if not options.edit:
                if _wants_json(options):
                    console.print_json({"domain": options.vm, "snapshot": options.snapshot, "note": note})
                elif note:
                    console.print_note(note)
                return 0
            text = _edited(note)
        return _change_machine(options, connection, uuid, Describe((options.snapshot,), note=text))


def _edited(text: str) -> str:
    """What the user's editor makes of a text. Raises SnapTreeError if there is none, or it fails."""
    import shlex
    import shutil
    import subprocess
    import tempfile

    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or shutil.which("editor") or "vi"
    with tempfile.TemporaryDirectory(prefix="snaptree-note-") as directory:
        path = Path(directory) / "note.txt"
        path.write_text(f"{text}\n" if text else "", encoding="utf-8")
        try:
            subprocess.run([*shlex.split(command), str(path)], check=True)  # noqa: S603  the user's own editor
            return path.read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise SnapTreeError(
                f"The note was not changed: the editor failed ({error}).", hint="Set EDITOR, or give the text."
            ) from error


def _rename(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Rename

    return _change(options, Rename(options.snapshot, options.new_name))


def _look(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Look

    return _change(
        options,
        Look(options.snapshot, options.name, connect_networks=options.with_networks, start=options.start),
    )


def _unlook(options: argparse.Namespace) -> int:
    from snaptree.plans.intention import Unlook

    return _change(options, Unlook())


def _history(options: argparse.Namespace) -> int:
    from snaptree.hosts.journal import journal_of
    from snaptree.terminal import console, history

    operations: list[Operation] = []
    with _addresses(options) as uris:
        for uri in uris:
            with journal_of(uri) as journal:
                operations += [] if journal is None else journal.recent(_HISTORY, host_uri=uri, domain=options.vm)
    operations.sort(key=lambda operation: operation.started, reverse=True)
    if _wants_json(options):
        console.print_json(history.history_json(operations))
    else:
        history.print_history(console.console(), operations)
    return 0


def _undo(options: argparse.Namespace) -> int:
    from snaptree.hosts.journal import journal_of
    from snaptree.plans.group import done_together
    from snaptree.plans.group_planning import plan_group_undo
    from snaptree.plans.intention import take_back
    from snaptree.plans.operation import last_undoable

    with _connected(options) as connections:
        last: list[tuple[Connection, Operation]] = []
        named = None if options.vm is None else _find(connections, options.vm)
        uuid = None if named is None else named[1]
        for connection in connections if named is None else [named[0]]:
            with journal_of(connection.uri) as journal:
                uri = connection.uri
                recent = () if journal is None else journal.recent(_HISTORY, host_uri=uri, domain_uuid=uuid)
            machines = {each.plan.domain_uuid for each in recent}
            last += [(connection, found) for machine in machines if (found := last_undoable(recent, machine))]
        if not last:
            machine = "" if options.vm is None else f" to {options.vm}"
            raise SnapTreeError(f"Nothing was done{machine} that could be taken back.", hint="See 'snaptree history'.")
        connection, operation = max(last, key=lambda each: each[1].finished or 0)
        with journal_of(connection.uri) as journal:
            known = () if journal is None else journal.recent(_HISTORY, host_uri=connection.uri)
        together = done_together(operation, known)
        if len(together) > 1:
            numbers = {each.plan.domain_uuid: each.id for each in together}
            return _change_together(
                options, connection, tuple(numbers), partial(plan_group_undo, together), undoes=numbers
            )
        undone, intention = take_back(operation.plan)
        return _change_machine(options, connection, undone, intention, undoes=operation.id)


def _recover(options: argparse.Namespace) -> int:
    from snaptree.hosts.journal import journal_of
    from snaptree.hosts.reading import list_domains
    from snaptree.plans.intention import Recover
    from snaptree.terminal import console

    with _connected(options) as connections:
        named = None if options.vm is None else _find(connections, options.vm)
        machines: dict[tuple[Connection, str], str] = {}
        for connection in connections if named is None else [named[0]]:
            with journal_of(connection.uri) as journal:
                found = () if journal is None else journal.unfinished(host_uri=connection.uri)
            # Of a machine that is gone nothing is left to finish, or it was its removal.
            there = {domain.uuid for domain in list_domains(connection)} if found else set()
            unfinished = [each for each in found if each.plan.domain_uuid in there]
            machines |= {(connection, each.plan.domain_uuid): each.plan.domain for each in unfinished}
        if named is not None:
            machines = {machine: name for machine, name in machines.items() if machine == named}
        if not machines:
            if _wants_json(options):
                console.print_json(None)
            else:
                about = "" if options.vm is None else f" to {console.plain(options.vm)}"
                console.console().print(f"Nothing that was done{about} was interrupted.")
            return 0
        if len(machines) > 1:
            names = ", ".join(sorted(machines.values()))
            raise SnapTreeError(f"Operations on several machines were interrupted: {names}.", hint="Name one of them.")
        ((connection, uuid),) = machines
        return _change_machine(options, connection, uuid, Recover(leave=options.leave))


def _change(options: argparse.Namespace, intention: Intention) -> int:
    """Change the machine that the command line names."""
    with _connected(options) as connections:
        return _change_machine(options, *_find(connections, options.vm), intention)


def _change_together(
    options: argparse.Namespace, connection: Connection, uuids: Sequence[str], make: MakeGroup, **more: Any
) -> int:
    """Change several machines together."""
    from snaptree.terminal.groups import change_together

    return change_together(
        connection, uuids, make, as_json=_wants_json(options), dry_run=options.dry_run, yes=options.yes, **more
    )


def _change_machine(
    options: argparse.Namespace, connection: Connection, uuid: str, intention: Intention, *, undoes: int | None = None
) -> int:
    """Plan, show, ask, run: the way in which a command changes one machine."""
    from snaptree.plans.plan import Action
    from snaptree.plans.plan_json import plan_to_json
    from snaptree.plans.planner import make_plan
    from snaptree.terminal import console, plans
    from snaptree.terminal.changing import agreed, run_with_progress, situation_for

    plan = make_plan(intention, situation_for(connection, uuid, intention))
    only_plan = plan.is_refused or options.dry_run
    if not _wants_json(options):
        plans.print_plan(console.console(), plan)
    elif only_plan:
        console.print_json(plan_to_json(plan))
    if plan.is_refused:
        for refusal in plan.refusals:
            complain(SnapTreeError(f"Refused: {refusal.reason}", hint=refusal.remedy))
        return EXIT_REFUSED
    if only_plan:
        return 0
    if not plan.steps and plan.action is Action.DESCRIBE:
        if _wants_json(options):
            console.print_json(plan_to_json(plan))
        else:
            console.console().print("Nothing to do: that is so already.")
        return 0
    if plan.asks_first and not options.yes and not agreed():
        return EXIT_REFUSED
    operation = run_with_progress(connection, plan, undoes=undoes, limit=getattr(options, "limit", None))
    if _wants_json(options):
        console.print_json(plans.result_json(plan, operation))
    if operation.error is not None:
        raise operation.error
    if not _wants_json(options):
        plans.print_result(console.console(), operation)
    return 0


def _remove_demo(options: argparse.Namespace) -> int:
    """Nothing is connected to: where libvirt does not know the machines any more, they are ended all the same."""
    from snaptree.demo import kept_estate, remove_kept
    from snaptree.terminal import console
    from snaptree.terminal.changing import agreed

    path = kept_estate(options.directory)
    out = console.console()
    if not _wants_json(options):
        says = f"Ends the machines of the demo estate in {path}, and removes their disks and snapshots."
        out.print(console.plain(f"{says} This can't be undone."), soft_wrap=False)
    is_agreed = not options.dry_run and (options.yes or agreed())
    left = remove_kept(path) if is_agreed else ()
    if _wants_json(options):
        console.print_json({"directory": str(path), "removed": is_agreed, "left": list(left)})
    elif is_agreed:
        others = f" {path} stays: there is more in it, such as '{left[0]}'." if left else ""
        out.print(console.plain(f"Removed.{others}"), soft_wrap=False)
    return 0 if is_agreed or options.dry_run else EXIT_REFUSED


# The window


def _open_window(options: argparse.Namespace) -> int:
    where = Where.of(options)
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        if os.environ.get("QT_QPA_PLATFORM", "").partition(":")[0] not in ("offscreen", "vnc", "minimal"):
            return _without_display(options)
    from snaptree.jobs.leaving import leave
    from snaptree.ui.application import run_window

    return leave(
        run_window(uris=where.uris, demo=where.demo, demo_directory=where.demo_directory, read_only=where.read_only)
    )


def _without_display(options: argparse.Namespace) -> int:
    """Nobody can see a window here: say so, print the trees, and leave a picture of the window."""
    from snaptree.hosts.reading import list_domains
    from snaptree.terminal import console, trees
    from snaptree.ui.application import save_screenshot

    out = console.console()
    out.print("There is no display here (neither DISPLAY nor WAYLAND_DISPLAY is set), so no window can open.")
    out.print("These are the trees that it would show:\n")
    with _connected(options) as connections:
        for connection in connections:
            for domain in list_domains(connection):
                trees.print_tree(out, _read(connection, domain.uuid))
                out.print()
        path = _screenshot_path()
        save_screenshot([connection.uri for connection in connections], path)
    out.print(f"A picture of the window is in {path}")
    return 0


def _screenshot_path() -> Path:
    """`snaptree-window.png` here, or in the temporary directory where this one can't be written."""
    import tempfile

    here = Path.cwd()
    directory = here if os.access(here, os.W_OK) else Path(tempfile.gettempdir())
    return directory / "snaptree-window.png"
