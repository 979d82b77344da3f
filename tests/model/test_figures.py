"""Figures: a sum is never surer than its least sure part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.figures import NOTHING, Confidence, Figure, exact, total, unknown

ORDER = [Confidence.EXACT, Confidence.LIVE, Confidence.UPPER_BOUND, Confidence.UNKNOWN]

known = st.builds(Figure, st.integers(0, 1 << 70), st.sampled_from(ORDER[:3]), st.text(max_size=5))
figures = st.lists(st.one_of(known, st.builds(unknown, st.text(max_size=5))), max_size=8)


def test_nothing_sums_to_nothing() -> None:
    assert total([]) == NOTHING == exact(0)


def test_the_reason_of_the_weakest_part_is_told() -> None:
    parts = [exact(1), Figure(2, Confidence.UPPER_BOUND, "nominal"), Figure(3, Confidence.LIVE, "in use")]
    assert total(parts) == Figure(6, Confidence.UPPER_BOUND, "nominal")
    assert total([exact(0, "none"), exact(4, "blocks"), exact(5, "clusters")]) == exact(9, "blocks; clusters")
    assert total([exact(4, "blocks"), exact(5, "blocks")]) == exact(9, "blocks")
    assert total([*parts, unknown("no such file"), unknown("later")]) == unknown("no such file")


@pytest.mark.parametrize(
    ("number", "confidence"), [(None, Confidence.EXACT), (None, Confidence.LIVE), (0, Confidence.UNKNOWN)]
)
def test_a_figure_cannot_be_known_and_unknown(number: int | None, confidence: Confidence) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        Figure(number, confidence)


@given(figures)
def test_a_sum_is_as_sure_as_its_weakest_part(parts: list[Figure]) -> None:
    found = total(parts)
    assert found.confidence is max((part.confidence for part in parts), key=ORDER.index, default=Confidence.EXACT)
    if found.is_known:
        assert found.bytes == sum(part.bytes for part in parts if part.bytes is not None)
    assert found.is_known == all(part.is_known for part in parts)
    if found.confidence is not Confidence.EXACT:
        assert found.how in {part.how for part in parts if part.confidence is found.confidence}


@given(figures, figures)
def test_a_sum_of_sums_is_the_sum(some: list[Figure], others: list[Figure]) -> None:
    nested, flat = total([total(some), total(others)]), total(some + others)
    assert (nested.bytes, nested.confidence) == (flat.bytes, flat.confidence)
