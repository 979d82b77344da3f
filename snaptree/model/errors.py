"""The one error type that reaches a person."""

from __future__ import annotations


class SnapTreeError(Exception):
    """Something that went wrong, said so that an administrator can act on it.

    `summary` says what and why in one line, `hint` what to do about it, `details` holds the raw text
    of libvirt, QEMU or the operating system. Windows and terminal show the same three.
    """

    def __init__(self, summary: str, *, hint: str = "", details: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.summary} {self.hint}".strip()


class ConnectionLostError(SnapTreeError):
    """The link to the host broke, or its daemon went away: worth trying again."""


class AccessDeniedError(SnapTreeError):
    """The host answers, but does not let this account manage it: a read-only connection may still be allowed."""


class VanishedError(SnapTreeError):
    """The virtual machine or snapshot asked for is gone: the caller's picture is stale."""


class ReadOnlyError(SnapTreeError):
    """The connection may look, but not change."""


class CancelledError(SnapTreeError):
    """The user stopped it. Nothing half-done is left unless `details` says so."""


class ChangedMeanwhileError(SnapTreeError):
    """Somebody else changed what the plan relied on. Nothing was done by the step that noticed."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"Stopped before doing anything more: {what}.",
            hint="Someone else changed this machine meanwhile. Look at the tree as it is now, and plan again.",
        )
