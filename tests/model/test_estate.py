"""What is said of a snapshot from what is recorded."""

from __future__ import annotations

import pytest

from snaptree.model.estate import (
    Annotations,
    Consistency,
    DiskSnapshot,
    DomainState,
    MemorySnapshot,
    Snapshot,
    SnapshotDisk,
    SnapshotKind,
)


@pytest.mark.parametrize(
    ("memory", "disks", "kind"),
    [
        ("no", "internal", SnapshotKind.INTERNAL),
        ("internal", "internal", SnapshotKind.INTERNAL),
        ("internal", "no", SnapshotKind.INTERNAL),
        ("no", "external", SnapshotKind.EXTERNAL),
        ("external", "no", SnapshotKind.EXTERNAL),
        ("external", "external external", SnapshotKind.EXTERNAL),
        ("no", "external no", SnapshotKind.EXTERNAL),
        ("no", "internal external", SnapshotKind.MIXED),
        ("external", "internal", SnapshotKind.MIXED),
        ("internal", "external", SnapshotKind.MIXED),
    ],
)
def test_kind(memory: str, disks: str, kind: SnapshotKind) -> None:
    held = tuple(SnapshotDisk(f"vd{number}", DiskSnapshot(how)) for number, how in enumerate(disks.split()))
    assert Snapshot("s", None, 0, DomainState.OFF, memory=MemorySnapshot(memory), disks=held).kind is kind


@pytest.mark.parametrize(
    ("state", "memory", "written", "consistency"),
    [
        (DomainState.RUNNING, "internal", None, Consistency.MEMORY),
        (DomainState.PAUSED, "external", None, Consistency.MEMORY),
        (DomainState.OFF, "no", None, Consistency.OFFLINE),
        (DomainState.DISK_ONLY, "no", None, Consistency.CRASH),
        (DomainState.DISK_ONLY, "no", Consistency.FILESYSTEM, Consistency.FILESYSTEM),
        (DomainState.RUNNING, "no", None, Consistency.UNKNOWN),
        (DomainState.CRASHED, "no", None, Consistency.UNKNOWN),
        (DomainState.UNKNOWN, "no", None, Consistency.UNKNOWN),
    ],
)
def test_consistency(state: DomainState, memory: str, written: Consistency | None, consistency: Consistency) -> None:
    one = Snapshot("s", None, 0, state, memory=MemorySnapshot(memory), annotations=Annotations(consistency=written))
    assert one.consistency is consistency


def test_states_in_which_qemu_runs() -> None:
    active = {state for state in DomainState if state.is_active}
    assert {state.value for state in active} == {"running", "blocked", "paused", "shutdown", "pmsuspended"}
