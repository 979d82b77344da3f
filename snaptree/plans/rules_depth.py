"""Rules about chains that are too deep for libvirt to understand QEMU's answers about them.

libvirt's JSON reader of these versions stops at 32 levels, and QEMU describes each layer one level further down.
Seen on 11.3.0: with more than 25 layers a machine does not start, with more than 27 a running one can't be asked about
its disks, so that deletes fail, and reverts after they have stopped it; when the daemon restarts, it takes up a running
machine of 42 layers by killing it. Merging several layers of a running machine at once still works.
"""

from __future__ import annotations

from collections.abc import Iterator

from snaptree.plans.plan import Action
from snaptree.plans.rule import Case, Evidence, Rule, Verdict, actions, found
from snaptree.plans.situation import Known
from snaptree.plans.wording import plain

MOST_LAYERS_TO_START = 25
MOST_LAYERS_WHILE_RUNNING = 27

NESTING_SINCE, NESTING_UNTIL = 10_008_000, 12_000_000
_SOURCE = (
    "measured on libvirt 11.3.0: 'failed to parse JSON: nesting too deep'; libvirt's JSON reader changed in 10.8,"
    " and its limit was raised in 12.0"
)
_WAY_OUT = "libvirt 12.0 and later have no such limit."


def _too_deep(depths: Iterator[tuple[str, int]], most: int) -> Evidence | None:
    target, layers = max(depths, key=lambda disk: disk[1], default=("", 0))
    return found(disk=plain(target), layers=str(layers), most=str(most)) if layers > most else None


def _take_makes_it_too_deep(case: Case) -> Evidence | None:
    if case.take is None:
        return None
    overlays = case.take.overlays
    depths = ((target, len(case.facts.chains.get(target, ())) + 1) for target in overlays)
    return _too_deep(depths, MOST_LAYERS_TO_START)


def _too_deep_to_merge(case: Case) -> Evidence | None:
    """A delete of what is in use asks QEMU about all layers; one of a machine that is off starts QEMU on them first."""
    if case.external is None or not case.effect.merges:
        return None
    depths = ((target, len(layers)) for target, layers in case.facts.chains.items())
    return _too_deep(depths, MOST_LAYERS_WHILE_RUNNING if case.is_active else MOST_LAYERS_TO_START)


def _too_deep_to_go_back(case: Case) -> Evidence | None:
    """After an external revert the machine stands on a new overlay over the snapshot's own layers."""
    if case.external is None:
        return None
    depths = (
        (disk.target, sum(1 for _ in case.facts.stack(disk.frozen)) + 1)
        for disk in case.external.disks
        if disk.frozen and disk.how.value == "external"
    )
    return _too_deep(depths, MOST_LAYERS_TO_START)


def _too_deep_to_leave(case: Case) -> Evidence | None:
    """A revert asks the running QEMU about its disks before it stops it, and a machine too deep to start is a trap."""
    if not case.is_active or case.snapshot is None:
        return None
    depths = ((target, len(layers)) for target, layers in case.facts.chains.items())
    return _too_deep(depths, MOST_LAYERS_WHILE_RUNNING)


RULES: tuple[Rule, ...] = (
    Rule(
        id="too-deep-to-start-again",
        actions=actions(Action.TAKE),
        verdict=Verdict.REFUSE,
        condition=_take_makes_it_too_deep,
        reason="Disk {disk} would stand on {layers} layers, and libvirt {libvirt} can't start a machine with more"
        " than {most}: once stopped, {vm} would not come up again.",
        remedy=f"Delete old snapshots that nobody needs first, or take an internal snapshot. {_WAY_OUT}",
        source=_SOURCE,
        since=NESTING_SINCE,
        until=NESTING_UNTIL,
    ),
    Rule(
        id="too-deep-to-merge",
        actions=actions(Action.DELETE),
        verdict=Verdict.REFUSE,
        condition=_too_deep_to_merge,
        reason="Disk {disk} stands on {layers} layers, and libvirt {libvirt} can't delete snapshots of a machine"
        " with more than {most} layers in this state: it does not understand QEMU's answer about so many.",
        remedy="Leave {vm} running if it runs: stopped, it may not start again. Merge several layers at once with virsh"
        f" blockcommit while it runs. {_WAY_OUT}",
        source=_SOURCE,
        needs=Known.LAYERS,
        since=NESTING_SINCE,
        until=NESTING_UNTIL,
        another_way="SnapTree merges few layers at a time, from the lowest up.",
    ),
    Rule(
        id="too-deep-to-go-back",
        actions=actions(Action.REVERT),
        verdict=Verdict.REFUSE,
        condition=_too_deep_to_go_back,
        reason="After a revert to {snapshot} disk {disk} would stand on {layers} layers. libvirt {libvirt} stops"
        " {vm} first, and then can't start it with more than {most}.",
        remedy=f"Choose an older snapshot. {_WAY_OUT}",
        source=_SOURCE,
        needs=Known.LAYERS,
        since=NESTING_SINCE,
        until=NESTING_UNTIL,
    ),
    Rule(
        id="too-deep-to-look",
        actions=actions(Action.LOOK),
        verdict=Verdict.REFUSE,
        condition=_too_deep_to_go_back,
        reason="Disk {disk} of the new machine would stand on {layers} layers, and libvirt {libvirt} can't start it"
        " with more than {most}.",
        remedy=f"Choose an older snapshot. {_WAY_OUT}",
        source=_SOURCE,
        needs=Known.LAYERS,
        since=NESTING_SINCE,
        until=NESTING_UNTIL,
    ),
    Rule(
        id="too-deep-to-leave",
        actions=actions(Action.REVERT),
        verdict=Verdict.REFUSE,
        condition=_too_deep_to_leave,
        reason="Disk {disk} stands on {layers} layers, and libvirt {libvirt} does not understand QEMU's answer about"
        " more than {most}: a revert of the running machine fails half-way and leaves {vm} off, where it"
        " can't start again.",
        remedy=f"Merge several layers at once with virsh blockcommit while {{vm}} runs. {_WAY_OUT}",
        source=_SOURCE,
        needs=Known.LAYERS,
        since=NESTING_SINCE,
        until=NESTING_UNTIL,
    ),
)
