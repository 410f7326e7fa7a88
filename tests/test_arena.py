"""The compiled arena: what it keeps equals what a plain model keeps, and its memory is what it says."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import random
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tiered import codec, keys
from tiered.arena import ArenaTier
from tiered.eviction import Policy
from tiered.native import native

pytestmark = pytest.mark.skipif(native is None, reason="needs the compiled part: a C compiler, and no TIERED_PURE=1")
MB = 1 << 20
SEED = bytes(range(16))
ROOT = Path(__file__).resolve().parent.parent

KEYS: list[Any] = ["", "a", "key:1", "é", "\ud800", "ключ" * 30, b"", b"a", b"\0\xff", "x" * 32_000]
KEYS += [0, 1, -1, 255, 256, -256, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64, -(2**70)]
KEYS += [(), ("a",), ("a", 1), ("a", ("b", b"c\0")), ("é", -5, 2**65), ("n" * 300, 1), ((((),),),), ("\0", b"\0\0")]
VALUES: list[Any] = ["", "text", "é" * 40, "\ud800", b"", b"bytes", None, True, False, 1.5, -0.0, float("inf")]
VALUES += [
    n for power in (5, 7, 8, 15, 16, 31, 32, 62, 63, 64) for n in (2**power, 2**power - 1, -(2**power), -(2**power) - 1)
]
VALUES += [[], [1, "a"], {"a": [1, {"b": 2}]}, (1, (2,)), {1, 2}, 3 + 4j, ["\ud800"]]


def arena(budget: int = MB) -> Any:
    return native.Arena(budget, keys.encode, codec.DECODERS, SEED)


def put(tier: Any, key: Any, value: Any, deadline: int = 0) -> bool:
    return bool(tier.put(key, *codec.encode(value), deadline))


def listed(tier: Any) -> list[Any]:
    return [keys.decode(encoded) for encoded in tier.encoded_keys()]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    tier = arena()
    assert put(tier, "k", value)
    found = tier.get("k")
    assert found == value
    assert type(found) is type(value)
    assert str(found) == str(value) or isinstance(value, set), "0.0 is not -0.0"
    assert tier.peek("k")[:3] == (*codec.encode(value), 0)


def test_every_kind_of_key_is_encoded_as_python_encodes_it() -> None:
    tier = arena(16 * MB)
    for number, key in enumerate(KEYS):
        assert put(tier, key, number)
    assert tier.encoded_keys() == [keys.encode(key) for key in KEYS]
    for number, key in enumerate(KEYS):
        assert tier.get(key) == number
        assert key in tier
        assert tier.discard(key)
        assert key not in tier
    assert len(tier) == 0


def test_keys_that_are_equal_are_the_same_key() -> None:
    class Name(str):
        __slots__ = ()

    tier = arena()
    put(tier, 1, "one")
    put(tier, "a", "text")
    put(tier, (1, "b"), "tuple")
    assert tier.get(True) == tier.get(1.0) == "one"
    assert tier.get(Name("a")) == "text"
    assert tier.get((True, Name("b"))) == "tuple"
    assert tier.get(b"a") is None


@pytest.mark.parametrize("bad", [1.5, None, [], ("a", None)])
def test_what_is_no_key_is_a_type_error(bad: Any) -> None:
    tier = arena()
    for use in (tier.get, tier.discard, tier.peek, tier.__contains__, lambda key: tier.put(key, 2, b"x", 0)):
        with pytest.raises(TypeError):
            use(bad)


def test_a_codec_that_is_unknown_is_not_kept_and_what_was_there_is_forgotten() -> None:
    tier = arena()
    put(tier, "k", 1)
    assert not tier.put("k", 6, b"of a later version", 0)
    assert tier.get("k") is None


def test_what_has_a_deadline_is_read_only_by_those_who_say_the_time() -> None:
    tier = arena()
    put(tier, "k", "v", 5_000)
    assert tier.get("k", "default") == "default"
    assert tier.get_at("k", 4_999, None) == "v"
    assert tier.get_at("k", 5_000, None) is None
    assert tier.deadline("k") == 5_000
    assert tier.deadline("other") is None
    put(tier, "k", "w")
    assert (tier.get("k"), tier.deadline("k"), tier.expiring) == ("w", 0, 0)


def test_what_is_due_is_forgotten_when_its_second_is_over_however_far_it_was_off() -> None:
    tier, uniform = arena(16 * MB), random.Random(4)
    start = 1_700_000_000_000
    deadlines = {
        number: start + uniform.choice((1, 900, 60_000, 5_000_000, 80_000_000)) * uniform.randrange(1, 9)
        for number in range(3000)
    }
    for number, deadline in deadlines.items():
        put(tier, number, number, deadline)
    for now in (start, start + 1000, start + 5000, start + 500_000, start + 500_001, start + 30_000_000, start + 10**9):
        while tier.expire(now, 100):
            assert tier.wrong() == ""
        for _ in range(100):  # Looks at those of later turns of the wheel too, a bounded number at a time.
            tier.expire(now, 100)
        left = {number for number, deadline in deadlines.items() if deadline // 1000 >= now // 1000}
        assert set(listed(tier)) == left
    assert tier.expiring == 0


def test_a_deadline_that_has_passed_when_it_is_put_is_forgotten_next() -> None:
    tier = arena()
    assert tier.expire(10_000_000, 10) == 0
    put(tier, "past", 1, 5_000)
    put(tier, "now", 1, 10_000_001)
    assert tier.expire(10_000_001, 10) == 1
    assert tier.expire(10_001_000, 10) == 1


@pytest.mark.parametrize(
    ("to", "uses", "order", "queue"),
    [((-1, -1, -1), 63, "abc", 0), ((0, 0, 0), 63, "bca", 0), ((2, 0, 0), 63, "bca", 0), ((1, 2, -1), 1, "bca", 2)],
)
def test_a_hit_does_what_a_policy_asks_for_and_no_more(
    to: tuple[int, int, int], uses: int, order: str, queue: int
) -> None:
    tier = arena()
    tier.steer(Policy(), uses, False, to, False)
    for letter in "abc":
        put(tier, letter, {"value": letter})
    for _ in range(300):
        tier.get("a")
    assert listed(tier) == list(order)
    assert tier.wrong() == ""
    found = []
    for _ in range(3):
        found.append(tier.oldest(queue)[2])
        tier.shift(queue, queue, found[-1])
    assert max(found) == uses


class AgainstAModel(RuleBasedStateMachine):
    """An `OrderedDict` that says what was put, in order of use: the arena holds the newest part of it."""

    names = st.one_of(st.integers(0, 400), st.sampled_from(KEYS), st.integers(0, 60).map(lambda n: "k" * n))
    sizes = st.one_of(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5_000), st.integers(0, 70_000))

    @initialize(budget=st.sampled_from([200_000, MB, 3 * MB]))
    def begin(self, budget: int) -> None:
        self.tier = arena(budget)
        self.model: OrderedDict[Any, tuple[bytes, int]] = OrderedDict()
        self.now = 1_000_000

    @rule(name=names, size=sizes, ttl=st.sampled_from([0, 0, 0, 500, 90_000, 5_000_000]), count=st.integers(1, 40))
    def put(self, name: Any, size: int, ttl: int, count: int) -> None:
        for number in range(count):
            key = name if number == 0 else (name, number)
            value = (b"%d," % len(self.model)) * (size // 3)
            self.model.pop(key, None)
            if put(self.tier, key, value, self.now + ttl if ttl else 0):
                self.model[key] = value, self.now + ttl if ttl else 0
            self.agree()

    @rule(name=names)
    def get(self, name: Any) -> None:
        found = self.tier.get(name, None)
        if found is not None:
            assert found == self.model[name][0]
            self.model.move_to_end(name)
        elif name in self.model:
            assert self.model[name][1]

    @rule(name=names)
    def get_at(self, name: Any) -> None:
        found = self.tier.get_at(name, self.now, None)
        alive = name in self.model and not 0 < self.model[name][1] <= self.now
        assert found == (self.model[name][0] if alive else None)
        if alive:
            self.model.move_to_end(name)

    @rule(name=names)
    def look(self, name: Any) -> None:
        assert (name in self.tier) == (name in self.model)
        found = self.tier.peek(name)
        assert (found and found[1:3]) == self.model.get(name)

    @rule(name=names)
    def discard(self, name: Any) -> None:
        assert self.tier.discard(name) == (self.model.pop(name, None) is not None)

    @rule()
    def evict(self) -> None:
        evicted = self.tier.evict()
        assert (evicted and keys.decode(evicted[0])) == (next(iter(self.model)) if self.model else None)
        self.agree()

    @rule(seconds=st.integers(0, 3000), limit=st.integers(1, 300))
    def expire(self, seconds: int, limit: int) -> None:
        self.now += seconds * 1000
        forgotten = self.tier.expire(self.now, limit)
        kept = set(listed(self.tier))
        gone = [name for name in self.model if name not in kept]
        assert len(gone) == forgotten <= limit
        assert all(0 < self.model.pop(name)[1] // 1000 < self.now // 1000 for name in gone)

    @rule(budget=st.sampled_from([150_000, 400_000, MB, 2 * MB, 8 * MB]))
    def resize(self, budget: int) -> None:
        self.tier.budget_bytes = budget
        # With another size of segments it begins anew, without what is too large for it now.
        kept = set(listed(self.tier))
        for name in list(self.model):
            if name not in kept and (kept & set(self.model)) and next(iter(self.model)) != name:
                assert len(self.model[name][0]) > budget // 8 or len(keys.encode(name)) > 8000
            if name not in kept:
                del self.model[name]
        while not self.tier.shrink():
            self.agree()
        self.agree()
        assert self.tier.used_bytes <= budget

    @rule()
    def clear(self) -> None:
        self.tier.clear()
        self.model.clear()

    def agree(self) -> None:
        """The order of use is exact, and what left is what was used longest ago."""
        while len(self.model) > len(self.tier):
            self.model.popitem(last=False)

    @invariant()
    def everything_adds_up(self) -> None:
        assert self.tier.wrong() == ""
        assert listed(self.tier) == list(self.model)
        assert self.tier.payload_bytes == sum(
            len(keys.encode(name)) + len(value) for name, (value, _) in self.model.items()
        )
        assert self.tier.expiring == sum(deadline > 0 for _, deadline in self.model.values())
        assert self.tier.payload_bytes <= self.tier.entry_bytes <= self.tier.used_bytes

    def teardown(self) -> None:
        while self.tier.evict():
            pass
        assert self.tier.wrong() == ""
        assert self.tier.entry_bytes == self.tier.payload_bytes == self.tier.outside_bytes == 0


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(("low", "high"), [(225, 275), (900, 1100), (30, 30_000)], ids=["250 B", "1,000 B", "mixed"])
def test_at_least_85_percent_of_the_budget_are_keys_and_values_under_churn(low: int, high: int) -> None:
    tier, uniform = arena(8 * MB), random.Random(1)
    noise = uniform.randbytes(MB)
    shares = []
    count = int(2 * 8 * MB / ((high - low) / math.log(high / low)))
    for step in range(4 * count):
        size = int(low * (high / low) ** uniform.random())
        at = uniform.randrange(len(noise) - size)
        put(tier, f"key:{uniform.randrange(count):08d}", noise[at : at + size])
        tier.get(f"key:{uniform.randrange(count):08d}")
        if step > 2 * count and step % 100 == 0:
            shares.append(tier.payload_bytes / tier.budget_bytes)
            assert tier.used_bytes <= tier.budget_bytes
    assert tier.wrong() == ""
    assert sum(shares) / len(shares) >= 0.85


MEMORY = r"""
import random, sys
from tiered import codec, keys, process
from tiered.native import native
budget = int(sys.argv[1]) << 20
uniform, noise = random.Random(1), random.Random(2).randbytes(1 << 20)
rss = process.rss_anon_bytes
before = rss()
tier = native.Arena(budget, keys.encode, codec.DECODERS, bytes(16))
assert rss() - before < 1 << 20, "memory was taken before it was needed"
highest = 0
def churn(low, high, written):
    global highest
    while written > 0:
        size = int(low * (high / low) ** uniform.random())
        at = uniform.randrange(len(noise) - size)
        tier.put(uniform.randrange(200_000), 1, noise[at : at + size], 0)
        written -= size + 40
        if not uniform.randrange(500):
            highest = max(highest, rss() - before)
for low, high in ((30, 300), (2_000, 60_000), (30, 60_000), (100_000, 900_000), (30, 300)):
    churn(low, high, 2 * budget)
assert tier.wrong() == ""
assert highest <= 1.02 * budget + (1 << 20), f"{highest / budget:.3f} of the budget"
assert highest >= 0.9 * budget
tier.budget_bytes = budget // 4
while not tier.shrink():
    pass
assert rss() - before <= budget // 4 + (1 << 20), f"{(rss() - before) / budget:.3f} of what it was before"
assert len(tier) > 100
tier.budget_bytes = 2 * budget
churn(30, 3_000, 4 * budget)
assert 1.8 * budget < rss() - before <= 2.04 * budget + (1 << 20)
tier.clear()
assert rss() - before < 2 << 20
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RssAnon")
@pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="a sanitizer takes memory of its own")
def test_the_memory_of_the_process_follows_the_budget_whatever_the_sizes_do_up_and_down() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, "16"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("budget", [0, 1, 100_000, MB, 100 * MB, 20 << 30, 100 << 30])
def test_budgets_from_nothing_to_many_gigabytes_take_memory_only_when_it_is_used(budget: int) -> None:
    tier = arena(budget)
    for number in range(2000):
        put(tier, number, b"x" * 200)
    assert tier.wrong() == ""
    assert tier.used_bytes < budget + 5 * MB
    assert len(tier) == 2000 if budget >= MB else len(tier) < 2000


def test_one_call_evicts_and_moves_a_bounded_part() -> None:
    tier = arena(64 * MB)
    for number in range(400_000):
        put(tier, number, b"x" * 100)
    count = len(tier)
    tier.budget_bytes = MB
    assert not tier.shrink()
    assert 1000 <= count - len(tier) <= 3000
    before, moved = len(tier), tier.moved_bytes
    put(tier, "new", "value")
    assert before - len(tier) <= 3000
    assert tier.moved_bytes - moved <= 4 * MB


def test_a_value_larger_than_a_quarter_of_a_segment_has_pages_of_its_own() -> None:
    tier = arena(4 * MB)
    size = 3 * tier.segment_bytes
    for number in range(8):
        assert put(tier, number, bytes([number]) * size)
    assert tier.outside_bytes >= 8 * size
    assert [tier.get(number) for number in range(8)] == [bytes([number]) * size for number in range(8)]
    put(tier, 3, "small")
    tier.discard(4)
    assert 6 * size <= tier.outside_bytes < 7 * size
    tier.clear()
    assert tier.outside_bytes == 0


def test_a_value_above_an_eighth_of_the_budget_is_not_kept_and_what_was_there_is_forgotten() -> None:
    tier = arena()
    put(tier, "k", "old")
    assert not put(tier, "k", b"x" * (MB // 8 + 1))
    assert "k" not in tier
    assert put(tier, "k", b"x" * (MB // 8))


@pytest.mark.parametrize("share", [0.11, 0.13, 0.17, 0.21, 0.24])
@pytest.mark.parametrize("mixed", [False, True])
def test_values_that_do_not_divide_a_segment_are_kept_without_moving_others_for_each(share: float, mixed: bool) -> None:
    """The ends of segments, into which none of them fits, are not room: nobody moves records to win them."""
    tier, uniform = arena(2 * MB), random.Random(3)
    size = int(share * tier.segment_bytes) - 40
    count = 4 * MB // size
    for number in range(8 * count):
        assert put(tier, number % count, bytes(size if not mixed or number % 3 else uniform.randrange(size)))
        tier.get(uniform.randrange(count))
    assert tier.wrong() == ""
    assert tier.moved_bytes <= 4 * tier.evicted_bytes
    assert tier.payload_bytes >= 0.65 * tier.budget_bytes
    for budget in (MB, MB // 2, MB // 4):
        tier.budget_bytes = budget
        steps = 1
        while not tier.shrink():
            steps += 1
            assert steps < 20
        assert tier.used_bytes <= budget


def test_a_fork_leaves_the_child_an_empty_arena_of_its_own_and_the_parent_all_it_had() -> None:
    tier = arena(4 * MB)
    for number in range(5000):
        put(tier, number, f"value {number}", 1000 if number % 7 == 0 else 0)
    put(tier, "large", b"x" * 200_000)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert tier.get(1) is None
            assert len(tier) == 0
            assert tier.encoded_keys() == []
            assert tier.evict() is None
            assert tier.wrong() == ""
            for number in range(3000):
                assert put(tier, number, "the child's")
            assert tier.get(1) == "the child's"
            assert tier.expire(10_000, 100) == 0
            assert len(tier) == 3000
            assert tier.outside_bytes == 0
            assert tier.wrong() == ""
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert len(tier) == 5001
    assert tier.get(1) == "value 1"
    assert tier.get("large") == b"x" * 200_000
    assert tier.wrong() == ""


@pytest.mark.parametrize("child_first", [True, False])
def test_ending_an_arena_in_a_child_leaves_the_parents(child_first: bool) -> None:
    tier = arena()
    put(tier, "k", "v")
    child = os.fork()
    if child == 0:
        if child_first:
            tier.clear()
        del tier
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert tier.get("k") == "v"


def test_damage_anywhere_in_links_and_sizes_is_found() -> None:
    found, uniform = set(), random.Random(2)
    tier = arena()
    for number in range(60):
        put(tier, number, "x" * number, 5000 if number % 3 == 0 else 0)
    for number in range(5, 60, 5):
        tier.discard(number)
    assert tier.wrong() == ""
    # Of the first record, in which nothing is zero by chance: next of its bucket, older, newer, size of the value
    # and of the key.  The segment begins with a unit that is nobody's.
    first = tier.address + 4
    for at in [*range(18)] * 20:
        record = ctypes.string_at(first, 18)
        ctypes.memset(first + at, record[at] ^ uniform.randrange(1, 256), 1)
        wrong = tier.wrong()
        ctypes.memmove(first, record, 18)
        assert wrong, at
        found.add(wrong)
        assert tier.wrong() == ""
    assert len(found) >= 4, found


def test_a_finalizer_that_uses_the_arena_in_the_middle_of_a_read_changes_no_value() -> None:
    tier = arena()

    class Decoding:
        """Stands in for a decoder whose work collects garbage: everything is overwritten before it goes on."""

        def __call__(self, payload: bytes) -> Any:
            tier.clear()
            for number_ in range(2000):
                tier.put(number_, 1, b"overwritten" * 20, 0)
            return codec.decode(codec.MSGPACK, payload)

    tier = native.Arena(MB, keys.encode, {**codec.DECODERS, codec.MSGPACK: Decoding()}, SEED)
    put(tier, "k", {"a": [1, 2, 3]})
    assert tier.get("k") == {"a": [1, 2, 3]}
    assert tier.wrong() == ""


def test_a_key_whose_encoding_uses_the_arena_is_encoded_before_anything_is_looked_up() -> None:
    def encode(key: Any) -> bytes:
        tier.clear()
        put(tier, 5, "put meanwhile")
        return keys.encode(key)

    tier = native.Arena(MB, encode, codec.DECODERS, SEED)
    put(tier, 5, "old")
    assert tier.get(5.0) == "put meanwhile"
    assert tier.put(6.0, 2, b"text", 0)
    assert tier.discard(7.0) is False
    assert 5.0 in tier
    assert tier.wrong() == ""


def test_threads_read_and_write_while_the_budget_goes_up_and_down() -> None:
    tier, stop, failures = arena(4 * MB), threading.Event(), []

    def work(number: int) -> None:
        uniform = random.Random(number)
        try:
            while not stop.is_set():
                key = uniform.randrange(3000)
                if uniform.random() < 0.5:
                    put(tier, key, f"{key}:" + "x" * uniform.randrange(3000))
                else:
                    found = tier.get(key)
                    assert found is None or found.startswith(f"{key}:")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for step in range(60):
        tier.budget_bytes = (1, 8, 2, 16, 3, 40)[step % 6] * MB
        while not tier.shrink():
            pass
        assert tier.wrong() == ""
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tier.wrong() == ""


def test_the_collector_is_told_of_a_class_as_often_as_an_arena_refers_to_it() -> None:
    assert gc.get_referents(ArenaTier("lru", MB)).count(ArenaTier) == 1


LOCKED = """
import ctypes, os, sys
from tiered import codec, keys
from tiered.native import native
tier = native.Arena(1 << 20, keys.encode, codec.DECODERS, bytes(16))
for number in range(2000):
    tier.put(number, 2, b"value", 0)
if ctypes.CDLL(None, use_errno=True).mlockall(1):
    sys.exit("not allowed")
tier.clear()
assert (tier.get(7), len(tier), tier.wrong()) == (None, 0, ""), (tier.get(7), len(tier), tier.wrong())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mlockall")
def test_nothing_is_left_of_what_was_cleared_where_the_memory_is_locked() -> None:
    done = subprocess.run([sys.executable, "-c", LOCKED], capture_output=True, text=True, timeout=60)
    if "not allowed" in done.stderr:
        pytest.skip("the system does not let this user lock memory")
    assert (done.returncode, done.stderr) == (0, "")


def test_keys_made_to_collide_under_one_seed_do_not_under_another() -> None:
    """Two arenas put the same keys into different buckets: their order in the index is not what tells them apart."""
    names = [f"key:{number}" for number in range(2000)]
    one, other = (native.Arena(MB, keys.encode, codec.DECODERS, seed) for seed in (SEED, os.urandom(16)))
    for name in names:
        put(one, name, name)
        put(other, name, name)
    assert one.encoded_keys() == other.encoded_keys()
    # The first word of a record is the next of its bucket.
    chains = [ctypes.string_at(tier.address, 60_000) for tier in (one, other)]
    assert chains[0] != chains[1]


def test_the_fuzzer_finds_nothing_in_a_short_run(tmp_path: Path) -> None:
    """The core without Python, as tools/sanitize.sh runs it for longer and under the sanitizers."""
    compiler = os.environ.get("CC", "cc")
    sources = [
        ROOT / "tools/fuzz/arena.c",
        *(ROOT / "tiered/compiled").glob("arena*.c"),
        ROOT / "tiered/compiled/segments.c",
        ROOT / "tiered/compiled/sketch.c",
    ]
    built = subprocess.run(
        [compiler, "-std=c11", "-O1", "-o", str(tmp_path / "fuzz"), *map(str, sources)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    for seed in ("1", "2"):
        ran = subprocess.run([str(tmp_path / "fuzz"), seed, "20000"], capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stderr) == (0, "")
