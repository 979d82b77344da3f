"""Hearing of changes that others make to a host: libvirt's events where it has them, cheap looks where it has none.

libvirt has no event for a snapshot that was taken, edited or deleted (LIBVIRT.md, section 3). So each machine is
compared, now and then, with what the user is shown of it: nothing that happened meanwhile can be missed.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.helper_machine import may_be_helper
from snaptree.hosts.reading import current_name
from snaptree.hosts.snapshot_xml import read_snapshot
from snaptree.model.tree import SnapshotTree

LOOK_SECONDS = 1.0
"""Between two looks at the machine on screen, on a host that answers quickly."""
_SHARE_OF_TIME = 0.1
"""Looking takes no more than this share of the time, however slow the link: then it happens less often."""
_LOOK_BUDGET_SECONDS = 0.05
"""One look reads contents and other machines no longer than this (but at least one of each): about 300 machines."""
_CONTENTS_PER_LOOK = 100
_SETTLE_SECONDS = 0.05
"""Events come in bursts (a revert sends four): what follows so soon is told together."""
_TELL_AGAIN_SECONDS = 10.0
"""A change that was told and is not shown by then is told once more: reading it may have failed."""

_log = logging.getLogger(__name__)

_SNAPSHOTS_MAY_DIFFER = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED,
    libvirt.VIR_DOMAIN_EVENT_STARTED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED,
}
"""Lifecycle events after which a machine's snapshots, layers or costs may be others than before."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What may have changed: `list_changed` the machines' names and states, `domains` (UUIDs) all else about them."""

    list_changed: bool
    domains: frozenset[str]


@dataclass(slots=True)
class _Shown:
    """What the user is shown of one machine, and how far its contents were compared with it."""

    tree: SnapshotTree
    names: tuple[str, ...]
    position: int = 0
    """Where the next comparison of contents goes on."""
    same: dict[str, bytes] = field(default_factory=dict)
    """Digests of XML that was found to say what is shown: the same text need not be read again."""


class Watcher:
    """Watches one connection, from `start` to `close`, on a thread of its own.

    `on_change` is called on that thread. Machines are compared with what `showing` said of them; one that nothing
    was said of is left alone. All methods but `close` return at once and may be called from any thread.
    """

    def __init__(self, connection: Connection, on_change: Callable[[Changes], None]) -> None:
        self._connection = connection
        self._on_change = on_change
        self._thread = threading.Thread(target=self._watch, name="snaptree-watch", daemon=True)
        self._callbacks: list[int] = []
        self._hears_lifecycle = False

        self._changed = threading.Condition()
        # Guarded by _changed:
        self._is_closed = False
        self._looked_at: str | None = None
        self._look_now = False
        self._shown: dict[str, _Shown] = {}
        self._paused: Counter[str] = Counter()
        self._list_changed = False
        self._pending: set[str] = set()

        # The watching thread's own:
        self._handles: dict[str, Any] = {}
        self._round: deque[str] = deque()
        self._told: dict[str, float] = {}

    def start(self) -> None:
        """Register for events (a few blocking calls) and begin to look."""
        self._hears_lifecycle = self._register(libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle)
        self._register(libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._block_job)
        for event in (
            libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
            libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
            libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
        ):
            self._register(event, self._something)
        self._thread.start()

    def close(self, timeout: float) -> bool:
        """Stop, and wait up to `timeout` seconds for it. Returns whether the connection is not used any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def look_at(self, uuid: str | None) -> None:
        """Say which machine is on screen: it is looked at first, and most often."""
        with self._changed:
            self._looked_at = uuid
            self._look_now = True
            self._changed.notify_all()

    def showing(self, uuid: str, tree: SnapshotTree) -> None:
        """Say what the user is shown of a machine from now on."""
        with self._changed:
            self._told.pop(uuid, None)
            shown = self._shown.get(uuid)
            if shown is None or shown.tree is not tree:
                self._shown[uuid] = _Shown(tree, tuple(tree.snapshots))

    def forget(self, uuid: str) -> None:
        """The machine is not shown any more."""
        with self._changed:
            self._shown.pop(uuid, None)
            self._told.pop(uuid, None)

    @contextmanager
    def paused(self, uuid: str) -> Iterator[None]:
        """Leave a machine alone while we change it ourselves. The caller reads it again right afterwards."""
        with self._changed:
            self._paused[uuid] += 1
        try:
            yield
        finally:
            with self._changed:
                self._paused[uuid] -= 1
                # Should that reading fail, what differs from what is shown will be told after all.
                self._pending.discard(uuid)
                self._told[uuid] = time.monotonic()

    # Events: called in libvirt's event loop, where nothing may block

    def _register(self, event: int, callback: Callable[..., None]) -> bool:
        try:
            self._callbacks.append(self._connection.handle.domainEventRegisterAny(None, event, callback, None))
        except libvirt.libvirtError as error:
            # A driver without events, or a daemon that is too old for this one: looking has to do.
            _log.debug("%s has no event %d: %s", self._connection.uri, event, error)
            return False
        return True

    def _lifecycle(self, _connection: Any, domain: Any, event: int, _detail: int, _data: object) -> None:
        if not may_be_helper(domain.name()):  # it is not listed
            self._note(domain, list_changed=True, domain_changed=event in _SNAPSHOTS_MAY_DIFFER)

    def _block_job(self, _connection: Any, domain: Any, _disk: str, _type: int, status: int, _data: object) -> None:
        self._note(domain, domain_changed=status != libvirt.VIR_DOMAIN_BLOCK_JOB_READY)

    def _something(self, _connection: Any, domain: Any, *_details: object) -> None:
        self._note(domain, domain_changed=True)

    def _note(self, domain: Any, *, list_changed: bool = False, domain_changed: bool = False) -> None:
        """Keep what an event says for the watching thread."""
        with self._changed:
            self._list_changed |= list_changed
            if domain_changed:
                self._pending.add(domain.UUIDString())
            self._changed.notify_all()

    # The watching thread

    def _watch(self) -> None:
        next_look = time.monotonic()
        while self._wait(next_look):
            began = time.monotonic()
            try:
                self._look(began)
            except Exception:  # noqa: BLE001  whatever it is, later changes must still be noticed
                _log.exception("looking for changes on %s failed", self._connection.uri)
            took = time.monotonic() - began
            next_look = began + max(LOOK_SECONDS, took / _SHARE_OF_TIME)
        self._deregister()
        self._handles.clear()  # each of them keeps the connection open

    def _wait(self, next_look: float) -> bool:
        """Pass on events until it is time to look. False: time to end."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or self._look_now or self._has_news(), next_look - time.monotonic()
                )
                if self._has_news():
                    self._changed.wait_for(lambda: self._is_closed, _SETTLE_SECONDS)
                if self._is_closed:
                    return False
            self._tell()
            with self._changed:
                if self._look_now or time.monotonic() >= next_look:
                    self._look_now = False
                    return True

    def _has_news(self) -> bool:
        return self._list_changed or any(not self._paused[uuid] for uuid in self._pending)

    def _tell(self) -> None:
        with self._changed:
            if not self._has_news():
                return
            domains = frozenset(uuid for uuid in self._pending if not self._paused[uuid])
            changes = Changes(self._list_changed, domains)
            self._list_changed = False
            self._pending -= domains
            now = time.monotonic()
            self._told.update((uuid, now) for uuid in domains)
        self._on_change(changes)

    def _look(self, began: float) -> None:
        """Compare the machine on screen with what is shown of it, then others, in turn, while there is time."""
        if not self._round:
            self._begin_round()
        with self._changed:
            looked_at = self._looked_at
        deadline = began + _LOOK_BUDGET_SECONDS
        if looked_at is not None:
            self._compare(looked_at, began, deadline)
        while self._round:
            uuid = self._round.popleft()
            if uuid != looked_at:
                self._compare(uuid, began)
            if time.monotonic() >= deadline:
                break
        self._tell()

    def _begin_round(self) -> None:
        if not self._hears_lifecycle:
            with self._changed:
                self._list_changed = True
        try:
            listed = self._connection.handle.listAllDomains()
        except libvirt.libvirtError as error:
            self._failed(error)
            return
        self._handles = {handle.UUIDString(): handle for handle in listed}
        self._round.extend(self._handles)

    def _compare(self, uuid: str, began: float, contents_until: float | None = None) -> None:
        """Note a machine as changed if it differs from what is shown; its contents are read until `contents_until`."""
        with self._changed:
            shown = self._shown.get(uuid)
            told = self._told.get(uuid, -math.inf)
            if shown is None or self._paused[uuid] or began - told < _TELL_AGAIN_SECONDS:
                return
        try:
            handle = self._handles.get(uuid) or self._connection.handle.lookupByUUIDString(uuid)
            differs = _differs(handle, shown, contents_until)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                self._failed(error)
                return
            self._handles.pop(uuid, None)
            with self._changed:
                self._shown.pop(uuid, None)
                self._list_changed = True
            return
        with self._changed:
            # Our own change may have begun, or a newer tree been shown, while we looked.
            if differs and not self._paused[uuid] and self._shown.get(uuid) is shown:
                self._pending.add(uuid)

    def _failed(self, error: libvirt.libvirtError) -> None:
        """A look failed. A broken link is told to whom it concerns; anything else may go better the next time."""
        _log.debug("looking for changes on %s failed: %s", self._connection.uri, error)
        on_lost = self._connection.on_lost
        if on_lost is not None and not self._connection.is_alive():
            on_lost("it does not answer any more")

    def _deregister(self) -> None:
        for callback in self._callbacks:
            # Over a broken link it fails, after it has let go of what is on this side.
            with suppress(libvirt.libvirtError):
                self._connection.handle.domainEventDeregisterAny(callback)


def _differs(domain: Any, shown: _Shown, contents_until: float | None) -> bool:
    """Whether a machine's snapshots are not those that are shown: two calls, and some more until `contents_until`."""
    # Not by snapshotListNames: it counts first, and a snapshot taken between its two calls makes it read past the end.
    if {snapshot.getName() for snapshot in domain.listAllSnapshots()} != shown.tree.snapshots.keys():
        return True
    if contents_until is None:
        return False
    return current_name(domain) != shown.tree.current or _contents_differ(domain, shown, contents_until)


def _contents_differ(domain: Any, shown: _Shown, until: float) -> bool:
    """Read the next few snapshots of a machine, all of a small tree, and compare each with what is shown of it."""
    size = len(shown.names)
    for name in itertools.islice(
        itertools.cycle(shown.names), shown.position, shown.position + min(size, _CONTENTS_PER_LOOK)
    ):
        try:
            xml = domain.snapshotLookupByName(name).getXMLDesc()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                return True
            raise
        digest = hashlib.blake2b(xml.encode(), digest_size=16).digest()
        if shown.same.get(name) != digest:
            if read_snapshot(name, xml) != shown.tree[name]:
                return True
            shown.same[name] = digest
        shown.position = (shown.position + 1) % size
        if time.monotonic() >= until:
            break
    return False
