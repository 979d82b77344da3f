"""Rules about the images that a revert or delete would write or unlink: nobody else may need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from snaptree.plans.facts import is_external
from snaptree.plans.plan import Action
from snaptree.plans.rule import Case, Evidence, Rule, Verdict, actions, first, found
from snaptree.plans.rules_names import images_without
from snaptree.plans.situation import Known
from snaptree.plans.wording import files_named, machines_named, plain, quoted, shell_word, snapshots_named

_BOTH = actions(Action.REVERT, Action.DELETE)
_OWN_JOBS = "SnapTree merges only what nobody else needs, by block jobs of its own."
_LAYER_STAYS = "SnapTree lets libvirt forget the snapshot, and leaves the layer that others need."


def _followed_up(case: Case, image: str) -> frozenset[str]:
    """Images that may stand on one that libvirt unlinks, because libvirt gives them their new base in the same go."""
    if case.action is not Action.DELETE or case.snapshot is None:
        return frozenset()
    followed: set[str] = set()
    for layers in case.facts.chains.values():
        followed.update(upper for upper, lower in pairwise(layers) if lower == image)
    if case.situation.host.external_snapshots:
        # Since external reverts exist, libvirt also rebases the branches that are not in use.
        # On the branch that is in use it follows the chain above, and no layer that was taken out of that by hand.
        in_use = case.tree.path_to_current
        for name in (name for name in case.tree.descendants(case.snapshot.name) if name not in in_use):
            followed |= case.facts.keys(disk.frozen for disk in case.tree[name].disks)
    return frozenset(followed)


def _layer_in_use(case: Case) -> Evidence | None:
    """Unlinking something of the live chain that is not what this very action takes out of it."""
    taken_out = {merge.overlay for merge in case.effect.merges} if case.action is Action.DELETE else case.facts.active
    wrong = [layer for layer in case.unlinks if layer in case.facts.live and layer not in taken_out]
    return found(files=files_named(wrong)) if wrong else None


def _survivors_frozen_in(case: Case, image: str, spared: frozenset[str]) -> list[str]:
    return [name for name in case.facts.frozen_by.get(image, ()) if name not in spared]


def _holds_frozen_snapshot(case: Case) -> Evidence | None:
    spared = {case.name or ""} if case.action is Action.DELETE else set()
    if case.action is Action.DELETE and case.effect.merges and case.name is not None:
        # Their content moves into the base with the merge, and libvirt notes the new place.
        spared |= set(case.tree.descendants(case.name))
    for layer in case.unlinks:
        if names := _survivors_frozen_in(case, layer, frozenset(spared)):
            return found(file=plain(layer), holders=snapshots_named(names))
        users = set(case.facts.returned_to.get(layer, ())) - spared
        if users and case.action is Action.DELETE:
            named = snapshots_named(sorted(users))
            return found(file=plain(layer), holders=f"{named} (which left this disk out, and goes back to it)")
    return None


def _holds_internal_snapshot(case: Case) -> Evidence | None:
    for layer in case.unlinks:
        if names := case.facts.internal_in.get(layer, ()):
            listed_ones = [name for name in names if name in case.tree and not is_external(case.tree[name])]
            return found(
                file=plain(layer),
                internal=snapshots_named(names),
                how=""
                if listed_ones
                else f" (qemu-img snapshot -d NAME {shell_word(layer)}, as libvirt does not list it)",
            )
    return None


def _overlays_on_unlinked(case: Case) -> Evidence | None:
    return first(
        found(file=plain(layer), overlays=files_named(others), advice=_advice_on(case, others))
        for layer in case.unlinks
        if (others := case.facts.others_above(layer, _followed_up(case, layer)))
    )


def _advice_on(case: Case, overlays: Iterable[str]) -> str:
    """What to do about images that stand in the way: never to remove what the machine itself runs on."""
    in_use = case.facts.keys(layer for chain in case.situation.layers.chains for layer in chain.layers)
    if not in_use.isdisjoint(overlays):
        return f" ({plain(case.situation.domain.name)} itself stands on that now)"
    return " unless nobody needs that any more: then remove it first"


def _merged_overlays(case: Case) -> frozenset[str]:
    return frozenset(merge.overlay for merge in case.effect.merges)


def _written(case: Case) -> tuple[str, ...]:
    """The images that libvirt would write to; none where it has nothing to bring back (`not-in-image`).

    Nobody should make way for that, or copy it.
    """
    return () if case.action is Action.REVERT and images_without(case) else tuple(case.writes)


def _overlays_on_written(case: Case) -> Evidence | None:
    return first(
        found(file=plain(image), overlays=files_named(others), advice=_advice_on(case, others))
        for image in _written(case)
        if (others := case.facts.others_above(image, _merged_overlays(case)))
    )


def _frozen_by_another(case: Case) -> Evidence | None:
    return first(
        found(file=plain(image), holders=snapshots_named(names))
        for image in _written(case)
        if (names := _survivors_frozen_in(case, image, frozenset({case.name or ""})))
    )


def _machines_depend(case: Case) -> Evidence | None:
    for image in (*case.writes, *case.unlinks):
        if names := case.facts.dependants.get(image):
            return found(file=plain(image), machines=machines_named(names))
    return None


def _unreadable_machines_may_depend(case: Case) -> Evidence | None:
    """Only a base that this machine did not make itself is likely to carry strangers."""
    machines = case.situation.unreadable_domains
    shared = [image for image in (*case.writes, *case.unlinks) if image not in case.facts.made_by_snapshots]
    return found(machines=machines_named(machines), files=files_named(shared)) if machines and shared else None


def _unreadable_machines(case: Case) -> Evidence | None:
    machines = case.situation.unreadable_domains
    if not machines or not (case.writes or case.unlinks) or _unreadable_machines_may_depend(case) is not None:
        return None
    return found(machines=machines_named(machines), files=files_named((*case.writes, *case.unlinks)))


def _unread_image(case: Case) -> Evidence | None:
    unread = {image: why for image in case.unlinks if (why := case.facts.unreadable.get(image))}
    return found(files=files_named(unread), problem=plain(next(iter(unread.values())).rstrip("."))) if unread else None


def _layer_missing(case: Case) -> Evidence | None:
    """Missing files below anything that QEMU has to open: every disk of a revert, CD-ROMs and left out ones too."""
    missing: set[str] = set()
    if case.snapshot is not None and case.action is Action.REVERT:
        for disk in case.snapshot.disks:
            if disk.frozen is not None:
                missing.update(case.facts.missing_in_stack(disk.frozen))
    for merge in case.effect.merges:
        missing.update(case.facts.missing_in_stack(merge.into))
        missing.update(case.facts.missing.intersection(case.facts.chains.get(merge.target, ())))
    return found(files=files_named(missing)) if missing else None


def content_changed(case: Case) -> Evidence | None:
    """What a snapshot's layers show may not be what was there when it was taken (a manual commit, most often)."""
    if case.snapshot is None:
        return None
    wrong = case.facts.doubts_about(case.snapshot)
    return found(files=files_named(wrong), forget_whose_layer_that_was=_forget(case, wrong)) if wrong else None


def _forget(case: Case, layers: Sequence[str]) -> str:
    """What to do if a layer was merged into one of these by hand, as `snaptree check` says it."""
    links = [link for link in case.facts.broken_links if link.actual_below in layers]
    merged_away = {name for link in links for name in case.facts.frozen_by.get(link.recorded_below, ())}
    vm = shell_word(case.situation.domain.name)
    if names := [shell_word(snapshot.name) for snapshot in case.tree if snapshot.name in merged_away]:
        return (
            f"forget whose layer that was: snaptree delete {vm} {' '.join(names)}. What is left is marked as doubtful"
        )
    snapshot = case.name or ""
    return (
        f"{quoted(snapshot)} no longer exists as it was: drop what libvirt recorded, that of its children first (virsh"
        f" snapshot-delete {vm} {shell_word(snapshot)} --metadata)"
    )


def _merge_not_as_recorded(case: Case) -> Evidence | None:
    for merge in case.effect.merges:
        layers = case.facts.chains.get(merge.target, ())
        if (merge.overlay, merge.into) not in pairwise(layers):
            return found(overlay=plain(merge.overlay), base=plain(merge.into), disk=plain(merge.target))
    return None


def _disk_gone(case: Case) -> Evidence | None:
    there = {disk.target for disk in case.situation.disks}
    gone = [merge.target for merge in case.effect.merges if merge.target not in there]
    return found(disk=plain(gone[0])) if gone else None


RULES = (
    Rule(
        id="layer-in-use",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_layer_in_use,
        reason="libvirt would remove {files}, which {vm} stands on now: its disk would be lost.",
        remedy="libvirt's idea of the current snapshot does not fit the disks in use. Mend that first: take a new"
        " external snapshot, or redefine the snapshot that the disks descend from as current.",
        source="lab on 11.3 and 12.8: current wrongly set to a non-leaf, delete the leaf in use: data lost",
        needs=Known.LAYERS,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="layer-holds-snapshot",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_holds_frozen_snapshot,
        reason="libvirt would remove {file}, the layer that holds {holders}.",
        remedy="Take a new external snapshot first: libvirt then knows which layer is in use and removes that one.",
        source="lab on 11.3 and 12.8: REDEFINE with CURRENT on a reverted snapshot, then revert: data lost",
        needs=Known.TREE,
        mended_by_safety_snapshot=True,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="machines-depend",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_machines_depend,
        reason="{file} is also the base of {machines}. Changing it here would damage disks there, even while that"
        " machine is off.",
        remedy="Keep {snapshot}, or first make {machines} independent of {file} (virsh blockpull, or a full copy of"
        " the disk).",
        source="lab on 9.0, 11.3 and 12.8: a clone that is off is corrupted; locks protect running machines only",
        another_way=_LAYER_STAYS,
    ),
    Rule(
        id="internal-snapshot-inside",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_holds_internal_snapshot,
        reason="libvirt would remove {file}, and with it what is inside: {internal}. It would go on listing that,"
        " but the data would be gone.",
        remedy="Delete {internal} first if nobody needs it{how}, or keep {snapshot}.",
        source="lab on 9.0, 11.3 and 12.8: deleting an external snapshot loses the internal one in its overlay",
        needs=Known.TREE,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="removed-layer-has-overlays",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_overlays_on_unlinked,
        reason="libvirt would remove {file}, the base of {overlays}: what stands on it would be unusable.",
        remedy="Keep {snapshot}{advice}.",
        source="a qcow2 image without its base is lost; libvirt does not look for others that stand on a layer",
        needs=Known.LAYERS,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="written-image-has-overlays",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_overlays_on_written,
        reason="libvirt would write to {file}, the base of {overlays}: what stands on it would change, and file"
        " systems in it break.",
        remedy="Copy {snapshot} to a new machine, or keep it{advice}.",
        source="lab on 9.0, 11.3 and 12.8: an internal revert below an overlay gives that overlay the wrong content",
        needs=Known.LAYERS,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="written-image-holds-snapshot",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_frozen_by_another,
        reason="libvirt would overwrite {file}, the layer that holds {holders}.",
        remedy="Delete {holders} first if nobody needs it, or copy {snapshot} to a new machine.",
        source="lab on 9.0, 11.3 and 12.8: internal, then external, revert to the internal: wrong content, said to"
        " be OK",
        needs=Known.TREE,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="unreadable-machines-may-depend",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_unreadable_machines_may_depend,
        reason="The disks of {machines} can't be followed, so nobody can say whether they stand on {files}, which"
        " libvirt would change.",
        remedy="Make the images of {machines} readable again, or undefine what is no longer needed.",
        source="a base image is where clones of other machines start; a clone that is off would be corrupted silently",
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="unreadable-machines",
        actions=_BOTH,
        verdict=Verdict.WARN,
        condition=_unreadable_machines,
        reason="The disks of {machines} can't be followed. Anything there that was made on {files}, which snapshots"
        " of {vm} made, would be damaged.",
        remedy="Make the images of {machines} readable again if you are not sure.",
        source="overlays that snapshots made are rarely anybody else's base, but may be",
    ),
    Rule(
        id="unread-image",
        actions=_BOTH,
        verdict=Verdict.WARN,
        condition=_unread_image,
        reason="{files} can't be read ({problem}), so internal snapshots in it that libvirt does not list would go"
        " unnoticed.",
        remedy="Connect with an account that may read the images.",
        source="an image's snapshot table stands in the image alone",
        needs=Known.LAYERS,
    ),
    Rule(
        id="layer-missing",
        actions=_BOTH,
        verdict=Verdict.REFUSE,
        condition=_layer_missing,
        reason="{snapshot} can't be brought back or merged, because this is missing: {files}. libvirt would stop"
        " {vm} before it notices.",
        remedy="Bring the file back from a backup, or choose another snapshot.",
        source="libvirt source: a revert stops QEMU before it opens the images",
        needs=Known.LAYERS,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="content-changed",
        actions=actions(Action.REVERT),
        verdict=Verdict.REFUSE,
        condition=content_changed,
        reason="The layers below {snapshot} are not those it was taken on: {files} may hold other data by now, and"
        " libvirt would bring that back without a word.",
        remedy="If a layer was merged by hand, {forget_whose_layer_that_was}.",
        source="lab on 11.3 and 12.8: stale after a manual blockcommit, revert: wrong content, silently",
        needs=Known.LAYERS,
    ),
    Rule(
        id="merge-not-as-recorded",
        actions=actions(Action.DELETE),
        verdict=Verdict.REFUSE,
        condition=_merge_not_as_recorded,
        reason="Deleting {snapshot} means merging {overlay} into {base}, but disk {disk} does not stand on them in"
        " this way now.",
        remedy="If a layer was merged by hand, drop what libvirt recorded, that of its children first (virsh"
        " snapshot-delete {vm_arg} {snapshot_arg} --metadata); the data stays where it is.",
        source="libvirt: 'failed to find parent disk source in backing chain'; layers merged by hand change what"
        " snapshots mean",
        needs=Known.LAYERS,
        another_way=_OWN_JOBS,
    ),
    Rule(
        id="disk-gone",
        actions=actions(Action.DELETE),
        verdict=Verdict.REFUSE,
        condition=_disk_gone,
        reason="{snapshot} holds disk {disk}, which {vm} no longer has, so libvirt can't merge its layers.",
        remedy="Attach the disk again with the layer it had last, then delete {snapshot}.",
        source="libvirt finds the layers to merge through the machine's own disks",
        another_way=_OWN_JOBS,
    ),
)
