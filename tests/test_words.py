"""Figures and times in words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree import words
from snaptree.model.estate import Consistency, DomainState, Impact, Mark, MemorySnapshot, SnapshotKind
from snaptree.model.figures import Confidence, Figure, exact, unknown
from snaptree.model.settings import SettingChange


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 Bytes"), (1023, "1023 Bytes"), (1536, "1.5 KiB"), (50 * 2**30, "50.0 GiB"), (3 * 2**40, "3.0 TiB")],
)
def test_sizes_are_binary(number: int, text: str) -> None:
    assert words.size(number) == text


def test_a_figure_says_how_sure_it_is() -> None:
    assert words.figure(exact(2**20)) == "1.0 MiB"
    assert words.figure(Figure(2**20, Confidence.UPPER_BOUND)) == "≤ 1.0 MiB"
    assert words.figure(Figure(2**20, Confidence.LIVE)) == "~1.0 MiB"


def test_what_is_not_known_is_never_a_number() -> None:
    assert words.figure(unknown("permission denied")) == "?"
    assert words.figure_in_full(unknown("permission denied")) == "Not known: permission denied"


def test_the_full_figure_is_to_the_byte() -> None:
    assert words.figure_in_full(exact(1234567, "allocated blocks")) == "1,234,567 bytes\nallocated blocks"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "a moment"), (0, "a moment"), (3600, "an hour"), (40 * 86400, "40 days"), (400 * 86400, "1 year, 35 days")],
)
def test_ages(seconds: float, text: str) -> None:
    assert words.age(seconds) == text


@given(st.floats(0, 1e8))
def test_durations_are_words(seconds: float) -> None:
    assert any(unit in words.duration(seconds) for unit in ("second", "minute", "hour", "day", "month", "year"))


def test_every_value_has_a_word() -> None:
    assert all(words.state(state) for state in DomainState)
    assert all(words.kind(kind) and words.kind_in_full(kind) for kind in SnapshotKind)
    assert all(words.consistency(each) and words.consistency_in_full(each) for each in Consistency)
    assert all(words.memory(memory) for memory in MemorySnapshot)


def test_each_consistency_says_what_it_means_for_a_database() -> None:
    sentences = {words.consistency_in_full(each) for each in Consistency}
    assert len(sentences) == len(Consistency)
    assert all("database" in sentence for sentence in sentences)


def test_marks_say_who_and_when() -> None:
    mark = Mark("amina", 1_793_707_200)
    assert re.fullmatch(r"by amina, \d+ Nov 2026", words.mark(mark))
    assert re.fullmatch(r"by amina, \d+ Nov 2026, \d\d:\d\d:\d\d \S+", words.mark_in_full(mark))
    assert words.mark(Mark("amina")) == "by amina"
    assert words.mark(Mark()) == "not recorded by whom"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (SettingChange("Memory", "2 GiB", "4 GiB"), "Memory: 2 GiB → 4 GiB"),
        (SettingChange("Disk vdb", None, "b.qcow2"), "Disk vdb added: b.qcow2"),
        (SettingChange("Disk vdb", "b.qcow2", None), "Disk vdb removed: b.qcow2"),
        (SettingChange("TPM", None, "yes"), "TPM added"),
        (SettingChange("Disk vda: cache", None, "none"), "Disk vda: cache: — → none"),
        (SettingChange("While running: TPM", "model tis", None), "While running: TPM removed: model tis"),
        (SettingChange("Title", "two\nlines", None), "Title removed: two\\nlines"),
    ],
)
def test_changed_settings(change: SettingChange, says: str) -> None:
    assert words.setting(change) == says


@pytest.mark.parametrize(
    ("impact", "text"),
    [
        (Impact(1.0, paused=0.31, wrote=212 << 20), "paused the guest for 0.3 s, wrote 212.0 MiB"),
        (Impact(1.0, paused=0.0, frozen=0.02), "did not pause the guest, froze its file systems for less than 0.1 s"),
        (Impact(80.0, paused=75.0), "paused the guest for 1 minute and 15 seconds"),
        (Impact(0.5), "took 0.5 s"),
    ],
)
def test_what_taking_a_snapshot_did(impact: Impact, text: str) -> None:
    assert words.impact(impact) == text


def test_counts() -> None:
    assert words.count(1, "snapshot") == "1 snapshot"
    assert words.count(1204, "snapshot") == "1,204 snapshots"
