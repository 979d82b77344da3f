"""Whatever others do, and wherever the user looks meanwhile: in the end the window shows what is there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import libvirt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snaptree.hosts.connection import Connection
from snaptree.hosts.reading import read_tree
from tests.jobs.conftest import DOMAIN, Listener

MACHINES = 3
_names = (f"snapshot-{number}" for number in itertools.count())


class Others:
    """Everybody else on the host: each action does something to one machine, if that is possible now."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def machine(self, number: int) -> Any:
        try:
            return self.connection.lookupByName(f"storm-{number}")
        except libvirt.libvirtError:
            return self.connection.defineXML(DOMAIN.format(name=f"storm-{number}"))

    def take(self, number: int) -> None:
        self.machine(number).snapshotCreateXML(f"<domainsnapshot><name>{next(_names)}</name></domainsnapshot>")

    def delete(self, number: int) -> None:
        for snapshot in self.machine(number).listAllSnapshots()[:1]:
            snapshot.delete()

    def delete_subtree(self, number: int) -> None:
        for snapshot in self.machine(number).listAllSnapshots()[:1]:
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN)

    def edit(self, number: int) -> None:
        for snapshot in self.machine(number).listAllSnapshots()[-1:]:
            head, _, tail = snapshot.getXMLDesc().partition("<state>")
            head = head.partition("<description>")[0]
            self.machine(number).snapshotCreateXML(
                f"{head}<description>{next(_names)}</description><state>{tail}",
                libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE,
            )

    def revert(self, number: int) -> None:
        for snapshot in self.machine(number).listAllSnapshots()[:1]:
            self.machine(number).revertToSnapshot(snapshot)

    def start_or_stop(self, number: int) -> None:
        machine = self.machine(number)
        if machine.isActive():
            machine.destroy()
        else:
            machine.create()

    def remove(self, number: int) -> None:
        machine = self.machine(number)
        if machine.isActive():
            machine.destroy()
        machine.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)


OTHERS = ["take", "take", "delete", "delete_subtree", "edit", "revert", "start_or_stop", "remove"]
ACTIONS = st.tuples(st.sampled_from([*OTHERS, "look_at", "look_at", "refresh", "wait"]), st.integers(0, MACHINES - 1))


@pytest.mark.usefixtures("brisk")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=25))
def test_in_the_end_what_is_there_is_shown(
    listen: Callable[..., Listener], virsh: Any, actions: list[tuple[str, int]]
) -> None:
    others = Others(virsh)
    listener = listen("test:///default")
    backend = listener.backend
    listener.open()
    looked_at = ""
    for action, number in actions:
        if action == "look_at":
            looked_at = others.machine(number).UUIDString()
            backend.look_at(looked_at)
        elif action == "refresh":
            backend.refresh()
        elif action == "wait":
            listener.qtbot.wait(20)
        else:
            getattr(others, action)(number)

    connection = Connection("test:///default")
    connection.open()
    states = {domain.UUIDString(): bool(domain.isActive()) for domain in virsh.listAllDomains()}
    trees = {uuid: read_tree(connection, uuid) for uuid in states}
    connection.close()
    listener.until(lambda: {domain.uuid: domain.state.is_active for domain in backend.domains()} == states)
    names = {uuid: set(tree.snapshots) for uuid, tree in trees.items()}
    listener.until(lambda: {uuid: set(listener.names(uuid)) for uuid in names} == names)
    if looked_at in trees:
        listener.until(lambda: backend.tree(looked_at) == trees[looked_at])
    listener.until(lambda: all(backend.costs(uuid) for uuid in states))
    assert listener.failures == []
    backend.close()
    assert backend.wait_until_closed(20)
