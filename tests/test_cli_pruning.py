"""`snaptree prune` on real machines: what it says of its hours, before and after they come."""

from __future__ import annotations

import datetime as dt
import json

import pytest

from snaptree.cli import main
from snaptree.hosts import pruning as in_hours
from snaptree.plans.intention import Capture, Take
from snaptree.terminal import pruning
from tests.kit.machines import EmbeddedHost

pytestmark = pytest.mark.qemu


def hours(begin: int, end: int) -> str:
    """So many hours from now, as an option has them."""
    now = dt.datetime.now().astimezone()
    return "-".join(f"{now + dt.timedelta(hours=hour):%H:%M}" for hour in (begin, end))


def test_a_prune_says_its_hours_and_does_not_wait_for_them(
    host: EmbeddedHost, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
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
    for agreed in ((), ("-y",)):
        status, out, err = prune("--between", another, *agreed)
        assert (status, err) == (0, ""), "that is what the option asks for, and there is nothing to agree to"
        assert plan["hours"]["says"] in out
        assert out.count("not between") == 1
        assert "Not pruned" not in out
    status, out, err = prune("--between", another, "-y", "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    assert document["hours"] == plan["hours"]
    assert document["not_begun"] == f"It is not between {another[:5]} and {another[6:]}."
    assert list(machine.tree().snapshots) == ["a", "b"]

    # They end while somebody thinks about it.
    present = hours(-1, 9)
    monkeypatch.setattr(pruning, "agreed", lambda: monkeypatch.setattr(in_hours, "are_now", lambda _: False) or True)
    status, out, err = prune("--between", present)
    assert (status, err) == (0, "")
    assert f"Not pruned: {machine.name} (not begun at this hour)." in out
    monkeypatch.undo()

    status, out, _ = prune("-y", "--between", present)
    assert status == 0
    assert f"Begins now, and stops at {present[6:]}: what has not gone by then stays" in out
    assert list(machine.tree().snapshots) == ["b"]
    status, out, _ = prune("-n", "--json")
    assert json.loads(out)["hours"] is None
