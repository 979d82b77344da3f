"""The eight machines of the demo estate and what happened to them: real images, made by real QEMU."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from snaptree.demo.guest import READY, READY_ADDRESS, boot_sector
from snaptree.hosts.connection import Connection
from snaptree.hosts.workshop import MIB, Machine, NewDisk, create_image, noise, run_tool
from snaptree.model.estate import Annotations, DiskSnapshot, Mark

DISK_SIZE = 512 * MIB
_FILL = 6 * MIB
_SCREEN = "A machine of SnapTree's demo estate.\nNo operating system, but real disks and RAM.\n"
_HOT_END = 96
"""MiB: most writes of a guest land on what it wrote before."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where stories are built, and whom to tell. `step` is called after each thing done; it may raise to stop."""

    connection: Connection
    images: Path
    now: datetime
    step: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Story:
    """Something to build: `steps` is how often it calls `Site.step`."""

    about: str
    steps: int
    build: Callable[[Site], None]


class _Author:
    """Writes the history of one machine. What is random is the same each time; only the times depend on now."""

    def __init__(self, site: Site, name: str, title: str, *, disks: int = 1, backing: Path | None = None) -> None:
        self._site = site
        self._random = random.Random(name)  # noqa: S311  content to tell apart, nothing secret
        self._writes = 0
        images = [site.images / (f"{name}.qcow2" if disk == 0 else f"{name}-data{disk}.qcow2") for disk in range(disks)]
        for image in images:
            create_image(image, None if backing else DISK_SIZE, backing=backing)
        new = [NewDisk(image, target=f"vd{'abcdef'[number]}") for number, image in enumerate(images)]
        self.machine = Machine.define(site.connection, name, new, memory=16 * MIB, title=title)
        self.image = images[0]
        if backing is None:
            text = f"\n{name}: {title}\n\n{_SCREEN}"
            self.machine.write("vda", 0, boot_sector(text, seed=self._random.getrandbits(32), fill=_FILL))
        site.step(f"{name} is built")

    def start(self) -> None:
        """Turn it on and wait until its RAM is filled, so that saved memory is worth its name."""
        self.machine.start()
        self.machine.wait_for_memory(READY_ADDRESS, READY)

    def write(self, mib: int, target: str = "vda") -> None:
        """Write about `mib` MiB in a few places: most of them where the guest wrote before."""
        while mib > 0:
            length = min(mib, self._random.randint(1, 8))
            hot = self._random.random() < 0.7
            at = self._random.randint(1, _HOT_END) if hot else self._random.randint(_HOT_END, DISK_SIZE // MIB - 9)
            self._writes += 1
            data = noise(f"{self.machine.name} {self._writes}", MIB // 4)
            self.machine.write(target, at * MIB, data, length * MIB)
            mib -= length

    def take(
        self,
        name: str,
        how: DiskSnapshot,
        ago: timedelta,
        note: str = "",
        *,
        memory: bool = False,
        annotations: Annotations | None = None,
    ) -> None:
        """Take a snapshot, and say that it was taken `ago`."""
        memory_file = self._site.images / f"{self.machine.name}.{name}.mem" if memory else None
        self.machine.take(name, how, note=note, memory_file=memory_file)
        self.machine.rewrite(name, created=int((self._site.now - ago).timestamp()), annotations=annotations)
        self._site.step(f"{self.machine.name}: {name}")

    def external(self, name: str, ago: timedelta, note: str = "", **more: bool) -> None:
        """Freeze the active layers. `memory` saves the RAM too."""
        self.take(name, DiskSnapshot.EXTERNAL, ago, note, memory=more.get("memory", False))

    def internal(self, name: str, ago: timedelta, note: str = "", annotations: Annotations | None = None) -> None:
        """Keep the state inside the images, with the RAM if it runs."""
        self.take(name, DiskSnapshot.INTERNAL, ago, note, annotations=annotations)

    def revert(self, name: str) -> None:
        """Go back, to begin a branch."""
        self.machine.revert(name)


def _web_server(site: Site) -> None:
    """A long straight external chain: daily and hourly automatic snapshots, and one by hand with memory.

    Too long for libvirt 10.8 to 11.10, which kills such a machine when it finds it running, and can't start it.
    """
    web = _Author(site, "web-01", "Web server")
    web.write(18)
    web.start()
    by_schedule = Annotations(taken_by="timer", schedule="automatic")
    hour = site.now.replace(minute=0, second=0, microsecond=0)
    last_midnight = (hour - timedelta(hours=12)).replace(hour=3)
    if last_midnight > hour - timedelta(hours=12):
        last_midnight -= timedelta(days=1)
    daily = [last_midnight - timedelta(days=days) for days in range(27, -1, -1)]
    hourly = [hour - timedelta(hours=hours) for hours in range(11, -1, -1)]
    random_size = random.Random("web-01 sizes")  # noqa: S311  as above
    for number, moment in enumerate((*daily, *hourly)):
        kind = "Daily" if number < len(daily) else "Hourly"
        web.take(
            f"auto-{moment:%Y%m%d-%H%M}",
            DiskSnapshot.EXTERNAL,
            site.now - moment,
            f"{kind} automatic snapshot",
            annotations=by_schedule,
        )
        # Sundays bring the logs of a week, hours bring little.
        web.write(1 if kind == "Hourly" else random_size.choice((1, 2, 2, 3, 5)) + (6 if moment.weekday() == 6 else 0))
        if number == 20:
            web.take(
                "before-php-8-3",
                DiskSnapshot.EXTERNAL,
                site.now - moment - timedelta(hours=7),
                "Before the upgrade to PHP 8.3, with memory. If the shop is slow afterwards, go back to this one first "
                "and read the slow log then: last time we looked for three days at the wrong machine.",
                memory=True,
                annotations=Annotations(pinned=Mark("amina"), known_good=Mark("amina"), taken_by="amina"),
            )
            web.write(9)


def _database(site: Site) -> None:
    """Internal snapshots with memory, and branches: an upgrade that was tried twice."""
    db = _Author(site, "db-01", "Database server", disks=2)
    db.write(12)
    db.write(16, "vdb")
    db.internal("initial-import", timedelta(days=210), "Imported from the old server, machine off")
    db.start()
    db.write(6, "vdb")
    db.internal(
        "before-upgrade-to-16", timedelta(days=95), "Before the upgrade to 16", Annotations(pinned=Mark("amina"))
    )
    db.write(14)
    db.write(8, "vdb")
    db.internal("upgraded-to-16", timedelta(days=94), "First attempt. Extensions are missing.")
    db.write(5, "vdb")
    db.internal("after-reindex", timedelta(days=93, hours=20), "Still slow; the planner ignores the new index")
    db.revert("before-upgrade-to-16")
    db.write(12)
    db.write(10, "vdb")
    db.internal(
        "upgraded-to-16-again",
        timedelta(days=88),
        "二回目。拡張機能を先に入れてから移行した。問題なし。",
        Annotations(known_good=Mark()),
    )
    db.write(8, "vdb")
    db.internal(
        "quarter-end", timedelta(days=50), "Before closing the quarter. Keep until the auditors have been here."
    )
    db.write(4, "vdb")
    db.internal("what-if-partitioned", timedelta(days=31), "Experiment: orders partitioned by month")
    db.write(11, "vdb")
    db.internal("what-if-without-index", timedelta(days=31, hours=-3), "Experiment, second part. Can go.")
    db.revert("quarter-end")
    db.write(7, "vdb")
    db.internal("before-patch-day", timedelta(days=9), "November patches")
    db.write(5)
    db.write(3, "vdb")
    db.internal("patched", timedelta(days=8, hours=21))
    db.write(4, "vdb")


def _build_runner(site: Site) -> None:
    """A deep external chain with forks, two of its branches not in use; turned off."""
    ci = _Author(site, "ci-runner-01", "Build runner")
    ci.write(22)
    ci.external("base-install", timedelta(days=120), "Clean install")
    ci.write(10)
    ci.external("toolchain", timedelta(days=118), "Compilers and SDKs")
    ci.machine.give_memory(32 * MIB)
    ci.write(9)
    ci.external("dependencies", timedelta(days=64), "Package caches warmed up")
    for days in range(30, 22, -1):
        ci.write((2, 3, 7, 2, 4, 3, 9, 2)[30 - days])
        ci.external(f"nightly-{site.now - timedelta(days=days):%Y%m%d}", timedelta(days=days), "Nightly build")
    ci.write(2)
    ci.revert("dependencies")
    ci.write(4)
    ci.external("merge-request-482", timedelta(days=15), "To reproduce the crash in !482")
    ci.write(3)
    ci.external("merge-request-482-fixed", timedelta(days=14))
    ci.write(2)
    ci.revert("toolchain")
    ci.write(11)
    ci.external("dependencies-lts", timedelta(days=12), "Caches for the long-term branch")
    for number, days in enumerate((11, 9, 7, 6, 4), start=1):
        ci.write(3)
        ci.external(f"release-3-0-rc{number}", timedelta(days=days), f"Release candidate {number}")
    ci.write(6)
    ci.take(
        "release-3-0",
        DiskSnapshot.EXTERNAL,
        timedelta(days=2),
        "What was shipped. Support needs exactly this one.",
        annotations=Annotations(pinned=Mark("release"), taken_by="release"),
    )
    ci.write(5)


def _golden_template(site: Site) -> None:
    """A template, and two machines whose disks stand on its image."""
    golden = _Author(site, "golden-debian", "Template")
    golden.write(18)
    golden.internal("installed", timedelta(days=75), "Debian, nothing else")
    golden.write(8)
    golden.internal(
        "sealed",
        timedelta(days=74),
        "Template for clones: do not start, do not change",
        Annotations(pinned=Mark("amina")),
    )

    first = _Author(site, "clone-01", "Linked clone", backing=golden.image)
    first.write(3)
    first.external("personalised", timedelta(days=70), "Host name, keys, certificates")
    first.start()
    first.write(8)
    first.external("deployed", timedelta(days=40), "Application 2.4 deployed", memory=True)
    first.write(4)
    first.external("before-config-change", timedelta(days=3))
    first.write(2)

    second = _Author(site, "clone-02", "Linked clone", backing=golden.image)
    second.write(3)
    second.external("personalised", timedelta(days=70), "Host name, keys, certificates")
    second.write(13)
    second.external("load-test", timedelta(days=21), "قبل اختبار الحمل")
    second.write(6)
    golden.image.chmod(0o444)


def _legacy(site: Site) -> None:
    """Internal and external snapshots in one tree, and metadata that no longer says the truth."""
    old = _Author(site, "legacy-01", "Payroll, do not touch")
    old.write(18)
    old.internal("installed", timedelta(days=1900), "Fresh install")
    old.write(6)
    old.internal("before-migration", timedelta(days=400), "Before moving to this host")
    old.write(2)
    old.internal("kernel-test", timedelta(days=399))
    # Somebody used qemu-img behind libvirt's back: one snapshot is only libvirt's, one only the image's.
    run_tool("qemu-img", "snapshot", "-d", "kernel-test", old.image)
    run_tool("qemu-img", "snapshot", "-c", "by-hand", old.image)
    old.external("after-migration", timedelta(days=390), "First day on the new host")
    old.write(9)
    old.external("monday", timedelta(days=20))
    old.write(5)
    merged = old.machine.active_images()["vda"]
    old.external("tuesday", timedelta(days=19))
    old.write(4)
    # A merge by hand: "monday" now holds Tuesday's data as well, and the layer of "tuesday" is gone.
    active, below = old.machine.active_images()["vda"], site.images / "legacy-01.after-migration"
    run_tool("qemu-img", "commit", "-q", "-b", below, merged)
    run_tool("qemu-img", "rebase", "-u", "-F", "qcow2", "-b", below, active)
    merged.unlink()
    site.step("legacy-01: merged by hand")


def _fresh(site: Site) -> None:
    """A new machine that nobody has taken a snapshot of."""
    fresh = _Author(site, "fresh-01", "New, no snapshots yet")
    fresh.write(7)
    fresh.start()


STORIES = (
    Story("web server", 42, _web_server),
    Story("database", 11, _database),
    Story("build runner", 21, _build_runner),
    Story("template and clones", 10, _golden_template),
    Story("legacy machine", 8, _legacy),
    Story("new machine", 1, _fresh),
)
"""The slowest first: they are built side by side."""


def now() -> datetime:
    """The moment from which the stories count back."""
    return datetime.now(UTC)
