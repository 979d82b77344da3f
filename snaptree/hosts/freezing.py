"""File systems of a guest, frozen by its agent for a while that has an end: whatever happens, they are thawed.

Not libvirt's own QUIESCE: that knows no deadline, and thaws only if the daemon and the agent live to the end of it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.errors import explain
from snaptree.hosts.journal import Journal
from snaptree.model.errors import ConnectionLostError, SnapTreeError, VanishedError

THAW_SECONDS = 30.0
"""How long it is tried to thaw what may be frozen, before that is left to the next start."""
_AGAIN_SECONDS = 0.5
ANSWER_SECONDS = 5
"""What an agent has for an answer that costs it nothing."""
_STILL_FROZEN = "The guest's file systems were still frozen, and were thawed when SnapTree next connected."
_REFUSED = "has been disabled"
"""What the agent says if its file systems are frozen already, or its configuration forbids to freeze them."""


class CannotFreezeError(SnapTreeError):
    """The file systems are as they were. Or may be frozen, if `is_unsure`: an agent that hangs may go on later."""

    is_unsure = False


class Frozen:
    """File systems that are frozen until `thaw`, or until their time is over."""

    def __init__(self, domain: Any, count: int, began: float, seconds: float) -> None:
        """Take over `count` frozen file systems, for `seconds` from `began` on (of the monotonic clock)."""
        self._domain = domain
        self._count = count
        self._began = began
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._thawed_at: float | None = None
        self._time_is_over = False
        self._were_frozen = False
        # A thread of its own: the take may block, and so may our own journal.
        self._timer = threading.Timer(max(0.0, began + seconds - time.monotonic()), self._end)
        self._timer.daemon = True
        self._timer.start()

    @property
    def is_held(self) -> bool:
        """Whether their time is not over yet."""
        return self._thawed_at is None and not self._time_is_over

    @property
    def seconds(self) -> float:
        """How long they were frozen, at most."""
        return (self._thawed_at or time.monotonic()) - self._began

    def thaw(self) -> bool:
        """Thaw them, and say whether all were frozen until now. Raises libvirtError if the agent does not do it."""
        self._timer.cancel()
        try:
            self._thaw()
        finally:
            self._timer.join()
        _let_it_block(self._domain)
        return self._were_frozen

    def _end(self) -> None:
        self._time_is_over = True
        with suppress(libvirt.libvirtError):  # `thaw` tries it again, and says so
            self._thaw()

    def _thaw(self) -> None:
        with self._lock:
            if self._thawed_at is not None:
                return
            thawed = self._domain.fsThaw()
            self._thawed_at = time.monotonic()
            # The guest may have thawed some of them itself, or its agent have begun anew.
            self._were_frozen = not self._time_is_over and thawed >= self._count


def freeze(domain: Any, seconds: float) -> Frozen:
    """Freeze all file systems of a guest for `seconds` at most. Blocks as long as the agent needs, or that long.

    Raises CannotFreezeError if that can't be done, or if there was nothing to freeze.
    """
    try:
        _ask_whether_it_answers(domain)
        domain.agentSetResponseTimeout(max(1, ceil(seconds)))
    except libvirt.libvirtError as error:
        raise _cannot(error, is_unsure=False) from error
    began = time.monotonic()
    try:
        count = domain.fsFreeze()
    except libvirt.libvirtError as error:
        _let_it_block(domain)
        # Without an answer: the agent may get to it when nobody waits for it any more.
        raise _cannot(error, is_unsure=error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR) from error
    if count == 0:
        _let_it_block(domain)
        raise CannotFreezeError(
            "The guest agent froze no file system at all.", hint="It freezes those on disks that are mounted in it."
        )
    return Frozen(domain, count, began, seconds)


def _ask_whether_it_answers(domain: Any) -> None:
    """Ask an agent for the time, which does no harm. Raises libvirtError if it does not answer.

    One that hangs gets all it was told when it goes on, and would freeze then: libvirt 9.0 sends without asking first.
    """
    domain.agentSetResponseTimeout(ANSWER_SECONDS)
    try:
        domain.getTime()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INTERNAL_ERROR:  # that it may not tell is an answer as well
            _let_it_block(domain)
            raise


def _let_it_block(domain: Any) -> None:
    """libvirt's default is to wait for an agent for ever. Nobody can be asked what it was before."""
    with suppress(libvirt.libvirtError):
        domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)


def _cannot(error: libvirt.libvirtError, *, is_unsure: bool) -> SnapTreeError:
    explained = explain(error, "freezing the file systems")
    if isinstance(explained, ConnectionLostError):
        return explained
    cannot = CannotFreezeError(explained.summary, hint=explained.hint, details=explained.details)
    cannot.is_unsure = is_unsure
    if _REFUSED in (error.get_error_message() or ""):
        cannot.hint = "Somebody else has frozen them already, or the agent is configured not to."
    return cannot


def thaw_surely(connection: Connection, uuid: str, seconds: float = THAW_SECONDS) -> int:
    """Thaw what may be frozen, again and again for `seconds`, over a new connection if this one is lost.

    Returns how many file systems were frozen still. Raises SnapTreeError if nobody can say.
    """
    deadline = time.monotonic() + seconds
    ours: Connection | None = None
    try:
        while True:
            try:
                if ours is None and not connection.is_alive():
                    ours = connection.another()
                return _thaw((ours or connection).domain(uuid))
            except VanishedError:
                return 0
            except (libvirt.libvirtError, SnapTreeError) as error:
                if time.monotonic() >= deadline:
                    raise _not_thawed(error) from error
            if ours is not None and not ours.is_alive():
                ours.close()
                ours = None
            threading.Event().wait(_AGAIN_SECONDS)
    finally:
        if ours is not None:
            ours.close()


def _thaw(domain: Any) -> int:
    """Thaw; a guest that is not there any more has nothing frozen."""
    if not domain.isActive():
        return 0
    domain.agentSetResponseTimeout(ANSWER_SECONDS)
    try:
        return int(domain.fsThaw())
    finally:
        _let_it_block(domain)


def _not_thawed(error: Exception) -> SnapTreeError:
    why = explain(error, "thawing the file systems") if isinstance(error, libvirt.libvirtError) else error
    return SnapTreeError(
        "The guest's file systems may still be frozen, or freeze when its agent answers again.",
        hint="SnapTree thaws them when it next connects. You can do it yourself: virsh domfsthaw VM.",
        details=str(why),
    )


@dataclass(frozen=True, slots=True)
class LeftFrozen:
    """A machine whose file systems an operation may have left frozen, and what became of that, in a sentence."""

    domain: str
    says: str
    is_thawed: bool


def thaw_left(connection: Connection, journal: Journal) -> tuple[LeftFrozen, ...]:
    """Thaw what earlier operations left frozen, without asking: that harms nobody, and each second more of it does.

    Returns those of which there is something to say; the journal says it as well. Raises SnapTreeError if that can't
    be read or written.
    """
    results = []
    for operation in journal.left_frozen(connection.uri):
        try:
            thawed = thaw_surely(connection, operation.plan.domain_uuid, 0.0)
            says = _STILL_FROZEN if thawed else ""
        except SnapTreeError as error:
            thawed, says = None, str(error)
        else:
            journal.is_thawed(operation.id)
        if says:
            journal.remark(operation.id, says)
            results.append(LeftFrozen(operation.plan.domain, says, is_thawed=thawed is not None))
    return tuple(results)
