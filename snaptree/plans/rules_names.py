"""Rules about names that other tools gave to internal snapshots: the name is the key inside the image."""

from __future__ import annotations

import re

from snaptree.model.estate import Image, MemorySnapshot
from snaptree.plans.facts import LIBVIRT_10_9, LIBVIRT_10_10, internal_images
from snaptree.plans.plan import Action
from snaptree.plans.rule import Case, Evidence, Rule, Verdict, actions, first, found
from snaptree.plans.situation import Known
from snaptree.plans.wording import files_named, plain, quoted

_REVERT = actions(Action.REVERT)
_BOTH = actions(Action.REVERT, Action.DELETE)

_FIT_FOR_A_JOB = re.compile(r"[A-Za-z0-9._-]+")
_GARBLED = re.compile(r'["\\\x00-\x1f]')


def images_inside(case: Case) -> list[tuple[str, Image]]:
    """The images inside which an internal snapshot should lie, where they could be read."""
    if case.internal is None:
        return []
    images = [(path, case.facts.image(path)) for path in internal_images(case.internal)]
    return [(path, image) for path, image in images if image is not None and not image.problem]


def images_without(case: Case) -> list[str]:
    """Those of them that do not hold it any more."""
    return [
        path
        for path, image in images_inside(case)
        if all(entry.name != case.name for entry in image.internal_snapshots)
    ]


def _passes_qemu(case: Case) -> bool:
    """Whether a running QEMU is told the name: otherwise qemu-img is, which takes any."""
    if case.internal is None:
        return False
    if case.action is Action.REVERT:
        return case.internal.memory is not MemorySnapshot.NO
    return case.is_active


def _consequence(case: Case) -> str:
    return "would stop {vm} and then fail" if case.action is Action.REVERT else "can't delete it while {vm} runs"


def _said_of(case: Case) -> Evidence:
    return found(consequence=_consequence(case).format(vm=plain(case.situation.domain.name)))


def _breaks_job(case: Case) -> Evidence | None:
    if case.internal is None or not _passes_qemu(case) or _FIT_FOR_A_JOB.fullmatch(case.internal.name):
        return None
    if case.action is Action.REVERT and case.situation.host.libvirt_version < LIBVIRT_10_10:
        return None
    return _said_of(case)


def _breaks_monitor(case: Case) -> Evidence | None:
    if case.internal is None or not _passes_qemu(case) or not _GARBLED.search(case.internal.name):
        return None
    return _said_of(case)


def _named_like_an_id(case: Case) -> Evidence | None:
    return first(
        found(file=plain(path), other=quoted(entry.name))
        for path, image in images_inside(case)
        for entry in image.internal_snapshots
        if entry.id == case.name and entry.name != case.name
    )


def _twice_in_image(case: Case) -> Evidence | None:
    twice = [
        path
        for path, image in images_inside(case)
        if sum(entry.name == case.name for entry in image.internal_snapshots) > 1
    ]
    return found(files=files_named(twice)) if twice else None


RULES = (
    Rule(
        id="name-breaks-job",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_breaks_job,
        reason="The name {snapshot} has characters other than letters, digits, dots, dashes and underscores. libvirt"
        " {libvirt} makes a job of QEMU's out of it and {consequence}.",
        remedy="To delete it, shut {vm} down first. To see what it holds, copy it out (qemu-img convert -l"
        " snapshot.name={snapshot_arg}).",
        source="lab on 11.3: 'Invalid job ID' from snapshot-load and snapshot-delete; the revert leaves the machine"
        " off",
        needs=Known.TREE,
        since=LIBVIRT_10_9,
    ),
    Rule(
        id="name-breaks-monitor",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_breaks_monitor,
        reason="The name {snapshot} has characters that libvirt {libvirt} garbles on the way to QEMU: it"
        " {consequence}.",
        remedy="To delete it, shut {vm} down first. To see what it holds, copy it out (qemu-img convert -l"
        " snapshot.name={snapshot_arg}).",
        source="lab on 9.0: quotation marks and backslashes in a name: taken, but the revert fails and kills the"
        " machine",
        needs=Known.TREE,
        until=LIBVIRT_10_10,
    ),
    Rule(
        id="named-like-an-id",
        actions=_REVERT,
        verdict=Verdict.REFUSE,
        condition=_named_like_an_id,
        reason="In {file}, {snapshot} is also the number of another snapshot, {other}, and QEMU would bring that one"
        " back.",
        remedy="Copy it out by its name (qemu-img convert -l snapshot.name={snapshot_arg}), or delete {other} first"
        " if nobody needs it.",
        source="lab on 9.0, 11.3 and 12.8: internal named 1 while id 1 is another: wrong content",
        needs=Known.LAYERS,
    ),
    Rule(
        id="twice-in-image",
        actions=actions(Action.REVERT, Action.LOOK),
        verdict=Verdict.REFUSE,
        condition=_twice_in_image,
        reason="There is more than one snapshot named {snapshot} in {files}, and nobody can say which of them would"
        " come back.",
        remedy="Look at them with qemu-img snapshot -l, and delete the wrong one by its number.",
        source="QEMU takes the first entry of that name",
        needs=Known.LAYERS,
    ),
)
