"""Each rule: a situation in which it speaks, naming what it is about, and a neighbouring one in which it is silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import pytest

from snaptree.model.estate import (
    Annotations,
    Consistency,
    DiskSnapshot,
    DomainState,
    InternalSnapshot,
    LooksAt,
    Mark,
    SnapshotDisk,
)
from snaptree.model.figures import Figure, exact, unknown
from snaptree.model.settings import SettingChange
from snaptree.plans.facts import Facts
from snaptree.plans.intention import (
    Capture,
    Delete,
    Describe,
    DropMemory,
    Intention,
    Look,
    Prune,
    Recover,
    Rename,
    Revert,
    Take,
    TakeBack,
    Unlook,
    places_of,
)
from snaptree.plans.look import make_look, own_files
from snaptree.plans.plan import (
    Action,
    DeleteSnapshot,
    Finding,
    ForgetMemory,
    Freeze,
    RecordLayers,
    RemoveLook,
    RenameSnapshot,
    RevertToSnapshot,
    StateAfter,
    Step,
)
from snaptree.plans.planner import make_plan
from snaptree.plans.rule import Case, Rule, Verdict
from snaptree.plans.rules import RULES, why_not
from snaptree.plans.rules_look import LOOK_LACKS_ROOM
from snaptree.plans.rules_merge import BY_THE_PLANNER
from snaptree.plans.rules_plan import RULES as PLANNERS_OWN
from snaptree.plans.situation import Situation, glance
from snaptree.plans.speed import Sample, Speed, Way
from snaptree.plans.take import take_step
from tests.plans.situations import DEBIAN_12, MIB, NOW, SituationBuilder, a_machine, disk, interrupted

BY_ID = {rule.id: rule for rule in RULES}
RUNNING, OFF, PAUSED = DomainState.RUNNING, DomainState.OFF, DomainState.PAUSED
BEFORE_9_9 = 9_008_000


@dataclass(frozen=True)
class Row:
    """`rule` speaks when `intention` is asked of `speaks`, with all of `says`; not of `silent`."""

    rule: str
    intention: Intention
    speaks: SituationBuilder
    says: tuple[str, ...]
    silent: SituationBuilder
    silent_intention: Intention | None = None


def ask(rule: Rule, intention: Intention, situation: Situation) -> Finding | None:
    """What one rule says about the single step of an intention."""
    case = single_step(intention, situation)
    return rule.judge(case) if rule.applies_to(case.action, situation.host, situation.known) else None


def single_step(intention: Intention, situation: Situation) -> Case:
    facts = Facts(situation)
    step: Step
    match intention:
        case Take():
            step = take_step(intention, situation)
            wants_memory = intention.capture is Capture.DISKS_AND_MEMORY
            return Case(
                situation, facts, Action.TAKE, step.name, step, wants_memory=wants_memory, places=places_of(intention)
            )
        case Revert():
            step = RevertToSnapshot(intention.snapshot, intention.state_after, situation.tree.current)
            return Case(situation, facts, Action.REVERT, step.name, step)
        case Delete():
            name = intention.snapshots[0]
            step = DeleteSnapshot(name, situation.tree.children(name), merges=False)
            return Case(situation, facts, Action.DELETE, name, step, batch=intention.snapshots)
        case DropMemory():
            name = intention.snapshot
            return Case(situation, facts, Action.DROP_MEMORY, name, ForgetMemory(name, "x", "/x"))
        case Rename():
            step = RenameSnapshot(intention.snapshot, intention.new_name, None, (), MappingProxyType({}))
            return Case(situation, facts, Action.RENAME, intention.snapshot, step)
        case Look():
            make = make_look(intention, situation.tree[intention.snapshot], situation)
            return Case(situation, facts, Action.LOOK, make.snapshot, make)
        case Unlook():
            return Case(situation, facts, Action.UNLOOK, None, RemoveLook(own_files(situation)))
        case Prune() | Describe() | TakeBack() | Recover():
            raise AssertionError("not a single step")


def external(name: str = "new") -> Take:
    return Take(name=name, capture=Capture.DISKS)


def with_memory(name: str = "new") -> Take:
    return Take(name=name, capture=Capture.DISKS_AND_MEMORY)


def internal(name: str = "new") -> Take:
    return Take(name=name, capture=Capture.INTERNAL)


def elsewhere(directory: str = "/fast") -> Take:
    return Take(name="new", capture=Capture.DISKS, layers_in=directory)


def saving_10_mib_a_second(*, dirty_rate: int) -> SituationBuilder:
    speed = Speed(samples=(Sample(Way.TAKE_EXTERNAL, 512 * MIB, 10.0, wrote=100 * MIB),))
    return a_machine(state=RUNNING, speed=speed, dirty_rate=dirty_rate)


def delete(*names: str) -> Delete:
    return Delete(names)


def chain_of(count: int, **machine: int) -> SituationBuilder:
    """A machine with that many layers."""
    builder = a_machine(**machine)  # type: ignore[arg-type]  # only `version` is given
    for number in range(1, count):
        builder.external(f"s{number}")
    return builder


def entry(name: str, number: str = "7") -> tuple[InternalSnapshot, ...]:
    return (InternalSnapshot(number, name, 0, NOW),)


def dependants(path: str, *machines: str) -> MappingProxyType[str, frozenset[str]]:
    return MappingProxyType({path: frozenset(machines)})


def forked() -> SituationBuilder:
    """a -> b (not in use), a -> c (current)."""
    return a_machine().external("a").external("b").revert("a").external("c")


def branched() -> SituationBuilder:
    """a -> b -> c (neither in use), a -> d (current)."""
    return a_machine().external("a").external("b").external("c").revert("a").external("d")


BASE = "/images/vda.qcow2"
MEMORY_FILE = "/images/vda.a.mem"


def saved(size: Figure | None = None) -> SituationBuilder:
    """A running machine whose snapshot a has its memory in a file."""
    machine = a_machine(state=RUNNING).external("a", memory=True)
    layers = machine.build().layers
    return machine.having(layers=replace(layers, memory_files={MEMORY_FILE: size or exact(200 * MIB)}))


ANY = [
    Row("read-only-connection", external(), a_machine().host(read_only=True), ("read-only",), a_machine()),
    Row("unknown-driver", external(), a_machine().host(driver="VBOX"), ("VBOX",), a_machine().host(driver="TEST")),
    Row(
        "unfinished-operation",
        external(),
        a_machine().having(unfinished=interrupted(a_machine().external("a"), Delete(("a",)))),
        ("A delete was interrupted", "in its only step", "snaptree recover web-01"),
        a_machine(),
    ),
    Row(
        "another-snaptree",
        external(),
        a_machine().having(running_elsewhere=interrupted(a_machine(), external(), who="eve")),
        ("SnapTree of eve", "web-01"),
        a_machine(),
    ),
    Row("state-unknown", external(), a_machine(state=DomainState.UNKNOWN), ("web-01",), a_machine()),
    Row("block-job-running", external(), a_machine(state=RUNNING, block_jobs=("vda",)), ("vda", "web-01"), a_machine()),
    Row(
        "block-job-while-paused",
        external(),
        a_machine(state=PAUSED, block_jobs=("vda",)),
        ("vda", "virsh destroy web-01"),
        a_machine(state=PAUSED),
    ),
    Row(
        "orphaned-delete-job",
        external(),
        a_machine().external("a").snapshot("a", delete_in_progress=True).state(PAUSED).having(block_jobs=("vda",)),
        ("vda", "web-01", "virsh destroy"),
        a_machine().external("a").state(PAUSED).having(block_jobs=("vda",)),
    ),
    Row("managed-save", external(), a_machine().domain(has_managed_save=True), ("web-01",), a_machine()),
    Row(
        "managed-save",
        external(),
        a_machine().domain(has_managed_save=True),
        ("managedsave-remove",),
        a_machine().domain(has_managed_save=True),
        silent_intention=internal(),
    ),
    Row(
        "managed-save",
        delete("a"),
        a_machine().external("a").domain(has_managed_save=True),
        ("web-01",),
        a_machine().internal("a").domain(has_managed_save=True),
    ),
    Row(
        "managed-save",
        Revert("a"),
        a_machine().internal("a").domain(has_managed_save=True),
        ("web-01",),
        a_machine().internal("a"),
    ),
    Row(
        "images-let-go",
        delete("a"),
        a_machine(state=PAUSED).external("a", memory=True),
        ("web-01",),
        a_machine(state=RUNNING).external("a", memory=True),
    ),
    Row(
        "images-maybe-let-go",
        delete("a"),
        a_machine(state=PAUSED).external("a", memory=True).having(images_let_go=False),
        ("web-01", "“a”"),
        a_machine(state=RUNNING).external("a", memory=True).state(PAUSED),
    ),
    Row(
        "images-maybe-let-go",
        external(),
        a_machine(state=PAUSED).external("a", memory=True).external("b").having(images_let_go=False),
        ("web-01", "“a”"),
        a_machine(state=PAUSED).external("a").external("b"),
    ),
    Row(
        "images-maybe-let-go",
        external(),
        a_machine(state=RUNNING).external("a", memory=True).revert("a").state(PAUSED).having(images_let_go=False),
        ("web-01", "“a”"),
        a_machine(state=RUNNING).external("a").revert("a").state(PAUSED),
    ),
    Row("transient-machine", external(), a_machine().domain(is_persistent=False), ("web-01",), a_machine()),
    Row(
        "unreadable-snapshot",
        Revert("a"),
        a_machine().external("a").snapshot("a", problem="it has no <domain>."),
        ("“a”", "no <domain>"),
        a_machine().external("a"),
    ),
    Row(
        "mixed-snapshot",
        delete("a"),
        a_machine(disk("vda"), disk("vdb"))
        .external("a")
        .snapshot(
            "a",
            disks=(
                SnapshotDisk("vda", DiskSnapshot.EXTERNAL, BASE, "/images/vda.a"),
                SnapshotDisk("vdb", DiskSnapshot.INTERNAL, "/images/vdb.qcow2"),
            ),
        ),
        ("“a”",),
        a_machine(disk("vda"), disk("vdb")).external("a"),
    ),
]

TAKE = [
    Row(
        "nothing-to-take",
        external(),
        a_machine().external("a").missing(BASE),
        (BASE, "web-01"),
        a_machine(state=RUNNING).external("a").missing(BASE),
    ),
    Row("name-not-allowed", external("a b"), a_machine(), ("“a b”",), a_machine(), external("a-b")),
    Row("name-not-allowed", external("x" * 101), a_machine(), ("101",), a_machine(), external("x" * 100)),
    Row("name-not-allowed", internal("17"), a_machine(), ("“17”", "number"), a_machine(), external("17")),
    Row(
        "note-not-allowed",
        Take("a", description="red: \x1b[31m"),
        a_machine(),
        ("“\\x1b”", "U+001B"),
        a_machine(),
        Take("a", description="one\r\n\ttwo \x85\u202e🌳"),
    ),
    Row("name-taken", external("a"), a_machine().external("a"), ("“a”", "web-01"), a_machine().external("b")),
    Row(
        "name-in-image",
        internal("old"),
        a_machine().image(BASE, internal_snapshots=entry("old")),
        (BASE, "“old”"),
        a_machine().image(BASE, internal_snapshots=entry("other")),
    ),
    Row(
        "file-exists",
        external("a"),
        a_machine(existing_files=frozenset({BASE, "/images/vda.a"})),
        ("/images/vda.a",),
        a_machine(),
    ),
    Row(
        "file-exists",
        with_memory("a"),
        a_machine(state=RUNNING, existing_files=frozenset({BASE, "/images/vda.a.mem"})),
        ("/images/vda.a.mem",),
        a_machine(state=RUNNING),
    ),
    Row(
        "place-missing",
        elsewhere(),
        a_machine(places=MappingProxyType({"/fast": False})),
        ("/fast", "web-01"),
        a_machine(places=MappingProxyType({"/fast": True})),
    ),
    Row("place-missing", elsewhere("fast"), a_machine(), ("fast", "full path"), a_machine(), elsewhere()),
    Row(
        "place-unused",
        Take(name="new", capture=Capture.INTERNAL, layers_in="/fast"),
        a_machine(),
        ("/fast", "inside the images"),
        a_machine(),
        elsewhere(),
    ),
    Row(
        "place-unused",
        Take(name="new", capture=Capture.DISKS_AND_MEMORY, memory_in="/fast"),
        a_machine(),
        ("/fast", "no memory"),
        a_machine(state=RUNNING),
    ),
    Row(
        "place-unseen",
        elsewhere(),
        a_machine(),
        ("/fast",),
        a_machine(places=MappingProxyType({"/fast": True})),
    ),
    Row(
        "no-space-for-layers",
        external(),
        a_machine(disk("vda"), disk("vdb"), free_bytes=MappingProxyType({"/images": 300 << 10})),
        ("/images", "300.0 KiB", "512.0 KiB"),
        a_machine(free_bytes=MappingProxyType({"/images": 300 << 10})),
    ),
    Row(
        "little-room-for-layers",
        external(),
        a_machine(state=RUNNING, free_bytes=MappingProxyType({"/images": 51 * MIB})),
        ("/images", "51.0 MiB", "1.0 GiB", "stops"),
        a_machine(state=RUNNING, free_bytes=MappingProxyType({"/images": 52 * MIB})),
    ),
    Row(
        "little-room-for-layers",
        external(),
        a_machine(state=RUNNING)
        .external("a")
        .having(now=NOW + 3600, free_bytes=MappingProxyType({"/images": 239 * MIB})),
        ("wrote 240.0 MiB a day",),
        a_machine(state=RUNNING)
        .external("a")
        .having(now=NOW + 3600, free_bytes=MappingProxyType({"/images": 240 * MIB})),
    ),
    Row(
        "live-may-not-end",
        Take(name="new", capture=Capture.DISKS_AND_MEMORY, live=True),
        saving_10_mib_a_second(dirty_rate=20 * MIB),
        ("20.0 MiB", "10.0 MiB", "web-01"),
        saving_10_mib_a_second(dirty_rate=9 * MIB),
    ),
    Row(
        "file-name-too-long",
        external("a" * 250),
        a_machine(),
        ("a" * 250,),
        a_machine(disk(path="/images/" + "b" * 220 + ".qcow2")),
        external("a" * 100),
    ),
    Row(
        "nothing-to-hold",
        external(),
        a_machine(disk("sda", device="cdrom", read_only=True, format="raw", path="/images/install.iso")),
        ("web-01",),
        a_machine(),
    ),
    Row(
        "unknown-disk",
        Take(name="a", capture=Capture.DISKS, excluded_disks=("vdz",)),
        a_machine(),
        ("vdz", "vda"),
        a_machine(disk("vda"), disk("vdz")),
    ),
    Row("internal-needs-qcow2", internal(), a_machine(disk(format="raw")), ("vda", "raw"), a_machine()),
    Row(
        "internal-needs-a-file",
        internal(),
        a_machine(disk("vda"), disk("vdb", type="network", path=None)),
        ("vdb", "network"),
        a_machine(disk("vda"), disk("vdb", type="block", path="/dev/vg/b")),
    ),
    Row(
        "internal-needs-all-disks",
        Take(name="a", capture=Capture.INTERNAL, excluded_disks=("vdb",)),
        a_machine(disk("vda"), disk("vdb")),
        ("vdb",),
        a_machine(disk("vda"), disk("vdb", read_only=True)),
    ),
    Row(
        "internal-in-a-base",
        internal(),
        a_machine(dependants=MappingProxyType({BASE: frozenset({"clone-02", "clone-01"})})),
        (BASE, "clone-01 and clone-02"),
        a_machine(dependants=MappingProxyType({BASE: frozenset({"clone-01"})})).external("a"),
    ),
    Row(
        "layers-on-a-base",
        external(),
        a_machine(dependants=MappingProxyType({BASE: frozenset({"clone-01"})})),
        (BASE, "clone-01", "stays as it is"),
        a_machine(dependants=MappingProxyType({BASE: frozenset({"clone-01"})})).external("a"),
    ),
    Row(
        "uefi-internal",
        internal(),
        a_machine(version=DEBIAN_12, has_pflash=True),
        ("web-01", "9.0.0"),
        a_machine(version=9_003_000, has_pflash=True),
    ),
    Row(
        "uefi-internal-running",
        internal(),
        a_machine(version=10_000_000, state=RUNNING, has_pflash=True),
        ("web-01", "10.0.0"),
        a_machine(version=10_000_000, has_pflash=True),
    ),
    Row(
        "uefi-internal-raw-nvram",
        internal(),
        a_machine(state=RUNNING, has_pflash=True, nvram_format="raw"),
        ("web-01",),
        a_machine(state=RUNNING, has_pflash=True, nvram_format="qcow2"),
    ),
    Row(
        "nvram-not-saved",
        internal(),
        a_machine(has_pflash=True, nvram_format="raw"),
        ("web-01",),
        a_machine(state=RUNNING, has_pflash=True, nvram_format="qcow2"),
    ),
    Row(
        "external-needs-a-file",
        external(),
        a_machine(disk("vda"), disk("vdb", type="network", path=None)),
        ("vdb", "network"),
        a_machine(disk("vda"), disk("vdb")),
    ),
    Row(
        "external-passthrough",
        external(),
        a_machine(disk(device="lun"), state=RUNNING),
        ("vda",),
        a_machine(disk(device="lun")),
    ),
    Row("external-shared-disk", external(), a_machine(disk(shareable=True)), ("vda",), a_machine()),
    Row("external-transient-disk", external(), a_machine(disk(transient=True)), ("vda",), a_machine()),
    Row("external-sd-card", external(), a_machine(disk(bus="sd"), state=RUNNING), ("vda",), a_machine(disk(bus="sd"))),
    Row(
        "machine-suspended",
        external(),
        a_machine(state=DomainState.SUSPENDED),
        ("web-01", "dompmwakeup"),
        a_machine(state=PAUSED),
    ),
    Row(
        "quiesce-without-agent",
        Take(name="a", capture=Capture.DISKS, quiesce=Freeze.REQUIRED),
        a_machine(state=RUNNING),
        ("web-01",),
        a_machine(state=RUNNING, has_agent=True),
    ),
    Row(
        "quiesce-not-running",
        Take(name="a", capture=Capture.DISKS, quiesce=Freeze.REQUIRED),
        a_machine(state=PAUSED, has_agent=True),
        ("web-01", "paused"),
        a_machine(state=RUNNING, has_agent=True),
    ),
    Row(
        "quiesce-with-memory",
        Take(name="a", capture=Capture.DISKS_AND_MEMORY, quiesce=Freeze.REQUIRED),
        a_machine(state=RUNNING, has_agent=True),
        ("frozen",),
        a_machine(state=RUNNING, has_agent=True),
        Take(name="a", capture=Capture.DISKS, quiesce=Freeze.REQUIRED),
    ),
    Row(
        "not-frozen",
        Take(name="a", capture=Capture.DISKS, quiesce=Freeze.IF_POSSIBLE),
        a_machine(state=RUNNING),
        ("web-01", "does not answer", "power cut"),
        a_machine(state=RUNNING, has_agent=True),
    ),
    Row(
        "not-frozen",
        Take(name="a", capture=Capture.DISKS, quiesce=Freeze.IF_POSSIBLE),
        a_machine(state=PAUSED, has_agent=True),
        ("it is paused",),
        a_machine(has_agent=True),
    ),
    Row(
        "live-not-running",
        Take(name="a", capture=Capture.DISKS_AND_MEMORY, live=True),
        a_machine(state=PAUSED),
        ("web-01", "paused"),
        a_machine(state=RUNNING),
    ),
    Row(
        "live-without-memory-file",
        Take(name="a", capture=Capture.INTERNAL, live=True),
        a_machine(state=RUNNING),
        ("a file of its own",),
        a_machine(state=RUNNING),
        Take(name="a", capture=Capture.DISKS_AND_MEMORY, live=True),
    ),
    Row("test-driver-external", external(), a_machine().host(driver="TEST"), ("test driver",), a_machine()),
    Row(
        "checkpoints-off",
        external(),
        a_machine(checkpoints=("monday",)),
        ("monday", "web-01"),
        a_machine(state=RUNNING, checkpoints=("monday",)),
    ),
    Row(
        "no-space-for-memory",
        with_memory(),
        a_machine(state=RUNNING, free_bytes=MappingProxyType({"/images": 511 * MIB})),
        ("/images", "511.0 MiB", "512.0 MiB"),
        a_machine(state=RUNNING, free_bytes=MappingProxyType({"/images": 512 * MIB})),
    ),
    Row(
        "no-space-for-memory",
        internal(),
        a_machine(state=RUNNING, free_bytes=MappingProxyType({"/images": 511 * MIB})),
        ("/images",),
        a_machine(free_bytes=MappingProxyType({"/images": 511 * MIB})),
    ),
    Row(
        "chain-too-deep",
        external(),
        chain_of(200, version=12_000_000),
        ("vda", "201"),
        chain_of(199, version=12_000_000),
    ),
    Row("long-chain", external(), chain_of(24), ("vda", "25"), chain_of(23)),
    Row("too-deep-to-start-again", external(), chain_of(25), ("26", "11.3.0"), chain_of(24)),
    Row(
        "no-way-back",
        external(),
        a_machine(version=DEBIAN_12),
        ("9.0.0", "/images"),
        a_machine(version=DEBIAN_12, takes_new_layers=frozenset({"/images"})),
    ),
    Row("external-on-internal", external(), a_machine().internal("a"), ("“a”", BASE, "“new”"), a_machine()),
    Row("internal-on-external", internal(), a_machine().external("a"), ("“a”", "“new”"), a_machine().internal("a")),
    Row("no-memory-to-save", with_memory(), a_machine(), ("web-01",), a_machine(state=RUNNING)),
    Row(
        "memory-without-disk",
        Take(name="a", capture=Capture.DISKS_AND_MEMORY, excluded_disks=("vdb",)),
        a_machine(disk("vda"), disk("vdb"), state=RUNNING),
        ("vdb", "“a”", "refused"),
        a_machine(disk("vda"), disk("vdb", device="floppy"), state=RUNNING),
    ),
    Row(
        "disk-left-out",
        Take(name="a", capture=Capture.DISKS, excluded_disks=("vdb",)),
        a_machine(disk("vda"), disk("vdb")),
        ("vdb", "“a”"),
        a_machine(disk("vda"), disk("vdb", device="cdrom")),
    ),
]

REVERT = [
    Row(
        "memory-of-another-time",
        Revert("a"),
        a_machine(disk("vda"), disk("vdb"), state=RUNNING).external("a", memory=True, excluded=("vdb",)),
        ("vdb", "“a”", "--off"),
        a_machine(disk("vda"), disk("vdb"), state=RUNNING).external("a", memory=True),
    ),
    Row(
        "memory-of-another-time",
        Revert("a", state_after=StateAfter.RUNNING),
        a_machine(state=RUNNING)
        .external("a", memory=True)
        .snapshot("a", annotations=Annotations(consistency=Consistency.CRASH)),
        ("a disk of the guest", "“a”"),
        a_machine(state=RUNNING)
        .external("a", memory=True)
        .snapshot("a", annotations=Annotations(consistency=Consistency.CRASH)),
        Revert("a", state_after=StateAfter.OFF),
    ),
    Row(
        "external-revert-unsupported",
        Revert("a"),
        a_machine().external("a").host(external_snapshots=False),
        ("“a”",),
        a_machine(version=DEBIAN_12, takes_new_layers=frozenset({"/images"})).external("a"),
    ),
    Row(
        "nowhere-for-new-layers",
        Revert("a"),
        a_machine(version=DEBIAN_12).external("a"),
        ("/images", "9.0.0", "pool-create-as"),
        a_machine(version=DEBIAN_12, takes_new_layers=frozenset({"/images"})).external("a"),
    ),
    Row(
        "memory-not-used",
        Revert("a", state_after=StateAfter.OFF),
        a_machine(state=RUNNING).external("a", memory=True),
        ("“a”", "web-01"),
        a_machine(state=RUNNING).external("a"),
    ),
    Row(
        "starts-anew",
        Revert("a", state_after=StateAfter.RUNNING),
        a_machine(state=RUNNING).external("a"),
        ("“a”", "web-01"),
        a_machine(state=RUNNING).external("a", memory=True),
    ),
    Row(
        "internal-revert-broken",
        Revert("a"),
        a_machine().internal("a").host(internal_revert_broken=True),
        ("11.3.0",),
        a_machine().external("a").host(internal_revert_broken=True),
    ),
    Row(
        "revert-without-current",
        Revert("a"),
        a_machine().external("a").current(None),
        ("web-01",),
        a_machine().internal("a").current(None),
    ),
    Row(
        "current-does-not-own-disks",
        Revert("a"),
        a_machine().external("a").external("b").current("a"),
        ("“a”",),
        a_machine().external("a").external("b"),
    ),
    Row(
        "recorded-overlays-wrong",
        Revert("b"),
        branched().revert("a").snapshot("a", revert_overlays=()),
        ("“a”", "/images/vda.a", "/images/vda.1"),
        branched().revert("a"),
    ),
    Row(
        "memory-file-missing",
        Revert("a"),
        a_machine(state=RUNNING).external("a", memory=True).having(missing_files=frozenset({"/images/vda.a.mem"})),
        ("/images/vda.a.mem", "“a”"),
        a_machine(state=RUNNING).external("a", memory=True),
    ),
    Row(
        "not-in-image",
        Revert("a"),
        a_machine().internal("a").image(BASE, internal_snapshots=()),
        (BASE, "“a”"),
        a_machine().internal("a"),
    ),
    Row(
        "named-like-an-id",
        Revert("1"),
        a_machine()
        .internal("a")
        .internal("1x")
        .image(BASE, internal_snapshots=(*entry("a", "1"), *entry("1", "2")))
        .renamed("1x", "1"),
        ("“1”", "“a”", BASE),
        a_machine().internal("1x").image(BASE, internal_snapshots=entry("1", "1")).renamed("1x", "1"),
    ),
    Row(
        "twice-in-image",
        Revert("a"),
        a_machine().internal("a").image(BASE, internal_snapshots=(*entry("a", "1"), *entry("a", "2"))),
        (BASE, "“a”"),
        a_machine().internal("a"),
    ),
    Row(
        "name-breaks-monitor",
        Revert('"b"'),
        a_machine(version=DEBIAN_12, state=RUNNING).internal("a").renamed("a", '"b"'),
        ('“"b"”', "9.0.0", "would stop web-01"),
        a_machine(version=DEBIAN_12).internal("a").renamed("a", '"b"'),
    ),
    Row(
        "name-breaks-monitor",
        delete("b\\"),
        a_machine(version=DEBIAN_12, state=RUNNING).internal("a").renamed("a", "b\\"),
        ("while web-01 runs",),
        a_machine(version=DEBIAN_12).internal("a").renamed("a", "b\\"),
    ),
    Row(
        "name-breaks-job",
        Revert("a b"),
        a_machine(state=RUNNING).internal("a").renamed("a", "a b"),
        ("“a b”", "11.3.0", "would stop web-01"),
        a_machine(state=RUNNING).internal("a").renamed("a", "a_b.c-d"),
        Revert("a_b.c-d"),
    ),
    Row(
        "disk-type-blocks-revert",
        Revert("a"),
        a_machine()
        .external("a")
        .having(recorded_disks=MappingProxyType({"a": (disk(), disk("sda", device="cdrom", type="block"))})),
        ("sda", "cdrom", "block", "“a”"),
        a_machine().external("a"),
    ),
    Row(
        "snapshot-of-sleep",
        Revert("a"),
        a_machine().internal("a").snapshot("a", state=DomainState.SUSPENDED),
        ("“a”",),
        a_machine().internal("a"),
    ),
    Row(
        "bitmaps-block-revert",
        Revert("a"),
        a_machine().internal("a").image(BASE, has_bitmaps=True),
        (BASE,),
        a_machine().external("a").image(BASE, has_bitmaps=True),
    ),
    Row(
        "bitmaps-block-revert",
        Revert("a"),
        a_machine().internal("a").having(checkpoints=("monday",)),
        ("monday", "web-01"),
        a_machine().internal("a"),
    ),
    Row(
        "left-half-deleted",
        Revert("a"),
        a_machine().external("a").having(half_deleted=frozenset({"a"})),
        ("“a”", "mixture"),
        a_machine().external("a").having(half_deleted=frozenset({"b"})),
    ),
    Row(
        "left-half-deleted",
        Revert("a"),
        a_machine().external("a").snapshot("a", annotations=Annotations(half_deleted=True)),
        ("“a”", "mixture"),
        a_machine().external("a"),
    ),
    Row(
        "doubtful",
        Revert("a"),
        a_machine().external("a").snapshot("a", annotations=Annotations(doubtful=True)),
        ("“a”", "merged"),
        a_machine().external("a"),
    ),
    Row(
        "rename-half-deleted",
        Rename("a", "good-old"),
        a_machine().external("a").having(half_deleted=frozenset({"a"})),
        ("“a”", "mixture"),
        a_machine().external("a").having(half_deleted=frozenset({"b"})),
    ),
    Row(
        "half-deleted",
        Revert("b"),
        a_machine().external("a").external("b").snapshot("a", delete_in_progress=True),
        ("“b”",),
        a_machine().external("a").external("b").snapshot("b", delete_in_progress=True),
    ),
    Row("too-deep-to-go-back", Revert("s25"), chain_of(26), ("26", "“s25”"), chain_of(26), Revert("s24")),
    Row(
        "too-deep-to-leave",
        Revert("s1"),
        chain_of(28).state(RUNNING),
        ("28", "web-01"),
        chain_of(28),
    ),
    Row("present-state-is-lost", Revert("a"), a_machine().external("a").external("b"), ("“b”",), a_machine()),
    Row(
        "ends-shut-off",
        Revert("a"),
        a_machine(state=RUNNING).external("a"),
        ("“a”", "web-01"),
        a_machine(state=RUNNING).external("a", memory=True),
    ),
    Row(
        "machine-restarts",
        Revert("a"),
        a_machine().external("a").state(RUNNING),
        ("web-01",),
        a_machine().external("a"),
    ),
    Row(
        "settings-replaced",
        Revert("a"),
        a_machine().external("a").having(settings={"a": (SettingChange("Memory", "4 GiB", "2 GiB"),)}),
        ("“a”", "web-01", "Memory"),
        a_machine().external("a").having(settings={"a": ()}),
    ),
    Row(
        "nvram-stays",
        Revert("a"),
        a_machine().external("a").having(has_pflash=True, nvram_format="raw"),
        ("web-01",),
        a_machine(state=RUNNING).internal("a").having(has_pflash=True, nvram_format="qcow2"),
    ),
    Row(
        "disks-not-rolled-back",
        Revert("a"),
        a_machine(disk("vda"), disk("vdb")).external("a", excluded=("vdb",)),
        ("vdb", "“a”"),
        a_machine(disk("vda"), disk("vdb")).external("a"),
    ),
    Row(
        "disks-dropped",
        Revert("a"),
        a_machine().external("a").having(disks=(disk(path="/images/vda.a"), disk("vdb"))),
        ("vdb", "/images/vdb.qcow2", "“a”"),
        a_machine().external("a"),
    ),
    Row(
        "checkpoints-break",
        Revert("a"),
        a_machine().external("a").having(checkpoints=("monday",)),
        ("monday",),
        a_machine().external("a"),
    ),
    Row(
        "layer-left-behind",
        Revert("i"),
        a_machine().external("a").internal("i").revert("a"),
        ("/images/vda.1",),
        a_machine().external("a").internal("i").revert("a").internal("j"),
    ),
]

DELETE = [
    Row(
        "delete-without-current",
        delete("a"),
        a_machine().external("a").current(None),
        ("web-01",),
        a_machine().internal("a").current(None),
    ),
    Row(
        "delete-with-wrong-current",
        delete("b"),
        a_machine().external("a").external("b").current("a"),
        ("“a”", "“b”"),
        a_machine().external("a").external("b"),
    ),
    Row("current-with-children", delete("a"), branched().revert("a"), ("“a”", "“b”"), branched()),
    Row("fork", delete("a"), forked(), ("“a”", "“b”", "“c”"), a_machine().external("a").external("b")),
    Row("branch-not-in-use", delete("b"), branched(), ("“b”", "“c”"), branched(), delete("c")),
    Row(
        "unrecorded-branch",
        delete("a"),
        a_machine().external("a").external("b").external("c").revert("b").external("d"),
        ("“c”", "“a”"),
        a_machine()
        .external("a")
        .external("b")
        .external("c")
        .revert("b")
        .external("d")
        .having(recorded_disks=MappingProxyType({"c": (disk(records_chain=True),)})),
    ),
    Row(
        "leaf-not-in-use",
        delete("b"),
        forked().host(external_snapshots=False, libvirt_version=DEBIAN_12),
        ("“b”",),
        forked(),
    ),
    Row(
        "layers-made-while-off",
        delete("a"),
        a_machine(version=DEBIAN_12).external("a").external("b"),
        ("“a”", "9.0.0"),
        a_machine(version=DEBIAN_12).external("a").external("b").state(RUNNING),
    ),
    Row(
        "parent-is-internal",
        delete("b"),
        a_machine().internal("a").external("b"),
        ("“a”", "“b”"),
        a_machine().external("a").external("b"),
    ),
    Row(
        "finish-interrupted-delete",
        delete("a"),
        a_machine().external("a").external("b").snapshot("a", delete_in_progress=True),
        ("“a”", "“b”"),
        a_machine().external("a").external("b").snapshot("a", delete_in_progress=True),
        delete("b"),
    ),
    Row(
        "image-not-in-use",
        delete("a"),
        a_machine(state=RUNNING).internal("a").external("b"),
        ("“a”", BASE),
        a_machine().internal("a").external("b"),
    ),
    Row(
        "name-breaks-job",
        delete("a b"),
        a_machine(state=RUNNING).internal("a").renamed("a", "a b"),
        ("“a b”", "11.3.0", "while web-01 runs"),
        a_machine(version=DEBIAN_12, state=RUNNING).internal("a").renamed("a", "a b"),
    ),
    Row(
        "disk-cannot-merge",
        delete("a"),
        a_machine().external("a").having(disks=(disk(path="/images/vda.a", bus="sd"),)),
        ("vda", "SD card"),
        a_machine().external("a"),
    ),
    Row("too-deep-to-merge", delete("s3"), chain_of(26), ("26", "25"), chain_of(25)),
    Row(
        "pinned",
        delete("a", "b"),
        a_machine().internal("a").internal("b").snapshot("a", annotations=Annotations(pinned=Mark())),
        ("“a”",),
        a_machine().internal("a").internal("b"),
    ),
    Row(
        "pinned-alone",
        delete("a"),
        a_machine().internal("a").snapshot("a", annotations=Annotations(pinned=Mark())),
        ("“a”",),
        a_machine().internal("a"),
    ),
    Row(
        "known-good",
        delete("a", "b", "c"),
        a_machine()
        .internal("a")
        .snapshot("a", annotations=Annotations(known_good=Mark()))
        .internal("b")
        .internal("c")
        .snapshot("c", annotations=Annotations(known_good=Mark())),
        ("“a” and “c” are", "--no"),
        a_machine().internal("a").internal("b").internal("c"),
    ),
    Row(
        "known-good-alone",
        delete("a"),
        a_machine().internal("a").snapshot("a", annotations=Annotations(known_good=Mark("amina"))),
        ("“a”", "by amina"),
        a_machine().internal("a"),
    ),
    Row("rename-internal", Rename("a", "b"), a_machine().internal("a"), ("“a”", "F2"), a_machine().external("a")),
    Row(
        "two-names",
        delete("a"),
        a_machine().external("a").twice("a", "a2"),
        ("“a”", "“a2”", "snaptree rename web-01 a a2"),
        a_machine().external("a").twice("a", "a2"),
        delete("a", "a2"),
    ),
    Row("cannot-be-cancelled", delete("a"), a_machine().external("a"), ("merge",), a_machine().internal("a")),
    Row(
        "starts-qemu",
        delete("a"),
        a_machine().external("a"),
        ("web-01",),
        a_machine(state=RUNNING).external("a"),
    ),
    Row(
        "none-current-after",
        delete("b"),
        a_machine().external("a").current(None).external("b"),
        ("“a”", "web-01"),
        a_machine().external("a").external("b"),
    ),
    Row(
        "merge-may-fill-disk",
        delete("a"),
        a_machine().external("a").having(free_bytes=MappingProxyType({"/images": 9 * MIB})),
        ("/images", BASE, "10.0 MiB", "9.0 MiB"),
        a_machine().external("a").having(free_bytes=MappingProxyType({"/images": 10 * MIB})),
    ),
]

FILES = [
    Row(
        "layer-in-use",
        delete("b"),
        a_machine().external("a").external("b").current("a"),
        ("/images/vda.a",),
        a_machine().external("a").external("b"),
    ),
    Row(
        "layer-holds-snapshot",
        Revert("c"),
        branched().revert("a").snapshot("a", revert_overlays=()),
        ("/images/vda.a", "“b”"),
        branched().revert("a"),
    ),
    Row(
        "internal-snapshot-inside",
        delete("a"),
        a_machine().external("a").internal("i"),
        ("/images/vda.a", "“i”"),
        a_machine().external("a").external("b"),
    ),
    Row(
        "internal-snapshot-inside",
        delete("a"),
        a_machine().external("a").image("/images/vda.a", internal_snapshots=entry("by-hand")),
        ("/images/vda.a", "“by-hand”", "qemu-img snapshot -d"),
        a_machine().external("a").image(BASE, internal_snapshots=entry("by-hand")),
    ),
    Row(
        "internal-snapshot-inside",
        Revert("a"),
        a_machine().external("a").image("/images/vda.a", internal_snapshots=entry("by-hand")),
        ("/images/vda.a", "“by-hand”"),
        a_machine().external("a"),
    ),
    Row(
        "removed-layer-has-overlays",
        delete("a"),
        a_machine().external("a").image("/images/clone.qcow2", backing="/images/vda.a"),
        ("/images/vda.a", "/images/clone.qcow2"),
        a_machine().external("a"),
    ),
    Row(
        "removed-layer-has-overlays",
        Revert("a"),
        a_machine()
        .external("a")
        .having(overlays_on=MappingProxyType({"/images/vda.a": frozenset({"/images/clone.qcow2"})})),
        ("/images/vda.a", "/images/clone.qcow2"),
        a_machine().external("a"),
    ),
    Row(
        "written-image-has-overlays",
        delete("a"),
        a_machine().external("a").image("/images/clone.qcow2", backing=BASE),
        (BASE, "/images/clone.qcow2"),
        a_machine().external("a"),
    ),
    Row(
        "written-image-has-overlays",
        Revert("a"),
        a_machine().internal("a").external("b"),
        (BASE, "/images/vda.b", "itself stands on that now"),
        a_machine().internal("a").internal("b"),
    ),
    Row(
        "written-image-holds-snapshot",
        Revert("i"),
        a_machine().internal("i").external("e"),
        (BASE, "“e”"),
        a_machine().external("e").internal("i"),
    ),
    Row(
        "machines-depend",
        delete("a"),
        a_machine().external("a").having(dependants=dependants(BASE, "db-01", "ci-01")),
        ("ci-01 and db-01", BASE),
        a_machine().external("a").having(dependants=dependants("/images/other.qcow2", "db-01")),
    ),
    Row(
        "machines-depend",
        Revert("a"),
        a_machine().internal("a").having(dependants=dependants(BASE, "db-01")),
        ("db-01", BASE),
        a_machine().external("a").having(dependants=dependants(BASE, "db-01")),
    ),
    Row(
        "unreadable-machines-may-depend",
        delete("a"),
        a_machine().external("a").having(unreadable_domains=("db-01",)),
        ("db-01", BASE),
        a_machine().external("a").external("b").having(unreadable_domains=("db-01",)),
        delete("b"),
    ),
    Row(
        "unreadable-machines",
        delete("b"),
        a_machine().external("a").external("b").having(unreadable_domains=("db-01",)),
        ("db-01", "/images/vda.a", "/images/vda.b"),
        a_machine().external("a").external("b"),
    ),
    Row(
        "unread-image",
        delete("a"),
        a_machine().external("a").image("/images/vda.a", problem="permission denied"),
        ("/images/vda.a", "permission denied"),
        a_machine().external("a"),
    ),
    Row(
        "layer-missing",
        Revert("b"),
        a_machine().external("a").external("b").missing("/images/vda.a"),
        ("/images/vda.a", "“b”"),
        a_machine().external("a").external("b").missing("/images/vda.a"),
        Revert("a"),
    ),
    Row(
        "layer-missing",
        delete("b"),
        a_machine().external("a").external("b").missing(BASE),
        (BASE,),
        a_machine().external("a").external("b"),
    ),
    Row(
        "content-changed",
        Revert("a"),
        a_machine().external("a").external("b").chain("vda", "/images/vda.b", BASE),
        ("“a”", BASE, "forget whose layer that was: snaptree delete web-01 b. What is left is marked as doubtful."),
        a_machine().external("a").external("b"),
    ),
    Row(
        "content-changed",
        Revert("a"),
        a_machine().external("a").chain("vda", BASE),
        ("“a”", BASE, "“a” no longer exists as it was", "virsh snapshot-delete web-01 a --metadata"),
        a_machine().external("a"),
    ),
    Row(
        "content-changed",
        Revert("e"),
        a_machine().internal("i").external("e").revert("i").external("f"),
        ("“e”", BASE),
        a_machine().internal("i").external("e").revert("i").external("f"),
        Revert("f"),
    ),
    Row(
        "merge-not-as-recorded",
        delete("a"),
        a_machine().external("a").external("b").chain("vda", "/images/vda.b", BASE),
        ("“a”", "/images/vda.a", BASE, "vda"),
        a_machine().external("a").external("b"),
    ),
    Row(
        "disk-gone",
        delete("a"),
        a_machine(disk("vda"), disk("vdb")).external("a").having(disks=(disk(path="/images/vda.a"),)),
        ("vdb", "“a”"),
        a_machine(disk("vda"), disk("vdb")).external("a"),
    ),
]

MEMORY = [
    Row("no-memory", DropMemory("a"), a_machine().external("a"), ("“a”",), saved()),
    Row("memory-inside-image", DropMemory("a"), a_machine(state=RUNNING).internal("a"), ("“a”", "inside"), saved()),
    Row("nothing-but-memory", DropMemory("a"), saved().snapshot("a", disks=()), ("“a”",), saved()),
    Row(
        "memory-is-shared",
        DropMemory("a"),
        saved().external("b", memory=True).snapshot("b", memory_file=MEMORY_FILE),
        (MEMORY_FILE, "“b”"),
        saved().external("b", memory=True),
    ),
    Row(
        "memory-out-of-reach",
        DropMemory("a"),
        saved(unknown("in no pool")).host(is_local=False),
        (MEMORY_FILE,),
        saved().host(is_local=False),
    ),
    Row(
        "memory-missing-already",
        DropMemory("a"),
        saved().having(missing_files=frozenset({MEMORY_FILE})),
        (MEMORY_FILE,),
        saved(),
    ),
    Row(
        "memory-of-marked",
        DropMemory("a"),
        saved().snapshot("a", annotations=Annotations(pinned=Mark("eve"), known_good=Mark())),
        ("“a”", "pinned and known to be good"),
        saved(),
    ),
    Row(
        "finish-interrupted-delete", DropMemory("a"), saved().snapshot("a", delete_in_progress=True), ("“a”",), saved()
    ),
]


HERE = frozenset({"/images"})


def to_look_at() -> SituationBuilder:
    """A machine with external snapshots, on which new layers can be made."""
    return a_machine(takes_new_layers=HERE).external("a").external("b")


def a_look(*files: str) -> SituationBuilder:
    """A machine that was made to look at a snapshot of another one."""
    return a_machine().layers(looks_at=LooksAt("a", "db-01", "7c0e4a3c-0000-4000-8000-000000000009", files or (BASE,)))


LOOK = [
    Row("look-needs-qemu", Look("a"), a_machine().internal("a").host(driver="TEST"), ("no images",), to_look_at()),
    Row(
        "look-holds-nothing",
        Look("a"),
        to_look_at().snapshot("a", disks=(SnapshotDisk("vda", DiskSnapshot.NO, BASE),)),
        ("“a”",),
        to_look_at(),
    ),
    Row("look-layer-missing", Look("b"), to_look_at().missing(BASE), ("“b”", BASE), to_look_at()),
    Row(
        "look-layer-unreadable",
        Look("b"),
        to_look_at().image(BASE, problem="Permission denied"),
        (BASE, "Permission denied", "“b”"),
        to_look_at().image("/images/vda.b", problem="Permission denied"),
    ),
    Row(
        "look-content-changed",
        Look("a"),
        to_look_at().chain("vda", "/images/vda.b", BASE),
        ("“a”", BASE),
        to_look_at(),
    ),
    Row(
        "look-encrypted",
        Look("a"),
        to_look_at().having(recorded_disks=MappingProxyType({"a": (disk(is_encrypted=True),)})),
        ("vda", "web-01"),
        to_look_at(),
    ),
    Row(
        "look-nowhere-for-layers",
        Look("a"),
        to_look_at().having(takes_new_layers=frozenset()),
        ("/images", "pool-create-as"),
        a_machine().internal("a"),
    ),
    Row(
        "look-not-copied-out",
        Look("a"),
        a_machine().internal("a").having(why_not_copied=MappingProxyType({BASE: "qemu-img is not installed"})),
        ("“a”", BASE, "qemu-img is not installed"),
        a_machine().internal("a"),
    ),
    Row("look-name-not-allowed", Look("a", machine="a/b"), to_look_at(), ("a/b",), to_look_at(), Look("a", "a.b-1")),
    Row(
        "look-name-taken",
        Look("a", machine="web-02"),
        to_look_at().having(machine_names=frozenset({"web-02"})),
        ("web-02",),
        to_look_at(),
    ),
    Row(
        "look-file-exists",
        Look("a", machine="web-02"),
        to_look_at().having(existing_files=frozenset({"/images/web-02-vda.qcow2"})),
        ("/images/web-02-vda.qcow2",),
        to_look_at(),
    ),
    Row(
        "look-without-memory",
        Look("a"),
        a_machine(state=RUNNING).external("a", memory=True),
        ("“a”", "not its memory"),
        a_machine().external("a"),
    ),
    Row("look-networks-off", Look("a"), to_look_at(), ("unplugged",), to_look_at(), Look("a", connect_networks=True)),
    Row("look-networks-on", Look("a", connect_networks=True), to_look_at(), ("web-01",), to_look_at(), Look("a")),
    Row(
        "look-disks-left-out",
        Look("a"),
        a_machine(disk("vda"), disk("vdb")).external("a", excluded=("vdb",)),
        ("vdb (not part of the snapshot)",),
        to_look_at(),
    ),
    Row(
        "look-devices-left-out",
        Look("a"),
        to_look_at().having(shared_devices=MappingProxyType({"a": ("the TPM", "leases")})),
        ("web-01", "the TPM and leases"),
        to_look_at().having(shared_devices=MappingProxyType({"b": ("the TPM",)})),
    ),
    Row("look-nvram", Look("a"), to_look_at().having(has_pflash=True), ("made anew", "“a”"), to_look_at()),
    Row("look-keeps-layers", Look("a"), to_look_at(), ("“a”",), a_machine().internal("a")),
    Row("unlook-no-look", Unlook(), a_machine(), ("web-01",), a_look()),
    Row("unlook-transient", Unlook(), a_look().domain(is_persistent=False), ("web-01",), a_look()),
    Row("unlook-needed", Unlook(), a_look().having(dependants=dependants(BASE, "eve")), (BASE, "eve"), a_look()),
    Row(
        "unlook-needed",
        Unlook(),
        a_look().having(overlays_on=MappingProxyType({BASE: frozenset({"/images/stray"})})),
        (BASE, "/images/stray"),
        a_look().external("own"),
    ),
    Row("unlook-loses", Unlook(), a_look().external("inner"), ("web-01", "“inner”"), to_look_at(), Look("a")),
    Row("unlook-stops", Unlook(), a_look().state(RUNNING), ("web-01",), a_look()),
    Row("unlook-keeps", Unlook(), a_look("/images/gone.qcow2"), (BASE,), a_look()),
    Row("too-deep-to-look", Look("s25"), chain_of(27, version=11_003_000), ("vda", "26"), chain_of(26), Look("s20")),
    Row("block-job-running", Look("a"), to_look_at().having(block_jobs=("vda",)), ("vda",), to_look_at()),
    Row(
        "twice-in-image",
        Look("a"),
        a_machine().internal("a").image(BASE, internal_snapshots=(*entry("a"), *entry("a", "8"))),
        ("“a”", BASE),
        a_machine().internal("a"),
    ),
]

ROWS = [*ANY, *TAKE, *REVERT, *DELETE, *FILES, *MEMORY, *LOOK]


def _title(row: Row) -> str:
    return f"{row.rule}-{type(row.intention).__name__.lower()}"


@pytest.mark.parametrize("row", ROWS, ids=_title)
def test_it_speaks_and_names_what_it_is_about(row: Row) -> None:
    finding = ask(BY_ID[row.rule], row.intention, row.speaks.build())
    assert finding is not None
    for word in row.says:
        assert word in f"{finding.reason} {finding.remedy}"


@pytest.mark.parametrize("row", ROWS, ids=_title)
def test_it_is_silent_next_door(row: Row) -> None:
    intention, situation = row.silent_intention or row.intention, row.silent.build()
    assert ask(BY_ID[row.rule], intention, situation) is None


@pytest.mark.parametrize("row", [row for row in ROWS if BY_ID[row.rule].verdict is Verdict.REFUSE], ids=_title)
def test_a_refusal_reaches_the_plan(row: Row) -> None:
    intention = row.intention
    if isinstance(intention, Revert):
        intention = replace(intention, take_safety_snapshot=False)
    plan = make_plan(intention, row.speaks.build())
    if isinstance(intention, Delete) and BY_ID[row.rule].another_way:
        assert not any(isinstance(step, DeleteSnapshot) for step in plan.steps), "libvirt's own way is closed"
        assert plan.is_refused or any(isinstance(step, RecordLayers) for step in plan.steps)
        return
    assert plan.is_refused
    assert not plan.steps
    assert plan.undo is None
    assert row.rule in {refusal.rule for refusal in plan.refusals}


MERGE_PARTS = {
    "merged-layer-unreadable",
    "merged-layer-holds-snapshot",
    "merged-layer-has-overlays",
    "merged-layer-is-shared",
    "merged-layer-holds-internal",
    "merge-loses-bitmaps",
    "merge-needs-files",
    "merge-too-deep",
    "merge-unreadable-machines",
    "helper-machine",
    "merge-overwrites",
}
"""Rules about our own merges: see test_merge.py."""


def test_every_rule_has_a_row() -> None:
    always = {"delete-is-final", "memory-drop-is-final"}  # speak for every one: see test_delete, test_drop_memory
    always |= {"said-otherwise-since"}  # of taking back: see test_describe
    assert {rule.id for rule in RULES} - {
        rule.id for rule in (*PLANNERS_OWN, *BY_THE_PLANNER, LOOK_LACKS_ROOM)
    } - always - MERGE_PARTS == {row.rule for row in ROWS}


def test_ids_are_stable_names() -> None:
    assert len(BY_ID) == len(RULES)
    for rule in RULES:
        assert rule.id == rule.id.lower().strip("-")
        assert rule.id.replace("-", "").isalnum()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_sentences_are_sentences(rule: Rule) -> None:
    assert rule.reason.endswith((".", "{problem}"))
    assert not rule.remedy or rule.remedy.endswith((".", "{remedy}"))
    assert rule.remedy or rule.verdict is Verdict.WARN
    assert rule.source


ACTIONS: Mapping[type[Intention], Action] = {
    Revert: Action.REVERT,
    Delete: Action.DELETE,
    DropMemory: Action.DROP_MEMORY,
    Look: Action.LOOK,
}
"""Those that a window offers for one snapshot."""


@pytest.mark.parametrize("row", [row for row in ROWS if type(row.intention) in ACTIONS], ids=_title)
def test_what_a_window_says_no_to_no_plan_allows(row: Row) -> None:
    """A greyed action is greyed for a reason that planning would give too, even with a safety snapshot first."""
    situation = row.speaks.build()
    assert isinstance(row.intention, Revert | Delete | DropMemory | Look)
    name = row.intention.snapshots[0] if isinstance(row.intention, Delete) else row.intention.snapshot
    action = ACTIONS[type(row.intention)]
    intention = Delete((name,)) if isinstance(row.intention, Delete) else row.intention
    for layers in (None, situation.layers):
        at_a_glance = glance(situation.host, situation.domain, situation.tree, layers)
        reason = why_not(action, at_a_glance, name)
        if reason is not None:
            plan = make_plan(intention, situation)
            assert reason.rule in {refusal.rule for refusal in plan.refusals}


def test_a_hostile_name_stays_one_line_and_harmless() -> None:
    name = "a\nb\u202ec'; rm -rf /"
    situation = a_machine().internal("a").snapshot("a", problem="odd").renamed("a", name).build()
    finding = ask(BY_ID["unreadable-snapshot"], Revert(name), situation)
    assert finding is not None
    assert "\n" not in finding.reason + finding.remedy
    assert "\u202e" not in finding.reason + finding.remedy
    assert r" $'a\x0ab\u202ec\'; rm -rf /'." in finding.remedy, "a shell must take it as one word"


def test_nobody_makes_way_for_a_snapshot_whose_data_is_gone() -> None:
    """Below a layer that holds another one: what libvirt would overwrite is of no interest where nothing comes back."""
    machine = a_machine().internal("a").external("b")
    there = {finding.rule for finding in make_plan(Revert("a"), machine.build()).refusals}
    assert there == {"written-image-has-overlays", "written-image-holds-snapshot"}
    (refusal,) = make_plan(Revert("a"), machine.image(BASE, internal_snapshots=()).build()).refusals
    assert refusal.rule == "not-in-image"
    assert refusal.remedy.endswith("is dropped by deleting it (snaptree delete web-01 a).")


def test_many_names_are_counted() -> None:
    builder = a_machine()
    for number in range(8):
        builder.external("s").renamed("s", f"s{number}")
    situation = builder.having(dependants=dependants(BASE, *(f"vm-{number}" for number in range(8)))).build()
    finding = ask(BY_ID["machines-depend"], delete("s0"), situation)
    assert finding is not None
    assert "vm-0, vm-1, vm-2 and 5 more" in finding.reason
