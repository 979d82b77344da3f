"""How long the window is deaf at most, while it loads a large estate and while a merge runs."""

from __future__ import annotations

import time
from collections.abc import Iterator

import libvirt

from snaptree.model.errors import SnapTreeError
from snaptree.plans.intention import Delete
from snaptree.plans.operation import OperationState
from snaptree.plans.plan import Plan
from snaptree.ui.application import Session, make_application
from tests.benchmarks.comparison import Comparison
from tests.benchmarks.estate import add_external, add_internal, define_machine, running_daemon, write_as_guest
from tests.benchmarks.window import Deafness, connect_window, machines, open_window, run_until

AIM_SECONDS = 0.05

IDLE_SECONDS = 3

_MERGING = "merging"


def measure(runs: int, machine_count: int, snapshots_each: int, merged: int) -> Iterator[Comparison]:
    """Yield the longest stalls. `merged` is what the merge has to copy, in MiB."""
    idle, loading, merging = [], [], []
    with running_daemon() as daemon:
        for number in range(machine_count):
            add = add_external if number % 2 else add_internal
            add(daemon, f"machine-{number:03}", snapshots_each)
        domain = define_machine(daemon, _MERGING)
        domain.create()
        make_application()
        deafness = Deafness()
        for run in range(runs):
            snapshot = f"before-{run}"
            domain.snapshotCreateXML(
                f"<domainsnapshot><name>{snapshot}</name></domainsnapshot>",
                libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY,
            )
            write_as_guest(domain, merged)
            with open_window() as session:
                deafness.start()
                connect_window(session, daemon.uri)
                run_until(lambda: _all_is_read(session, machine_count + 1))
                loading.append(deafness.stop())
                merging.append(_merge(session, snapshot, deafness))
                idle.append(_idle(deafness))
    estate = f"{machine_count * snapshots_each:,} snapshots of {machine_count} machines"
    yield Comparison(f"longest stall, loading {estate}", tuple(loading), aim=AIM_SECONDS)
    yield Comparison(f"longest stall, merging {merged} MiB", tuple(merging), aim=AIM_SECONDS)
    yield Comparison(f"longest stall, nothing to do for {IDLE_SECONDS} s (this computer's noise)", tuple(idle))


def _all_is_read(session: Session, count: int) -> bool:
    known = machines(session)
    return len(known) == count and all(machine.costs is not None or machine.error is not None for machine in known)


def _merge(session: Session, snapshot: str, deafness: Deafness) -> float:
    """Delete a snapshot while its machine is on screen, until the tree without it is."""
    (machine,) = (machine for machine in machines(session) if machine.domain.name == _MERGING)
    session.window.choose(machine.id)
    backend = session.estate[machine.id.uri].backend
    plans: list[Plan | SnapTreeError] = []
    backend.planner.plan(machine.id.uuid, Delete((snapshot,)), plans.append)
    run_until(lambda: bool(plans))
    (plan,) = plans
    if isinstance(plan, SnapTreeError):
        raise plan
    deafness.start()
    backend.run(plan)

    def is_over() -> bool:
        tree = backend.tree(machine.id.uuid)
        return backend.operations()[-1].state.is_over and tree is not None and snapshot not in tree

    run_until(is_over)
    stall = deafness.stop()
    operation = backend.operations()[-1]
    if operation.state is not OperationState.DONE:
        raise RuntimeError(f"The merge ended badly: {operation.error}")
    return stall


def _idle(deafness: Deafness) -> float:
    end = time.monotonic() + IDLE_SECONDS
    deafness.start()
    run_until(lambda: time.monotonic() > end)
    return deafness.stop()
