"""Names that we give, and where new files go."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.plans.naming import (
    DEFAULT_TEMPLATE,
    LONGEST_NAME,
    NameFields,
    file_name_is_too_long,
    fill_template,
    memory_path,
    name_problem,
    overlay_path,
    revert_overlay_path,
    suggest_name,
    template_problem,
)
from snaptree.plans.wording import files_named, listed, plain, quoted, version

NOW = 1_700_000_000


@pytest.mark.parametrize("name", ["a", "7", "before-upgrade", "x" * 100, "A-1-b"])
def test_good_names(name: str) -> None:
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    "name", ["", "-a", ".a", "a b", "_a", "a/b", "a\n", "ä", "<b>", "x" * 101, "a.b", "\u202eabc", "é" * 200]
)
def test_names_that_break_something(name: str) -> None:
    problem = name_problem(name)
    assert problem.endswith(".")
    assert "\n" not in problem


def test_a_field_that_nobody_can_fill_is_said_to_be_one() -> None:
    assert "“{foo}” can't be filled in: there are {vm}," in name_problem("a-{foo}")
    assert "has “{” in it" in name_problem("a-{vm}")


def test_only_inside_an_image_a_number_is_no_name() -> None:
    assert name_problem("17") == ""
    assert "number" in name_problem("17", internal=True)
    assert name_problem("17a", internal=True) == ""


def test_suggested_names_tell_the_local_time_and_are_free() -> None:
    local = datetime.fromtimestamp(NOW).astimezone()

    def suggest(*taken: str, is_free: Callable[[str], bool] = lambda _name: True) -> str:
        return suggest_name(DEFAULT_TEMPLATE, NameFields("web-01", NOW), taken, is_free)

    first = suggest()
    assert first == f"snapshot-{local:%Y-%m-%d-%H%M%S}"
    assert name_problem(first) == ""
    assert suggest(first) == f"{first}-2"
    assert suggest(first, f"{first}-2", is_free=lambda name: not name.endswith("-3")) == f"{first}-4"


def test_a_template_is_filled_with_what_it_names() -> None:
    fields = NameFields("web-01", NOW, "amina", "frozen")
    local = datetime.fromtimestamp(NOW).astimezone()
    assert fill_template("{vm}-{user}-{kind}-{date}", fields) == f"web-01-amina-frozen-{local:%Y-%m-%d}"
    assert fill_template("weekly", fields) == "weekly"
    assert suggest_name("weekly", fields, ["weekly"]) == "weekly-2"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{vm}-{when}", "“{when}” can't be filled in: there are {vm}, {date}, {time}, {user}, {kind}."),
        ("{vm", "has “{” in it"),
        ("a b", "a space"),
        ("", "needs a name"),
        ("-{vm}", "does not begin"),
    ],
)
def test_a_template_that_makes_no_names_is_told(template: str, says: str) -> None:
    assert says in template_problem(template)


@given(st.text(), st.text())
def test_whatever_a_machine_and_its_user_are_called_a_template_makes_a_name(vm: str, user: str) -> None:
    filled = fill_template("s-{vm}-{user}-{kind}-{date}-{time}", NameFields(vm, NOW, user))
    assert name_problem(filled) == "" or len(filled) > LONGEST_NAME


@pytest.mark.parametrize(
    ("active", "taken", "overlay"),
    [
        ("/images/web-01.qcow2", (), "/images/web-01.new"),
        ("/images/web-01.IMG", (), "/images/web-01.new"),
        ("/images/web-01", (), "/images/web-01.new"),
        ("/images/web.example.org", (), "/images/web.example.org.new"),
        ("/images/web-01.daily-3", ("daily-3",), "/images/web-01.new"),
        ("/images/web-01.1700000000", (), "/images/web-01.new"),
        ("/images/.qcow2", (), "/images/.qcow2.new"),
        ("/images/web-01.v2", ("v1",), "/images/web-01.v2.new"),
        ("/images/web-01.qcow2.snapshot-2026-12-01-120000", (), "/images/web-01.new"),
        ("/images/web-01.snapshot-2026-12-01-120000-2.amina-2026-12-01-120001", (), "/images/web-01.new"),
        ("/images/web-01.1700000000.daily-3.1700000001", ("daily-3",), "/images/web-01.new"),
    ],
)
def test_overlays_lie_beside_the_active_layer(active: str, taken: tuple[str, ...], overlay: str) -> None:
    assert overlay_path(active, "new", taken) == overlay


def test_layers_of_snapshots_that_are_no_more_lend_no_names() -> None:
    frozen = ("/images/web-01.qcow2", "/images/web-01.custom")
    assert overlay_path("/images/web-01.other", "new", frozen=frozen) == "/images/web-01.new"
    assert overlay_path("/images/web-02.other", "new", frozen=frozen) == "/images/web-02.other.new"
    assert overlay_path("/images/web-01.new", "new", layers=["/images/web-01.new.new"]) == "/images/web-01.new.new-2"


@given(st.text(min_size=1).filter(lambda text: "/" not in text), st.text("ab-", min_size=1, max_size=LONGEST_NAME))
def test_no_layer_has_a_name_that_a_file_system_refuses(base: str, name: str) -> None:
    longest = overlay_path(f"/images/{base * 9}", name, layers=[overlay_path(f"/images/{base * 9}", name)])
    assert longest.endswith(f".{name}-2")
    assert not file_name_is_too_long(memory_path(f"{longest}.vda"))


def test_other_files() -> None:
    assert memory_path("/images/web-01.new") == "/images/web-01.new.mem"
    assert memory_path("/images/web-01.new", "/fast/") == "/fast/web-01.new.mem"
    assert overlay_path("/images/web-01.qcow2", "new", layers_in="/fast") == "/fast/web-01.new"
    assert revert_overlay_path("/images/web-01.daily", NOW) == f"/images/web-01.{NOW}"
    assert revert_overlay_path("/images/web-01", NOW) == f"/images/web-01.{NOW}"
    assert file_name_is_too_long("/d/" + "ä" * 124)
    assert not file_name_is_too_long("/d/" + "ä" * 123)


@given(st.text())
def test_plain_text_stays_on_its_line(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert plain(shown) == shown


def test_words() -> None:
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed("abcd") == "a, b, c and d"
    assert listed("abcde") == "a, b, c and 2 more"
    assert files_named(["/b", "/a", "/b"]) == "/a and /b"
    assert quoted("a\tb") == "“a\\tb”"
    assert version(11_003_000) == "11.3.0"
    assert version(9_000_012) == "9.0.12"
