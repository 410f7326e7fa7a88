"""`inspect`: the one page that says what a store is, how it is, and what is in it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiered.cli import options, output, running
from tiered.cli.look import diagnoses, figure, holder
from tiered.cli.settings import shown
from tiered.cli.values import reading

if TYPE_CHECKING:
    from rich.tree import Tree

BAR = 30


@click.command("inspect")
@options.store
@click.option("--exact", is_flag=True, help="Look at every record, however many there are.")
@options.as_json
def inspect_command(store: str, exact: bool, as_json: bool) -> int:
    """All about a store on one page."""
    found = inspected(store, exact)
    if as_json:
        output.document(found)
    else:
        _print(found)
    if not found["census"]["unreadable"]:
        return running.DONE
    running.complain(f"{store}: damaged; 'tiered-cli verify' says where, and 'tiered-cli repair' saves the rest")
    return running.DAMAGED


def inspected(store: str, exact: bool = False) -> dict[str, Any]:
    """What there is to say of a store, under names that stay."""
    from tiered import files
    from tiered.cli import census

    who = holder(store)
    with reading(store) as reader:
        engine, stats = reader._engine, reader.stats()
        state, directory = engine.state, Path(reader.path)
        counts, method = census.taken(engine, stats.records, exact)
        segments = [files.segment_path(directory, number) for number in files.segment_numbers(directory)]
        lag, pid = engine.cold.oldest_reader()
        settings = reader.config_get()
        result = {
            "path": reader.path,
            "as_of": stats.as_of,
            "health": "",
            "writer": None if who is None else who._asdict(),
            "records": stats.records,
            "logical_bytes": state.key_bytes + state.packed_bytes,
            "key_bytes": state.key_bytes,
            "packed_bytes": state.packed_bytes,
            "stored_bytes": state.stored_bytes,
            "file_bytes": stats.disk_bytes,
            "used_bytes": stats.disk_used_bytes,
            "free_bytes": stats.disk_free_bytes,
            "compression_ratio": state.packed_bytes / state.stored_bytes if state.stored_bytes else None,
            "dictionary": state.dictionary,
            "dictionary_count": stats.dictionary_count,
            "checkpoint": {"records": state.records, "sequence": state.applied, "time": state.time_ms / 1000},
            "journal": {
                "segments": len(segments),
                "bytes": sum(path.stat().st_size for path in segments if path.exists()),
                "records": stats.dirty_records,
                "last_sequence": stats.last_sequence,
            },
            "snapshots": _snapshots(directory, settings["snapshot_dir"]),
            "readers": max(0, engine.cold.readers()),
            "oldest_reader": {"commits": lag, "pid": pid},
            "damaged_bytes": stats.damaged_bytes,
            "settings": {name: value for name, value in settings.items() if name not in ("memory", "helper")},
            "census": {"method": method, **counts.document(stats.records)},
        }
    found = diagnoses(store)
    unreadable = counts.unreadable
    ills = [f"damaged: {unreadable:,} of the records looked at cannot be read"] if unreadable else []
    result["health"] = "; ".join(ills + [each["what"] for each in found]) or "well"
    return result


def _snapshots(directory: Path, setting: str | None) -> dict[str, Any]:
    from tiered import retention

    where = retention.directory_of(directory, setting)
    there = retention.snapshots(where, str(directory))
    newest = there[-1] if there else None
    return {
        "directory": str(where),
        "count": len(there),
        "newest": str(newest[0]) if newest else None,
        "newest_as_of": newest[1].as_of_ms / 1000 if newest else None,
    }


def _moment(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "never"


def _print(found: dict[str, Any]) -> None:
    journal, checkpoint, snapshots, writer = (found[name] for name in ("journal", "checkpoint", "snapshots", "writer"))
    ratio = found["compression_ratio"]
    lag = found["oldest_reader"]
    behind = f", the oldest {lag['commits']:,} commits behind (process {lag['pid']})" if lag["commits"] else ""
    newest = f", the newest as of {_moment(snapshots['newest_as_of'])}" if snapshots["count"] else ""
    held = "nobody" if writer is None else f"process {writer['pid']}, {writer['command']}, since {writer['since']}"
    output.figures(
        [
            (
                os.path.basename(found["path"]),
                [
                    ("health", found["health"]),
                    ("records", f"{found['records']:,}, as of {_moment(found['as_of'])}"),
                    ("open for writing by", held),
                    ("reading now", f"{found['readers']:,}{behind}"),
                ],
            ),
            (
                "sizes, as of the last checkpoint",
                [
                    ("keys and values", figure("_bytes", found["logical_bytes"])),
                    ("values, packed", figure("_bytes", found["packed_bytes"])),
                    ("compressed", f"{figure('_bytes', found['stored_bytes'])}{f', {ratio:.2f} : 1' if ratio else ''}"),
                    ("dictionaries", f"{found['dictionary_count']}{_current(found['dictionary'])}"),
                    ("files", f"{figure('_bytes', found['file_bytes'])}, {_pages(found)}"),
                ],
            ),
            (
                "durability",
                [
                    ("last checkpoint", f"{_moment(checkpoint['time'])}, {checkpoint['records']:,} records"),
                    ("journal", f"{journal['records']:,} records in {journal['segments']} segments, {_size(journal)}"),
                    ("save points", shown("save", found["settings"]["save"]) or "none"),
                    ("snapshots", f"{snapshots['count']}{newest}"),
                ],
            ),
            ("settings", [(name, shown(name, value)) for name, value in found["settings"].items() if name != "save"]),
        ]
    )
    _print_census(found["census"], found["records"])


def _current(number: int) -> str:
    return f", number {number} in use" if number else ""


def _pages(found: dict[str, Any]) -> str:
    return f"{output.size(found['used_bytes'])} in use, {output.size(found['free_bytes'])} in free pages"


def _size(journal: dict[str, Any]) -> str:
    return output.size(journal["bytes"])


def _print_census(census: dict[str, Any], records: int) -> None:
    from rich.text import Text
    from rich.tree import Tree

    from tiered.cli.census import histogram_label

    said = {
        "exact": f"all {census['counted']:,} records",
        "sample": f"about, from a sample of {census['counted']:,} of {records:,}; --exact looks at all",
        "places": f"roughly, from {census['counted']:,} of {records:,} records; --exact looks at all",
    }[census["method"]]
    tree = Tree(Text(f"keys ({said})", style="bold"))
    _grow(tree, census["keys"])
    out = output.console()
    out.print()
    out.print(tree)
    sizes = {histogram_label(each["bytes_max"]): each["count"] for each in census["value_sizes"]}
    output.write("")
    output.figures(
        [
            ("types of values", _bars(census["value_types"])),
            ("sizes of values, packed", _bars(sizes)),
            ("times to live, up to", _bars(census["ttls"])),
            ("unreadable", [("records", f"{census['unreadable']:,}")] if census["unreadable"] else []),
        ]
    )


def _grow(tree: Tree, children: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from tiered.cli.census import label

    for child in children:
        text = f"{label(child)}  {child['count']:,}, {output.size(child['bytes'])}"
        _grow(tree.add(Text(text)), child["children"])


def _bars(counts: dict[str, int]) -> list[tuple[str, str]]:
    most = max(counts.values(), default=0)
    return [
        (name, f"{'█' * max(1, round(BAR * count / most)):<{BAR}}  {count:,}")
        for name, count in counts.items()
        if count
    ]
