"""The list of hosts and machines: what is found, in which order, and what stays chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from PySide6.QtCore import Qt
from PySide6.QtTest import QAbstractItemModelTester, QSignalSpy, QTest
from pytestqt.qtbot import QtBot

from snaptree.jobs.host_backend import HostBackend, HostStatus, Phase
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import DomainState
from snaptree.model.figures import exact
from snaptree.model.troubles import Kind, Severity
from snaptree.plans.advice import Advice, HostAdvice
from snaptree.ui.estate import Estate
from snaptree.ui.estate_model import Column, EstateModel, Order, host_title
from snaptree.ui.estate_view import EstateView
from snaptree.ui.machine import Machine, MachineId
from snaptree.ui.settings import Settings
from snaptree.ui.theme import Theme
from tests.ui.test_text import read_tooltip
from tests.ui.values import HOST, HOSTILE_NAMES, MIB, chain, layers_for, machine, snapshot

Report = Callable[..., HostBackend]


@pytest.fixture
def estate(qtbot: QtBot) -> Iterator[Estate]:
    made = Estate()
    yield made
    made.close()
    for host in made:
        assert host.backend.wait_until_closed(20)
    made.deleteLater()


@pytest.fixture
def report(estate: Estate) -> Report:
    """Let a host of the estate report machines, as its backend would. Nothing is connected to."""

    def tell(*machines: Machine, uri: str = "qemu:///system", phase: Phase = Phase.CONNECTED) -> HostBackend:
        if uri not in estate:
            estate.add(HostBackend(uri))
        backend = estate[uri].backend
        backend.host_changed.emit(HostStatus(uri, phase, replace(HOST, uri=uri)))
        backend.domains_changed.emit(tuple(each.domain for each in machines))
        for each in machines:
            if each.reading is not None:
                backend.tree_changed.emit(each.id.uuid, each.reading)
            if each.costs is not None:
                backend.costs_changed.emit(each.id.uuid, each.costs)
        return backend

    return tell


@pytest.fixture
def model(estate: Estate) -> Iterator[EstateModel]:
    made = EstateModel(estate)
    tester = QAbstractItemModelTester(made, QAbstractItemModelTester.FailureReportingMode.Fatal)
    yield made
    tester.deleteLater()
    made.deleteLater()


def sized(name: str, mib: int, *, snapshots: int = 1, days: int = 1) -> Machine:
    line = [
        snapshot(f"s{number}", f"s{number - 1}" if number > 1 else None, days=days)
        for number in range(1, snapshots + 1)
    ]
    tree = machine(line).tree
    assert tree is not None
    sizes = {"disk": exact(mib * MIB), **{f"s{number}": exact(0) for number in range(1, snapshots + 1)}}
    return machine(line, name=name, layers=layers_for(tree, sizes))


def names(model: EstateModel) -> list[list[str]]:
    return [[each.domain.name for each in host.machines] for host in model.rows]


def test_machines_stand_below_their_host_in_natural_order(model: EstateModel, report: Report) -> None:
    report(sized("web-10", 1), sized("web-2", 1), sized("db", 1))
    report(sized("other", 1), uri="qemu+ssh://root@kvm-02/system")
    assert names(model) == [["db", "web-2", "web-10"], ["other"]]
    host = model.index(1, 0)
    assert host.data() == "kvm-02"
    assert model.parent(model.index(0, 0, host)) == host


def test_the_list_is_sorted_by_what_matters(model: EstateModel, report: Report, qtbot: QtBot) -> None:
    report(
        sized("small", 1, snapshots=9, days=5),
        sized("large", 900, snapshots=2, days=2),
        sized("old", 20, snapshots=1, days=300),
        machine(None, name="unread"),
    )
    qtbot.waitUntil(lambda: model.largest == 900 * MIB)
    for order, expected, measure in (
        (Order.COST, ["large", "old", "small", "unread"], ["900.0 MiB", "20.0 MiB", "1.0 MiB", "?"]),
        (Order.AGE, ["old", "small", "large", "unread"], ["300 days", "5 days", "2 days", "?"]),
        (Order.DEPTH, ["small", "large", "old", "unread"], ["10", "3", "2", "?"]),
        (Order.COUNT, ["small", "large", "old", "unread"], ["1.0 MiB", "900.0 MiB", "20.0 MiB", "?"]),
    ):
        model.order = order
        assert names(model) == [expected]
        host = model.index(0, 0)
        assert [model.index(row, Column.MEASURE, host).data() for row in range(4)] == measure


def test_the_search_finds_machines_and_their_snapshots(model: EstateModel, report: Report, qtbot: QtBot) -> None:
    noted = machine([snapshot("s1", note="Before the UPGRADE")], name="db-01")
    report(machine(chain(3), name="web-01"), noted, machine((), name="empty"))
    qtbot.waitUntil(lambda: all(each.tree is not None for each in model.rows[0].machines))
    for search, expected in (("WEB", ["web-01"]), ("s3", ["web-01"]), ("upgrade", ["db-01"]), ("nothing", [])):
        model.search = search
        assert names(model) == [expected]
    model.search = ""
    assert len(names(model)[0]) == 3


def test_new_figures_change_data_and_nothing_else(model: EstateModel, report: Report, qtbot: QtBot) -> None:
    first = sized("web-01", 5)
    backend = report(first)
    qtbot.waitUntil(lambda: model.largest == 5 * MIB)
    resets = QSignalSpy(model.modelReset)
    other = sized("web-01", 9)
    backend.costs_changed.emit("web-01", other.costs)
    qtbot.waitUntil(lambda: model.largest == 9 * MIB)
    assert resets.count() == 0


def test_machines_do_not_dance_while_they_are_measured(model: EstateModel, report: Report, qtbot: QtBot) -> None:
    one, other = sized("one", 5), sized("other", 4)
    report(one, other)
    qtbot.waitUntil(lambda: model.largest == 5 * MIB)
    model.order = Order.COST
    resets = QSignalSpy(model.modelReset)
    host = report(one, replace(other, costs=sized("other", 6).costs))
    qtbot.waitUntil(lambda: model.largest == 6 * MIB)
    assert names(model) == [["one", "other"]], "its figure is shown at once, its new place a moment later"
    qtbot.waitUntil(lambda: names(model) == [["other", "one"]])
    assert resets.count() == 1

    host.costs_changed.emit(one.id.uuid, sized("one", 7).costs)
    qtbot.waitUntil(lambda: model.largest == 7 * MIB)
    assert names(model) == [["other", "one"]]
    model.order = Order.COST
    assert names(model) == [["one", "other"]], "who asks for an order has it now"


def test_a_shared_image_counts_once_in_the_host(model: EstateModel, report: Report, qtbot: QtBot) -> None:
    report(sized("one", 7), sized("two", 7))
    qtbot.waitUntil(lambda: model.rows[0].total.is_known)
    assert model.rows[0].total.bytes == 7 * MIB, "both stand on /vm/disk.qcow2"


def test_the_worst_finding_is_told(model: EstateModel, report: Report, qtbot: QtBot) -> None:
    backend = report(machine(chain(2), name="web-01"))
    backend.reading_failed.emit("web-01", SnapTreeError("Permission denied on <b>this</b>."))
    qtbot.waitUntil(lambda: model.rows[0].machines[0].worst is not None)
    index = model.index(0, 0, model.index(0, 0))
    assert "Permission denied on <b>this</b>." in read_tooltip(index.data(Qt.ItemDataRole.ToolTipRole))
    assert "Permission denied" in index.data(Qt.ItemDataRole.AccessibleTextRole)


def finding(severity: Severity, text: str) -> Advice:
    return Advice(Kind.DEEP_CHAIN, severity, text, "Why.")


def test_advice_moves_no_row_and_is_told(model: EstateModel, report: Report, qtbot: QtBot) -> None:
    backend = report(machine(chain(2), name="web-01"), machine(chain(2), name="web-02"))
    qtbot.waitUntil(lambda: all(each.costs is not None for each in model.rows[0].machines))
    resets = QSignalSpy(model.modelReset)
    note, error = finding(Severity.NOTE, "Old <b>ones</b>."), finding(Severity.ERROR, "It is too deep.")
    advice = HostAdvice((finding(Severity.WARNING, "Full in 2 days."),), {"web-01": (), "web-02": (error, note)})
    backend.advice_changed.emit(advice)
    qtbot.waitUntil(lambda: model.rows[0].machines[1].worst is not None)
    host = model.index(0, 0)
    assert "Warning: Full in 2 days." in read_tooltip(host.data(Qt.ItemDataRole.ToolTipRole))
    assert "Full in 2 days." in host.data(Qt.ItemDataRole.AccessibleTextRole)
    told = read_tooltip(model.index(1, 0, host).data(Qt.ItemDataRole.ToolTipRole))
    assert told.endswith("Error: It is too deep.\nNote: Old <b>ones</b>.")
    assert "It is too deep." in model.index(1, 0, host).data(Qt.ItemDataRole.AccessibleTextRole)
    assert model.rows[0].machines[0].worst is None
    assert resets.count() == 0
    model.order = Order.FINDINGS
    assert names(model) == [["web-02", "web-01"]]


def test_a_deep_chain_is_a_finding() -> None:
    assert machine(chain(25)).worst is not None
    assert machine(chain(5)).worst is None


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_machines_are_plain_text(model: EstateModel, report: Report, name: str) -> None:
    report(machine(chain(1), name=name, state=DomainState.CRASHED))
    index = model.index(0, 0, model.index(0, 0))
    assert str(index.data()).isprintable()
    assert str(index.data(Qt.ItemDataRole.AccessibleTextRole)).isprintable()
    read_tooltip(index.data(Qt.ItemDataRole.ToolTipRole))


@pytest.mark.parametrize(
    ("uri", "title"),
    [
        ("qemu:///system", "kvm-01 (system)"),
        ("qemu:///session", "kvm-01 (session)"),
        ("qemu+ssh://root@kvm-02/system", "kvm-02"),
        ("qemu+ssh://root@kvm-02/session?keyfile=/x/y", "kvm-02 (session)"),
        ("lxc:///", "kvm-01 (lxc )"),
        ("nonsense", "nonsense"),
    ],
)
def test_hosts_are_called_by_what_tells_them_apart(estate: Estate, report: Report, uri: str, title: str) -> None:
    report(uri=uri)
    assert host_title(estate[uri]) == title


# The view


@pytest.fixture
def view(qtbot: QtBot, light: Theme, model: EstateModel) -> EstateView:
    made = EstateView(model, Settings())
    qtbot.addWidget(made)
    made.resize(300, 600)
    with qtbot.waitExposed(made):
        made.show()
    return made


def test_what_is_chosen_stays_so_when_the_list_changes(view: EstateView, report: Report, qtbot: QtBot) -> None:
    report(sized("web-01", 1), sized("web-02", 2))
    chosen = QSignalSpy(view.chosen)
    view.list.setCurrentIndex(view.list.model().index(1, 0, view.list.model().index(0, 0)))
    assert chosen.at(0) == [MachineId("qemu:///system", "web-02")]
    report(sized("a-new-one", 1), sized("web-01", 1), sized("web-02", 2))
    qtbot.waitUntil(lambda: len(view.list.model().rows[0].machines) == 3)  # type: ignore[attr-defined]  # EstateModel
    assert view.list.currentIndex().data() == "web-02"
    assert chosen.count() == 1, "nobody chose anything else"


def test_a_machine_can_be_chosen_before_it_is_listed(view: EstateView, report: Report) -> None:
    view.list.choose(MachineId("qemu:///system", "web-02"))
    report(sized("web-01", 1), sized("web-02", 2))
    assert view.list.currentIndex().data() == "web-02"


def test_a_host_stays_folded_in(view: EstateView, report: Report, qtbot: QtBot, model: EstateModel) -> None:
    report(sized("web-01", 1))
    assert view.list.isExpanded(model.index(0, 0))
    view.list.collapse(model.index(0, 0))
    report(sized("web-01", 1), sized("web-02", 1))
    qtbot.waitUntil(lambda: len(model.rows[0].machines) == 2)
    assert not view.list.isExpanded(model.index(0, 0))


def test_the_search_box_leads_to_what_was_found(view: EstateView, report: Report) -> None:
    report(sized("web-01", 1), sized("db-01", 1))
    view.start_search()
    QTest.keyClicks(view.search, "web")
    assert names(view.list.model()) == [["web-01"]]  # type: ignore[arg-type]  # EstateModel
    QTest.keyClick(view.search, Qt.Key.Key_Escape)
    assert view.search.text() == ""
    QTest.keyClick(view.search, Qt.Key.Key_Down)
    assert view.list.hasFocus()


def test_the_order_is_remembered(view: EstateView, model: EstateModel, qtbot: QtBot) -> None:
    by_cost = next(action for action in view.order_menu.actions() if action.data() == Order.COST)
    by_cost.trigger()
    assert model.order is Order.COST
    assert Settings().text("estate_order") == "cost"
    again = EstateView(model, Settings())
    qtbot.addWidget(again)
    assert [action.data() for action in again.order_menu.actions() if action.isChecked()] == ["cost"]


def test_a_search_without_a_result_says_so(estate: Estate, report: Report, light: Theme, qtbot: QtBot) -> None:
    model = EstateModel(estate)
    view = EstateView(model, Settings())
    qtbot.addWidget(view)
    view.show()
    report(machine(chain(3), name="web-01"), machine(None, name="unread"))
    qtbot.waitUntil(lambda: any(each.tree is not None for each in model.rows[0].machines))
    view.search.setText("<b>nothing</b>")
    assert view.nothing_found.isVisible()
    assert "“<b>nothing</b>”" in view.nothing_found.text()
    assert "1 machine" in view.nothing_found.text(), "its snapshots may have the name"
    view.search.setText("web")
    assert not view.nothing_found.isVisible()
    view.search.setText("s9")
    assert view.nothing_found.isVisible()
    report(machine(chain(9), name="web-01"))
    qtbot.waitUntil(lambda: not view.nothing_found.isVisible())
    model.deleteLater()


def test_names_have_room_in_a_narrow_list(estate: Estate, report: Report, light: Theme, qtbot: QtBot) -> None:
    model = EstateModel(estate)
    view = EstateView(model, Settings())
    qtbot.addWidget(view)
    view.resize(300, 400)
    view.show()
    report(machine(chain(3), name="web-01"))
    qtbot.waitUntil(lambda: bool(model.rows) and bool(model.rows[0].machines))
    header = view.list.header()
    assert not header.isSectionHidden(Column.SNAPSHOTS)
    view.resize(210, 400)
    assert header.isSectionHidden(Column.SNAPSHOTS)
    place = view.list.visualRect(model.index(0, 0, model.index(0, 0)))
    assert place.width() > view.fontMetrics().horizontalAdvance("web-01") + 30
    view.resize(300, 400)
    assert not header.isSectionHidden(Column.SNAPSHOTS)
    model.deleteLater()
