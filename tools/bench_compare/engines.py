"""The rivals, each as its documentation suggests for dict values, with zstd and a cache of the budget if it has one.

Every engine is opened on an empty or existing directory, is a mapping from str to documents, and knows how to get
everything onto the disk (`flush`) and how to give space back (`compact`, None where there is no such thing).
"""

from __future__ import annotations

import pickle
import shelve
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack


def _nothing() -> None:
    pass


def _no_figures() -> dict[str, Any]:
    return {}


@dataclass
class Engine:
    mapping: Any
    note: str
    flush: Callable[[], object] = _nothing
    close: Callable[[], object] = _nothing
    compact: Callable[[], object] | None = None
    after_chunk: Callable[[], object] = _nothing  # every 1,000 writes
    figures: Callable[[], dict[str, Any]] = _no_figures


def open_tiered(path: Path, budget_bytes: int) -> Engine:
    import tiered

    store: Any = tiered.open(path, memory=budget_bytes)

    def figures() -> dict[str, Any]:
        return dict(store.stats()._asdict())

    return Engine(store, "defaults: zstd:3, everysec", store.save, store.close, store.compact, figures=figures)


def _open_rocksdict(path: Path, budget_bytes: int, dictionary_bytes: int) -> Engine:
    from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict

    options, blocks = Options(), BlockBasedOptions()
    options.set_compression_type(DBCompressionType.zstd())
    options.set_compression_options(-14, 3, 0, dictionary_bytes)  # window bits: default, level 3, strategy: default
    options.set_zstd_max_train_bytes(100 * dictionary_bytes)
    blocks.set_block_cache(Cache(budget_bytes))
    blocks.set_bloom_filter(10, False)
    options.set_block_based_table_factory(blocks)
    store: Any = Rdict(str(path), options)
    compression = "zstd:3 with dictionaries" if dictionary_bytes else "zstd:3"
    note = f"pickle, {compression}, block cache = budget, bloom filter, journal not synced"
    return Engine(store, note, store.flush, store.close, lambda: store.compact_range(None, None))


def open_rocksdict(path: Path, budget_bytes: int) -> Engine:
    return _open_rocksdict(path, budget_bytes, 0)


def open_rocksdict_dictionaries(path: Path, budget_bytes: int) -> Engine:
    return _open_rocksdict(path, budget_bytes, 32 * 1024)


def open_diskcache(path: Path, budget_bytes: int) -> Engine:
    import diskcache

    cache: Any = diskcache.Cache(str(path), size_limit=2**62, cull_limit=0, eviction_policy="none")

    def pragma(statement: str) -> None:
        connection = sqlite3.connect(path / "cache.db", timeout=60)
        connection.execute(statement)
        connection.close()

    return Engine(
        cache,
        "pickle, no eviction, no size limit, autocommit (it has nothing else)",
        lambda: pragma("PRAGMA wal_checkpoint(TRUNCATE)"),
        cache.close,
        lambda: pragma("VACUUM"),
    )


def open_sqlitedict(path: Path, budget_bytes: int) -> Engine:
    import sqlitedict

    file = path / "data.sqlite"
    store: Any = sqlitedict.SqliteDict(str(file), autocommit=False)

    def vacuum() -> None:
        connection = sqlite3.connect(file, timeout=60)
        connection.execute("VACUUM")
        connection.close()

    note = "pickle, commit every 1,000 writes"
    return Engine(store, note, store.commit, store.close, vacuum, after_chunk=store.commit)


def open_zict(path: Path, budget_bytes: int) -> Engine:
    import zict

    disk: Any = zict.LMDB(str(path))
    buffer: Any = zict.Buffer({}, disk, budget_bytes, weight=lambda key, packed: len(key) + len(packed))

    def flush() -> None:
        buffer.evict_until_below_target(0)
        disk.db.sync(True)

    def close() -> None:
        # Reading moves a value out of LMDB into memory: closing the buffer as it stands would lose what was read last.
        flush()
        buffer.close()

    note = "Func(msgpack) over Buffer over LMDB, weight = packed bytes; flushed and synced by this test, not by itself"
    return Engine(zict.Func(msgpack.packb, msgpack.unpackb, buffer), note, flush, close)


def open_shelve(path: Path, budget_bytes: int) -> Engine:
    file = str(path / "data")
    store: Any = shelve.open(file, protocol=pickle.HIGHEST_PROTOCOL)  # noqa: SIM115
    compact = getattr(store.dict, "reorganize", None)
    return Engine(store, f"pickle, {type(store.dict).__module__}", store.sync, store.close, compact)


def open_dict(path: Path, budget_bytes: int) -> Engine:
    return Engine({}, f"everything in memory, nothing on disk, Python {sys.version.split()[0]}")


ENGINES: dict[str, Callable[[Path, int], Engine]] = {
    "tiered": open_tiered,
    "rocksdict": open_rocksdict,
    "rocksdict+dictionaries": open_rocksdict_dictionaries,
    "zict": open_zict,
    "diskcache": open_diskcache,
    "sqlitedict": open_sqlitedict,
    "shelve": open_shelve,
    "dict": open_dict,
}
