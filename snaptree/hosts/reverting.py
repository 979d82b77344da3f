"""Going back to a snapshot: what it needs is looked for first, then libvirt does it, or where it can't, we do."""

from __future__ import annotations

import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import image_format, parse, read_definition, set_layer, source_path
from snaptree.hosts.errors import explained
from snaptree.hosts.layers import Images
from snaptree.hosts.new_layers import make_layer, remove_layer
from snaptree.hosts.reading import current_name, read_domain
from snaptree.hosts.snapshot_xml import read_snapshot
from snaptree.images.files import read_chain
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import DiskSnapshot, DomainState, MemorySnapshot, Snapshot, SnapshotKind
from snaptree.plans.facts import takes_writes
from snaptree.plans.plan import ForkAtSnapshot, RevertToSnapshot, StateAfter, TakeSnapshot
from snaptree.plans.rule import QEMU
from snaptree.plans.situation import Disk

_SECURE = libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE
_REVERT_SPACING_SECONDS = 1.1
"""libvirt names the overlay of a revert after the second it happens in: two in one second collide."""

_last_revert: dict[str, float] = {}


def check_needs(connection: Connection, domain: Any, step: RevertToSnapshot | ForkAtSnapshot) -> None:
    """Raise SnapTreeError if anything is missing that a revert will open: libvirt stops the machine before it looks.

    That is the memory file, every layer of every disk, and internal snapshots inside their images.
    """
    if connection.host.driver != QEMU:
        return
    with explained(f"looking for the snapshot {step.name}"):
        text = domain.snapshotLookupByName(step.name).getXMLDesc()
    if isinstance(step, ForkAtSnapshot):
        _definitions(text, step)
    snapshot = read_snapshot(step.name, text)
    for problem in _missing(Images(connection), snapshot):
        raise SnapTreeError(
            f"Not reverted: {problem}.",
            hint="Bring that back, or choose another snapshot. The machine was left as it is.",
        )


def _missing(images: Images, snapshot: Snapshot) -> Iterator[str]:
    """What is certainly not there. Of what can't be looked at, nobody says so."""
    if snapshot.problem:
        yield f"what libvirt recorded about {snapshot.name} can't be understood ({snapshot.problem.rstrip('.')})"
    memory_file = snapshot.memory_file if snapshot.memory is MemorySnapshot.EXTERNAL else None
    if memory_file is not None and images.is_missing(memory_file):
        yield f"the saved memory {memory_file}, which {snapshot.name} needs, is missing"
    for disk in snapshot.disks:
        if disk.frozen is None:
            continue
        layers = read_chain(disk.frozen, disk.frozen_format, images.read_image).images
        for image in layers:
            if image.is_missing:
                yield f"the layer {image.path}, which {snapshot.name} needs for disk {disk.target}, is missing"
        top = layers[0]
        is_readable = disk.how is DiskSnapshot.INTERNAL and not top.problem
        if is_readable and all(entry.name != snapshot.name for entry in top.internal_snapshots):
            yield f"there is no snapshot {snapshot.name} inside {top.path}"


def revert(domain: Any, step: RevertToSnapshot) -> None:
    """Let libvirt revert. A machine that shall be off afterwards is never let run: it comes up paused, and is ended."""
    handle = domain.snapshotLookupByName(step.name)
    snapshot = read_snapshot(step.name, handle.getXMLDesc())
    is_external = snapshot.kind is not SnapshotKind.INTERNAL
    if is_external:
        _space_out(domain.UUIDString())
    stays_off = step.state_after is StateAfter.OFF and not snapshot.state.is_active
    state_after = StateAfter.AS_CAPTURED if stays_off else step.state_after
    flags = {
        StateAfter.AS_CAPTURED: 0,
        StateAfter.RUNNING: libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING,
        StateAfter.PAUSED: libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED,
        StateAfter.OFF: libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED,
    }[state_after]
    try:
        with explained(f"reverting to {step.name}"):
            domain.revertToSnapshot(handle, flags)
    finally:
        if is_external:
            _last_revert[domain.UUIDString()] = time.monotonic()
    if step.state_after is StateAfter.OFF:
        with explained("turning the machine off"):
            stop(domain)


def stop(domain: Any) -> None:
    """End a machine's QEMU, if it has one. Raises libvirtError, or SnapTreeError if it goes on running."""
    try:
        domain.destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:  # off already
            raise
    if domain.isActive():
        raise SnapTreeError("The machine was turned off and still runs.", hint="Look at it before you go on.")


def _space_out(uuid: str) -> None:
    """Wait until a second has passed since the last revert ended: somewhen before that it looked at the clock."""
    since = time.monotonic() - _last_revert.get(uuid, -_REVERT_SPACING_SECONDS)
    if since < _REVERT_SPACING_SECONDS:
        threading.Event().wait(_REVERT_SPACING_SECONDS - since)


def state_in_words(connection: Connection, domain: Any) -> str:
    """In what state a machine is by now, as a sentence: for errors."""
    try:
        state = read_domain(connection, domain.UUIDString()).state
        current = current_name(domain)
    except (libvirt.libvirtError, SnapTreeError):
        return "In what state the machine is now can't be found out."
    words = {DomainState.OFF: "off", DomainState.RUNNING: "running", DomainState.PAUSED: "paused"}
    on = "none" if current is None else f"'{current}'"
    return f"The machine is {words.get(state, state.value)} now; its current snapshot is {on}."


# By our own steps, where libvirt has no external reverts (LIBVIRT.md, 9: "Manual fork on 9.0")


def fork(connection: Connection, domain: Any, step: ForkAtSnapshot) -> None:
    """Give a machine that is off the definition of a snapshot, on new layers, and make that snapshot current.

    Until all of that is done, a failure puts everything back. Then the machine is started, if it shall be.
    """
    if domain.isActive():
        raise SnapTreeError("Not reverted: the machine runs.", hint="Someone started it meanwhile. Plan again.")
    with explained(f"reading the snapshot {step.name}"):
        text = domain.snapshotLookupByName(step.name).getXMLDesc(_SECURE)
        before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE)
    definition, running = _definitions(text, step)
    if is_on(domain, step):  # an earlier run came this far
        _make_current(domain, text, step)
        _start(connection, domain, step, running, read_snapshot(step.name, text).state)
        return
    made: list[str] = []
    is_defined = False
    try:
        for target, path in step.overlays.items():
            make_layer(connection, path, step.bases[target])
            made.append(path)
        with explained(f"reverting to {step.name}"):
            connection.handle.defineXML(definition)
            is_defined = True
            _make_current(domain, text, step)
    except SnapTreeError:
        if is_defined:
            with explained("putting the machine's definition back"):
                connection.handle.defineXML(before)
        for path in made:
            remove_layer(connection, path)
        raise
    _start(connection, domain, step, running, read_snapshot(step.name, text).state)


def is_on(domain: Any, step: ForkAtSnapshot | TakeSnapshot) -> bool:
    """Whether a machine is on the new layers already."""
    disks = {disk.target: disk.path for disk in read_definition(parse(domain.XMLDesc())).disks}
    return all(disks.get(target) == path for target, path in step.overlays.items())


def _definitions(snapshot_xml: str, step: ForkAtSnapshot) -> tuple[str, str]:
    """What the machine is defined as, and as what it ran. Raises SnapTreeError if that does not fit the new layers."""
    running = _on_layers(snapshot_xml, "domain", step)
    if running is None:
        raise SnapTreeError(f"Not reverted: {step.name} does not say what its machine looked like.")
    return _on_layers(snapshot_xml, "inactiveDomain", step) or running, running


def _on_layers(snapshot_xml: str, tag: str, step: ForkAtSnapshot) -> str | None:
    """The machine as a snapshot recorded it in `tag`, its disks on the new layers.

    Raises SnapTreeError if a disk that a guest writes to has none: it would write to what is frozen.
    """
    domain = parse(snapshot_xml).find(tag)
    if domain is None:
        return None
    domain.tag = "domain"
    disks: Mapping[str, Disk] = {disk.target: disk for disk in read_definition(domain).disks}
    for element in domain.findall("devices/disk"):
        target = element.find("target")
        name = "" if target is None else target.get("dev", "")
        # What libvirt knew of the layers below is not so any more.
        for backing in element.findall("backingStore"):
            element.remove(backing)
        overlay = step.overlays.get(name)
        if overlay is not None:
            _check_base(element, step, name)
            set_layer(element, overlay, "qcow2")
        elif takes_writes(disks[name]):
            raise SnapTreeError(
                f"Not reverted: {step.name} recorded disk {name}, for which there is no new layer.",
                hint="The machine was left as it is.",
            )
    return ET.tostring(domain, encoding="unicode")


def _check_base(disk: ET.Element, step: ForkAtSnapshot, target: str) -> None:
    base = step.bases[target]
    if (source_path(disk), image_format(disk)) != (base.path, base.format):
        raise SnapTreeError(
            f"Not reverted: {step.name} now says that disk {target} was {source_path(disk)}, not {base.path}.",
            hint="Someone else changed what libvirt knows of it. The machine was left as it is: plan again.",
        )


def _make_current(domain: Any, text: str, step: ForkAtSnapshot) -> None:
    """REDEFINE with CURRENT: libvirt before 9.9 knows no `<revertDisks>` that this would drop (LIBVIRT.md, 9)."""
    root = parse(text)
    if step.owns_overlays:
        for disk in root.findall("disks/disk[@snapshot='external']"):
            if (overlay := step.overlays.get(disk.get("name", ""))) is not None and disk.find("source") is not None:
                set_layer(disk, overlay, "qcow2")
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
    domain.snapshotCreateXML(ET.tostring(root, encoding="unicode"), flags)


def _start(connection: Connection, domain: Any, step: ForkAtSnapshot, definition: str, captured: DomainState) -> None:
    if step.state_after is StateAfter.OFF:
        return
    if step.memory_file is not None:
        flags = {
            StateAfter.AS_CAPTURED: 0,
            StateAfter.RUNNING: libvirt.VIR_DOMAIN_SAVE_RUNNING,
            StateAfter.PAUSED: libvirt.VIR_DOMAIN_SAVE_PAUSED,
        }[step.state_after]
        with explained(f"loading the memory of {step.name}"):
            connection.handle.restoreFlags(step.memory_file, definition, flags)
    elif step.state_after is not StateAfter.AS_CAPTURED or captured.is_active:
        paused = step.state_after is StateAfter.PAUSED
        with explained(f"starting the machine as {step.name} has it"):
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
