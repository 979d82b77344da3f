"""Rules about giving up the saved memory of a snapshot."""

from __future__ import annotations

from snaptree.model.estate import MemorySnapshot
from snaptree.plans.facts import external_disks, memory_file_of
from snaptree.plans.plan import Action
from snaptree.plans.rule import Case, Evidence, Rule, Verdict, actions, found
from snaptree.plans.situation import Known
from snaptree.plans.wording import listed, plain, snapshots_named

_DROP = actions(Action.DROP_MEMORY)


def _no_memory(case: Case) -> Evidence | None:
    return found() if case.snapshot is not None and case.snapshot.memory is MemorySnapshot.NO else None


def _inside_image(case: Case) -> Evidence | None:
    return found() if case.snapshot is not None and case.snapshot.memory is MemorySnapshot.INTERNAL else None


def _nothing_else(case: Case) -> Evidence | None:
    return (
        found() if _file(case) is not None and case.snapshot is not None and not external_disks(case.snapshot) else None
    )


def _file(case: Case) -> str | None:
    return None if case.snapshot is None else memory_file_of(case.snapshot)


def _shared_file(case: Case) -> Evidence | None:
    file = _file(case)
    others = [other.name for other in case.tree if other.name != case.name and memory_file_of(other) == file]
    return found(file=plain(file), others=snapshots_named(others)) if file is not None and others else None


def _out_of_reach(case: Case) -> Evidence | None:
    file = _file(case)
    if file is None or case.situation.host.is_local or file in case.situation.missing_files:
        return None
    size = case.layers.memory_files.get(file)
    return found(file=plain(file)) if size is None or not size.is_known else None


def _missing_file(case: Case) -> Evidence | None:
    file = _file(case)
    return found(file=plain(file)) if file is not None and file in case.situation.missing_files else None


def _marked(case: Case) -> Evidence | None:
    if case.snapshot is None:
        return None
    marks = case.snapshot.annotations
    words = [word for word, mark in (("pinned", marks.pinned), ("known to be good", marks.known_good)) if mark]
    return found(marks=listed(words)) if words else None


def _always(case: Case) -> Evidence | None:
    return found() if _file(case) is not None else None


RULES = (
    Rule(
        id="no-memory",
        actions=_DROP,
        verdict=Verdict.REFUSE,
        condition=_no_memory,
        reason="{snapshot} holds no memory.",
        remedy="Choose a snapshot with memory.",
        source="there is nothing to drop",
        needs=Known.TREE,
        drivers=frozenset(),
    ),
    Rule(
        id="memory-inside-image",
        actions=_DROP,
        verdict=Verdict.REFUSE,
        condition=_inside_image,
        reason="The memory of {snapshot} lies inside the image, in one piece with what the disk was. QEMU removes both"
        " together or not at all.",
        remedy="Keep it, or delete the whole snapshot.",
        source="qcow2: a snapshot's table of clusters holds disk and memory; QEMU has no command that cuts it",
        needs=Known.TREE,
        drivers=frozenset(),
    ),
    Rule(
        id="nothing-but-memory",
        actions=_DROP,
        verdict=Verdict.REFUSE,
        condition=_nothing_else,
        reason="{snapshot} holds the memory only: without it, nothing would be left.",
        remedy="Keep it, or delete the whole snapshot.",
        source="every disk was left out when it was taken",
        needs=Known.TREE,
    ),
    Rule(
        id="memory-is-shared",
        actions=_DROP,
        verdict=Verdict.REFUSE,
        condition=_shared_file,
        reason="{file} is the saved memory of {others}, too.",
        remedy="Find out which of them it belongs to: libvirt itself makes a file for each.",
        source="the snapshots' records",
        needs=Known.TREE,
    ),
    Rule(
        id="memory-out-of-reach",
        actions=_DROP,
        verdict=Verdict.REFUSE,
        condition=_out_of_reach,
        reason="{file} lies on another computer, in no storage pool of its libvirt: from here it can't be removed, so"
        " nothing would come back.",
        remedy="Run SnapTree on that host, or make its directory a storage pool.",
        source="libvirt removes files on its host as volumes of pools only",
    ),
    Rule(
        id="memory-missing-already",
        actions=_DROP,
        verdict=Verdict.WARN,
        condition=_missing_file,
        reason="{file} is missing already, so nothing comes back; but {snapshot} can be reverted to again afterwards.",
        remedy="",
        source="lab: a revert to a snapshot whose memory file is missing fails, with the machine stopped",
    ),
    Rule(
        id="memory-of-marked",
        actions=_DROP,
        verdict=Verdict.WARN,
        condition=_marked,
        reason="{snapshot} is {marks}: someone wanted it as it is.",
        remedy="",
        source="the person who marked it",
        needs=Known.TREE,
    ),
    Rule(
        id="memory-drop-is-final",
        actions=_DROP,
        verdict=Verdict.WARN,
        condition=_always,
        reason="What ran in {vm} at {snapshot} is lost; this can't be undone. Its disks stay as they were then, their"
        " file systems not frozen: a revert to it leaves {vm} off, and the next start is one after a power cut.",
        remedy="",
        source="lab on 9.0 and 11.3: such a snapshot reverts like one taken of the disks alone",
        needs=Known.TREE,
    ),
)
