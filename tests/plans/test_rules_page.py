"""The page of rules is the rules."""

from __future__ import annotations

from pathlib import Path

from snaptree.plans.rules import RULES
from snaptree.plans.rules_page import page

PAGE = Path(__file__).parents[2] / "docs" / "rules.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m snaptree.plans.rules_page > docs/rules.md"


def test_every_rule_is_on_it_once() -> None:
    text = page()
    for rule in RULES:
        assert text.count(f"**`{rule.id}`**") == 1


def test_no_placeholder_is_left() -> None:
    assert "{" not in page()
