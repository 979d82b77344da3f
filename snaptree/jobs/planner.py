"""What a host's machines would go through: plans, worked out on a thread of the host's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from PySide6.QtCore import QObject, QTimer

from snaptree.hosts.connection import Connection
from snaptree.hosts.journal import Journal
from snaptree.hosts.layers import analysed, is_analysed, with_earlier_analysis
from snaptree.hosts.measuring import DIRTY_RATE_LOOK_SECONDS, DIRTY_RATE_LOOKS, DirtyRate
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.situation import read_situation, read_to_describe
from snaptree.jobs.session import Session
from snaptree.jobs.worker import Priority, ShouldStop, Worker, not_told
from snaptree.model.errors import CancelledError, ConnectionLostError, SnapTreeError
from snaptree.model.estate import DomainLayers
from snaptree.plans.group import GroupPlan
from snaptree.plans.intention import Intention, Prune, Recover, Take, only_describes, places_of
from snaptree.plans.plan import Plan
from snaptree.plans.planner import make_plan, needs_analysis
from snaptree.plans.prune_many import PlannedPrune, plan_prunes, unreadable
from snaptree.plans.situation import Situation
from snaptree.plans.speed import Speed


def not_connected(uri: str) -> ConnectionLostError:
    """Why nothing can be asked of a host now."""
    return ConnectionLostError(f"Not connected to {uri}.", hint="Try again once it is connected.")


class Planner(QObject):
    """Plans for one host. Lives on the window's thread; what it is given to ask for is asked on the worker's, too."""

    def __init__(
        self,
        uri: str,
        worker: Worker,
        post: Callable[[Callable[[], None]], None],
        *,
        journal: Journal | None,
        session: Callable[[], Session | None],
        speed: Callable[[], Speed],
        layers: Callable[[str], DomainLayers | None],
        name: Callable[[str], str],
        parent: QObject,
    ) -> None:
        """`session` is None while the host is not connected; `layers` and `name` are what is known of a UUID."""
        super().__init__(parent)
        self._uri, self._worker, self._post, self._journal = uri, worker, post, journal
        self._session, self._speed, self._layers, self._name = session, speed, layers, name
        self._dirty_rates: dict[str, int] = {}
        """Bytes of RAM that guests changed each second when that was measured last."""

    def plan(self, uuid: str, intention: Intention, on_ready: Callable[[Plan | SnapTreeError], None]) -> None:
        """Work out what an intention would do. `on_ready` hears of it on this thread, unless the backend is closed."""
        session = self._session()
        if session is None:
            self._post(partial(on_ready, not_connected(self._uri)))
            return

        def work(should_stop: ShouldStop) -> Plan:
            with session.using() as connection:
                if only_describes(intention):
                    situation = read_to_describe(connection, uuid)
                    return make_plan(intention, with_operations(connection, situation, self._journal))
                return make_plan(intention, self._situation_for(connection, uuid, intention, should_stop))

        self._worker.submit(work, on_done=on_ready, on_failed=on_ready, priority=Priority.USER)

    def plan_prunes(
        self,
        wanted: Mapping[str, Prune],
        on_ready: Callable[[tuple[tuple[PlannedPrune, ...], tuple[Plan, ...]] | SnapTreeError], None],
    ) -> None:
        """As `plan`, for several machines by UUID; of those that can't be read, plans that say why come second."""
        session = self._session()
        if session is None:
            self._post(partial(on_ready, not_connected(self._uri)))
            return

        def work(should_stop: ShouldStop) -> tuple[tuple[PlannedPrune, ...], tuple[Plan, ...]]:
            read, unread = [], []
            with session.using() as connection:
                for uuid, intention in wanted.items():
                    try:
                        read.append((intention, self._situation_for(connection, uuid, intention, should_stop)))
                    except (CancelledError, ConnectionLostError):
                        raise
                    except SnapTreeError as error:
                        unread.append(unreadable(self._uri, uuid, self._name(uuid), error))
            return plan_prunes(read), tuple(unread)

        self._worker.submit(work, on_done=on_ready, on_failed=on_ready, priority=Priority.USER)

    def _situation_for(
        self, connection: Connection, uuid: str, intention: Intention, should_stop: ShouldStop
    ) -> Situation:
        """On a worker: all that planning this has to know."""
        situation = self._situation(connection, uuid, recovers=isinstance(intention, Recover))
        if needs_analysis(intention, situation) and not is_analysed(situation.layers):
            situation = replace(situation, layers=analysed(connection, situation.layers, should_stop))
        return situation

    def plan_takes(
        self, uuid: str, intentions: tuple[Take, ...], on_ready: Callable[[tuple[Plan, ...] | SnapTreeError], None]
    ) -> None:
        """Plan several ways of taking a snapshot from one look at the machine. `on_ready` hears of it as in `plan`."""
        session = self._session()
        if session is None:
            self._post(partial(on_ready, not_connected(self._uri)))
            return

        def work(_should_stop: ShouldStop) -> tuple[Plan, ...]:
            places = {place for intention in intentions for place in places_of(intention)}
            with session.using() as connection:
                situation = self._situation(connection, uuid, places)
            return tuple(make_plan(intention, situation) for intention in intentions)

        self._worker.submit(work, on_done=on_ready, on_failed=on_ready, priority=Priority.USER)

    def _situation(
        self, connection: Connection, uuid: str, places: Collection[str] = (), *, recovers: bool = False
    ) -> Situation:
        """On a worker: all that plans may know."""
        situation = replace(
            read_situation(connection, uuid, places), speed=self._speed(), dirty_rate=self._dirty_rates.get(uuid)
        )
        situation = with_operations(connection, situation, self._journal, recovers=recovers)
        # What is on screen was analysed already; a figure in a preview need not be truer than that.
        known = self._layers(uuid)
        return situation if known is None else replace(situation, layers=with_earlier_analysis(situation.layers, known))

    def measure_dirty_rate(self, uuid: str, on_ready: Callable[[int], None]) -> None:
        """Let QEMU find out how much of its RAM a guest changes each second, for later plans, too.

        `on_ready` hears of it on this thread, in bytes; of what nobody can say, nothing. It takes more than a second,
        in which no thread waits.
        """
        session = self._session()
        if session is None:
            return

        def start(_should_stop: ShouldStop) -> bool:
            with session.using() as connection:
                return DirtyRate(connection, uuid).start()

        def read(_should_stop: ShouldStop) -> int | None:
            with session.using() as connection:
                return DirtyRate(connection, uuid).read()

        def look(looks_left: int) -> None:
            if looks_left:
                self._worker.submit(
                    read, on_done=partial(done, looks_left - 1), on_failed=not_told, priority=Priority.USER
                )

        def look_soon(looks_left: int) -> None:
            QTimer.singleShot(int(1000 * DIRTY_RATE_LOOK_SECONDS), self, partial(look, looks_left))

        def done(looks_left: int, rate: int | None) -> None:
            if rate is None:
                look_soon(looks_left)
            else:
                self._dirty_rates[uuid] = rate
                on_ready(rate)

        def started(has_begun: bool) -> None:
            self._dirty_rates.pop(uuid, None)
            if has_begun:
                look_soon(DIRTY_RATE_LOOKS)

        self._worker.submit(start, on_done=started, on_failed=not_told, priority=Priority.USER)

    def plan_group(
        self,
        uuids: Sequence[str],
        make: Callable[[Sequence[Situation]], GroupPlan],
        on_ready: Callable[[GroupPlan | SnapTreeError], None],
    ) -> None:
        """As `plan`, for several machines together: `make` gets what is known of each, on another thread."""
        session = self._session()
        if session is None:
            self._post(partial(on_ready, not_connected(self._uri)))
            return

        def work(_should_stop: ShouldStop) -> GroupPlan:
            with session.using() as connection:
                found = [replace(read_situation(connection, uuid), speed=self._speed()) for uuid in uuids]
                return make([with_operations(connection, situation, self._journal) for situation in found])

        self._worker.submit(work, on_done=on_ready, on_failed=on_ready, priority=Priority.USER)
