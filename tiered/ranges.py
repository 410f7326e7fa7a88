"""Ordered iteration over all tiers, in pages.

Each page takes a moment of its own (`moment`) and is collected without the lock; its
transaction ends before the first item is given out.  A key that is there
throughout comes exactly once; one written or deleted meanwhile may come or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from tiered import codec, keys
from tiered.journal import Dirty
from tiered.moment import Item, Page, passing
from tiered.process import by_handler
from tiered.tiers import Tiers


class Range:
    """Bounds of encoded keys, and the direction to go in."""

    def __init__(self, lower: bytes = b"", upper: bytes | None = None, reverse: bool = False) -> None:
        self.lower, self.upper, self.reverse = lower, upper, bool(reverse)
        self.stored_lower, self.stored_upper = keys.stored_range(lower, upper)

    @classmethod
    def of(cls, prefix: object, start: object, stop: object, reverse: bool) -> Range:
        """The range of keys with a prefix and from `start` up to but without `stop`."""
        lower, upper = (b"", None) if prefix is None else keys.prefix_range(prefix)
        return cls(lower, upper, reverse).between(
            None if start is None else keys.encode(start), None if stop is None else keys.encode(stop)
        )

    def between(self, start: bytes | None, stop: bytes | None) -> Range:
        """What of this range lies from one encoded key on, up to but without another."""
        lower = self.lower if start is None else max(self.lower, start)
        upper = self.upper if stop is None else stop if self.upper is None else min(self.upper, stop)
        return Range(lower, upper, self.reverse)

    def reversed(self) -> Range:
        """The same range in the other direction."""
        return Range(self.lower, self.upper, not self.reverse)

    def holds(self, encoded: bytes) -> bool:
        """Whether a key lies in the range."""
        return encoded >= self.lower and (self.upper is None or encoded < self.upper)


class Pages(Protocol):
    """Where pages come from: `Moment.page`, or what takes a moment for each."""

    def __call__(self, start: bytes, stop: bytes | None, reverse: bool, values: bool) -> Page: ...


def live(tiers: Tiers) -> Pages:
    """Pages each of its own moment."""

    def page(start: bytes, stop: bytes | None, reverse: bool, values: bool) -> Page:
        with passing(tiers) as moment:
            return moment.page(start, stop, reverse, values)

    return page


def _batches(pages: Pages, bounds: Range, values: bool) -> Iterator[list[Item]]:
    start, stop = bounds.stored_lower, bounds.stored_upper
    while True:
        page, bound = pages(start, stop, bounds.reverse, values)
        if any(keys.is_long(stored_key) for stored_key, _ in page):
            page = [(found.full_key if keys.is_long(stored_key) else stored_key, found) for stored_key, found in page]
            page = [item for item in page if bounds.holds(item[0])]
        yield page
        if bound is None:
            return
        if bounds.reverse:
            stop = bound
        else:
            start = bound


def items(pages: Pages, bounds: Range, values: bool) -> Iterator[Item]:
    """Encoded keys of a range with their records; without `values`, payloads may be left out."""
    for batch in _batches(pages, bounds, values):
        yield from batch


def shown(tiers: Tiers, pages: Pages, bounds: Range, what: str) -> Iterator[Any]:
    """What an iteration of "keys", "values" or "items" gives.  Each is decoded when its turn comes."""
    decoders = codec.DECODERS
    for batch in _batches(pages, bounds, what != "keys"):
        for encoded, found in batch:
            try:
                if what == "keys":
                    one: Any = keys.decode(encoded)
                elif what == "values":
                    one = decoders[found[0]](found[3])
                else:
                    one = keys.decode(encoded), decoders[found[0]](found[3])
            except (ValueError, KeyError) as error:
                if by_handler(error):
                    raise
                one = shown_one(tiers, encoded, found, what)  # Which says what is wrong.
            yield one


def shown_one(tiers: Tiers, encoded: bytes, found: Dirty, what: str) -> Any:
    """The same of one record."""
    if what == "keys":
        return tiers.key_of(encoded)
    value = tiers.value_of(keys.stored(encoded), found)
    return value if what == "values" else (tiers.key_of(encoded), value)
