"""Rules about merging layers by block jobs of our own, where libvirt's own delete can't, or copies more."""

from __future__ import annotations

import posixpath
from itertools import chain, pairwise

from snaptree.plans.plan import Action, MergeWay
from snaptree.plans.rule import Case, Evidence, Rule, Verdict, actions, by_the_planner, first, found
from snaptree.plans.rules_depth import MOST_LAYERS_TO_START, NESTING_SINCE, NESTING_UNTIL
from snaptree.plans.situation import Situation
from snaptree.plans.wording import files_named, machines_named, plain, size, snapshots_named

_DELETE = actions(Action.DELETE)


def _unread_layer(case: Case) -> Evidence | None:
    if case.merge is None:
        return None
    for layer in case.merge.stack:
        image = case.facts.image(layer.path)
        if image is None or image.is_missing or image.problem:
            why = "there is no such file" if image is not None and image.is_missing else "it can't be read"
            problem = (image.problem if image is not None and image.problem else why).rstrip(".")
            return found(file=plain(layer.path), problem=plain(problem))
    lowest = case.facts.image(case.merge.stack[-1].path)
    if lowest is not None and lowest.backing is not None:
        return found(file=plain(lowest.backing), problem="it is not where it should be")
    return None


def _holders_of_written(case: Case) -> Evidence | None:
    """A commit changes what its lowest layer shows, and those between: only what the plan deletes may lie there."""
    if case.merge is None or case.merge.way is not MergeWay.COMMIT:
        return None
    for layer in case.merge.layers[1:]:
        key = case.facts.key(layer)
        holders = {*case.facts.frozen_by.get(key, ()), *case.facts.internal_in.get(key, ())} - case.deleting
        if holders:
            return found(file=plain(layer), holders=snapshots_named(sorted(holders)))
    return None


def _others_on_written(case: Case) -> Evidence | None:
    if case.merge is None or case.merge.way is not MergeWay.COMMIT:
        return None
    merged = case.merge.layers
    # The one above the top is told what it stands on from now on; QEMU tells no other.
    line = [None, *(layer.path for layer in case.merge.stack)]
    above = line[line.index(merged[0]) - 1] if merged[0] in line else None
    return first(
        found(file=plain(lower), overlays=files_named(others))
        for upper, lower in pairwise((above, *merged))
        if lower is not None
        and (others := case.facts.others_above(lower, chain(filter(None, (upper,)), case.obsolete)))
    )


def _machines_on_written(case: Case) -> Evidence | None:
    if case.merge is None:
        return None
    written = case.merge.layers[1:] if case.merge.way is MergeWay.COMMIT else case.merge.layers[:1]
    return first(
        found(file=plain(layer), machines=machines_named(names))
        for layer in written
        if (names := case.facts.dependants.get(case.facts.key(layer)))
    )


def _inside_merged(case: Case) -> Evidence | None:
    """Its clusters would move, and what they stand on would change: a snapshot inside survives neither."""
    if case.merge is None:
        return None
    top = case.merge.layers[0]
    names = [name for name in case.facts.internal_in.get(case.facts.key(top), ()) if name not in case.deleting]
    return found(file=plain(top), internal=snapshots_named(names)) if names else None


def _bitmaps_lost(case: Case) -> Evidence | None:
    """libvirt merges bitmaps where its own machine merges layers; a helper machine knows of no checkpoints."""
    merge = case.merge
    if merge is None or merge.is_live:
        return None
    lost = [
        layer
        for layer in merge.layers
        if layer != merge.merged and (image := case.facts.image(layer)) is not None and image.has_bitmaps
    ]
    return found(files=files_named(lost)) if lost else None


def _disk_has_no_jobs(case: Case) -> Evidence | None:
    merge = case.merge
    if merge is None:
        return None
    for disk in case.situation.disks:
        if disk.target == merge.target:
            if disk.type != "file":
                return found(disk=plain(disk.target), why=f"is no file ({plain(disk.type)})")
            if merge.is_live and (disk.transient or disk.bus == "sd"):
                return found(disk=plain(disk.target), why="is transient" if disk.transient else "is an SD card")
    return None


def _too_deep_for_helper(case: Case) -> Evidence | None:
    merge = case.merge
    if merge is None or merge.is_live or len(merge.stack) <= MOST_LAYERS_TO_START:
        return None
    return found(layers=str(len(merge.stack)), most=str(MOST_LAYERS_TO_START), disk=plain(merge.target))


def _unreadable_machines_may_stand_on(case: Case) -> Evidence | None:
    merge, machines = case.merge, case.situation.unreadable_domains
    if merge is None or not machines:
        return None
    changed = merge.layers[1:] if merge.way is MergeWay.COMMIT else ()
    shared = [layer for layer in changed if case.facts.key(layer) not in case.facts.made_by_snapshots]
    return found(machines=machines_named(machines), files=files_named(shared)) if shared else None


def _starts_helper(case: Case) -> Evidence | None:
    return found() if case.merge is not None and not case.merge.is_live else None


def _overwrites(case: Case) -> Evidence | None:
    if case.merge is None or case.merge.way is not MergeWay.COMMIT:
        return None
    is_held = any(case.facts.key(layer) in case.facts.frozen_by for layer in case.merge.layers[1:])
    return found() if is_held else None


def lacks_room(situation: Situation, file: str, grows: int) -> Evidence | None:
    """Whether a file may grow by more than its file system has room for."""
    directory = posixpath.dirname(file)
    free = situation.free_bytes.get(directory)
    if free is None or grows <= free:
        return None
    return found(
        directory=plain(directory),
        file=plain(file),
        grows=size(grows),
        free=size(free),
    )


MERGE_STUCK = Rule(
    id="merge-stuck",
    actions=_DELETE,
    verdict=Verdict.REFUSE,
    condition=by_the_planner,
    reason="The layers of {snapshots} can't be merged: {problem}.",
    remedy="Delete what is in the way first if nobody needs it{off}, or keep {snapshots}.",
    source="each survivor on a layer that goes must take in what it needs of it, or be committed into it",
)
MERGE_LACKS_ROOM = Rule(
    id="merge-lacks-room",
    actions=_DELETE,
    verdict=Verdict.REFUSE,
    condition=by_the_planner,
    reason="Merging lets {file} grow by up to {grows}, and {directory} has {free} free.",
    remedy="Make room first, or delete fewer snapshots at a time.",
    source="vdsm#352: no space left in a live merge, and the disk was lost",
)
REMOVED_LAYER_IS_NEEDED = Rule(
    id="removed-layer-is-needed",
    actions=_DELETE,
    verdict=Verdict.REFUSE,
    condition=by_the_planner,
    reason="{file} would have to go, but {problem}",
    remedy="Keep {snapshots}, or make what stands on it independent of it first.",
    source="no file is removed before it is certain that nothing else needs it",
)
LAYER_STAYS = Rule(
    id="layer-stays",
    actions=_DELETE,
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="{file}, the layer of {snapshots}, stays and frees nothing: {problem}",
    remedy="",
    source="lab on 9.0, 11.3 and 12.8: a base that others read must neither be written nor removed, even while they"
    " are off",
)

BY_THE_PLANNER = (MERGE_STUCK, MERGE_LACKS_ROOM, REMOVED_LAYER_IS_NEEDED, LAYER_STAYS)

RULES = (
    *BY_THE_PLANNER,
    Rule(
        id="merged-layer-unreadable",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_unread_layer,
        reason="{file} would be opened for the merge, and can't be: {problem}.",
        remedy="Make the image readable, or bring it back from a backup.",
        source="QEMU opens all layers below the one that is merged",
    ),
    Rule(
        id="merged-layer-holds-snapshot",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_holders_of_written,
        reason="The merge would overwrite {file}, which holds {holders}.",
        remedy="Delete {holders} too, or keep what lies in {file}.",
        source="a commit writes to every reader of its base",
    ),
    Rule(
        id="merged-layer-has-overlays",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_others_on_written,
        reason="The merge would write to {file}, or remove it, the base of {overlays}: what stands on it would change.",
        remedy="Remove {overlays} first if nobody needs that any more.",
        source="lab on 9.0, 11.3 and 12.8: a commit into a shared base corrupts what is off; locks protect running"
        " machines only",
    ),
    Rule(
        id="merged-layer-is-shared",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_machines_on_written,
        reason="The merge would write to {file}, which {machines} reads.",
        remedy="Make {machines} independent of {file} first (virsh blockpull, or a full copy of the disk).",
        source="lab on 9.0, 11.3 and 12.8: a clone that is off is corrupted",
    ),
    Rule(
        id="merged-layer-holds-internal",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_inside_merged,
        reason="{file} holds {internal}, which would not survive a merge of that image.",
        remedy="Delete {internal} first if nobody needs it.",
        source="lab on 9.0, 11.3 and 12.8: never pull into an image that holds internal snapshots",
    ),
    Rule(
        id="merge-loses-bitmaps",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_bitmaps_lost,
        reason="{files} holds dirty bitmaps, marks of incremental backups, which this merge would lose.",
        remedy="Start {vm} if these layers are in use, so that libvirt merges the bitmaps too; or delete the"
        " checkpoints first: the next backup is then a full one.",
        source="QEMU's block jobs merge no bitmaps; libvirt does for the layers of a running machine",
    ),
    Rule(
        id="merge-needs-files",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_disk_has_no_jobs,
        reason="Disk {disk} {why}: its layers can't be merged.",
        remedy="Attach the disk in another way first.",
        source="libvirt: block jobs are not supported on such disks",
    ),
    Rule(
        id="merge-too-deep",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_too_deep_for_helper,
        reason="For the merge a helper machine would have to open {layers} layers of disk {disk}, and libvirt"
        " {libvirt} can't start one with more than {most}.",
        remedy="Start with the oldest snapshots, or merge while {vm} runs.",
        source="measured on libvirt 11.3.0: 'failed to parse JSON: nesting too deep'",
        since=NESTING_SINCE,
        until=NESTING_UNTIL,
    ),
    Rule(
        id="merge-unreadable-machines",
        actions=_DELETE,
        verdict=Verdict.REFUSE,
        condition=_unreadable_machines_may_stand_on,
        reason="The disks of {machines} can't be followed, so nobody can say whether they stand on {files}, which the"
        " merge would write to.",
        remedy="Make the images of {machines} readable again, or undefine what is no longer needed.",
        source="a base image is where clones of other machines start; a clone that is off would be corrupted silently",
    ),
    Rule(
        id="helper-machine",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_starts_helper,
        reason="Layers that {vm} does not use now are merged by a helper machine: a paused QEMU without a guest, which"
        " holds them meanwhile.",
        remedy="",
        source="libvirt merges layers of running machines only",
    ),
    Rule(
        id="merge-overwrites",
        actions=_DELETE,
        verdict=Verdict.WARN,
        condition=_overwrites,
        reason="A merge overwrites what goes from its start on: stopped half way, it leaves mixtures that nobody can go"
        " back to, until it is finished (snaptree recover {vm_arg}).",
        remedy="",
        source="a commit writes into the layer that goes, from its first byte on",
    ),
)
