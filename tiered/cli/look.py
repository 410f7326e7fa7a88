"""Commands that look into a store and change nothing.

What is in the memory of a program that has the store open is asked of that program (`control`); what is on disk is
read beside it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiered.cli import options, output, running
from tiered.cli.values import absent, reading

if TYPE_CHECKING:
    from tiered.control import Holder


CODECS = {1: "bytes", 2: "text", 3: "msgpack", 4: "msgpack", 5: "array"}


def holder(store: str) -> Holder | None:
    """The program that has the store open for writing."""
    from tiered import control

    return control.holder(Path(os.path.abspath(store)))


def ask(store: str, what: str, **arguments: Any) -> Any:
    """The answer of that program."""
    from tiered import control

    return control.ask(Path(os.path.abspath(store)), what, **arguments)


def name_of(field: str) -> str:
    """The name of a figure for people."""
    return field.removesuffix("_bytes").replace("_", " ")


def figure(field: str, value: Any) -> str:
    """A figure for people, its unit told by its name."""
    if value is None or value == "" or value == ():
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if field.endswith("_bytes"):
        return output.size(value)
    if field.endswith("_seconds"):
        return output.seconds(value)
    if field.endswith("_ratio"):
        return f"{value:.1%}"
    if field == "as_of":
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def rows(fields: dict[str, Any]) -> list[tuple[str, str]]:
    """Figures for people."""
    return [(name_of(field), figure(field, value)) for field, value in fields.items()]


def gathered(store: str) -> dict[str, Any]:
    """Figures of a store: those of the program that has it open, or, where none answers, of a reader; `source` says."""
    from tiered.errors import LockedError, ReadOnlyError, StoreError

    note = ""
    who = holder(store)
    if who is not None:
        try:
            return {"source": "writer", "note": "", **ask(store, "stats")}
        except (LockedError, ReadOnlyError) as error:
            note = str(error)
        except StoreError:
            if holder(store) == who:
                raise
    with reading(store) as reader:
        stats, memory = reader.stats(), reader.memory_stats()
    note = note or "no program has it open for writing: nothing of it is in memory"
    figures = {**stats._asdict(), "hit_ratio": stats.hit_ratio}
    return {"source": "reader", "note": note, "stats": figures, "memory": memory._asdict()}


@click.command("stats")
@options.store
@options.as_json
def stats_command(store: str, as_json: bool) -> None:
    """Figures of a store, or of the program that has it open."""
    found = gathered(store)
    if as_json:
        output.document(found)
        return
    output.figures([("", rows(found["stats"]))])
    _note(found)


def _note(found: dict[str, Any]) -> None:
    if found["source"] == "writer":
        output.write(f"\nas process {found['pid']} says, which has it open: {found['command']}")
    else:
        output.write(f"\nas read from its files: {found['note']}")


@click.command("memory")
@options.store
@click.option("--reclaim", is_flag=True, help="First checkpoint, evict everything, and give memory back.")
@options.as_json
def memory_command(store: str, reclaim: bool, as_json: bool) -> None:
    """Where the memory is, in the program that has the store open."""
    if holder(store) is None:
        with reading(store):
            pass  # What is wrong with the path is said first.
        raise running.Failure(f"{store}: no program has it open for writing, so nothing of it is in memory")
    reclaimed = ask(store, "reclaim")["reclaimed_bytes"] if reclaim else None
    found = ask(store, "stats")
    document = {"pid": found["pid"], "reclaimed_bytes": reclaimed, **found["memory"]}
    if as_json:
        output.document(document)
    else:
        left_out = ("pid", "reclaimed_bytes") if reclaimed is None else ("pid",)
        output.figures([("", rows({name: value for name, value in document.items() if name not in left_out}))])
        _note({"source": "writer", **found})


@click.command("explain")
@options.store
@options.key
@options.as_json
def explain_command(store: str, key: Any, as_json: bool) -> None:
    """Where a KEY is, and what it costs."""
    from tiered import keys
    from tiered.errors import LockedError, ReadOnlyError

    found = None
    with reading(store) as reader:
        if holder(store) is not None:
            try:
                found = ask(store, "explain", key=keys.encode(key).hex())
            except (LockedError, ReadOnlyError) as error:
                running.complain(f"{error}; as a reader sees it:")
        if found is None:
            try:
                found = reader.explain(key)._asdict()
            except KeyError:
                raise absent(reader, key) from None
    if as_json:
        output.document(found)
    else:
        output.figures([("", rows({**found, "codec": CODECS[found["codec"]]}))])


@click.command("doctor")
@options.store
@options.as_json
def doctor_command(store: str, as_json: bool) -> int:
    """What will hurt if it stays as it is. Status 5 if anything will."""
    found = diagnoses(store)
    if as_json:
        output.document(found)
    else:
        for each in found:
            output.write("{what}: {evidence}; {advice}".format(**each))
        if not found:
            output.write(f"{store}: nothing to be seen to")
    return running.ADVICE if found else running.DONE


def diagnoses(store: str) -> list[dict[str, str]]:
    """What the doctor says: that of the program that has the store open, or of a reader."""
    from tiered.errors import LockedError, ReadOnlyError

    if holder(store) is not None:
        try:
            return list(ask(store, "doctor"))
        except (LockedError, ReadOnlyError) as error:
            running.complain(f"{error}; as a reader sees it:")
    with reading(store) as reader:
        return [found._asdict() for found in reader.doctor()]


@click.command("check")
@options.store
@options.as_json
def check_command(store: str, as_json: bool) -> int:
    """Read all records, compare tiers and indexes, print what is wrong."""
    with reading(store) as reader:
        findings = reader.check()
    if as_json:
        output.document([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            output.write(f"{finding.what}: {finding.where}: {finding.detail}")
        if not findings:
            output.write(f"{store}: all is well")
    if findings:
        running.complain(f"{store}: damaged; see 'tiered-cli verify', and restore from a snapshot that verifies")
    return running.DAMAGED if findings else running.DONE
