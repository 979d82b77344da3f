"""What shows of layers, and what merging them writes: as QEMU shows it, and as QEMU's own jobs do it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, currently_in_test_context, given, settings
from hypothesis import event as hypothesis_event
from hypothesis import strategies as st

from snaptree.images import layer_windows, overlaps
from snaptree.images.analyses import Analyses
from snaptree.images.extents import shown_in, taken_on_host, written_in
from snaptree.images.files import LocalPlace, open_local
from snaptree.images.layer_windows import Layer
from snaptree.images.overlaps import MergeBounds, Overlaps, read_overlaps
from snaptree.images.read_at import BadImageError
from snaptree.model.errors import CancelledError
from tests.images.block_jobs import KIBIBYTE, MEBIBYTE, Daemon, Made, bytes_by_depth, driver_of, grown, make_chain
from tests.images.conftest import QemuImg, run

pytestmark = pytest.mark.qemu

GIBIBYTE = 1 << 30
CLUSTER = 64 * KIBIBYTE


@contextmanager
def opened(paths: Sequence[Path]) -> Iterator[dict[str, Layer]]:
    with ExitStack() as stack:
        layers = {}
        for path in paths:
            file = stack.enter_context(open_local(str(path)))
            is_raw = driver_of(path) == "raw"
            layers[str(path)] = (
                Layer.of_raw(file, taken_on_host(file), written_in(file), shown_in(file))
                if is_raw
                else Layer.of_qcow2(file)
            )
        yield layers


def look(paths: Sequence[Path]) -> Overlaps:
    """Of a straight chain, top first."""
    with opened(paths) as layers:
        return read_overlaps(layers, straight(paths))


def straight(paths: Sequence[Path]) -> dict[str, str | None]:
    names = [str(path) for path in paths]
    return dict(zip(names, [*names[1:], None], strict=True))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    started = Daemon(tmp_path_factory.mktemp("daemon"))
    yield started
    started.close()


def merge(found: Overlaps, paths: Sequence[Path], top: int, base: int, into: int) -> MergeBounds:
    return found.merge(str(paths[base]), str(paths[top]), str(paths[into]))


# ---- any chain ----

SIZES = st.one_of(
    st.just(6 * MEBIBYTE),
    st.integers(1, 14000).map(lambda sectors: sectors * 512),
    st.integers(1, 1750).map(lambda blocks: blocks * 4096),
)


@st.composite
def sessions(
    draw: st.DrawFn, layer_size: int, cluster: int, version: int, *, is_raw: bool, is_plain: bool
) -> tuple[tuple[str, ...], ...]:
    """What a guest might do to a layer, at places that are neighbours more often than not."""
    found: list[tuple[str, ...]] = []
    grain = draw(st.sampled_from([512, 4096, cluster, 64 * KIBIBYTE]))
    for number in range(draw(st.integers(0, 2))):
        if not is_raw and not is_plain and cluster <= layer_size and draw(st.integers(0, 4)) == 0:
            first = draw(st.integers(0, layer_size // cluster - 1))
            found.append((f"write -q -c -P {number + 1} {first * cluster} {cluster}",))
            continue
        commands = []
        for _ in range(draw(st.integers(1, 6))):
            first = draw(st.integers(0, (layer_size - 1) // grain)) * grain
            length = min(draw(st.integers(1, 40)) * grain, layer_size - first, 3 * MEBIBYTE)
            kinds = ["write -q -P 7", "write -q -P 9"]
            if not is_plain:
                kinds += ["discard -q", *(["write -q -z", "write -q -z -u"] if version == 3 else [])]
            commands.append(f"{draw(st.sampled_from(kinds))} {first} {length}")
        found.append(tuple(commands))
    return tuple(found)


@st.composite
def chains(draw: st.DrawFn) -> list[Made]:
    """Layers, top first; plain ones are such of which all must be known exactly."""
    is_plain = draw(st.booleans())
    same_size = 6 * MEBIBYTE if is_plain else draw(SIZES) if draw(st.booleans()) else None
    same_cluster = draw(st.integers(12, 17) if is_plain else st.integers(9, 18)) if draw(st.booleans()) else None
    same_cluster = same_cluster or (16 if is_plain else None)
    layers = []
    for index in range(depth := draw(st.integers(2, 5))):
        size = same_size or draw(SIZES)
        bits = same_cluster or draw(st.sampled_from([9, 10, 12, 12, 14, 16, 16, 16, 17, 21]))
        version = draw(st.sampled_from([3, 3, 3, 2]))
        subclusters = not is_plain and version == 3 and bits >= 14 and draw(st.integers(0, 3)) == 0
        is_raw = not is_plain and index == depth - 1 and draw(st.integers(0, 2)) == 0
        done = draw(sessions(size, 1 << bits, version, is_raw=is_raw, is_plain=is_plain))
        preallocated = not is_raw and not is_plain and draw(st.integers(0, 5)) == 0
        layers.append(Made(size, 1 << bits, version, subclusters, is_raw, preallocated, done))
    return layers


def is_even(made: Sequence[Made]) -> bool:
    """Whether layers are such as libvirt makes them: one cluster size, one length, data only."""
    alike = {(layer.size, layer.cluster, layer.subclusters, layer.is_raw, layer.preallocated) for layer in made}
    told = str([layer.sessions for layer in made])
    return (
        len(alike) == 1
        and alike == {(made[0].size, made[0].cluster, False, False, False)}
        and made[0].size % made[0].cluster == 0
        and made[0].cluster >= 4096
        and not any(word in told for word in ("-z", "discard", "-c"))
    )


@settings(phases=[Phase.generate])  # smaller examples are not clearer here, and take long to find
@given(made=chains(), data=st.data())
def test_any_chain_is_what_qemu_says_and_does(daemon: Daemon, made: list[Made], data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        paths = make_chain(Path(directory), made)
        found = look(paths)
        check_what_shows(paths, made, found)
        top = data.draw(st.integers(0, len(made) - 2), "top")
        into = data.draw(st.integers(top, len(made) - 1), "into")
        if into == top:
            pull(daemon, paths, made, found, top)
        elif into < len(made) - 1 and data.draw(st.booleans(), "both ways"):
            commit_and_pull(daemon, paths, made, found, top, into)
        else:
            commit(daemon, paths, made, found, top, into)


def event(what: str) -> None:
    """Count a kind of case, if there are many."""
    if currently_in_test_context():
        hypothesis_event(what)


def check_what_shows(paths: Sequence[Path], made: Sequence[Made], found: Overlaps) -> None:
    """Exactly, but for a part of a unit at each end of a layer."""
    shown = bytes_by_depth(str(paths[0]))
    unit = min(each.cluster // (32 if each.subclusters else 1) for each in made if not each.is_raw)
    slack = unit * len({each.size for each in made if each.size % unit}) + unit * (len({m.size for m in made}) - 1)
    for index, path in enumerate(paths):
        visible = found.visible(str(path), str(paths[0]))
        assert visible <= found.data(str(path))
        if made[index].is_raw:  # what was set aside counts, and pieces of a unit count in full
            assert visible >= shown[index] - slack
        else:
            assert abs(visible - shown[index]) <= slack, f"layer {index}"
    assert found.anomalies == 0


def grows_impossibly(made: Sequence[Made], top: int, base: int) -> bool:
    """Whether QEMU refuses: an image of version 2 cannot grow over a backing file that is longer."""
    into = made[base]
    below = made[base + 1 :][:1]
    return (
        into.version == 2 and not into.is_raw and made[top].size > into.size and any(b.size > into.size for b in below)
    )


def commit(
    daemon: Daemon, paths: Sequence[Path], made: Sequence[Made], found: Overlaps, top: int, base: int
) -> MergeBounds:
    """Run the job, and see that what was said holds."""
    bounds = merge(found, paths, top, base, base)
    if grows_impossibly(made, top, base):
        event("version 2 cannot hide what is below")
        return bounds
    lengths: list[int | None] = []
    really = grown(paths[base], lambda: lengths.append(daemon.commit(paths, top, base)))
    event("live" if top == 0 else "intermediate")
    check_growth(bounds, really, made[top : base + 1], base=made[base], below=made[base + 1 : base + 2])
    if lengths[0] is not None:
        assert bounds.copies_least <= lengths[0]
        if is_even(made):
            assert lengths == [bounds.copies_most]
    return bounds


def pull(daemon: Daemon, paths: Sequence[Path], made: Sequence[Made], found: Overlaps, top: int) -> None:
    if made[top].subclusters:
        event("QEMU 7.2 dies of an assertion when it pulls into subclusters")
        return
    bounds = merge(found, paths, top, len(made) - 1, top)
    really = grown(paths[top], lambda: daemon.pull(paths, top))
    event("pull")
    check_growth(bounds, really, made[top:], base=made[top], finds_zeros=True)


def commit_and_pull(
    daemon: Daemon, paths: Sequence[Path], made: Sequence[Made], found: Overlaps, top: int, into: int
) -> None:
    if made[into].subclusters:
        return  # see `pull`
    if grows_impossibly(made, top, into):
        return
    bounds = merge(found, paths, top, len(made) - 1, into)

    def both() -> None:
        daemon.commit(paths, top, into)
        daemon.pull(paths[into:], 0)

    really = grown(paths[into], both)
    event("both ways")
    check_growth(bounds, really, made[top:], base=made[into], finds_zeros=True)


def check_growth(
    bounds: MergeBounds,
    really: int,
    made: Sequence[Made],
    base: Made,
    *,
    below: Sequence[Made] = (),
    finds_zeros: bool = False,
) -> None:
    """See that a file grew within bounds; `below` is what stays below all that was merged."""
    blocks = 8192 if base.is_raw else 0  # that the file system itself takes for a file of many pieces
    assert really <= bounds.growth_most + blocks
    # QEMU finds the holes in what is preallocated, and a pull also the zeros around what was written.
    if not any(layer.preallocated for layer in made) and not finds_zeros:
        assert really >= bounds.growth_least - blocks
    # Where what is below ends earlier, a job may have to write zeros.
    if is_even(made) and all(each.size == base.size for each in below):
        event("to the byte")
        assert bounds.growth_least == bounds.growth_most
        assert bounds.copies_least == bounds.copies_most


def test_a_disk_that_ends_within_a_cluster_grows_by_whole_clusters(tmp_path: Path, daemon: Daemon) -> None:
    size = 46 * CLUSTER + 48 * KIBIBYTE
    made = [
        Made(size, CLUSTER, 3, True, False, False, ()),  # all is counted in its small units
        Made(size, CLUSTER, 3, False, False, False, ((f"write -q {4 * CLUSTER} {size - 4 * CLUSTER}",),)),
        Made(size, CLUSTER, 3, False, False, False, ((f"write -q 0 {4 * CLUSTER}",),)),
    ]
    paths = make_chain(tmp_path, made)
    bounds = merge(look(paths), paths, 1, 2, 1)
    really = grown(paths[1], lambda: daemon.pull(paths, 1))
    assert (bounds.growth_least, really, bounds.growth_most) == (4 * CLUSTER - 16 * KIBIBYTE, 4 * CLUSTER, 4 * CLUSTER)


# ---- trees ----


def test_two_branches_on_one_base(tmp_path: Path) -> None:
    base, left, right = (tmp_path / name for name in ("base", "left", "right"))
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "16M")
    run("qemu-io", "-c", "write -q 0 4M", base)
    for overlay, write in ((left, "write -q 0 1M"), (right, "write -q 3M 2M")):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay)
        run("qemu-io", "-c", write, overlay)
    below = {str(base): None, str(left): str(base), str(right): str(base)}
    with opened([base, left, right]) as layers:
        found = read_overlaps(layers, below)
    assert found.visible(str(base), str(left)) == 3 * MEBIBYTE
    assert found.visible(str(base), str(right)) == 3 * MEBIBYTE
    assert found.visible(str(base), str(base)) == found.data(str(base)) == 4 * MEBIBYTE
    assert found.merge(str(base), str(left), str(left)).copies_most == 3 * MEBIBYTE
    assert found.merge(str(base), str(right), str(base)) == MergeBounds(2 * MEBIBYTE, 2 * MEBIBYTE, MEBIBYTE, MEBIBYTE)
    with pytest.raises(ValueError, match="does not stand on"):
        found.visible(str(left), str(right))
    with pytest.raises(ValueError, match="does not stand on"):
        found.merge(str(base), str(left), str(right))
    with pytest.raises(ValueError, match="into one of them"):
        found.merge(str(left), str(left), str(base))


@given(st.data())
def test_every_branch_is_seen_as_if_it_were_alone(data: st.DataObject) -> None:
    """A tree gives for each of its paths what a chain of that path gives."""
    with TemporaryDirectory() as directory:
        count = data.draw(st.integers(2, 6))
        paths = [Path(directory) / f"layer{number}" for number in range(count)]
        below: dict[str, str | None] = {}
        for number, path in enumerate(paths):
            on = paths[data.draw(st.integers(0, number - 1))] if number else None
            below[str(path)] = None if on is None else str(on)
            backing: list[str | Path] = [] if on is None else ["-b", on, "-F", "qcow2"]
            run("qemu-img", "create", "-q", "-f", "qcow2", *backing, path, "4M")
            first = data.draw(st.integers(0, 60))
            run("qemu-io", "-c", f"write -q {first * 64}k {data.draw(st.integers(1, 64 - first)) * 64}k", path)
        with opened(paths) as layers:
            together = read_overlaps(layers, below)
        for path in paths:
            chain = [str(path)]
            while (base := below[chain[-1]]) is not None:
                chain.append(base)
            alone = look([Path(name) for name in chain])
            for number, name in enumerate(chain):
                assert together.visible(name, chain[0]) == alone.visible(name, chain[0])
                for into in chain[: number + 1] if number else ():
                    assert together.merge(name, chain[0], into) == alone.merge(name, chain[0], into)


# ---- certain chains ----


@pytest.mark.parametrize("job", ["live", "intermediate", "pull"])
def test_growth_over_many_tables(daemon: Daemon, tmp_path: Path, job: str) -> None:
    """Windows begin and end within tables, and tables are made that no layer had."""
    writes = tuple(f"write -q -P 7 {place}M 256k" for place in (0, 33, 34, 1000, 2047, 4096, 9000, 9999))
    small = tuple(f"write -q -P 9 {place}M 64k" for place in (0, 34, 35, 36, 700, 2048))
    made = [
        Made(10 * GIBIBYTE, sessions=(writes,)),
        Made(10 * GIBIBYTE, sessions=(small,)),
        Made(10 * GIBIBYTE, sessions=(small[:2],)),
    ]
    paths = make_chain(tmp_path, made)
    found = look(paths)
    check_what_shows(paths, made, found)
    if job == "pull":
        pull(daemon, paths, made, found, 0)
    else:
        commit(daemon, paths, made, found, 0 if job == "live" else 1, 2)


def test_clusters_shared_with_an_internal_snapshot_are_copied_before_they_are_written(
    daemon: Daemon, tmp_path: Path
) -> None:
    made = [
        Made(6 * MEBIBYTE, sessions=(("write -q 0 1M",),)),
        Made(6 * MEBIBYTE, sessions=(("write -q 0 2M",),)),
    ]
    paths = make_chain(tmp_path, made)
    run("qemu-img", "snapshot", "-c", "before", paths[1])
    found = look(paths)
    bounds = merge(found, paths, 0, 1, 1)
    really = grown(paths[1], lambda: daemon.commit(paths, 0, 1))
    assert really == 17 * CLUSTER
    assert bounds.growth_least <= really <= bounds.growth_most


def test_a_raw_base_of_unknown_holes_is_all_data(tmp_path: Path) -> None:
    made = [Made(8 * MEBIBYTE), Made(8 * MEBIBYTE, is_raw=True, sessions=(("write -q 1M 64k",),))]
    paths = make_chain(tmp_path, made)
    names = [str(path) for path in paths]
    with opened(paths) as layers:
        local = read_overlaps(layers, straight(paths))
        blind = read_overlaps({**layers, names[1]: Layer.of_raw(layers[names[1]].source)}, straight(paths))
    assert (local.data(names[1]), local.visible(names[1], names[0])) == (CLUSTER, CLUSTER)
    assert (blind.data(names[1]), blind.visible(names[1], names[0])) == (8 * MEBIBYTE, 8 * MEBIBYTE)


def test_what_was_written_to_a_raw_base_a_moment_ago_is_not_missed(tmp_path: Path) -> None:
    """The host has it in memory only, and says of the file that it was set aside there and never written."""
    paths = make_chain(tmp_path, [Made(4 * MEBIBYTE), Made(4 * MEBIBYTE, is_raw=True)])
    with paths[1].open("r+b") as base:
        os.posix_fallocate(base.fileno(), 0, 4 * CLUSTER)
        os.fsync(base.fileno())
        os.pwrite(base.fileno(), b"x" * CLUSTER, 2 * CLUSTER)
        found = look(paths)
    with_first = 2 * CLUSTER  # of an image that it makes, qemu-img writes the beginning
    assert found.visible(str(paths[1]), str(paths[0])) == with_first
    bounds = merge(found, paths, 0, 1, 0)
    assert bounds.copies_least <= CLUSTER < with_first <= bounds.copies_most


@settings(phases=[Phase.generate], max_examples=settings().max_examples // 3)
@given(data=st.data())
def test_zeros_of_a_raw_base_take_room_there_and_are_not_copied(daemon: Daemon, data: st.DataObject) -> None:
    """Set aside, or zeroed in place: the host keeps room for them, and a pull finds that they are nothing."""
    places = st.tuples(st.integers(0, 79), st.integers(1, 40))

    def session(*kinds: str) -> tuple[str, ...]:
        chosen = data.draw(st.lists(st.tuples(st.sampled_from(kinds), places), max_size=5))
        return tuple(f"{kind} {start * CLUSTER} {min(count, 80 - start) * CLUSTER}" for kind, (start, count) in chosen)

    made = [
        *(Made(5 * MEBIBYTE, sessions=(session("write -q -P 7", "write -q -z -u"),)) for _ in range(2)),
        Made(
            5 * MEBIBYTE,
            is_raw=True,
            sessions=(session("write -q -P 9", "write -q -z", "write -q -z -u", "discard -q"),),
        ),
    ]
    with TemporaryDirectory() as directory:
        paths = make_chain(Path(directory), made)
        if data.draw(st.booleans(), "set aside"):
            with paths[-1].open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, 5 * MEBIBYTE)
        top, into = data.draw(st.sampled_from([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]))
        bounds = merge(look(paths), paths, top, 2, into)

        def change() -> None:
            if into > top:
                daemon.commit(paths, top, into)
            if into < 2:
                daemon.pull(paths[into:], 0)

        really = grown(paths[into], change)
    slack = 8192 if into == 2 else 0  # of the file system's own
    assert bounds.growth_least - slack <= really <= bounds.growth_most + slack


def test_a_raw_base_elsewhere_may_be_nothing_but_zeros(tmp_path: Path, daemon: Daemon) -> None:
    made = [Made(8 * MEBIBYTE), Made(8 * MEBIBYTE, is_raw=True, sessions=(("write -q 1M 64k",),))]
    paths = make_chain(tmp_path, made)
    names = [str(path) for path in paths]
    with opened(paths) as layers:
        blind = read_overlaps({**layers, names[1]: Layer.of_raw(layers[names[1]].source)}, straight(paths))
    bounds = merge(blind, paths, 0, 1, 0)
    assert (bounds.copies_least, bounds.copies_most) == (0, 8 * MEBIBYTE)
    assert bounds.growth_least <= grown(paths[0], lambda: daemon.pull(paths, 0)) <= bounds.growth_most


def test_encrypted_layers_are_like_others(tmp_path: Path) -> None:
    secret = ("--object", "secret,id=key,data=secret")
    top, base = tmp_path / "top.qcow2", tmp_path / "base.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "4M")
    run("qemu-io", "-c", "write -q 64k 128k", base)
    options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
    run("qemu-img", "create", "-q", *secret, "-f", "qcow2", "-b", base, "-F", "qcow2", "-o", options, top, "4M")
    node = f"driver=qcow2,encrypt.key-secret=key,file.filename={top}"
    run("qemu-io", *secret, "--image-opts", "-c", "write -q 0 128k", node)
    found = look([top, base])
    assert [found.visible(str(path), str(top)) for path in (top, base)] == [131072, 65536]
    assert found.merge(str(base), str(top), str(base)) == MergeBounds(131072, 131072, 65536, 65536)


def test_a_local_pile_is_remembered_until_a_layer_changes(qemu_img: QemuImg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snaptree.images.versions._SETTLED_AFTER", -1)
    base = qemu_img.create("base", "16M")
    top = qemu_img.overlay("top", "base")
    reader, place, below = Analyses(), LocalPlace(), straight([top, base])
    formats = dict.fromkeys(below, "qcow2")
    first = reader.overlaps(place, below, formats, lambda: False)
    assert reader.overlaps(place, below, formats, lambda: False) is first
    run("qemu-io", "-c", "write -q 0 1M", top)
    assert reader.overlaps(place, below, formats, lambda: False).data(str(top)) == MEBIBYTE


def test_five_hundred_layers(qemu_img: QemuImg) -> None:
    """Deeper than QEMU opens: each stands on the one before, and hides all of it."""
    base = qemu_img.create("layer0.qcow2", "64M")
    run("qemu-io", "-c", "write -q 0 128k", base)
    with open_local(str(base)) as file:
        layers = {str(number): Layer.of_qcow2(file) for number in range(501)}
        below = {str(number): str(number - 1) if number else None for number in range(501)}
        with pytest.raises(BadImageError, match="more than 500 layers"):
            read_overlaps(layers, below)
        del layers["500"], below["500"]
        found = read_overlaps(layers, below)
    assert found.visible("499", "499") == 131072
    assert found.visible("0", "499") == 0
    assert found.merge("0", "499", "0") == MergeBounds(131072, 131072, 0, 0)


def test_what_is_no_tree(tmp_path: Path) -> None:
    paths = make_chain(tmp_path, [Made(MEBIBYTE), Made(MEBIBYTE, is_raw=True)])
    top, base = map(str, paths)
    wrong: list[tuple[Mapping[str, str | None], str]] = [
        ({top: base, base: top}, "without a circle"),
        ({top: None, base: top}, "only a bottom layer can be raw"),
        ({top: "elsewhere", base: None}, "not among the layers"),
    ]
    with opened(paths) as layers:
        for below, why in wrong:
            with pytest.raises(ValueError, match=why):
                read_overlaps(layers, below)


def test_looking_is_cancelled(tmp_path: Path) -> None:
    paths = make_chain(tmp_path, [Made(GIBIBYTE, preallocated=True)])
    for limit in range(3):
        asked: list[bool] = []

        def cancelled(asked: list[bool] = asked, limit: int = limit) -> bool:
            asked.append(True)
            return len(asked) > limit

        with opened(paths) as layers, pytest.raises(CancelledError):
            read_overlaps(layers, straight(paths), cancelled=cancelled)
        assert len(asked) == limit + 1


# ---- hostile images ----


class Buffer:
    """An image in memory, that may be longer than what is in it."""

    def __init__(self, content: bytes | bytearray, size: int = 0) -> None:
        self.content = content
        self.size = max(size, len(content))

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(min(length, self.size - offset), 0)
        return bytes(self.content[offset : offset + length]).ljust(length, b"\0")


def hostile(cluster_bits: int, l1_entries: int, place: Callable[[Any], Any], size: int) -> Buffer:
    """An image all of whose L1 entries lead somewhere."""
    cluster = 1 << cluster_bits
    entry_size = 8
    words = [2, 0, 0, cluster_bits, (l1_entries * (cluster // entry_size)) << cluster_bits, 0, l1_entries, cluster]
    header = b"QFI\xfb" + b"".join(
        number.to_bytes(length, "big") for number, length in zip(words, (4, 8, 4, 4, 8, 4, 4, 8), strict=True)
    )
    header = header.ljust(72, b"\0")
    table = place(np.arange(l1_entries, dtype=np.int64)).astype(">u8").tobytes()
    return Buffer(header.ljust(cluster, b"\0") + table, size)


def pile_of(image: Buffer, depth: int, allocated: int | None = None) -> tuple[dict[str, Layer], dict[str, str | None]]:
    layer = Layer.of_qcow2(image, allocated)
    names = [str(number) for number in range(depth)]
    return dict.fromkeys(names, layer), dict(zip(names, [None, *names], strict=False))


_NOWHERE, _OWN, _OF_OTHERS, _BEYOND = 0, 1 << 63 | 2048, 2048, 1 << 63 | 1 << 40
_ODD = [1 << 63, 1 << 63 | 2049, 2049, 1, 1 << 40, 1 << 62 | 5000, 1 << 63 | 1 << 62, 1 << 56 | 2048]


@given(
    st.sampled_from([[_NOWHERE, _OWN], [_NOWHERE, _OWN, _BEYOND], [_OWN], [_NOWHERE, _OWN, _OF_OTHERS, _BEYOND, *_ODD]])
    .map(st.sampled_from)
    .flatmap(lambda words: st.lists(words, min_size=64, max_size=64))
)
def test_any_table_is_counted_entry_by_entry(words: list[int]) -> None:
    """The bits of an entry are in QEMU's docs/interop/qcow2.txt, "Cluster mapping"."""
    image = hostile(9, 1, lambda index: 0 * index + 1024, 4096)
    image.content = bytes(image.content).ljust(1024, b"\0") + np.array(words, np.uint64).astype(">u8").tobytes()
    data = owned = owned_data = anomalies = 0
    for word in words:
        offset, is_compressed = word & 0x00FF_FFFF_FFFF_FE00, bool(word & 1 << 62)
        is_zero = not is_compressed and bool(word & 1)
        has_place = not is_compressed and offset != 0
        is_owned, is_data = has_place and word >> 63 == 1, is_compressed or (has_place and not is_zero)
        data, owned, owned_data = data + is_data, owned + is_owned, owned_data + (is_owned and is_data)
        anomalies += is_zero + (has_place and offset >= image.size)  # there were no such zeros before version 3

    found = read_overlaps(*pile_of(image, 1))
    layer = found.layers["0"]

    assert (layer.data, layer.owned, layer.owned_data) == (512 * data, 512 * owned, 512 * owned_data)
    assert layer.shared_data == 512 * (data - owned_data)
    assert found.anomalies == anomalies


@pytest.mark.parametrize("cluster_bits", [9, 12, 16, 21])
def test_a_table_that_every_entry_leads_to(cluster_bits: int) -> None:
    image = hostile(cluster_bits, 1 << 22, lambda index: 0 * index + (64 << 20), 1 << 40)
    with pytest.raises(BadImageError, match=r"same L2 table|larger than those of any real image|too finely"):
        read_overlaps(*pile_of(image, 500, allocated=1 << 22))


def test_a_vast_empty_disk_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlaps, "_MOST_UNITS", 0)
    image = hostile(21, 1 << 22, lambda index: 0 * index, 1 << 40)
    found = read_overlaps(*pile_of(image, 2))
    assert [found.data(name) for name in ("0", "1")] == [0, 0]


def test_more_tables_than_there_can_be() -> None:
    """Tables in holes of the file: it takes less than it says."""
    image = hostile(16, 1 << 12, lambda index: (64 << 20) + (index << 16), 1 << 40)
    with pytest.raises(BadImageError, match="larger than those of any real image"):
        read_overlaps(*pile_of(image, 1, allocated=1 << 20))


_RING = """
import sys, time
from pathlib import Path
from snaptree.images.overlaps import read_overlaps
from snaptree.images.read_at import BadImageError
from tests.images.test_overlaps import hostile, pile_of
bits, depth = int(sys.argv[1]), int(sys.argv[2])
image = hostile(bits, 1 << 22, lambda index: (64 << 20) + (index % (1 << 15) << bits), 1 << 50)
Path("/proc/self/clear_refs").write_text("5")
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
began = time.process_time()
try:
    read_overlaps(*pile_of(image, depth, allocated=1 << 22))
except BadImageError as error:
    print(str(error))
print(time.process_time() - began, (peak() - before) / 1024)
"""


@pytest.mark.parametrize("depth", [1, 20])
@pytest.mark.parametrize("cluster_bits", [9, 16, 21])
def test_a_ring_of_tables_ends_in_bounded_time_and_memory(cluster_bits: int, depth: int) -> None:
    """Each entry leads to another table than its neighbours: sooner or later it is too much."""
    command = [sys.executable, "-c", _RING, str(cluster_bits), str(depth)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    seconds, mebibytes = map(float, said[-1].split())
    assert len(said) == 2, "it is refused"
    assert seconds < (1 if depth == 1 else 5)
    assert mebibytes < 150


@pytest.fixture(scope="module")
def mutable(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[bytes], list[int]]:
    """Images of a chain, and places where their tables are."""
    written = (("write -q 0 256k", "write -q -z 1M 64k", "write -q -z 64k 64k"), ("write -q -c 2M 64k",))
    made = [
        Made(3 * MEBIBYTE, 16 * KIBIBYTE, subclusters=True, sessions=written),
        Made(3 * MEBIBYTE + 512, sessions=written),
    ]
    contents = [path.read_bytes() for path in make_chain(tmp_path_factory.mktemp("mutable"), made)]
    places = [*range(0, 112, 4)]
    for content in contents:
        with_l1 = int.from_bytes(content[40:48], "big")
        l2 = int.from_bytes(content[with_l1 : with_l1 + 8], "big") & 0xFFFFFFFFFFFE00
        places += [with_l1, *range(l2, l2 + 512, 8)]
    return contents, places


@given(data=st.data())
def test_mutated_images_fail_in_words_if_at_all(mutable: tuple[list[bytes], list[int]], data: st.DataObject) -> None:
    contents, interesting = mutable
    index = data.draw(st.integers(0, len(contents) - 1))
    image = bytearray(contents[index])
    places = st.one_of(st.sampled_from(interesting), st.integers(0, len(image) - 8))
    values = st.one_of(
        st.sampled_from([0, 1, 1 << 62, 1 << 63, (1 << 64) - 1, 0x10000, 0x30001, 1 << 40, (1 << 63) + 0x10000]),
        st.integers(0, (1 << 64) - 1),
    )
    for _ in range(data.draw(st.integers(1, 8))):
        place = min(data.draw(places), len(image) - 8)
        image[place : place + 8] = data.draw(values).to_bytes(8, "big")
    image = image[: data.draw(st.integers(1024, len(image)))] if data.draw(st.booleans()) else image
    try:
        layers = {str(at): Layer.of_qcow2(Buffer(image if at == index else each)) for at, each in enumerate(contents)}
        found = read_overlaps(layers, {"0": "1", "1": None})
    except BadImageError as error:
        if not str(error):
            raise
        return
    for name in layers:
        assert (
            0
            <= found.visible(name, "0")
            <= found.data(name)
            <= layers[name].virtual_size + layer_windows.LARGEST_CLUSTER
        )
    bounds = found.merge("1", "0", "1")
    assert bounds.growth_least <= bounds.growth_most
    assert 0 <= bounds.copies_least <= bounds.copies_most
