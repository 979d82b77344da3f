"""`snaptree prune` on real machines: what it says of its hours, before and after they come."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from snaptree.cli import main
from snaptree.plans.intention import Capture, Take
from tests.kit.machines import EmbeddedHost

pytestmark = pytest.mark.qemu


def hours(begin: int, end: int) -> str:
    """So many hours from now, as an option has them."""
    now = dt.datetime.now().astimezone()
    return "-".join(f"{now + dt.timedelta(hours=hour):%H:%M}" for hour in (begin, end))


def test_a_prune_says_its_hours_and_does_not_wait_for_them(
    host: EmbeddedHost, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = host.make_machine(running=False)
    for name in ("a", "b"):
        machine.change(Take(name, capture=Capture.DISKS))

    def prune(*more: str) -> tuple[int, str, str]:
        status = main(["--connect", host.uri, "prune", machine.name, "--keep-last", "1", "--by-hand", *more])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    another = hours(9, 10)
    status, out, _ = prune("-n", "--json", "--between", another)
    plan = json.loads(out)
    assert (status, plan["snapshots"]) == (0, ["a"])
    assert plan["hours"] == {
        "from": another[:5],
        "to": another[6:],
        "are_now": False,
        "says": f"It is not between {another[:5]} and {another[6:]} now: nothing is begun, and nothing waits for that"
        " time. A schedule is run at times of its own: snaptree schedule add.",
    }
    status, out, err = prune("--between", another)
    assert status == 1
    assert plan["hours"]["says"] in out
    assert f"{machine.name}: not begun: It is not between" in err
    assert "nobody to ask" not in err, "there is nothing to agree to"
    assert list(machine.tree().snapshots) == ["a", "b"]

    present = hours(-1, 9)
    status, out, _ = prune("-y", "--between", present)
    assert status == 0
    assert f"Begins now, and stops at {present[6:]}: what has not gone by then stays" in out
    assert list(machine.tree().snapshots) == ["b"]
    status, out, _ = prune("-n", "--json")
    assert json.loads(out)["hours"] is None
