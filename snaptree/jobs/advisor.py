"""What should be looked at on one host: found on a worker, machine by machine, and again only where that is news."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from snaptree.model.errors import SnapTreeError

if TYPE_CHECKING:
    from snaptree.hosts.connection import Connection
    from snaptree.plans.advice import HostAdvice, Observed
    from snaptree.plans.check import Checked
    from snaptree.plans.thresholds import Thresholds

_HOUR = 3_600


class Advisor:
    """Remembers what it found: a machine that did not change is looked at again each hour, as its snapshots age."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Observed, Thresholds, int, Checked]] = {}

    def advise(self, connection: Connection, machines: Mapping[str, Observed], *, is_settled: bool) -> HostAdvice:
        """What to look at, with thresholds from the user's file. Blocking. Raises SnapTreeError if the host is lost.

        `machines` are all of the host by UUID. `is_settled`: all were read, and nothing is being changed, so that a
        layer which nobody refers to is nobody's.
        """
        from snaptree.hosts.connection import is_embedded
        from snaptree.hosts.policies import load_policies
        from snaptree.hosts.surroundings import read_surroundings
        from snaptree.plans.check import check_host
        from snaptree.plans.policy_file import PolicyFile

        policies, unusable = PolicyFile(), ""
        try:
            policies = load_policies()
        except SnapTreeError as error:
            unusable = "" if is_embedded(connection.uri) else error.summary  # a demo has no schedules
        thresholds = policies.thresholds
        now = int(time.time())
        checked = [self._check(seen, thresholds, now) for seen in machines.values()]
        self._known = {uuid: known for uuid, known in self._known.items() if uuid in machines}
        layers = [seen.layers for seen in machines.values()]
        around = read_surroundings(connection, layers, policies, with_strays=is_settled)
        return check_host(checked, replace(around, unusable_file=unusable), thresholds, now)

    def _check(self, seen: Observed, thresholds: Thresholds, now: int) -> Checked:
        from snaptree.hosts.layers import is_analysed
        from snaptree.plans.check import check_machine

        uuid, hour = seen.domain.uuid, now // _HOUR
        known = self._known.get(uuid)
        if known is not None and _is_same(known[0], seen) and known[1:3] == (thresholds, hour):
            return known[3]
        checked = check_machine(seen, thresholds, now, is_analysed=is_analysed(seen.layers))
        self._known[uuid] = seen, thresholds, hour, checked
        return checked


def _is_same(one: Observed, other: Observed) -> bool:
    """Whether nothing was read anew. What equals the last reading is the same object."""
    same = (one.tree is other.tree, one.layers is other.layers, one.costs is other.costs)
    return all(same) and one.elsewhere is other.elsewhere and (one.host, one.domain) == (other.host, other.domain)
