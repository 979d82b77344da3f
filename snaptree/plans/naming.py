"""Names of new snapshots, and of the files they make.

Foreign names are shown and handled whatever they are; these limits are for names that we give. Outside of them
libvirt moves the disks before it fails, QEMU reads the name as a number, or a machine does not start any more.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from snaptree.plans.wording import quoted

LONGEST_NAME = 100
LONGEST_FILE_NAME = 247
"""Bytes: a file system's 255, less what libvirt appends while it writes (`.xml.new`, the second of a revert)."""

DEFAULT_TEMPLATE = "snapshot-{date}-{time}"
SAFETY_TEMPLATE = "before-revert-{date}-{time}"
FIELDS = ("vm", "date", "time", "user", "kind")
"""What a template for names can have in braces."""
_FIELD = re.compile(r"\{([^{}]*)\}")
_LONGEST_FIELD = 40

_BAD_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")
_BAD_IN_MACHINE = re.compile(r"[^A-Za-z0-9_.-]")
_ROOM_FOR_NUMBER = 5
_IMAGE_SUFFIXES = (".qcow2", ".qcow", ".qed", ".img", ".raw", ".vmdk", ".vdi", ".vhd", ".vhdx")
_ROOM_BEHIND_LAYER = 14
"""Bytes that may be appended to a new layer's name: a number, the disk's name, `.mem`."""
_SECONDS_SUFFIX = re.compile(r"\.\d{9,11}")
"""What libvirt appends to the overlays that a revert makes: seconds since 1970."""
_DATED_SUFFIX = re.compile(r"\.[A-Za-z0-9_-]*\d{4}-\d\d-\d\d-\d{6}[A-Za-z0-9_-]*")
"""What templates for names make: a snapshot of which libvirt knows no more may have left it in a layer's name."""


def name_problem(name: str, *, internal: bool = False, fields: Collection[str] = FIELDS) -> str:
    """Why a new snapshot can't have this name; empty if it can. One sentence. `fields` are what templates know."""
    if not name:
        return "A snapshot needs a name."
    if len(name) > LONGEST_NAME:
        return f"A snapshot's name can have {LONGEST_NAME} characters; this one has {len(name)}."
    if strange := [found[0] for found in _FIELD.finditer(name) if found[1] not in fields]:
        there = ", ".join(f"{{{field}}}" for field in fields)
        return f"{quoted(strange[0])} can't be filled in: there are {there}."
    if bad := _BAD_CHARACTER.search(name):
        character = "a space" if bad[0] == " " else quoted(bad[0])
        return f"{quoted(name)} has {character} in it: use letters (a to z, A to Z), digits, dashes and underscores."
    if name[0] in "-_":
        return f"{quoted(name)} does not begin with a letter or a digit."
    if internal and name.isdigit():
        return f"{quoted(name)} is a number: inside an image, QEMU would take it for the number of another snapshot."
    return ""


@dataclass(frozen=True, slots=True)
class NameFields:
    """What a template can name. `now` is seconds since 1970, UTC; names have the local date and time."""

    vm: str
    now: int
    user: str = ""
    kind: str = ""
    """A word for what the snapshot holds."""

    def __getitem__(self, field: str) -> str:
        """The text of one of FIELDS, made fit for a name."""
        moment = datetime.fromtimestamp(self.now, UTC).astimezone()
        match field:
            case "date":
                return f"{moment:%Y-%m-%d}"
            case "time":
                return f"{moment:%H%M%S}"
        text = {"vm": self.vm, "user": self.user, "kind": self.kind}[field]
        return _BAD_CHARACTER.sub("-", text)[:_LONGEST_FIELD].strip("-_") or "unknown"


def fill_template(template: str, fields: NameFields) -> str:
    """The name that a template makes. What is no field stays as it is, and is no name then."""
    return _FIELD.sub(lambda found: fields[found[1]] if found[1] in FIELDS else found[0], template)


def is_template(name: str) -> bool:
    """Whether a name has fields to fill: no name that we give has braces."""
    return "{" in name


def template_problem(template: str, fields: Collection[str] = FIELDS) -> str:
    """Why this makes no names; empty if it does. One sentence. `fields` are those that can be filled in."""
    return name_problem(fill_template(template, NameFields("vm", 0, "user", "kind")), fields=fields)


def suggest_name(
    template: str,
    fields: NameFields,
    taken: Collection[str],
    is_free: Callable[[str], bool] = lambda _name: True,
) -> str:
    """The name that a template makes, with a number behind it if it is taken.

    `is_free` can turn down more, such as names whose overlay file exists already.
    """
    return free_name(fill_template(template, fields), lambda name: name not in taken and is_free(name))


def free_name(base: str, is_free: Callable[[str], bool]) -> str:
    """`base`, or with the first number behind it that makes a free name."""
    name, number = base, 1
    while not is_free(name):
        number += 1
        name = f"{base}-{number}"
    return name


def overlay_path(
    active_layer: str,
    name: str,
    snapshot_names: Collection[str] = (),
    layers_in: str = "",
    *,
    frozen: Collection[str] = (),
    layers: Collection[str] = (),
) -> str:
    """Where the overlay of a new snapshot goes: `disk.qcow2` -> `disk.NAME`, beside the active layer or in `layers_in`.

    What earlier snapshots or a revert appended is replaced, so that names stay short: it is known by `snapshot_names`,
    by dates, and by the layers of this disk that snapshots have `frozen`. What a file system would refuse is cut. No
    new layer is named like one of the machine's own `layers`.
    """
    directory, base = posixpath.split(active_layer)
    stem = _stem(base, snapshot_names, frozen)
    room = max(1, LONGEST_FILE_NAME - _ROOM_BEHIND_LAYER - len(f".{name}"))
    path = posixpath.join(layers_in or directory, f"{stem.encode()[:room].decode(errors='ignore')}.{name}")
    return free_name(path, lambda each: each not in layers)


def revert_overlay_path(frozen_layer: str, now: int) -> str:
    """Where libvirt itself puts the overlay when it reverts: the last suffix is replaced by the second."""
    directory, base = posixpath.split(frozen_layer)
    stem, dot, _ = base.rpartition(".")
    return posixpath.join(directory, f"{stem if dot else base}.{now}")


def memory_path(overlay: str, memory_in: str = "") -> str:
    """Where saved memory goes: beside the overlay of the first disk, or into `memory_in`."""
    path = f"{overlay}.mem"
    return posixpath.join(memory_in, posixpath.basename(path)) if memory_in else path


def machine_name_problem(name: str) -> str:
    """Why a new machine can't have this name, of which its files get theirs; empty if it can. One sentence."""
    if len(name) > LONGEST_NAME:
        return f"A machine's name can have {LONGEST_NAME} characters; this one has {len(name)}."
    if _BAD_IN_MACHINE.search(name) or not name or name[0] in "-_.":
        return (
            f"{quoted(name)} is no name for a machine: use letters (a to z, A to Z), digits, dashes, underscores and"
            " dots, a letter or digit first."
        )
    return ""


def look_name(domain: str, snapshot: str, taken: Collection[str]) -> str:
    """A name for the machine that looks at a snapshot of another one; it sorts beside that."""
    whole = _BAD_IN_MACHINE.sub("-", f"{domain}-at-{snapshot}").lstrip("-_.")
    base = name = whole[: LONGEST_NAME - _ROOM_FOR_NUMBER] or "look"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def look_path(layer: str, machine: str, target: str) -> str:
    """Where a disk of such a machine goes: beside the layer that holds its content."""
    return posixpath.join(posixpath.dirname(layer), f"{machine}-{target}.qcow2")


def look_nvram(nvram: str, machine: str) -> str:
    """Where the UEFI variables of such a machine go: beside those that they are a copy of."""
    return posixpath.join(posixpath.dirname(nvram), f"{machine}_VARS{posixpath.splitext(nvram)[1]}")


def part_of(path: str) -> str:
    """What a copy is called until it is whole."""
    return f"{path}.part"


def file_name_is_too_long(path: str) -> bool:
    """Whether a file system may refuse this file's name."""
    return len(posixpath.basename(path).encode()) > LONGEST_FILE_NAME


def _stem(base: str, snapshot_names: Collection[str], frozen: Collection[str]) -> str:
    """A layer's name without all that was appended to it."""
    shorter = _without_ending(base, snapshot_names)
    if shorter != base:
        return _stem(shorter, snapshot_names, frozen)
    stems = {_stem(posixpath.basename(path), snapshot_names, ()) for path in frozen}
    return min((stem for stem in stems if base.startswith(f"{stem}.")), key=len, default=base)


def _without_ending(base: str, snapshot_names: Collection[str]) -> str:
    rest, suffix = posixpath.splitext(base)
    if _SECONDS_SUFFIX.fullmatch(suffix) or _DATED_SUFFIX.fullmatch(suffix) or suffix.lower() in _IMAGE_SUFFIXES:
        return rest
    endings = [f".{name}" for name in snapshot_names if base.endswith(f".{name}") and base != f".{name}"]
    return base[: -len(max(endings, key=len))] if endings else base
