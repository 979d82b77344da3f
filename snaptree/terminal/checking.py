"""Looking at all machines of hosts for `snaptree check`. What can't be read is a finding, too, and stops nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from snaptree.hosts.connection import Connection
from snaptree.hosts.reading import list_domains
from snaptree.hosts.surroundings import read_surroundings
from snaptree.model.errors import SnapTreeError, VanishedError
from snaptree.model.estate import Domain
from snaptree.model.merging import ALONE, Elsewhere
from snaptree.model.troubles import worst_first
from snaptree.plans.advice import Observed, advice_on_failure
from snaptree.plans.check import Surroundings, check_host, check_machine, side_by_side
from snaptree.plans.policy_file import PolicyFile
from snaptree.plans.thresholds import Thresholds
from snaptree.terminal.checks import Finding, findings_on

Read = Callable[[Connection, str, Elsewhere | None], Observed]
"""Reads a machine; without an Elsewhere it asks all others what they stand on."""


def check_hosts(
    places: Sequence[tuple[Connection, tuple[str, ...]]],
    named: Sequence[tuple[Connection, str]],
    thresholds: Thresholds,
    policies: PolicyFile,
    read: Read,
) -> tuple[tuple[Finding, ...], int]:
    """Findings of the machines named by UUID, or of all and what they share; and how many were looked at.

    `places` are the hosts, each with the options by which commands find it.
    """
    findings: list[Finding] = []
    machines = 0
    for connection, where in places:
        uuids = {uuid for other, uuid in named if other is connection}
        if named and not uuids:
            continue
        domains = [domain for domain in list_domains(connection) if not uuids or domain.uuid in uuids]
        machines += len(domains)
        findings += _check_host(connection, where, domains, thresholds, policies, read, is_all=not uuids)
    return worst_first(findings), machines


def _check_host(
    connection: Connection,
    where: tuple[str, ...],
    domains: Sequence[Domain],
    thresholds: Thresholds,
    policies: PolicyFile,
    read: Read,
    *,
    is_all: bool,
) -> list[Finding]:
    observed: list[Observed] = []
    findings: list[Finding] = []
    for domain in domains:
        try:
            observed.append(read(connection, domain.uuid, ALONE if is_all else None))
        except VanishedError:
            pass
        except SnapTreeError as error:
            findings += findings_on(connection.uri, domain.name, advice_on_failure(error), where)
    around = Surroundings()
    if is_all:
        observed = side_by_side(observed)
        is_settled = len(observed) == len(domains) and not any(each.unfinished for each in observed)
        layers = [each.layers for each in observed]
        around = read_surroundings(connection, layers, policies, with_strays=is_settled)
    now = int(time.time())
    advice = check_host([check_machine(each, thresholds, now) for each in observed], around, thresholds, now)
    findings += findings_on(connection.uri, "", advice.host, where)
    for each in observed:
        findings += findings_on(connection.uri, each.domain.name, advice.machines.get(each.domain.uuid, ()), where)
    return findings
