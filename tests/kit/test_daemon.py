"""The kit's own daemon: it is real, apart from the computer's, and can go away and come back."""

from __future__ import annotations

import threading

import pytest

from snaptree.hosts.connection import Connection
from snaptree.hosts.reading import list_domains, read_tree
from tests.kit.daemon import LibvirtDaemon
from tests.kit.machines import EmbeddedHost

pytestmark = [pytest.mark.qemu, pytest.mark.daemon]


def test_virsh_and_we_see_the_same_machines(daemon: LibvirtDaemon) -> None:
    machine = daemon.make_machine(name="seen")
    machine.write(1)
    daemon.virsh("snapshot-create-as", "seen", "by-virsh", "--disk-only")
    machine.write(2)
    assert [domain.name for domain in list_domains(daemon.connection)] == ["seen"]
    assert daemon.virsh("snapshot-list", "seen", "--name").split() == ["by-virsh"]
    contents = machine.contents()
    assert contents["by-virsh"] != contents["Now"]
    machine.check_images()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_machines_outlive_the_daemon(daemon: LibvirtDaemon, end: str) -> None:
    daemon.make_machine(name="survivor").virsh_take_disk_only("before")
    connection = Connection(daemon.uri)
    lost = threading.Event()
    connection.on_lost = lambda reason: lost.set()
    connection.open()
    getattr(daemon, end)()
    assert lost.wait(10)
    daemon.start()
    again = Connection(daemon.uri)
    again.open()
    (survivor,) = list_domains(again)
    assert survivor.state.is_active
    assert "before" in read_tree(again, survivor.uuid)
    again.close()
    connection.close()


def test_the_daemon_and_the_embedded_driver_get_along(daemon: LibvirtDaemon, host: EmbeddedHost) -> None:
    inside, outside = host.make_machine(running=False), daemon.make_machine(running=False)
    assert [domain.name for domain in list_domains(daemon.connection)] == [outside.name]
    assert inside.name in [domain.name for domain in list_domains(host.connection)]
