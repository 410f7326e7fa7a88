"""The settings of a store, in one table: name, default, parser, help, and why one may not change at run time.

`parse` turns what a user writes ("64MB", "900 1 300 10") into the value kept in
`Settings`.  Every setting but `memory` and `helper`, which belong to the program and
not to the data, is remembered in the store; an explicit argument beats the remembered
value, which beats the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

from tiered.errors import ConfigError
from tiered.eviction import POLICIES
from tiered.jitter import Bounds
from tiered.schedule import SavePoints

MEMORY_BYTES_MIN = 1 << 20
TTL_SECONDS_MAX = 10**10
SNAPSHOTS_MAX = 1_000_000
OBJECT_SHARE_MAX = 0.25
NUMBER_MAX = (1 << 63) - 1
"""What a store can remember of a size, of seconds, or of changes."""

_UNITS = {"": 1, "B": 1}
_UNITS |= {letter + rest: 1 << 10 * power for power, letter in enumerate("KMGT", 1) for rest in ("", "B", "IB")}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(value: object) -> int:
    """Bytes from an int or from text such as "64MB" or "1.5GiB"; 1 KB is 1 KiB, 1024 bytes, as in Redis."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)) and match[2].upper() in _UNITS:
        size = float(match[1]) * _UNITS[match[2].upper()]
        if size < NUMBER_MAX:
            return int(size)
    raise ConfigError(f"{value!r} is not a size; give bytes as an int, or text such as '64MB' or '1.5GB'")


def _memory(value: object) -> int:
    size = parse_size(value)
    if size < MEMORY_BYTES_MIN:
        raise ConfigError(f"memory={value!r} is too small; the least is 1MB")
    return size


def _disk(value: object) -> int | None:
    return None if value is None else parse_size(value)


def _choice(name: str, *allowed: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in allowed:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
        return str(value)

    return parse


def parse_save(value: object, name: str = "save") -> SavePoints:
    """Save points from "3600 1 300 100" or from [(3600, 1), (300, 100)]; "" or [] for none."""
    try:
        if isinstance(value, str):
            numbers = [int(word) for word in value.split()]
            pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        elif isinstance(value, Iterable):
            pairs = [(int(seconds), int(changes)) for seconds, changes in value]
        else:
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(
            f"{name}={value!r} is not a list of 'seconds changes' pairs, such as '900 1 60 1000'"
        ) from None
    if not all(0 <= seconds <= NUMBER_MAX and 1 <= changes <= NUMBER_MAX for seconds, changes in pairs):
        raise ConfigError(f"{name}={value!r}: seconds must be at least 0, changes at least 1, both below 2**63")
    return tuple(pairs)


def parse_compression(value: object) -> str:
    """A method and its level, normalised: "zstd" becomes "zstd:3"."""
    if isinstance(value, str):
        method, _, level = value.partition(":")
        bounds = {"zstd": (-7, 22, "3"), "zlib": (0, 9, "6")}.get(method)
        if value == "none":
            return value
        if bounds and re.fullmatch(r"-?\d+", level or bounds[2]):
            number = int(level or bounds[2])
            if bounds[0] <= number <= bounds[1]:
                return f"{method}:{number}"
    raise ConfigError(f"compression={value!r} is not 'zstd:LEVEL' (-7 to 22), 'zlib:LEVEL' (0 to 9) or 'none'")


def parse_ttl(value: object, name: str = "ttl") -> float | None:
    """Seconds to live, above zero, also from a `timedelta`, or None for never."""
    if value is None:
        return None
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= TTL_SECONDS_MAX:
        return value
    raise ConfigError(
        f"{name}={value!r} is no time to live; give seconds, above 0 and up to {TTL_SECONDS_MAX:,}, or None for ever"
    )


def _default_ttl(value: object) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,12}(\.\d+)?", value):
        value = float(value) if "." in value else int(value)
    return parse_ttl(value, "default_ttl")


def _snapshot_save(value: object) -> SavePoints:
    return parse_save(value, "snapshot_save")


def _snapshot_dir(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in os.fsdecode(value):
        raise ConfigError(f"snapshot_dir={value!r} is not None or the path of a directory")
    return os.path.abspath(os.fsdecode(value))


def _object_share(value: object) -> float:
    try:
        share = _number(value)
    except (ValueError, TypeError):
        share = -1.0
    if 0 <= share <= OBJECT_SHARE_MAX:
        return share
    raise ConfigError(f"object_share={value!r} is not a part of the memory, from 0 (none) to {OBJECT_SHARE_MAX}")


def _whole(name: str, least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value
        if isinstance(number, int) and not isinstance(number, bool) and least <= number <= most:
            return number
        raise ConfigError(f"{name}={value!r} is not a number from {least} to {most:,}")

    return parse


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("yes", "no"):
        return value == "yes"
    raise ConfigError(f"{value!r} is not True or False, nor 'yes' or 'no'")


def parse_bounds(name: str, value: object, least: float, most: float) -> Bounds:
    """Two numbers to draw one between, from "0.95 0.99", "95% 99%" or (0.95, 0.99); one alone is both."""
    words = value.split() if isinstance(value, str) else value
    try:
        numbers = [_number(word) for word in (words if isinstance(words, (list, tuple)) else [words])]
    except (ValueError, TypeError):
        numbers = []
    if len(numbers) in (1, 2) and least <= numbers[0] <= numbers[-1] <= most:
        return numbers[0], numbers[-1]
    raise ConfigError(f"{name}={value!r} is not one or two ascending numbers from {least:g} to {most:g}")


def _number(word: object) -> float:
    if isinstance(word, str):
        return float(word[:-1]) / 100 if word.endswith("%") else float(word)
    if isinstance(word, (int, float)) and not isinstance(word, bool):
        return float(word)
    raise TypeError


def _between(name: str, least: float, most: float) -> Callable[[object], Bounds]:
    return lambda value: parse_bounds(name, value, least, most)


class Setting(NamedTuple):
    """One row of the table of settings."""

    name: str
    default: object
    parser: Callable[[object], Any]
    help: str
    fixed: str = ""  # Why it cannot change while the store is open, "" if it can.
    remembered: bool = True

    def parse(self, value: object) -> Any:
        """The value as it is used.  Raises `ConfigError`, which names the setting."""
        try:
            return self.parser(value)
        except ConfigError as error:
            named = str(error).startswith(f"{self.name}=")
            raise ConfigError(str(error) if named else f"{self.name}={error}") from None

    @property
    def runtime(self) -> bool:
        """Whether it can change while the store is open."""
        return not self.fixed


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("memory", "64MB", _memory, "bytes for hot tier and write buffer, overheads included", remembered=False),
        Setting(
            "spill",
            True,
            _flag,
            "whether values may be in the cold tier only; False: writes beyond what memory holds are refused",
        ),
        Setting(
            "low_watermark",
            "0.95 0.99",
            _between("low_watermark", 0.1, 1.0),
            "share of the hot tier's budget that it is evicted down to when it was reached, drawn between these",
        ),
        Setting(
            "hot_value_share",
            "0.0625 0.125",
            _between("hot_value_share", 0.0, 0.125),
            "share of that budget above which a value is not kept hot when read, drawn between these",
        ),
        Setting(
            "promotion",
            "first",
            _choice("promotion", "first", "second"),
            "which read of a cold value makes it hot; second: one that follows another before long",
        ),
        Setting("warm_start", True, _flag, "whether the keys that are hot at close are read ahead at the next open"),
        Setting("advisor", False, _flag, "whether reads are sampled for `advise()`"),
        Setting(
            "cycle_seconds",
            "0.5 2",
            _between("cycle_seconds", 0.01, 3600.0),
            "from one periodic cycle (what expired, watermarks) to the next, drawn between these",
        ),
        Setting("eviction", "lru", _choice("eviction", *POLICIES), "which value leaves the hot tier first"),
        Setting(
            "object_share", 0.0625, _object_share, "part of the memory for hot documents kept decoded; 0: none are"
        ),
        Setting(
            "object_entries_max",
            512,
            _whole("object_entries_max", 0, NUMBER_MAX),
            "elements of a document kept so, at most, all told",
        ),
        Setting("object_value_bytes_max", "1KB", parse_size, "bytes of each text or number in it, at most"),
        Setting(
            "durability",
            "everysec",
            _choice("durability", "always", "everysec", "checkpoint"),
            "when the journal is synced: at every write, about every second, or at checkpoints only",
        ),
        Setting("save", "3600 1 300 100 60 10000", parse_save, "save points: checkpoint after SECONDS with CHANGES"),
        Setting("compression", "zstd:3", parse_compression, "how new records are compressed in the cold tier"),
        Setting("default_ttl", None, _default_ttl, "seconds to live where a write names none"),
        Setting("disk", None, _disk, "cap on the bytes used in the cold tier"),
        Setting(
            "disk_full",
            "error",
            _choice("disk_full", "error", "evict"),
            "at the cap: refuse writes, or delete what was not used lately",
        ),
        Setting("snapshot_save", "", _snapshot_save, "snapshots on schedule: after SECONDS with CHANGES"),
        Setting("snapshot_dir", None, _snapshot_dir, "where these go; None: a directory beside the store"),
        Setting(
            "snapshot_keep",
            7,
            _whole("snapshot_keep", 1, SNAPSHOTS_MAX),
            "how many of these stay; older ones are removed",
        ),
        Setting(
            "helper",
            True,
            _flag,
            "checkpoint in a helper process; False: in the calling thread",
            fixed="who writes the cold tier is chosen once, with the lock on it",
            remembered=False,
        ),
    )
}


class Settings(SimpleNamespace):
    """The settings in force in one store, parsed."""

    memory: int
    spill: bool
    low_watermark: Bounds
    hot_value_share: Bounds
    promotion: str
    warm_start: bool
    advisor: bool
    cycle_seconds: Bounds
    eviction: str
    object_share: float
    object_entries_max: int
    object_value_bytes_max: int
    durability: str
    save: SavePoints
    compression: str
    default_ttl: float | None
    disk: int | None
    disk_full: str
    snapshot_save: SavePoints
    snapshot_dir: str | None
    snapshot_keep: int
    helper: bool

    @classmethod
    def resolve(cls, explicit: Mapping[str, object], remembered: Mapping[str, object]) -> Settings:
        """Parse explicit arguments over remembered values over defaults.  Raises `ConfigError`."""
        for name in explicit:
            setting_named(name)
        merged = {name: setting.default for name, setting in SETTINGS.items()}
        merged |= {name: value for name, value in remembered.items() if name in SETTINGS}
        merged |= explicit
        return cls(**{name: SETTINGS[name].parse(value) for name, value in merged.items()})

    def remembered(self) -> dict[str, object]:
        """What a store keeps of its settings between opens."""
        return {name: value for name, value in vars(self).items() if SETTINGS[name].remembered}


def setting_named(name: str) -> Setting:
    """The setting called `name`; `ConfigError` naming all there are if there is none."""
    try:
        return SETTINGS[name]
    except KeyError:
        raise ConfigError(f"no setting {name!r}; there are {', '.join(sorted(SETTINGS))}") from None
