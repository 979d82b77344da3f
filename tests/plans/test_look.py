"""Plans of machines that look at a snapshot, and of their removal."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.errors import VanishedError
from snaptree.model.estate import DomainState, LooksAt
from snaptree.model.figures import NOTHING, exact
from snaptree.plans.aftermath import after
from snaptree.plans.facts import Facts
from snaptree.plans.intention import Look, Unlook, take_back
from snaptree.plans.naming import LONGEST_NAME, look_name, look_path, machine_name_problem, overlay_path
from snaptree.plans.plan import CopyOut, Layer, MakeLook, RemoveLook, StartLook, StopMachine
from snaptree.plans.planner import make_plan
from tests.plans.situations import MIB, SituationBuilder, a_machine, disk

BASE = "/images/vda.qcow2"
HERE = frozenset({"/images"})
OTHER = "7c0e4a3c-0000-4000-8000-000000000009"


def a_look(*files: str) -> SituationBuilder:
    return a_machine().layers(looks_at=LooksAt("a", "db-01", OTHER, files))


def test_an_external_snapshot_gets_new_layers_and_nothing_is_copied() -> None:
    builder = a_machine(disk("vda"), disk("vdb", format="raw", path="/more/vdb.raw")).external("a")
    builder.having(takes_new_layers=frozenset({"/images", "/more"}))
    plan = make_plan(Look("a", start=True), builder.build())
    make, start = plan.steps
    assert isinstance(make, MakeLook)
    assert make.machine == "web-01-at-a"
    assert make.disks == {"vda": "/images/web-01-at-a-vda.qcow2", "vdb": "/more/web-01-at-a-vdb.qcow2"}
    assert make.bases == {"vda": Layer(BASE, "qcow2"), "vdb": Layer("/more/vdb.raw", "raw")}
    assert start == StartLook(make.machine, make.uuid)
    assert plan.forecast.copies == NOTHING
    assert plan.forecast.pause_seconds == 0
    assert take_back(plan) == (make.uuid, Unlook())


def test_an_internal_snapshot_is_copied_out_first() -> None:
    builder = a_machine(disk("vda"), disk("vdb")).internal("a").image(BASE, backing="/images/base", backing_format=None)
    builder.image("/images/base", format="raw")
    plan = make_plan(Look("a"), builder.build())
    first, second, make = plan.steps
    assert isinstance(first, CopyOut)
    assert isinstance(second, CopyOut)
    assert isinstance(make, MakeLook)
    assert first.base == Layer("/images/base", "raw")
    assert second.base is None
    assert [first.path, second.path] == list(make.disks.values())
    assert not make.bases
    assert not plan.forecast.copies.is_known, "nobody has looked into the image"


def test_the_machine_is_another_one_each_time() -> None:
    builder = a_machine(takes_new_layers=HERE).external("a")
    uuids = set()
    for names in (frozenset[str](), frozenset({"web-01-at-a"}), frozenset({"web-01-at-a", "web-01-at-a-2"})):
        make = make_plan(Look("a"), builder.having(machine_names=names).build()).steps[0]
        assert isinstance(make, MakeLook)
        assert make.machine not in names
        uuids.add(make.uuid)
    assert len(uuids) == 3
    taken = builder.having(machine_names=frozenset(), existing_files=frozenset({"/images/web-01-at-a-vda.qcow2"}))
    make = make_plan(Look("a"), taken.build()).steps[0]
    assert isinstance(make, MakeLook)
    assert make.machine == "web-01-at-a-2"


def test_what_it_stands_on_has_a_dependant_from_then_on() -> None:
    situation = a_machine(takes_new_layers=HERE).external("a").external("b").build()
    make = make_plan(Look("b"), situation).steps[0]
    facts = Facts(after(situation, make))
    assert facts.dependants["/images/vda.a"] == facts.dependants[BASE] == {"web-01-at-b"}
    assert facts.others_above("/images/vda.a", ["/images/vda.b"]) == {"/images/web-01-at-b-vda.qcow2"}


def test_room_is_looked_for_before() -> None:
    builder = a_machine(takes_new_layers=HERE).external("a").having(free_bytes=MappingProxyType({"/images": 1000}))
    plan = make_plan(Look("a"), builder.build())
    assert [refusal.rule for refusal in plan.refusals] == ["look-lacks-room"]
    assert not make_plan(Look("a"), builder.having(free_bytes=MappingProxyType({"/images": MIB})).build()).is_refused


def test_uefi_variables_are_copied_where_that_is_possible() -> None:
    builder = a_machine(takes_new_layers=HERE, has_pflash=True, nvram="/nvram/web-01_VARS.fd").external("a")
    for copies, nvram in ((False, None), (True, "/nvram/web-01-at-a_VARS.fd")):
        make = make_plan(Look("a"), builder.having(copies_nvram=copies).build()).steps[0]
        assert isinstance(make, MakeLook)
        assert make.nvram == nvram


def test_a_snapshot_that_is_gone() -> None:
    with pytest.raises(VanishedError):
        make_plan(Look("a"), a_machine().build())


def test_what_was_made_for_it_goes_the_top_first_and_what_is_below_stays() -> None:
    builder = a_look(BASE).image(BASE, backing="/images/frozen").image("/images/frozen")
    builder.state(DomainState.RUNNING).external("inner", memory=True)
    plan = make_plan(Unlook(), builder.build())
    stop, remove = plan.steps
    assert stop == StopMachine()
    assert remove == RemoveLook(("/images/vda.inner.mem", "/images/vda.inner", BASE))
    assert plan.forecast.frees.bytes == exact(310 * MIB).bytes
    assert plan.forecast.pause_seconds == 0
    assert plan.undo is None
    assert plan.warns_of_finality


names = st.text(min_size=1, max_size=120)


@given(names, names, st.integers(0, 3))
def test_every_name_that_we_give_is_one_that_we_take(domain: str, snapshot: str, taken: int) -> None:
    given_before: set[str] = set()
    for _ in range(taken + 1):
        name = look_name(domain, snapshot, given_before)
        assert name not in given_before
        assert not machine_name_problem(name)
        assert len(name) <= LONGEST_NAME
        given_before.add(name)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a\n", "ä", "x" * 101])
def test_names_that_are_none(name: str) -> None:
    assert machine_name_problem(name).endswith(".")


def test_snapshots_of_it_get_names_like_its_own() -> None:
    assert overlay_path(look_path("/images/disk.one", "web-01-at-one", "vda"), "two") == "/images/web-01-at-one-vda.two"
