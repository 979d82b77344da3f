"""Machines that look at a snapshot: made on what it holds, which is only read, and removed with their own files."""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.domain_xml import parse, read_definition
from snaptree.hosts.errors import explained
from snaptree.hosts.layers import Images
from snaptree.hosts.leftovers import remove_with_machine
from snaptree.hosts.look_xml import Original, look_xml, nvram_of, read_mark
from snaptree.hosts.new_layers import make_layer, remove_layer, reserve_file
from snaptree.hosts.reading import never
from snaptree.images.files import ImageReader, read_chain
from snaptree.model.errors import CancelledError, ChangedMeanwhileError, SnapTreeError
from snaptree.model.estate import InternalSnapshot
from snaptree.plans.naming import part_of
from snaptree.plans.plan import CopyOut, MakeLook, RemoveLook, StartLook

_LOOK_SECONDS: Final = 0.1
"""Between two looks whether a copy shall stop."""
_PERCENT: Final = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")
_UNDEFINE: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)


# Copying a snapshot out of an image


def copy_out(step: CopyOut, *, on_progress: Callable[[float], None], cancelled: Callable[[], bool] = never) -> None:
    """Copy an internal snapshot out of an image that a machine may be writing to. `on_progress` gets a share of 1.

    What a snapshot holds is written by nobody as long as it is there: its tables and clusters have been in the file
    since it was taken, and QEMU writes elsewhere (QCOW2.md). So a reader needs no lock, but must see afterwards that
    it was there all the time. What is there under the step's own name is whole: until then it has another.

    Raises SnapTreeError if it can't be copied, CancelledError; nothing is left behind then.
    """
    before = _entry(step)
    part = part_of(step.path)
    reserve_file(part)
    try:
        problem = _convert(step, part, on_progress, cancelled)
        # Before QEMU's own words: it may have failed because the snapshot is gone.
        if _entry(step) != before:
            raise ChangedMeanwhileError(f"{step.snapshot} in {step.source.path} was made anew while it was copied")
        if problem:
            raise SnapTreeError(
                f"{step.snapshot} cannot be copied out of {step.source.path}: {problem.splitlines()[-1].rstrip('.')}.",
                hint="Nothing is left of the copy.",
                details=problem,
            )
        if Path(step.path).exists():
            raise ChangedMeanwhileError(f"the file {step.path} exists by now")
        Path(part).rename(step.path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _entry(step: CopyOut) -> tuple[InternalSnapshot, str | None]:
    """The snapshot in the image's own table, and what the image stands on."""
    image = ImageReader().read_image(step.source.path, step.source.format)
    if image.problem:
        raise SnapTreeError(f"{step.source.path} cannot be read: {image.problem.rstrip('.')}.")
    found = [entry for entry in image.internal_snapshots if entry.name == step.snapshot]
    if len(found) != 1:
        raise ChangedMeanwhileError(f"there is no single snapshot {step.snapshot} in {step.source.path} any more")
    return found[0], image.backing


def _convert(step: CopyOut, part: str, on_progress: Callable[[float], None], cancelled: Callable[[], bool]) -> str:
    """Let QEMU copy it. Gives what QEMU says if it fails, or nothing."""
    name = step.snapshot.replace(",", ",,")  # in QEMU's options one comma ends a value
    based = [] if step.base is None else ["-B", step.base.path, "-F", step.base.format]
    what = ["-U", "-p", "-f", step.source.format, "-O", "qcow2", "-l", f"snapshot.name={name}", *based]
    with subprocess.Popen(  # noqa: S603  arguments, without a shell
        ["qemu-img", "convert", *what, "--", step.source.path, part],  # noqa: S607  found by PATH, as every distribution has it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for said in _heard(process.stdout.fileno()):
            if cancelled():
                process.kill()
                raise CancelledError(f"Copying {step.snapshot} was cancelled; nothing of it is left.")
            if shares := _PERCENT.findall(said):
                on_progress(float(shares[-1]) / 100)
        problem = process.stderr.read().decode(errors="replace").strip()
    if process.returncode == 0:
        return ""
    return problem or "qemu-img failed"


def _heard(output: int) -> Iterator[bytes]:
    """What a program says until it ends, and nothing now and then while it is silent."""
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            if not selector.select(_LOOK_SECONDS):
                yield b""
            elif said := os.read(output, 4096):
                yield said
            else:
                return


# Making the machine


def make_look(connection: Connection, domain: Any, step: MakeLook) -> None:
    """Define the machine on its layers. `domain` is the one that is looked at, which is only read.

    Raises SnapTreeError if anything is missing or in the way; what was made for it until then is gone again.
    """
    with explained(f"reading the snapshot {step.snapshot}"):
        text = domain.snapshotLookupByName(step.snapshot).getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE)
        original = Original(domain.name(), domain.UUIDString())
        _check_free(connection, step)
    images = Images(connection)
    _check_images(images, step)
    made: list[str] = []
    has_nvram = False
    try:
        for target, base in step.bases.items():
            make_layer(connection, step.disks[target], base)
            made.append(step.disks[target])
        has_nvram = _copy_nvram(text, step)
        definition = look_xml(
            text, step, original, has_nvram=has_nvram, is_there=lambda path: not images.is_missing(path)
        )
        with explained(f"making the machine {step.machine}"):
            connection.handle.defineXML(definition)
    except SnapTreeError:
        for path in made:
            remove_layer(connection, path)
        if has_nvram and step.nvram is not None:
            Path(step.nvram).unlink(missing_ok=True)
        raise


def _check_free(connection: Connection, step: MakeLook) -> None:
    """Defining a machine whose UUID is known changes that one. Raises libvirtError."""
    for other in connection.handle.listAllDomains():
        if other.name() == step.machine or other.UUIDString() == step.uuid:
            raise ChangedMeanwhileError(f"there is a machine named {other.name()} by now")


def _check_images(images: Images, step: MakeLook) -> None:
    """Everything that the machine would open has to be there."""
    for target, path in step.disks.items():
        top = step.bases.get(target)
        chain = read_chain(path if top is None else top.path, "qcow2" if top is None else top.format, images.read_image)
        for image in chain.images:
            if image.is_missing:
                raise SnapTreeError(
                    f"{step.machine} cannot be made: {image.path}, which disk {target} stands on, is missing.",
                    hint="Bring it back, or choose another snapshot.",
                )


def _copy_nvram(snapshot_xml: str, step: MakeLook) -> bool:
    """Copy the UEFI variables, if that can be done: libvirt makes new ones for a machine that has none."""
    source = nvram_of(snapshot_xml)
    if step.nvram is None or source is None or not Path(source).is_file():
        return False
    reserve_file(step.nvram)
    try:
        shutil.copyfile(source, step.nvram)
    except OSError as error:
        Path(step.nvram).unlink(missing_ok=True)
        raise SnapTreeError(f"The UEFI variables {source} cannot be copied: {error.strerror}.") from error
    return True


def is_made(connection: Connection, step: MakeLook) -> bool:
    """Whether the machine is there. Raises libvirtError."""
    handle = _find(connection, step.uuid)
    return handle is not None and read_mark(parse(handle.XMLDesc())) is not None


def start_look(connection: Connection, step: StartLook) -> None:
    """Start the machine, if it does not run."""
    with explained(f"starting {step.machine}"):
        handle = connection.handle.lookupByUUIDString(step.uuid)
        if not handle.isActive():
            handle.create()


def is_started(connection: Connection, step: StartLook) -> bool:
    """Whether the machine runs. Raises libvirtError."""
    handle = _find(connection, step.uuid)
    return handle is not None and bool(handle.isActive())


def _find(connection: Connection, uuid: str) -> Any:
    """A machine; None if there is none of that UUID. Raises libvirtError."""
    return next((each for each in connection.handle.listAllDomains() if each.UUIDString() == uuid), None)


# Removing it


def remove_look(connection: Connection, domain: Any, step: RemoveLook) -> None:
    """Remove a machine that looks at a snapshot and is off: its files first, as only it says whose they are.

    Raises ChangedMeanwhileError if it is no such machine any more, runs, or anybody else needs one of the files.
    """
    with explained("reading the machine"):
        definition = parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        if read_mark(definition) is None:
            raise ChangedMeanwhileError("it is no machine any more that SnapTree made to look at a snapshot")
        if domain.isActive():
            raise ChangedMeanwhileError("the machine was started")
    remove_with_machine(connection, domain, step.files, f"it was made for {domain.name()}")
    with explained(f"removing the machine {domain.name()}"):
        nvram = read_definition(definition).nvram
        is_shared = nvram is not None and _is_named_elsewhere(connection, domain, nvram)
        keep_or_not = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM if is_shared else libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        domain.undefineFlags(_UNDEFINE | keep_or_not)


def _is_named_elsewhere(connection: Connection, domain: Any, path: str) -> bool:
    """Whether another machine's definition names a file. Raises libvirtError."""
    uuid = domain.UUIDString()
    others = [other for other in connection.handle.listAllDomains() if other.UUIDString() != uuid]
    return any(read_definition(parse(other.XMLDesc())).nvram == path for other in others)
