"""The page of rules: what SnapTree refuses and warns about, in the sentences that it uses, for docs/rules.md.

`python -m snaptree.plans.rules_page > docs/rules.md` writes it; a test holds the page against the rules.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from snaptree.plans.plan import Action
from snaptree.plans.rule import Rule, Verdict
from snaptree.plans.rules import RULES
from snaptree.plans.wording import version

_HEAD = """\
# Rules

<!-- Written by python -m snaptree.plans.rules_page; do not edit by hand. -->

Every change is planned first, and every plan is held against these rules. The window's greyed buttons and the terminal
say the same sentences; words in *italics* stand for the machine, snapshot or file concerned. The name of a rule is what
`--json` prints, and does not change.
"""

_TITLES = {
    Action.TAKE: "Taking a snapshot",
    Action.REVERT: "Reverting to a snapshot",
    Action.DELETE: "Deleting snapshots",
    Action.DROP_MEMORY: "Dropping the memory of a snapshot",
    Action.DESCRIBE: "Changing a note or a mark",
    Action.RENAME: "Renaming a snapshot",
    Action.LOOK: "Looking at a snapshot in a new machine",
    Action.UNLOOK: "Removing a machine that looks at a snapshot",
}


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([_HEAD, *_sections()])


def _sections() -> Iterator[str]:
    several = [rule for rule in RULES if len(rule.actions & set(_TITLES)) > 1]
    yield from _section("Any change", several)
    for action, title in _TITLES.items():
        yield from _section(title, [rule for rule in RULES if rule.actions & set(_TITLES) == {action}])


def _section(title: str, rules: list[Rule]) -> Iterator[str]:
    yield f"## {title}\n"
    for verdict, heading in ((Verdict.REFUSE, "Refused"), (Verdict.WARN, "Warned about")):
        chosen = [rule for rule in rules if rule.verdict is verdict]
        if chosen:
            yield f"### {heading}\n"
            for rule in chosen:
                yield _entry(rule)


def _entry(rule: Rule) -> str:
    lines = [f"- **`{rule.id}`** {_placeholders(rule.reason)}"]
    if rule.remedy:
        lines.append(f"  What to do: {_placeholders(rule.remedy)}")
    about = [_versions(rule), f"How we know: {rule.source}."]
    lines.append(f"  <br>*{' '.join(part for part in about if part)}*")
    return "\n".join(lines) + "\n"


def _placeholders(sentence: str) -> str:
    """A sentence with what it is about in italics: `{vm_arg}` is the machine as a shell would want it quoted.

    What follows a word without a space is a clause that is not always there, and left out.
    """
    without_clauses = re.sub(r"(?<=[\w}])\{\w+\}", "", sentence)
    return re.sub(r"\{(\w+?)(?:_arg)?\}", lambda match: f"*{match[1].replace('_', ' ')}*", without_clauses)


def _versions(rule: Rule) -> str:
    if rule.since and rule.until is not None:
        return f"libvirt {version(rule.since)} up to, but not including, {version(rule.until)}."
    if rule.since:
        return f"libvirt {version(rule.since)} and later."
    if rule.until is not None:
        return f"libvirt before {version(rule.until)}."
    return ""


if __name__ == "__main__":
    sys.stdout.write(page())
