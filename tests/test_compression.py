"""Compression: what goes in comes out, frames are standard, dictionaries pay and follow the data."""

from __future__ import annotations

import json
import random
import sys
import threading
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tiered import files
from tiered.checkpoint import Applier
from tiered.cold import Cold
from tiered.compression import (
    NONE,
    ZLIB,
    ZSTD,
    Compressor,
    Decompressor,
    Dictionary,
    Trainer,
    payload_size,
)
from tiered.journal import PUT, Journal, SegmentFile

SETTINGS = ["zstd:3", "zstd:-5", "zstd:19", "zlib:6", "none"]
WORDS_A = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet"]
WORDS_B = ["Zürich", "Wien", "Łódź", "Kraków", "Brno", "Győr", "Graz", "Linz", "Ostrava", "Szeged"]


def documents_a(count: int, seed: int = 1) -> list[bytes]:
    """JSON of one shape, about 200 bytes each."""
    uniform = random.Random(seed)
    return [
        json.dumps(
            {
                "identifier": uniform.randrange(10**9),
                "callsign": uniform.choice(WORDS_A) + uniform.choice(WORDS_A),
                "status": uniform.choice(["active", "inactive", "suspended"]),
                "history": [uniform.choice(WORDS_A) for _ in range(5)],
                "score": uniform.random(),
            }
        ).encode()
        for _ in range(count)
    ]


def documents_b(count: int, seed: int = 2) -> list[bytes]:
    """Lines of another shape that shares nothing with it."""
    uniform = random.Random(seed)
    return [
        (
            f"<ort><name>{uniform.choice(WORDS_B)}</name><breite>{uniform.uniform(40, 60):.4f}</breite>"
            f"<laenge>{uniform.uniform(5, 25):.4f}</laenge><einwohner>{uniform.randrange(10**6)}</einwohner>"
            f"<partner>{uniform.choice(WORDS_B)}</partner></ort>"
        ).encode()
        for _ in range(count)
    ]


def trained(documents: list[bytes], number: int = 1) -> Dictionary:
    trainer = Trainer()
    trainer.observe(documents, 1, 1)
    found = trainer.train("zstd:3", None, number)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def dictionaries() -> dict[int, Dictionary]:
    return {1: trained(documents_a(2000), 1), 2: trained(documents_b(2000), 2)}


def decompressor(dictionaries: dict[int, Dictionary] | None = None) -> Decompressor:
    return Decompressor(lambda number: (dictionaries or {})[number].data)


@pytest.mark.parametrize("setting", SETTINGS)
@given(payload=st.one_of(st.binary(max_size=2000), st.text(max_size=300).map(lambda text: (text * 5).encode())))
@settings(max_examples=100, deadline=None)
def test_what_was_compressed_is_decompressed(setting, payload):
    kind, dictionary, body = Compressor(setting).compress(payload)
    assert dictionary == 0
    assert decompressor().decompress(kind, dictionary, body) == payload
    assert payload_size(kind, body) == len(payload)
    assert len(body) <= len(payload)


@pytest.mark.parametrize("size", [23, 24, 200, 65_536, 65_537, 3_000_000])
@pytest.mark.parametrize("setting", SETTINGS)
def test_payloads_of_every_size_come_back_with_a_dictionary_too(dictionaries, setting, size):
    payload = (b"".join(documents_a(200)) * (size // 30_000 + 1))[:size]
    kind, number, body = Compressor(setting, dictionaries[1]).compress(payload)
    assert decompressor(dictionaries).decompress(kind, number, body) == payload
    assert payload_size(kind, body) == size
    if setting.startswith("zstd") and size >= 200:
        assert kind == ZSTD
        assert number == (1 if size <= 65_536 else 0), "no dictionary for what is large by itself"
        assert len(body) < size


def test_a_dictionary_makes_small_documents_much_smaller(dictionaries):
    documents = documents_a(300, seed=9)
    plain, better = Compressor("zstd:3"), Compressor("zstd:3", dictionaries[1])
    without = sum(len(plain.compress(document)[2]) for document in documents)
    assert sum(len(better.compress(document)[2]) for document in documents) < 0.7 * without


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 23, random.Random(1).randbytes(5000)], ids=len)
def test_tiny_and_incompressible_payloads_are_stored_as_they_are(setting, payload):
    assert Compressor(setting).compress(payload) == (NONE, 0, payload)


def test_frames_are_standard_zstd(dictionaries):
    payload = documents_a(1, seed=5)[0]
    kind, number, body = Compressor("zstd:3", dictionaries[1]).compress(payload)
    assert (kind, number) == (ZSTD, 1)
    plain = zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(dictionaries[1].data))
    assert plain.decompress(body) == payload
    large = payload * 1000
    assert zstandard.ZstdDecompressor().decompress(Compressor("zstd:3", dictionaries[1]).compress(large)[2]) == large


def test_zlib_payloads_are_their_length_and_a_standard_stream():
    payload = b"the same again and again " * 20
    kind, _, body = Compressor("zlib:9").compress(payload)
    assert kind == ZLIB
    assert int.from_bytes(body[:4], "little") == len(payload)
    assert zlib.decompress(body[4:]) == payload


# Damage


def test_a_damaged_zstd_frame_is_a_value_error_or_at_least_not_a_crash(dictionaries):
    """A frame has no checksum of its own: the record's checksum is what tells a changed one."""
    payload = documents_a(1, seed=5)[0]
    _, number, body = Compressor("zstd:3", dictionaries[1]).compress(payload)
    reader = decompressor(dictionaries)
    for size in range(len(body)):
        with pytest.raises(ValueError):
            reader.decompress(ZSTD, number, body[:size])
    with pytest.raises(ValueError):
        reader.decompress(ZSTD, number, body + b"more")
    with pytest.raises(ValueError):
        reader.decompress(ZSTD, number, body + body)
    for position in range(len(body)):
        broken = bytearray(body)
        broken[position] ^= 0x41
        try:
            assert isinstance(reader.decompress(ZSTD, number, bytes(broken)), bytes)
        except ValueError:
            pass
    assert reader.decompress(ZSTD, number, body) == payload


def test_a_damaged_zlib_stream_is_a_value_error():
    payload = documents_a(1)[0] * 3
    _, _, body = Compressor("zlib:6").compress(payload)
    reader = decompressor()
    for size in range(len(body)):
        with pytest.raises(ValueError):
            reader.decompress(ZLIB, 0, body[:size])
    for position in range(len(body)):
        broken = bytearray(body)
        broken[position] ^= 0x41
        try:
            # The header of a stream has bits that do not matter; its checksum guards the rest.
            assert reader.decompress(ZLIB, 0, bytes(broken)) == payload
        except ValueError:
            pass
    with pytest.raises(ValueError):
        reader.decompress(ZLIB, 0, body + b"more")


@pytest.mark.parametrize("announced", [0, 10, 1 << 31])
def test_a_zlib_stream_of_another_length_than_announced_is_refused(announced):
    body = announced.to_bytes(4, "little") + zlib.compress(b"x" * 1000)
    with pytest.raises(ValueError, match="length"):
        decompressor().decompress(ZLIB, 0, body)


def test_a_frame_that_announces_more_than_any_value_is_refused_before_memory_is_taken():
    # Magic, a descriptor for an 8-byte content size in a single segment, 2**40 bytes.
    body = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(ValueError, match="larger than any value"):
        decompressor().decompress(ZSTD, 0, body)


def test_unknown_compression_ids_are_value_errors_and_unknown_dictionaries_key_errors():
    with pytest.raises(ValueError, match="unknown compression id 9"):
        decompressor().decompress(9, 0, b"")
    with pytest.raises(KeyError):
        decompressor().decompress(ZSTD, 77, Compressor("zstd").compress(b"x" * 100)[2])


@pytest.mark.parametrize(
    "body", [b"", b"\x28\xb5", b"no frame at all", b"\xff" * 20, b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8]
)
def test_the_size_of_damaged_bytes_is_a_number_that_can_be_counted(body):
    for kind in (NONE, ZSTD, ZLIB):
        assert 0 <= payload_size(kind, body) < 1 << 33


# Dictionaries


def test_tables_for_compression_are_computed_once_on_each_dictionary_object(dictionaries):
    """A second time would free tables that compressors made before still use."""
    computed: list[object] = []

    def watch(frame, event, called):
        if event == "c_call" and getattr(called, "__name__", "") == "precompute_compress":
            computed.append(called.__self__)  # Kept, so that no two have one address.

    dictionary = Dictionary(1, dictionaries[1].data)
    trainer = Trainer()
    trainer.observe(documents_b(1000), 1, 1)
    sys.setprofile(watch)
    try:
        for level in (1, 3, 3, 9):
            Compressor(f"zstd:{level}", dictionary)
        trainer.train("zstd:3", dictionary, 2)
    finally:
        sys.setprofile(None)
    assert len(computed) == 6, "one for each compressor, two of them for the trial"
    assert len(set(map(id, computed))) == 6


def test_threads_decompress_with_several_dictionaries_at_once(dictionaries):
    documents = {1: documents_a(150, seed=7), 2: documents_b(150, seed=8)}
    bodies = [
        (number, document, Compressor("zstd:3", dictionaries[number]).compress(document)[2])
        for number in (1, 2)
        for document in documents[number]
    ]
    bodies += [(0, document, Compressor("zstd:3").compress(document)[2]) for document in documents[1]]
    reader, start, wrong = decompressor(dictionaries), threading.Barrier(8), []

    def work(seed):
        uniform = random.Random(seed)
        start.wait()
        for _ in range(3000):
            number, document, body = uniform.choice(bodies)
            if reader.decompress(ZSTD, number, body) != document:
                wrong.append(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


# The trainer


def test_a_dictionary_is_adopted_only_if_it_makes_what_it_was_not_trained_on_a_tenth_smaller():
    uniform = random.Random(1)
    noise = [uniform.randbytes(200) for _ in range(1000)]
    trainer = Trainer()
    trainer.observe(noise, 1, 1)
    assert trainer.train("zstd:3", None, 1) is None
    trainer = Trainer()
    trainer.observe(documents_a(2000), 1, 1)
    first = trainer.train("zstd:3", None, 1)
    assert first is not None
    assert first.number == 1
    trainer = Trainer()
    trainer.observe(documents_a(2000, seed=77), 1, 1)
    assert trainer.train("zstd:3", first, 2) is None, "one like it gains nothing"
    trainer = Trainer()
    trainer.observe(documents_b(2000), 1, 1)
    second = trainer.train("zstd:3", first, 2)
    assert second is not None
    held_out = documents_b(300, seed=99)
    before = sum(len(Compressor("zstd:3", first).compress(document)[2]) for document in held_out)
    after = sum(len(Compressor("zstd:3", second).compress(document)[2]) for document in held_out)
    assert after <= 0.9 * before


def test_the_margin_is_measured_on_payloads_held_out(monkeypatch):
    """Numbers that repeat only in what is trained on must not count."""
    trainer = Trainer()
    uniform = random.Random(1)
    repeated = uniform.randbytes(400)
    samples = [uniform.randbytes(400) if index % 5 == 0 else repeated for index in range(1000)]
    trainer.observe(samples, 1, 1)
    assert trainer.train("zstd:3", None, 1) is None


def test_no_trial_comes_before_there_are_enough_samples_nor_with_too_few_to_train_on():
    trainer = Trainer()
    assert not trainer.due()
    documents = documents_a(Trainer.SAMPLES_MIN)
    trainer.observe(documents[:-1], 1000, 500)
    trainer.count(10_000)
    assert not trainer.due()
    trainer.observe(documents[-1:], 1000, 500)
    assert trainer.due()
    trainer = Trainer()
    trainer.observe(documents[:3], 1000, 500)
    assert trainer.train("zstd:3", None, 1) is None


def test_a_trial_comes_when_the_ratio_moves_in_either_direction():
    for moved in (300, 700):
        trainer = Trainer()
        trainer.observe(documents_a(1000), 1000, 500)
        trainer.count(1000)
        trainer.train("zstd:3", trained(documents_a(2000)), 2)
        trainer.observe(documents_a(10), 1000, 505)
        trainer.count(Trainer.DRIFT_SAMPLES_MIN)
        assert not trainer.due(), "a hundredth is no drift"
        trainer.observe(documents_a(10), 1000, moved)
        assert trainer.due()
        trainer.train("zstd:3", trained(documents_a(2000)), 2)
        assert not trainer.due()


def test_the_window_of_samples_is_bounded():
    trainer = Trainer()
    for _ in range(20):
        trainer.observe([b"x" * 16_000] * 100 + [b"y" * 17_000, b"z"], 1, 1)
    assert trainer.window_bytes <= Trainer.WINDOW_BYTES_MAX
    trainer = Trainer()
    trainer.observe([b"x" * 30] * 10_000, 1, 1)
    assert trainer.window_bytes <= 30 * Trainer.WINDOW_SAMPLES_MAX


# Drift, through whoever writes the cold tier


class Writing:
    """A cold tier fed with payloads through journal segments, with all slices done in between."""

    def __init__(self, directory: Path, setting: str = "zstd:3") -> None:
        self.directory = directory
        self.cold = Cold(files.cold_path(directory, 1), create=True)
        files.write_current(directory, 1)
        self.applier = Applier(directory, self.cold, setting)
        self.journal = Journal(directory, 1, 1, 0)
        self.keys = 0

    def feed(self, payloads: list[bytes]) -> float:
        """Write payloads under new keys; the ratio stored / packed of these records."""
        before = self.cold.state()
        segment = self.journal.open_segment(sum(len(payload) + 60 for payload in payloads), 1 << 22)
        for payload in payloads:
            self.journal.append(PUT, 0, b"key %012d" % self.keys, payload, 0, 0)
            self.keys += 1
        self.journal.close_segment(1)
        self.applier.apply([SegmentFile(segment.path)], segment.last)
        while self.applier.slice():
            pass
        self.journal.forget(segment, segment.last)
        after = self.cold.state()
        return (after.stored_bytes - before.stored_bytes) / (after.packed_bytes - before.packed_bytes)

    def close(self) -> None:
        self.applier.cold.close()


@pytest.mark.parametrize("swapped", [False, True], ids=["A then B", "B then A"])
def test_after_the_data_change_the_ratio_comes_within_a_tenth_of_a_store_that_saw_only_the_new(tmp_path, swapped):
    first, then = (documents_b, documents_a) if swapped else (documents_a, documents_b)
    (tmp_path / "both").mkdir()
    (tmp_path / "only").mkdir()
    both, only = Writing(tmp_path / "both"), Writing(tmp_path / "only")
    for seed in range(8):
        both.feed(first(1500, seed))
    assert both.cold.state().dictionary, "it was trained on the first data"
    ratio, best = 1.0, 1.0
    for seed in range(100, 112):
        ratio = both.feed(then(1500, seed))
        best = only.feed(then(1500, seed))
    both.close()
    only.close()
    assert ratio <= 1.10 * best, f"{ratio:.3f} against {best:.3f}"


def test_records_of_old_dictionaries_stay_readable_after_retraining_reopening_and_compaction(opener):
    store = opener(memory="1MB", durability="checkpoint", stepwise=True)
    expected = {}
    for round_, make in enumerate((documents_a, documents_b, documents_a, documents_b)):
        for part in range(4):
            batch = {f"{round_}:{part}:{at:05d}": text for at, text in enumerate(make(900, round_ * 10 + part))}
            store.update(batch)
            expected |= batch
            store.save()
            while store.tick() == 0.0:
                pass
    assert store.stats().dictionary_count >= 2
    used = {store.explain(key).dictionary for key in list(expected)[::50]}
    assert len(used) >= 2, "records of several dictionaries"
    assert dict(store.items()) == expected
    store.close()
    again = opener(memory="1MB", durability="checkpoint", stepwise=True)
    uniform = random.Random(1)
    for key in uniform.sample(sorted(expected), 500):
        assert again[key] == expected[key]
    before = again.stats().stored_bytes
    again.compact()
    assert dict(again.items()) == expected
    assert again.stats().stored_bytes <= before
    again.close()
    assert dict(opener(memory="1MB").items()) == expected


def test_a_change_of_compression_applies_to_new_records_and_old_ones_stay_readable(opener):
    store = opener(stepwise=True)
    text = "the same again and again " * 10
    for setting, name in (("zlib:6", "zlib"), ("none", "none"), ("zstd:1", "zstd")):
        store.config_set("compression", setting)
        store[setting] = text
        store.save()
        assert store.explain(setting).compression == name
    store._engine.hot.clear()
    assert dict(store.items()) == dict.fromkeys(("zlib:6", "none", "zstd:1"), text)
