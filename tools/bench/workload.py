"""The data and the access sequences that every benchmark shares.

Documents are a function of their number and a seed, so any value that comes back from a store can be checked without
keeping the original. Part random (numbers, coordinates, a token), part words of a fixed vocabulary, they take about
260 bytes packed and half of that compressed with a trained dictionary.

A `Workload` is the data set written to files once: a process under test then spends 2 µs on fetching a document, not
20 on making it, and holds nothing in memory that would blur what the store itself takes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import sys
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgpack

# A checkout is measured as it is, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

CHUNK = 1000
T = TypeVar("T")

_made = random.Random("vocabulary")
_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "il")]


def _words(count: int, longest: int) -> list[str]:
    return ["".join(_made.choices(_SYLLABLES, k=_made.randint(2, longest))) for _ in range(count)]


_WORDS, _FIRST, _LAST, _CITIES, _STREETS = _words(600, 4), _words(80, 3), _words(300, 4), _words(200, 4), _words(200, 3)
_TAGS = ["new", "gold", "trial", "partner", "internal", "press", "beta", "churned", "invoice", "manual", "mobile"]
_DOMAINS = ["example.com", "example.org", "mail.example.net", "post.example.de"]


def document(number: int, seed: int = 0) -> dict[str, Any]:
    """The document of that number: the same in every process."""
    rng = random.Random(seed * 1_000_000_007 + number)
    pick = rng.choice
    first, last = pick(_FIRST), pick(_LAST)
    return {
        "id": number,
        "name": f"{first.title()} {last.title()}",
        "email": f"{first}.{last}{rng.randrange(100)}@{pick(_DOMAINS)}",
        "city": pick(_CITIES).title(),
        "visits": int(rng.expovariate(0.01)),
        "balance": rng.randrange(10_000_000) / 100,
        "active": rng.random() < 0.8,
        "tags": rng.sample(_TAGS, rng.randrange(4)),
        "address": {
            "street": f"{pick(_STREETS).title()} {rng.randrange(1, 200)}",
            "zip": f"{rng.randrange(100_000):05d}",
            "at": [rng.uniform(-90, 90), rng.uniform(-180, 180)],
        },
        "token": f"{rng.getrandbits(64):016x}",
        "text": " ".join(rng.choices(_WORDS, k=rng.randrange(3, 10))),
    }


def log_line(number: int, seed: int = 0) -> dict[str, Any]:
    """A record with nothing in common with `document`: for data that drifts."""
    rng = random.Random(seed * 1_000_000_009 + number)
    return {
        "@timestamp": f"2024-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}T{rng.randrange(86400)}Z",
        "severity": rng.choice(["DEBUG", "INFO", "NOTICE", "WARNING"]),
        "request": {
            "method": rng.choice(["GET", "GET", "POST", "PUT"]),
            "uri": f"/api/v3/{rng.choice(_CITIES)}/{rng.choice(_STREETS)}?page={rng.randrange(100)}",
            "user_agent": f"Mozilla/5.0 (X11; Linux x86_64; rv:{rng.randrange(90, 130)}.0) Gecko/20100101",
            "remote": ".".join(str(rng.randrange(256)) for _ in range(4)),
        },
        "response": {"status": rng.choice([200, 200, 200, 304, 404, 500]), "microseconds": rng.randrange(200_000)},
        "trace": f"{rng.getrandbits(64):016x}",
    }


def key(number: int) -> str:
    return f"user:{number:08d}"


def zipf(population: int, count: int, rng: random.Random, s: float = 1.0) -> array[int]:
    """`count` numbers below `population`, the r-th most popular as often as 1 / r^s; chance decides which that is."""
    popular = list(range(population))
    rng.shuffle(popular)
    weights = list(itertools.accumulate(1 / rank**s for rank in range(1, population + 1)))
    return array("I", rng.choices(popular, cum_weights=weights, k=count))


@dataclass(frozen=True)
class Workload:
    """Documents in the (random) order they are inserted in, and positions in that order to read."""

    directory: str
    records: int
    seed: int
    packed_bytes: int

    @classmethod
    def prepare(cls, directory: str | Path, records: int, reads: int, seed: int = 0) -> Workload:
        folder, rng, packed_bytes = Path(directory), random.Random(seed), 0
        order = array("I", range(records))
        rng.shuffle(order)
        with open(folder / "documents", "wb") as out:
            for number in order:
                packed = msgpack.packb(document(number, seed))
                packed_bytes += len(packed) + len(key(number))
                out.write(packed)
        sequences = {"order": order, "skewed": zipf(records, reads, rng)}
        sequences["uniform"] = array("I", (rng.randrange(records) for _ in range(reads)))
        for name, numbers in sequences.items():
            (folder / name).write_bytes(numbers.tobytes())
        made = cls(str(folder), records, seed, packed_bytes)
        (folder / "workload.json").write_text(json.dumps(asdict(made)))
        return made

    @classmethod
    def load(cls, directory: str | Path) -> Workload:
        return cls(**json.loads((Path(directory) / "workload.json").read_text()))

    def sequence(self, name: str) -> array[int]:
        numbers = array("I")
        numbers.frombytes((Path(self.directory) / name).read_bytes())
        return numbers

    def pairs(self, records: int | None = None) -> Iterator[list[tuple[str, dict[str, Any]]]]:
        """Chunks of (key, document) in insertion order."""
        order = self.sequence("order")[:records]
        with open(Path(self.directory) / "documents", "rb") as packed:
            documents = msgpack.Unpacker(packed)
            for start in range(0, len(order), CHUNK):
                numbers = order[start : start + CHUNK]
                yield [(key(number), document) for number, document in zip(numbers, documents, strict=False)]

    def reads(self, name: str, loaded: int) -> Iterator[tuple[Sequence[str], Any]]:
        """Chunks of keys to read among the first `loaded` inserted, each with the document its last key has."""
        order = self.sequence("order")
        numbers = array("I", (order[at] for at in self.sequence(name) if at < loaded))
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            yield [key(number) for number in chunk], document(chunk[-1], self.seed)


@contextlib.contextmanager
def temporary_folder(parent: str | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tiered-bench-", dir=parent) as folder:
        yield Path(folder)


def open_store(path: str | Path, **settings: Any) -> Any:
    import tiered

    return tiered.open(path, **settings)


@contextlib.contextmanager
def temporary_store(*, dir: str | None = None, **settings: Any) -> Iterator[Any]:
    """A store in a folder of its own, both gone afterwards; `dir` is the folder's parent."""
    with temporary_folder(dir) as folder, open_store(folder / "store", **settings) as store:
        yield store


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
