"""The file of policies: what people write, and every mistake by its line."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.errors import SnapTreeError
from snaptree.plans.policy import ALL, Duration, Period, Policy, Scope
from snaptree.plans.policy_file import NamedPolicy, PolicyFileError, parse_size, read_policies
from snaptree.plans.thresholds import Thresholds

GOOD = """
# What the nights leave behind.
[policy.nightly]
machines = ["web-*", "db-01"]  # not the others
names = ["auto-*"]
keep-last = 5
keep-daily = "all"
keep-within = "2d"
keep-forks = false
minimum-age = "36h"
maximum-depth = 20
free-at-least = "1.5 GiB"

[policy."by hand"]
by-hand = true
owners = "amina"
keep-yearly = 3
"""


def test_a_file_is_read_as_it_is_meant() -> None:
    file = read_policies(GOOD, "policies.toml")
    assert file.policy("nightly") == NamedPolicy(
        "nightly",
        Policy(
            {Period.LAST: 5, Period.DAILY: ALL},
            Duration(days=2),
            keep_forks=False,
            minimum_age=Duration(hours=36),
            maximum_depth=20,
            free_at_least=3 << 29,
            scope=Scope(names=("auto-*",)),
        ),
        ("web-*", "db-01"),
    )
    assert [name for name in ("web-01", "db-01", "db-012") if file.policy("nightly").is_for(name)] == [
        "web-01",
        "db-01",
    ]
    assert file.policy("by hand").policy.scope == Scope(owners=("amina",), by_hand=True)
    assert file.policy("by hand").is_for("anything")


def test_what_is_checked_has_thresholds_of_its_own() -> None:
    assert read_policies(GOOD, "policies.toml").thresholds == Thresholds()
    text = '[check]\nmax-depth = 40\nmax-age = "1y"\ndays-left = 30\nmax-growth = "20 GiB"'
    assert read_policies(text, "policies.toml").thresholds == Thresholds(40, Duration(years=1), 30, 20 << 30)
    file = read_policies('[check]\nmax-depth = 0\n\nmax-days = "1"\ndays-left = "2"', "policies.toml")
    assert [str(problem) for problem in file.problems] == [
        "line 2: “max-depth” is a number of layers, 1 or more.",
        "line 4: “max-days” is nothing that is checked. Did you mean “max-age”?",
        "line 5: “days-left” is a number of days, 1 or more.",
    ]
    for text in ("check = 3", "[check]\nmax-depth = 0"):
        file = read_policies(text, "policies.toml")
        assert file.thresholds == Thresholds()
        with pytest.raises(PolicyFileError, match="below" if "3" in text else "line 2"):
            file.require("check")


def test_a_policy_that_is_not_there_is_guessed_at() -> None:
    with pytest.raises(SnapTreeError, match=r"no policy “nigthly”\. Did you mean “nightly”"):
        read_policies(GOOD, "policies.toml").policy("nigthly")


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "[policy.a]\nkeep-last = 5\nkeep-dayly = 3\n",
            ["line 3: “keep-dayly” is nothing that a policy says. Did you"],
        ),
        ("[policy.a]\n\nkeep-last = -1\n", ["line 3: “keep-last” is a number of snapshots"]),
        ("[policy.a]\nkeep-last = true\n", ["line 2: “keep-last” is a number of snapshots"]),
        ('[policy.a]\nkeep-within = "2 days"\n', ["line 2: “2 days” is not a time."]),
        ("[policy.a]\nkeep-last = 1\nmaximum-depth = 0\n", ["line 3: “maximum-depth” is a number of layers"]),
        ('[policy.a]\nfree-at-least = "much"\n', ["line 2: “much” is not a size."]),
        ("[policy.a]\nkeep-last = 1\nmachines = [1]\n", ["line 3: “machines” is a list of texts"]),
        ("[policy.a]\nkeep-last = 1\nmachines = []\n", ["line 3: “machines” names nothing: leave it out"]),
        ('[policy.a]\nkeep-forks = "yes"\nkeep-last = 1', ["line 2: “keep-forks” is true or false."]),
        ("[policy.a]\nminimum-age = '1d'\n", ["line 1: the policy “a” lets nothing go"]),
        ("[polices.a]\nkeep-last = 1\n", ["line 1: there is no “polices” here"]),
        ("keep-last = 1\n", ["line 1: there is no “keep-last” here"]),
        ("policy = 3\n", ["line 1: policies are named [policy.NAME]."]),
        ("[policy]\na = 3\n", ["line 2: policies are named [policy.NAME]."]),
        ('[policy.a]\nfree-at-least = "' + "9" * 999 + '"\n', ["line 2: “9999"]),
        ("# \u2028\r\n[policy.a]\r\nkeep-last = 1\r\nx = 1\r\n", ["line 4: “x”"]),
        (
            "[policy.a]\nkeep-last = 0.5\n[policy.'b']\n  'keep-daily' = []\nx = 1\n",
            ["line 2: “keep-last”", "line 4: “keep-daily”", "line 5: “x”"],
        ),
    ],
)
def test_every_mistake_is_named_by_its_line(text: str, problems: list[str]) -> None:
    found = [str(problem) for problem in read_policies(text, "policies.toml").problems]
    assert len(found) == len(problems), found
    assert all(text.startswith(start) for text, start in zip(found, problems, strict=True)), found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[policy.a]\nkeep-last = 1\nkeep-last = 2\n", "line 3: Cannot overwrite a value."),
        ("[policy.a]\nkeep-last = \n", "line 2: Invalid value."),
        ('[policy.a]\nnames = ["a"\n', "line 2: Unclosed array."),
        ("x = " + "9" * 9999, "Exceeds the limit"),
        ("x = " + "[" * 9999, "Lists stand in each other too deep."),
    ],
)
def test_what_is_no_toml_is_refused_by_its_line(text: str, problem: str) -> None:
    with pytest.raises(PolicyFileError) as caught:
        read_policies(text, "policies.toml")
    assert caught.value.summary.startswith(f"policies.toml, {problem}")


def test_a_mistake_is_in_the_way_of_nothing_else() -> None:
    file = read_policies(f"{GOOD}[policy.bad]\nkeep-last = -1\n[polices.x]\n[schedule.b]\na = 1\n", "policies.toml")
    assert [problem.line for problem in file.problems] == [19, 20, 21, 22]
    assert list(file.policies) == ["nightly", "by hand"]
    assert file.policy("nightly").is_for("db-01")
    with pytest.raises(PolicyFileError, match=r"^policies\.toml, line 19: “keep-last” is a number of snapshots"):
        file.policy("bad")
    with pytest.raises(PolicyFileError, match="are named"):
        read_policies("policy = 3\n", "policies.toml").policy("nightly")


@given(st.text(st.sampled_from("[]policy.a-keeplast=1\"'\n #{},x"), max_size=60))
def test_no_text_does_more_harm_than_an_error(text: str) -> None:
    with suppress(PolicyFileError):
        read_policies(text, "policies.toml")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1024", 1024), ("1 KiB", 1024), ("500m", 500 << 20), ("1.5 GiB", 3 << 29), ("2TB", 2 << 40)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 XiB", "GiB", "1,5 GiB", "1e3", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(SnapTreeError, match="is not a size"):
        parse_size(text)
