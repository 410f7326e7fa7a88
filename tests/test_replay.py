"""Replaying traces: formats, the optimum, and miss counts beside published ones and another simulator's."""

from __future__ import annotations

import gzip
import itertools
import lzma
import random
import struct
import sys
from pathlib import Path

import pytest
import zstandard

from tiered.eviction import POLICIES

TOOLS = Path(__file__).resolve().parents[1] / "tools"
PLACES = [parent / "shared" / "traces" for parent in TOOLS.parents[1:3]]
TRACES = next(filter(Path.is_dir, PLACES), PLACES[0])
sys.path.insert(0, str(TOOLS))
import replay  # noqa: E402
import traces  # noqa: E402

CLOUD = TRACES / "cloudPhysicsIO.oracleGeneral.bin"
GLI = TRACES / "gli.trace.gz"
published = pytest.mark.skipif(not TRACES.is_dir(), reason=f"the traces with published results are not in {TRACES}")
MB = 1 << 20

# libCacheSim, test/test_evictionAlgo.c: misses of 113,872 requests, 128, 256 … 1024 MiB.
CLOUD_MISSES = {
    "lru": [93374, 89783, 83572, 81722, 72494, 72104, 71972, 71704],
    "fifo": [93403, 89386, 84387, 84025, 72498, 72228, 72182, 72140],
    "sieve": [91699, 86720, 78578, 76707, 69945, 66221, 64445, 64376],
    "arc": [90252, 85861, 78168, 74297, 67381, 65685, 64439, 64772],
    # Of libcachesim 0.3.5 on PyPI.
    "s3fifo": [90117, 80915, 75060, 72191, 69815, 65542, 60799, 56045],
}
# BitFaster.Caching, pull request 131: hit ratios in %, 250, 500 … 2000 objects.
GLI_LRU = [0.91, 0.95, 1.15, 11.21, 21.25, 36.56, 45.04, 57.41]


def made(keys: list[int], sizes: list[int] | None = None) -> traces.Trace:
    return traces.Trace(keys, sizes or [1] * len(keys))


@published
@pytest.mark.parametrize("name", CLOUD_MISSES)
def test_misses_on_a_trace_of_sized_objects_are_the_published_ones(name: str) -> None:
    trace = traces.read(CLOUD)
    assert (len(trace.keys), len(set(trace.keys))) == (113_872, 48_974)
    for at in (0, 3, 7):
        assert replay.misses(name, trace, 128 * MB * (at + 1)) == CLOUD_MISSES[name][at]


@published
def test_hit_ratios_of_lru_on_a_trace_of_objects_of_equal_size_are_the_published_ones() -> None:
    trace = traces.read(GLI)
    assert (len(trace.keys), len(set(trace.keys))) == (6_015, 2_529)
    ratios = [100 - 100 * replay.misses("lru", trace, size) / 6_015 for size in range(250, 2001, 250)]
    assert [round(ratio, 2) for ratio in ratios] == GLI_LRU


@published
@pytest.mark.parametrize("seed", [1, 2])
def test_wtinylfu_is_never_more_than_a_point_below_lru(seed: int) -> None:
    trace = traces.read(GLI)
    for size in range(250, 2001, 250):
        lost = replay.misses("wtinylfu", trace, size, seed) - replay.misses("lru", trace, size)
        assert lost <= len(trace.keys) / 100
    trace = traces.read(CLOUD)
    for at in (0, 2, 4, 6) if seed == 1 else (1, 4, 7):
        lost = replay.misses("wtinylfu", trace, 128 * MB * (at + 1), seed) - CLOUD_MISSES["lru"][at]
        assert lost <= len(trace.keys) / 100


THEIRS = {"lru": "LRU", "fifo": "FIFO", "sieve": "Sieve", "arc": "ARC", "s3fifo": "S3FIFO"}


@pytest.mark.parametrize("kind", ["zipf", "scan", "loop", "sized"])
@pytest.mark.parametrize("name", THEIRS)
def test_misses_are_those_of_another_simulator(name: str, kind: str) -> None:
    simulator = pytest.importorskip("libcachesim", reason="libcachesim is not installed (a wheel of PyPI)")
    if kind == "sized":
        uniform = random.Random(5)
        of = [uniform.randrange(1, 60) for _ in range(1000)]
        keys = [int(uniform.paretovariate(0.6)) % 1000 for _ in range(8_000)]
        trace = made(keys, [of[key] for key in keys])
    else:
        trace = traces.synthetic(kind, 1000, 8_000)
    capacity = 2_000 if kind == "sized" else 130
    theirs, missed = getattr(simulator, THEIRS[name])(cache_size=capacity), 0
    for key, size in zip(trace.keys, trace.sizes, strict=True):
        request = simulator.Request()
        request.obj_id, request.obj_size = key, size
        missed += not theirs.get(request)
    assert replay.misses(name, trace, capacity) == missed


def test_no_policy_is_better_than_the_optimum_and_that_is_what_trying_everything_finds() -> None:
    uniform = random.Random(1)

    def fewest(keys: list[int], held: frozenset[int], capacity: int) -> int:
        for at, key in enumerate(keys):
            if key not in held:
                rest = keys[at + 1 :]
                if len(held) < capacity:
                    return 1 + fewest(rest, held | {key}, capacity)
                return 1 + min(fewest(rest, held - {gone} | {key}, capacity) for gone in held)
        return 0

    for _ in range(20):
        keys = [uniform.randrange(5) for _ in range(10)]
        assert traces.belady_misses(made(keys), 3) == fewest(keys, frozenset(), 3)
    for kind, capacity in itertools.product(("zipf", "scan"), (100,)):
        trace = traces.synthetic(kind, 1000, 3_000)
        optimum = traces.belady_misses(trace, capacity)
        for name in POLICIES:
            assert replay.misses(name, trace, capacity) >= optimum, name


def test_an_object_larger_than_the_cache_is_always_missed_and_evicts_nobody() -> None:
    trace = made([1, 2, 9, 1, 2, 9, 1, 2], [1, 1, 50, 1, 1, 50, 1, 1])
    assert {replay.misses(name, trace, 10) for name in [*POLICIES, "belady"]} == {4}


PACKERS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("ending", PACKERS)
def test_traces_of_all_formats_are_read_compressed_or_not(tmp_path: Path, ending: str) -> None:
    requests = [(7, 100), (8, 20), (7, 100), (10**17, 5)]
    files = {
        "a.txt": "".join(f"{key}\n" for key, _ in requests).encode() + b"*\n# a comment\n\n",
        "a.csv": b"time,object,size,next\n" + b"".join(b"1, %d, %d, -1\n" % request for request in requests),
        "a.oracleGeneral.bin": b"".join(struct.pack("<IQIq", 1, key, size, -1) for key, size in requests) + b"torn",
    }
    for name, data in files.items():
        path = tmp_path / (name + ending)
        path.write_bytes(PACKERS[ending](data))
        trace = traces.read(path)
        assert list(trace.keys) == [0, 1, 0, 2]
        assert list(trace.sizes) == ([1] * 4 if name == "a.txt" else [100, 20, 100, 5])
        assert list(traces.read(path, unit=True).sizes) == [1] * 4


def test_a_file_without_requests_is_an_error_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.txt"
    path.write_text("* nothing\n")
    for name in (str(path), str(tmp_path / "absent")):
        with pytest.raises(SystemExit):
            replay.main([name])
        assert name in capsys.readouterr().err


def test_the_table_and_the_picture_show_every_policy_and_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("".join(f"{random.Random(step).randrange(300)}\n" for step in range(2000)))
    replay.main([str(path), "--sizes", "50", "200", "--plot", str(tmp_path / "ratios.svg")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[-2:] == ["50", "200"]
    rows = {line.split()[0]: [float(field) for field in line.split()[1:]] for line in lines[3:]}
    assert set(rows) == {*POLICIES, "belady"}
    assert all(10 < small < large < 80 for small, large in rows.values())
    picture = (tmp_path / "ratios.svg").read_text()
    assert picture.count("<polyline") == 12
    assert all(f">{name}</text>" in picture for name in rows)
