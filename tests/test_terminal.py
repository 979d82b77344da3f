"""What the terminal commands print, from plain values: on screens of any width, and of machines in trouble."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from snaptree import words
from snaptree.cli import main
from snaptree.model.costs import domain_costs, selection_cost
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import (
    Annotations,
    DiskChain,
    DiskSnapshot,
    Domain,
    DomainLayers,
    DomainState,
    Mark,
    Snapshot,
    SnapshotDisk,
)
from snaptree.model.figures import Confidence, Figure, exact
from snaptree.model.settings import Comparison, SettingChange
from snaptree.model.tree import SnapshotTree
from snaptree.plans.operation import Operation, OperationState, Progress
from snaptree.plans.plan import Action, DeleteSnapshot, Finding, Forecast, Plan, RevertToSnapshot, StateAfter
from snaptree.terminal.changing import ProgressBar
from snaptree.terminal.comparisons import comparison_json, print_comparison, print_xml
from snaptree.terminal.complaint import complain
from snaptree.terminal.console import console, print_json, print_note
from snaptree.terminal.costs import layers_json, print_layers, print_selection, selection_json
from snaptree.terminal.lists import list_json, print_list
from snaptree.terminal.plans import print_plan
from snaptree.terminal.reading import DomainReading
from snaptree.terminal.table import Column, add_row, print_table
from snaptree.terminal.trees import print_tree, tree_json
from tests.model.overlaps import UnitOverlaps
from tests.ui.values import HOST, MIB, layers_for, snapshot

WIDTHS = (60, 61, 66, 72, 80, 100, 132, 200)


def reading(
    snapshots: Iterable[Snapshot],
    *,
    name: str = "web-01",
    sizes: Mapping[str, Figure] | None = None,
    layers: DomainLayers | None = None,
) -> DomainReading:
    every = list(snapshots)
    tree = SnapshotTree.build(every, every[-1].name if every else None)
    layers = layers or layers_for(tree, sizes or {})
    domain = Domain(name, name, DomainState.SUSPENDED, is_persistent=True, snapshot_count=len(tree))
    return DomainReading(HOST, domain, tree, layers, domain_costs(tree, layers))


def printed(width: int, show: Callable[[Console], None], *, is_terminal: bool = True) -> list[str]:
    """Lines as they stand on a screen so wide."""
    out = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=is_terminal,
        color_system=None,
        soft_wrap=True,
        highlight=False,
        markup=False,
        emoji=False,
    )
    show(out)
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


LONG = "a-rather-long-name-of-a-snapshot-that-somebody-chose"

STORY = (
    snapshot("start", days=400, note="The beginning of all things, and a long note about them"),
    snapshot(f"{LONG}-1", "start", days=33, memory=True, note="二回目。拡張機能を先に入れてから移行した"),
    snapshot(f"{LONG}-2", f"{LONG}-1", days=2, memory=True),
)

SIZES = {
    "disk": exact(1000 * MIB),
    "start": Figure(1023 * MIB, Confidence.UPPER_BOUND),
    f"{LONG}-2": Figure(700 * MIB, Confidence.LIVE),
}


@pytest.mark.parametrize("width", WIDTHS)
def test_a_tree_never_cuts_figures_ages_and_headers(width: int) -> None:
    shown = reading(STORY, sizes=SIZES)
    lines = printed(width, lambda out: print_tree(out, shown))
    assert max(map(cell_len, lines)) <= width
    (header,) = (line for line in lines if line.startswith("Snapshot"))
    assert header.split() == [
        *("Snapshot", "Age", "Written", "Frees", "Memory", "Consistency", "Note")[: len(header.split())]
    ]
    rows = lines[lines.index(header) + 1 :]
    assert len(rows) == 4
    for row, taken in zip(rows, shown.tree, strict=False):
        cost = shown.costs.snapshots[taken.name]
        assert f"  {words.age(time.time() - taken.created)}  " in row
        assert words.figure(cost.written) in row
        if cost.memory.bytes:
            assert f"  {words.figure(cost.memory)}" in row
    assert words.figure(shown.costs.now) in rows[-1]
    assert words.figure(shown.costs.disk) in " ".join(lines)


def test_a_narrow_tree_gives_up_notes_then_consistency_then_the_middle_of_names() -> None:
    shown = reading(STORY, sizes=SIZES)

    def columns(width: int) -> list[str]:
        return next(line for line in printed(width, lambda out: print_tree(out, shown)) if "Age" in line).split()

    def text(width: int) -> str:
        return "\n".join(printed(width, lambda out: print_tree(out, shown)))

    assert "Note" in columns(200)
    assert "long note about them" in text(200)
    assert columns(142)[-1] == "Note"
    assert "…" in text(142)
    assert LONG in text(142)
    assert columns(118)[-1] == "Consistency"
    assert LONG in text(118)
    assert columns(80)[-1] == "Memory"
    assert LONG not in text(80)
    first, second = (line for line in text(80).splitlines() if " a-rather-" in line)
    assert "…" in first
    assert "-1  " in first, "names differ at their ends"
    assert "-2  " in second


@pytest.mark.parametrize("width", WIDTHS)
def test_a_list_never_cuts_figures_states_and_headers(width: int) -> None:
    machines = [
        reading(STORY, name="a-virtual-machine-with-a-long-name-1", sizes=SIZES),
        reading([], name="fresh-01"),
    ]
    lines = printed(width, lambda out: print_list(out, [HOST], machines))
    assert max(map(cell_len, lines)) <= width
    (header,) = (line for line in lines if "  State " in line)
    assert re.match(
        "(Virtual machine|VM) +State +Snapshots( +Layers)? +Disk +(Saved memory|Memory)( +Current)?$", header
    )
    first, second = lines[lines.index(header) + 1 :]
    assert first.startswith("a-")
    assert "-1  pmsuspended  " in first
    assert "  pmsuspended  " in second
    assert words.figure(machines[0].costs.disk) in first
    assert words.figure(machines[0].costs.memory) in first
    assert ("Current" in header) == (width > 100)


MARKED = (
    snapshot("plain", days=20),
    snapshot("kept", "plain", days=19, annotations=Annotations(pinned=Mark())),
    snapshot("good", "kept", days=18, annotations=Annotations(pinned=Mark(), known_good=Mark())),
    snapshot("saved", "good", days=17, annotations=Annotations(safety=True)),
    snapshot("torn", "saved", days=16, annotations=Annotations(half_deleted=True)),
    snapshot("merged", "torn", days=15, annotations=Annotations(doubtful=True)),
    snapshot("bad", "merged", days=14, problem="bad XML"),
    replace(
        snapshot("inside", "bad", days=13, internal=True),
        disks=(SnapshotDisk("vda", DiskSnapshot.INTERNAL, "/vm/bad.qcow2"),),
    ),
)


@pytest.mark.parametrize("width", [60, 80, 10_000])
def test_a_tree_marks_what_the_window_has_badges_for(width: int) -> None:
    lines = printed(width, lambda out: print_tree(out, reading(MARKED)), is_terminal=width < 10_000)
    assert "8 snapshots, mostly external; " in " ".join(lines)
    rows = {match[1]: line for line in lines if (match := re.match(r"[│●◉] (\w+)", line))}
    for name, marks in (
        ("plain", ""),
        ("kept", "pinned"),
        ("good", "pinned, known good"),
        ("saved", "safety"),
        ("torn", "half deleted"),
        ("merged", "doubtful"),
        ("inside", "internal"),
        ("bad", "damaged"),
    ):
        age = words.age(time.time() - next(each.created for each in MARKED if each.name == name))
        assert re.match(rf". {name}  +{marks}{'  +' if marks else ''}{age} ", rows[name])


def test_a_tree_of_one_kind_without_marks_has_no_column_for_them() -> None:
    text = "\n".join(printed(120, lambda out: print_tree(out, reading(STORY))))
    assert "Marks" not in text
    assert "mostly" not in text
    assert "external" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_marks_are_cut_after_names_and_before_figures(width: int) -> None:
    marks = Annotations(pinned=Mark(), known_good=Mark(), safety=True)
    many = snapshot(f"{LONG}-3", STORY[-1].name, days=1, internal=True, annotations=marks)
    lines = printed(width, lambda out: print_tree(out, reading([*STORY[1:], many], sizes=SIZES)))
    assert max(map(cell_len, lines)) <= width
    (row,) = (line for line in lines if "-3 " in line)
    assert re.search(r"-3  pinned, known good, safety, internal  a day " if width >= 100 else "-3  pin.*…  a day ", row)
    assert (LONG in row) == (width >= 200)


def test_a_column_that_is_left_out_leaves_its_room_to_names() -> None:
    machines = [reading(STORY, name="a-virtual-machine-with-a-long-name-1", sizes=SIZES)]
    lines = printed(56, lambda out: print_list(out, [HOST], machines))
    assert "Depth" not in lines[1]
    assert cell_len(lines[1]) == 56, "the name takes what Depth left"
    assert "…" in lines[2]


def test_troubles_stand_under_the_heading_and_in_lists() -> None:
    sound = reading(STORY, name="sound-01")
    layers = replace(layers_for(sound.tree), chains=(DiskChain("vda", (), "no header"),))
    broken = reading([snapshot("start", problem="bad XML")], name="broken-01", layers=layers)
    troubles = [
        {"severity": "error", "text": "Disk vda: no header"},
        {"severity": "warning", "text": "Snapshot “start”: bad XML"},
    ]
    assert printed(80, lambda out: print_tree(out, broken))[1:3] == [
        "error: Disk vda: no header",
        "warning: Snapshot “start”: bad XML",
    ]
    assert printed(80, lambda out: print_tree(out, sound))[1].startswith("Snapshot  ")
    assert tree_json(broken)["troubles"] == troubles
    assert tree_json(sound)["troubles"] == []

    lines = printed(80, lambda out: print_list(out, [HOST], [broken, sound]))
    assert any(line.startswith("broken-01 !  ") for line in lines)
    assert any(line.startswith("sound-01  ") for line in lines)
    assert lines[-1] == "broken-01: error: Disk vda: no header (and 1 more)"
    (host,) = list_json([HOST], [broken, sound])
    assert [domain["troubles"] for domain in host["domains"]] == [troubles, []]


def test_json_says_how_sure_each_figure_is() -> None:
    start, first, _ = tree_json(reading(STORY, sizes=SIZES))["snapshots"]
    (inside,) = tree_json(reading([snapshot("inside", memory=True, internal=True)]))["snapshots"]
    assert (start["written"], start["confidence"]) == (1000 * MIB, "exact")
    assert (start["frees"], start["frees_confidence"]) == (None, "unknown")
    assert (start["memory"], start["memory_confidence"]) == (0, "exact")
    assert (first["memory"], first["memory_confidence"]) == (5 * MIB, "exact")
    assert (inside["memory"], inside["memory_confidence"]) == (None, "unknown")


def test_what_is_piped_on_is_never_cut() -> None:
    lines = printed(10_000, lambda out: print_tree(out, reading(STORY)), is_terminal=False)
    assert any(LONG in line and STORY[1].description in line for line in lines)


# Costs


def analysed(shown: DomainReading) -> DomainReading:
    """Every layer owns 16 units, half of which the next one covers."""
    paths = shown.layers.chains[0].layers[::-1]
    units = {path: frozenset(range(8 * number, 8 * number + 16)) for number, path in enumerate(paths)}
    below = dict(zip(paths, [None, *paths], strict=False))
    layers = replace(shown.layers, overlaps=dict.fromkeys(paths, UnitOverlaps(units, below)))
    return replace(shown, layers=layers, costs=domain_costs(shown.tree, layers))


@pytest.mark.parametrize("width", WIDTHS)
def test_layers_show_what_is_visible_and_covered_at_any_width(width: int) -> None:
    lines = printed(width, lambda out: print_layers(out, analysed(reading(STORY, sizes=SIZES))))
    assert max(map(cell_len, lines)) <= width
    (base,) = [line for line in lines if "1000.0 MiB" in line]
    assert base.count("512.0 KiB") == 2, "half of it shows, half is covered"
    assert "start" in base or width < 132


@pytest.mark.parametrize("width", WIDTHS)
def test_saved_memory_is_listed_with_what_it_is_of(width: int) -> None:
    saved = [replace(each, nominal_memory=40 * MIB) if each.memory_file else each for each in STORY]
    shown = reading(saved, sizes=SIZES)
    first, second = saved[1].memory_file or "", saved[2].memory_file or ""
    written = replace(shown.layers, memory_compressions={first: "raw", second: "zstd"})
    shown = replace(shown, layers=written)
    lines = printed(width, lambda out: print_layers(out, shown))
    assert max(map(cell_len, lines)) <= width
    assert [line.split()[1:5] for line in lines[-2:]] == [["5.0", "MiB", "40.0", "MiB"]] * 2
    assert "zstd" in lines[-1]
    assert layers_json(shown)["memories"] == [
        {
            "snapshot": name,
            "file": file,
            "nominal": 40 * MIB,
            "disk": 5 * MIB,
            "confidence": "exact",
            "zeros": zeros,
            "compression": compression,
        }
        for name, file, zeros, compression in (
            (saved[1].name, first, 35 * MIB, "raw"),
            (saved[2].name, second, None, "zstd"),  # zeros are not all that takes little room then
        )
    ]
    documents = {each["name"]: each["saved_memory"] for each in tree_json(shown)["snapshots"]}
    assert documents["start"] is None
    for memory in layers_json(shown)["memories"]:
        assert documents[memory.pop("snapshot")] == memory


def test_layers_that_were_not_analysed_are_unknown() -> None:
    (disk,) = layers_json(reading(STORY))["disks"]
    assert {layer["visible"] for layer in disk["layers"]} == {None}
    assert {layer["confidence"] for layer in disk["layers"]} == {"unknown"}


def test_what_a_selection_frees_and_copies() -> None:
    shown = analysed(reading((snapshot("a"), snapshot("b", "a"), snapshot("c", "b"))))
    document = selection_json(shown, ("a", "b"))
    cost = selection_cost(shown.tree, shown.layers, ("a", "b"))
    assert (document["frees"], document["copies"]) == (cost.frees.bytes, cost.copies.bytes)
    lines = printed(80, lambda out: print_selection(out, shown, ("a", "b")))
    assert lines[0] == "Deleting 2 snapshots of web-01:"
    assert any(line.startswith("copies first") and words.figure(cost.copies) in line for line in lines)
    assert not any(line.startswith("reusable") for line in lines), "nothing is inside images"


# Plans


def test_a_plan_says_what_counts_and_says_it_once() -> None:
    plan = Plan(
        Action.DELETE,
        HOST.uri,
        "uuid",
        "web-01",
        ("s1",),
        steps=(DeleteSnapshot("s1", ("s2",), merges=True),),
        forecast=Forecast(
            copies=exact(0), frees=exact(5 * MIB), peak_extra=Figure(MIB, Confidence.UPPER_BOUND), seconds=40
        ),
        warnings=(Finding("delete-is-final", "web-01 can't go back to “s1” afterwards; this can't be undone."),),
    )
    lines = printed(60, lambda out: print_plan(out, plan))
    assert lines[-2:] == ["Frees 5.0 MiB, needs ≤ 1.0 MiB meanwhile, takes about 40", "seconds."], "it copies nothing"
    assert " ".join(lines).count("can't be undone") == 1
    assert max(map(cell_len, lines)) <= 60
    (sentence,) = printed(10_000, lambda out: print_plan(out, replace(plan, steps=())), is_terminal=False)
    assert sentence == f"Note: {plan.warnings[0].reason}"
    assert printed(80, lambda out: print_plan(out, replace(plan, warnings=())))[-1] == "This can't be undone."
    subtree = replace(plan, snapshots=("s1", "s2", "s3"))
    assert printed(60, lambda out: print_plan(out, subtree))[0] == "3 snapshots go: s1, s2, s3"


def test_what_is_wrong_is_wrapped_between_words() -> None:
    chain = DiskChain("vda", ("/images/web-01.qcow2",), "an image that it stands on is not where its overlay says")
    shown = reading((), layers=DomainLayers((chain,), {}, {}))
    lines = printed(40, lambda out: print_tree(out, shown))
    assert max(map(cell_len, lines)) <= 40 or lines[-1].startswith("○ Now")
    assert "error: Disk vda: an image that it stands" in lines


SETTINGS = (
    SettingChange("Memory", "2 GiB", "4 GiB"),
    SettingChange("Disk vdb", None, "/images/with/a/long/path/to/b.qcow2 (qcow2), bus virtio"),
    SettingChange("Title", "evil \x1b[31m", None),
)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_fits_and_obeys_nothing(width: int) -> None:
    comparison = Comparison(LONG, None, SETTINGS)
    lines = printed(width, lambda out: print_comparison(out, comparison))
    assert max(map(cell_len, lines)) <= width
    assert lines[1].split() == ["Memory", "2", "GiB", "4", "GiB"]
    assert "\x1b" not in "".join(lines)
    assert lines[0].split()[0] == "Setting"
    assert lines[0].endswith(("Now", "After"))


def test_a_comparison_without_a_difference_says_so() -> None:
    assert printed(80, lambda out: print_comparison(out, Comparison("a", "b", ()))) == [
        "The settings of a and b are the same."
    ]
    assert printed(80, lambda out: print_xml(out, Comparison("a", "b", ()))) == []


def test_the_xml_of_a_comparison_is_printed_as_it_is() -> None:
    xml = ("--- a", "+++ Now", "@@ -1 +1 @@", "-<title>[bold]\x1b[31m</title>", "+<title>" + "x" * 300 + "</title>")
    lines = printed(80, lambda out: print_xml(out, Comparison("a", None, SETTINGS, xml)))
    assert lines == [*xml[:3], "-<title>[bold]\\x1b[31m</title>", xml[4]]


def test_a_comparison_as_json() -> None:
    document = comparison_json("web-01", "qemu:///system", Comparison("a", None, SETTINGS[:1], ("-x", "+y")))
    assert document == {
        "domain": "web-01",
        "host": "qemu:///system",
        "before": "a",
        "after": None,
        "settings": [{"what": "Memory", "before": "2 GiB", "after": "4 GiB"}],
        "xml": ["-x", "+y"],
    }


def test_a_revert_lists_the_settings_that_change_back() -> None:
    plan = Plan(
        Action.REVERT,
        "uri",
        "uuid",
        "web-01",
        ("a",),
        steps=(RevertToSnapshot("a", StateAfter.AS_CAPTURED, None),),
        settings=(SettingChange("Memory", "4 GiB", "2 GiB"), SettingChange("Disk vdb", "b.qcow2", None)),
    )
    lines = printed(80, lambda out: print_plan(out, plan))
    at = lines.index("Settings that change back:")
    assert lines[at + 1 : at + 3] == ["  Memory: 4 GiB → 2 GiB", "  Disk vdb removed: b.qcow2"]


# Work under way


@pytest.mark.parametrize(
    ("progress", "figures"),
    [
        (
            Progress("", 0, 1, 40 * MIB, 57 * MIB, rate=4.0 * MIB, seconds_left=4.2),
            "40.0 MiB of 57.0 MiB, 4.0 MiB/s, 4 seconds left",
        ),
        (Progress("", 0, 1, share=0.435), "43 %"),
        (Progress("", 0, 1), ""),
    ],
)
def test_names_give_way_to_figures(progress: Progress, figures: str) -> None:
    doing = f"Merge /var/lib/libvirt/{'images/' * 20}disk \x1b[31m up"
    plan = Plan(Action.DELETE, "", "", "web-01", ("a",), steps=(DeleteSnapshot("a", (), merges=True),))
    operation = Operation(1, plan, OperationState.RUNNING, 0.0, progress=replace(progress, doing=doing))

    def show(out: Console) -> None:
        with ProgressBar("web-01", out) as bar:
            bar.show(operation)
            out.print(bar.get_renderable())

    (line,) = [line for line in printed(80, show, is_terminal=False) if line.strip()]
    assert line.startswith("Merge /var")
    assert line.rstrip().endswith(figures)
    assert cell_len(line) <= 80


# What others chose

HOSTILE = "red \x1b[31m C1 \x9b31m DEL \x7f bidi \u202e\u2066 end"
SHOWN = "red \\x1b[31m C1 \\x9b31m DEL \\x7f bidi \\u202e\\u2066 end"


def test_nothing_is_obeyed_that_others_chose(capsys: pytest.CaptureFixture[str]) -> None:
    """Each way on which text comes to the terminal has a filter of its own: what prints need not think of it."""
    out = console()
    out.print(HOSTILE)
    out.print("one", f"two\n{HOSTILE}", style="bold")
    column = Column("what")
    add_row([column], HOSTILE)
    print_table(out, [column])
    complain(SnapTreeError(HOSTILE, hint=f"{HOSTILE}\n"))
    with pytest.raises(SystemExit):
        main(["tree", "web-01", f"--{HOSTILE}"])
    with pytest.raises(SystemExit):
        main([f"--{HOSTILE}", "tree"])
    written, complained = capsys.readouterr()
    assert written.splitlines() == [SHOWN, "one two", SHOWN, "what", SHOWN]
    assert complained.count(SHOWN) == 4
    assert (written + complained).replace("\n", "").isprintable()


def test_json_is_for_eyes_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    told = {HOSTILE: ["Größe 🌳\n\t", HOSTILE, "\U000e0001"]}
    print_json(told)
    written = capsys.readouterr().out
    assert json.loads(written) == told
    assert "Größe 🌳" in written
    assert written.replace("\n", "").isprintable()


def test_a_screen_is_spared_what_a_file_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_note(f"one\n{HOSTILE}")
    assert capsys.readouterr().out == f"one\n{HOSTILE}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_note(f"one\n{HOSTILE}")
    assert capsys.readouterr().out == f"one\n{SHOWN}\n"
