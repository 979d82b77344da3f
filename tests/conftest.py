"""What all tests share: an environment of their own, and one embedded host for those that need real machines."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# Before libvirt and Qt are imported by anything: both read their environment once.
os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", "4:file:/dev/null")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["QT_NO_GLIB"] = "1"

import libvirt
import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from tests.kit import leaks
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import EmbeddedHost, remove

# Started in the background, as CI may, we ignore Ctrl+C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), max_examples=300, print_blob=True)
settings.register_profile("long", parent=settings.get_profile("default"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How long tests over made-up examples take is a matter of how many are wanted."""
    for item in items:
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.function):
            item.add_marker(pytest.mark.timeout(0))


def pytest_report_header() -> str:
    """What a run was against; packaging/test-matrix quotes it."""
    version = libvirt.getVersion()
    return f"libvirt {version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}, QEMU {_qemu_version()}"


def _qemu_version() -> str:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        return "none"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version (\S+)", said)
    return match[1] if match else said


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No test reads or writes the user's settings, journal or cache."""
    if _uses_qt(request):
        from PySide6.QtCore import QSettings

        # Qt looks at XDG_CONFIG_HOME only once.
        for file_format in (QSettings.Format.IniFormat, QSettings.Format.NativeFormat):
            QSettings.setPath(file_format, QSettings.Scope.UserScope, str(tmp_path / "config"))
    for variable, name in (
        ("XDG_CONFIG_HOME", "config"),
        ("XDG_STATE_HOME", "state"),
        ("XDG_CACHE_HOME", "cache"),
        ("XDG_DATA_HOME", "data"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / name))
    for variable in ("LIBVIRT_DEFAULT_URI", "LIBVIRT_AUTH_FILE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def no_leaks(own_directories: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests with Qt leave no threads, running timers or windows behind; all others no threads."""
    with ExitStack() as stack:
        stack.enter_context(leaks.no_thread_leaks())
        if _uses_qt(request):
            request.getfixturevalue("qapp")
            stack.enter_context(leaks.no_qt_leaks(monkeypatch))
        yield


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    """For tests that open files themselves: all are closed afterwards."""
    with leaks.no_descriptor_leaks():
        yield


def _uses_qt(request: pytest.FixtureRequest) -> bool:
    return not {"qtbot", "qapp"}.isdisjoint(request.fixturenames)


@pytest.fixture(scope="session")
def embedded_host() -> Iterator[EmbeddedHost]:
    """Libvirt's real QEMU driver in this process, with real machines."""
    host = EmbeddedHost()
    yield host
    host.close()


@pytest.fixture
def host(embedded_host: EmbeddedHost) -> Iterator[EmbeddedHost]:
    """The embedded host; every machine that the test made is gone afterwards."""
    before = {domain.UUIDString() for domain in embedded_host.connection.handle.listAllDomains()}
    yield embedded_host
    for domain in embedded_host.connection.handle.listAllDomains():
        if domain.UUIDString() not in before:
            remove(domain)


@pytest.fixture
def daemon() -> Iterator[LibvirtDaemon]:
    """A libvirt daemon of the test's own, started; it may be stopped, killed and started again."""
    daemon = LibvirtDaemon()
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()
