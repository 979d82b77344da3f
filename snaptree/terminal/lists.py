"""What `snaptree list` prints: hosts and their machines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console

from snaptree import words
from snaptree.model.costs import host_disk
from snaptree.model.estate import Host
from snaptree.terminal.console import plain
from snaptree.terminal.reading import DomainReading, looks_at_json, print_look, print_trouble, troubles_json
from snaptree.terminal.table import Column, Cut, add_row, print_table

_MARK = " !"
"""Stands after the name of a machine that has troubles."""


def list_json(hosts: Iterable[Host], readings: Iterable[DomainReading]) -> list[dict[str, Any]]:
    """The document of `list --json`: hosts, with their machines and totals."""
    return [
        {
            "host": host.uri,
            "libvirt": _version(host.libvirt_version),
            "read_only": host.read_only,
            "totals": {"disk": host_disk(r.costs for r in machines).bytes},
            "domains": [
                {
                    "domain": reading.domain.name,
                    "uuid": reading.domain.uuid,
                    "state": reading.domain.state.value,
                    "snapshots": len(reading.tree),
                    "depth": reading.layers.depth,
                    "current": reading.tree.current,
                    "totals": {"disk": reading.costs.disk.bytes, "memory": reading.costs.memory.bytes},
                    "looks_at": looks_at_json(reading),
                    "troubles": troubles_json(reading),
                }
                for reading in machines
            ],
        }
        for host, machines in _by_host(hosts, readings)
    ]


def print_list(out: Console, hosts: Iterable[Host], readings: Iterable[DomainReading]) -> None:
    """Print hosts and their machines. Below stands the worst trouble of each machine that is marked with a `!`."""
    for host, machines in _by_host(hosts, readings):
        disk = words.figure(host_disk(reading.costs for reading in machines))
        access = ", read-only" if host.read_only else ""
        heading = f"{plain(host.uri)}  (libvirt {_version(host.libvirt_version)}{access}; disk {disk})"
        out.print(heading, style="bold", soft_wrap=False)
        columns = (
            Column("Virtual machine", short_title="VM", turn=3, cut=Cut.MIDDLE, stays=True),
            Column("State"),
            Column("Snapshots", right=True),
            Column("Layers", right=True, turn=4),
            Column("Disk", right=True),
            Column("Saved memory", short_title="Memory", right=True, turn=2, stays=True),
            Column("Current", turn=1, cut=Cut.MIDDLE),
        )
        for reading in machines:
            add_row(
                columns,
                plain(reading.domain.name) + (_MARK if reading.troubles else ""),
                reading.domain.state.value,
                str(len(reading.tree)),
                str(reading.layers.depth),
                words.figure(reading.costs.disk),
                words.figure(reading.costs.memory),
                plain(reading.tree.current or "—"),
            )
        print_table(out, columns)
        for reading in machines:
            print_look(out, reading)
        for reading in machines:
            if troubles := reading.troubles:
                more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
                print_trouble(out, troubles[0], f"{plain(reading.domain.name)}: ", more)


def _by_host(hosts: Iterable[Host], readings: Iterable[DomainReading]) -> list[tuple[Host, list[DomainReading]]]:
    """Every host with its machines, one without machines too."""
    machines: dict[str, list[DomainReading]] = {}
    for reading in readings:
        machines.setdefault(reading.host.uri, []).append(reading)
    return [(host, machines.get(host.uri, [])) for host in hosts]


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"
