"""What the window remembers between starts, with names and types instead of strings and variants."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from PySide6.QtCore import QByteArray, QSettings

from snaptree.plans.naming import DEFAULT_TEMPLATE, template_problem


class ThemeChoice(StrEnum):
    """Which colours the window wears."""

    SYSTEM = "system"
    LIGHT = "light"
    DARK = "dark"


class SafetySnapshot(StrEnum):
    """Whether a revert takes a safety snapshot of the present state first."""

    ALWAYS = "always"
    ASK = "ask"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class HostRequest:
    """A host that the window shall connect to."""

    uri: str
    read_only: bool = False


class Settings:
    """Preferences and the window's shape, in the user's configuration directory. Damaged entries count as absent."""

    def __init__(self) -> None:
        self._store = QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, "snaptree", "snaptree")

    @property
    def theme(self) -> ThemeChoice:
        """Follow the system unless told otherwise."""
        try:
            return ThemeChoice(self._text("theme"))
        except ValueError:
            return ThemeChoice.SYSTEM

    @theme.setter
    def theme(self, choice: ThemeChoice) -> None:
        self._store.setValue("theme", choice.value)

    @property
    def safety_snapshot(self) -> SafetySnapshot:
        """Always, unless told otherwise: then one click reverts, and one click takes it back."""
        try:
            return SafetySnapshot(self._text("safety_snapshot"))
        except ValueError:
            return SafetySnapshot.ALWAYS

    @safety_snapshot.setter
    def safety_snapshot(self, choice: SafetySnapshot) -> None:
        self._store.setValue("safety_snapshot", choice.value)

    @property
    def name_template(self) -> str:
        """What new snapshots are called (plans/naming.py)."""
        template = self._text("name_template")
        return DEFAULT_TEMPLATE if template_problem(template) else template

    @name_template.setter
    def name_template(self, template: str) -> None:
        self._store.setValue("name_template", template)

    @property
    def hosts(self) -> list[HostRequest]:
        """The hosts that the user added, in that order."""
        try:
            entries = json.loads(self._text("hosts") or "[]")
            return [HostRequest(str(entry["uri"]), bool(entry["read_only"])) for entry in entries]
        except (ValueError, TypeError, KeyError):
            return []

    @hosts.setter
    def hosts(self, hosts: list[HostRequest]) -> None:
        self._store.setValue("hosts", json.dumps([{"uri": host.uri, "read_only": host.read_only} for host in hosts]))

    def text(self, key: str, default: str = "") -> str:
        """A small choice that a view remembers."""
        return self._text(key) or default

    def set_text(self, key: str, value: str) -> None:
        """Remember a small choice of a view."""
        self._store.setValue(key, value)

    def shape(self, key: str) -> QByteArray:
        """A window's, splitter's or header's saved shape; empty if there is none."""
        value = self._store.value(f"shape/{key}")
        return value if isinstance(value, QByteArray) else QByteArray()

    def set_shape(self, key: str, shape: QByteArray) -> None:
        """Remember what `saveState` or `saveGeometry` gave."""
        self._store.setValue(f"shape/{key}", shape)

    def _text(self, key: str) -> str:
        value = self._store.value(key)
        return value if isinstance(value, str) else ""
