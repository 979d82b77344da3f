"""What taking a snapshot does to a machine: how long its guest stands still, and what is written on the host."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.layers import Images, live_chains
from snaptree.model.estate import Impact, MemorySnapshot
from snaptree.plans.plan import TakeSnapshot

_EVENTS_WITHIN_SECONDS = 2.0
"""After a call, events of what it did may still be on their way."""
_DIRTY_RATE_SECONDS = 1
_LEAST_KIB = 128 << 10
"""QEMU looks at no piece of RAM smaller than that, and says that nothing changes (MIN_RAMBLOCK_SIZE)."""
_DIRTY_RATE_STATS = libvirt.VIR_DOMAIN_STATS_DIRTYRATE
DIRTY_RATE_LOOK_SECONDS = 0.3
DIRTY_RATE_LOOKS = 20
"""Until a rate that was asked for is given up."""


class DirtyRate:
    """How much of its RAM a guest changes each second. Asked for, QEMU looks at a sample of it for a second."""

    def __init__(self, connection: Connection, uuid: str) -> None:
        self._connection = connection
        self._domain = connection.domain(uuid)

    def start(self) -> bool:
        """Ask for it. False where nobody can say: the guest is off or small, QEMU is too old, the link is read-only."""
        try:
            if self._domain.maxMemory() < _LEAST_KIB:
                return False
            self._domain.startDirtyRateCalc(_DIRTY_RATE_SECONDS, 0)
        except libvirt.libvirtError:
            return False
        return True

    def read(self) -> int | None:
        """Bytes per second; None as long as it is not known."""
        try:
            ((_, stats),) = self._connection.handle.domainListGetStats([self._domain], _DIRTY_RATE_STATS)
        except libvirt.libvirtError:
            return None
        if stats.get("dirtyrate.calc_status") != libvirt.VIR_DOMAIN_DIRTYRATE_MEASURED:
            return None
        return int(stats["dirtyrate.megabytes_per_second"]) << 20

    def wait(self) -> int | None:
        """Ask for it, and block until it is known: for some more than a second. None if it can't be."""
        if not self.start():
            return None
        patience = threading.Event()
        for _ in range(DIRTY_RATE_LOOKS):
            patience.wait(DIRTY_RATE_LOOK_SECONDS)
            if (rate := self.read()) is not None:
                return rate
        return None


class TakeMeter:
    """Measures while the block takes a snapshot; `impact` says afterwards what came of it.

    That the guest stands still is told by libvirt's events. They come through its event loop, on a thread of its own.
    """

    def __init__(self, connection: Connection, domain: Any, step: TakeSnapshot) -> None:
        """Look at what there is before it is taken."""
        self._connection = connection
        self._domain = domain
        self._step = step
        # New layers are all new; an image that takes the snapshot in grows.
        self._before = {} if step.overlays else {path: self._allocated(path) for path in self._active_layers()}
        self._paused: float | None = None
        self._wrote: int | None = None
        self._callback: int | None = None
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._stopped_at: float | None = None
        self._pauses: list[float] = []

    def __enter__(self) -> TakeMeter:
        """Listen, if there is a guest that could stand still."""
        if self._domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
            with suppress(libvirt.libvirtError):  # a driver without events
                self._callback = self._connection.handle.domainEventRegisterAny(
                    self._domain, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
                )
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        """Listen no more; where the guest must have stood still, not before that was told."""
        if kind is None:
            if self._connection.host.is_local:
                self._wrote = self._measure_files()  # now, before the guest fills the new layers
            self._paused = None if self._callback is None else self._pause()
        if self._callback is not None:
            with suppress(libvirt.libvirtError):  # over a broken link
                self._connection.handle.domainEventDeregisterAny(self._callback)

    def impact(self, *, since: float, frozen: float | None = None) -> Impact:
        """What it came to, with the seconds from `since` (of the monotonic clock) until now."""
        seconds = time.monotonic() - since
        wrote = self._measure_files() if self._wrote is None else self._wrote
        return Impact(seconds, paused=self._paused, frozen=frozen, wrote=wrote)

    def _pause(self) -> float | None:
        is_certain = self._step.memory is not MemorySnapshot.NO
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped_at is None and (bool(self._pauses) or not is_certain), _EVENTS_WITHIN_SECONDS
            )
            was_heard = self._stopped_at is None and (bool(self._pauses) or not is_certain)
            return sum(self._pauses) if was_heard else None

    def _lifecycle(self, _connection: Any, _domain: Any, event: int, _detail: int, _data: object) -> None:
        now = time.monotonic()
        with self._changed:
            if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED and self._stopped_at is None:
                self._stopped_at = now
            elif event == libvirt.VIR_DOMAIN_EVENT_RESUMED and self._stopped_at is not None:
                self._pauses.append(now - self._stopped_at)
                self._stopped_at = None
            self._changed.notify_all()

    def _measure_files(self) -> int | None:
        """Bytes on the host's disk; None where they can't be seen from here."""
        sizes = [self._allocated(path) for path in self._step.overlays.values()]
        sizes += [self._growth(path, before) for path, before in self._before.items()]
        if self._step.memory_file is not None:
            sizes.append(Images(self._connection).memory_file(self._step.memory_file).bytes)
        known = [size for size in sizes if size is not None]
        return sum(known) if sizes and len(known) == len(sizes) else None

    def _growth(self, path: str, before: int | None) -> int | None:
        after = self._allocated(path)
        if before is None or after is None:
            return None
        # Where snapshots were deleted an image has room, and need not grow for the memory.
        entries = Images(self._connection).read_image(path, "qcow2").internal_snapshots
        memory = max((entry.vm_state_size for entry in entries if entry.name == self._step.name), default=0)
        return max(after - before, memory)

    def _allocated(self, path: str) -> int | None:
        return Images(self._connection).read_image(path, "qcow2").allocated.bytes

    def _active_layers(self) -> list[str]:
        chains = live_chains(self._connection, self._domain, top_only=True)
        return [chain.active for chain in chains if chain.active is not None]
