"""Commands that bring many records into a store and out of it: load, dump."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tiered.cli import options, output, running

if TYPE_CHECKING:
    from tiered.cli.running import Progress
    from tiered.migrate import Migration
    from tiered.store import Store

    Load = Callable[[Store[Any, Any], Progress | None, bool], Migration]

FORMAT_NAMES = ("jsonl", "msgpack", "csv")
SOURCES = ("shelve", "diskcache", "sqlitedict")
WRITE_BYTES = 1 << 18
PROGRESS_RECORDS = 1000
VIEW_SECONDS_MAX = 10.0 * 365 * 86400
"""A dump is of one moment, however long it takes."""
MEMORY = "64MB"
PICKLES = (
    "{} holds pickles, and reading one can run any code that its writer chose; "
    "--allow-pickle says that you trust everybody who could write to it"
)

_format = click.option(
    "--format", "name", type=click.Choice(FORMAT_NAMES), help="Else by the ending of FILE, or JSON lines."
)


@click.command("dump")
@options.store
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@_format
@click.option(
    "--fields", metavar="A,B,...", help="For CSV: these fields of documents as columns. Not to be loaded again."
)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@options.quiet
def dump_command(store: str, file: str, name: str | None, fields: str | None, force: bool, quiet: bool) -> int:
    """Write all records of STORE, as they are at one moment, to FILE, or to stdout (-).

    Formats: JSON lines, msgpack, CSV. 'load' brings each back as it was, times to live included. A program may
    have the store open, and go on.
    """
    import tiered
    from tiered.cli import formats

    chosen = formats.named(name, file)
    columns = tuple(fields.split(",")) if fields else ()
    if columns and chosen is not formats.FORMATS["csv"]:
        raise running.Failure("--fields is for CSV", running.USAGE)
    if file != "-" and os.path.lexists(file) and not force:
        raise running.Failure(f"{file}: is there already; --force replaces it")
    with ExitStack() as stack:
        reader = stack.enter_context(tiered.open(store, "r", memory=MEMORY, helper=False))
        view = stack.enter_context(reader.view(VIEW_SECONDS_MAX))
        total = len(view)
        progress = stack.enter_context(running.bar(f"dump of {store}", quiet))
        records = _counted(view.records(), total, progress)
        written = _write(chosen.write(records, columns), file)
    if not quiet:
        print(f"{store}: {total:,} records, {written:,} bytes", file=sys.stderr)
    return running.DONE


def _counted(records: Iterator[Any], total: int, progress: Progress | None) -> Iterator[Any]:
    if progress is None:
        yield from records
        return
    for number, record in enumerate(records):
        if number % PROGRESS_RECORDS == 0:
            progress(number, total)
        yield record


def _write(parts: Iterator[bytes], file: str) -> int:
    """Write it; how many bytes."""
    return sum(map(sys.stdout.buffer.write, parts)) if file == "-" else written(Path(file), parts)


def written(file: Path, parts: Iterable[bytes]) -> int:
    """Write a file as a whole or not at all; how many bytes."""
    from tiered.files import Replacement

    if not file.parent.is_dir():
        raise running.Failure(f"{file}: no directory {file.parent}; make it first")
    replacement = Replacement(file)
    try:
        pending: list[bytes] = []
        size = 0
        for part in parts:
            pending.append(part)
            size += len(part)
            if size > WRITE_BYTES:
                replacement.write([b"".join(pending)])
                pending.clear()
                size = 0
        replacement.write([b"".join(pending)])
        replacement.sync()
        replacement.commit()
    finally:
        replacement.abandon()
    return replacement.size


@click.command("load")
@options.store
@click.argument("file", type=click.Path(allow_dash=True), default="-")
@_format
@click.option("--key", metavar="FIELD", help="Each row is an object, to be kept under what it has in FIELD.")
@click.option("--numbers", is_flag=True, help="For CSV with --key: cells that look like numbers are numbers.")
@click.option("--from", "source", type=click.Choice(SOURCES), help="FILE is of another package.")
@click.option("--table", default="unnamed", show_default=True, help="For sqlitedict.")
@click.option(
    "--allow-pickle", is_flag=True, help="Read pickles, which can run any code: only if you trust their writer."
)
@click.option("--strict", is_flag=True, help="Stop at the first row that cannot be taken.")
@click.option("--memory", metavar="SIZE", default=MEMORY, show_default=True, help="For the store, while it loads.")
@options.quiet
@options.as_json
def load_command(store: str, file: str, memory: str, strict: bool, quiet: bool, as_json: bool, **given: Any) -> int:
    """Write what FILE holds, or stdin (-), into STORE, which is made if there is none.

    Reads what 'dump' writes, JSON lines and CSV of others (--key), and shelve, diskcache and sqlitedict (--from).
    Rows that cannot be taken are reported, and the rest is written; the exit status is 6 then, as where FILE breaks
    off. No other program may have the store open for writing.
    """
    import tiered
    from tiered.errors import CorruptionError, StoreError

    with (
        _source(file, **given) as (run, position),  # First: no store is made for a file that is not there.
        tiered.open(store, memory=memory) as writer,
        running.bar(f"loading {store}", quiet) as progress,
    ):
        before = writer.stats().last_sequence
        try:
            result = run(writer, progress, strict)
        except StoreError as error:
            if isinstance(error, CorruptionError) or writer.stats().last_sequence == before:
                raise
            said = running.in_words_of_the_command_line(str(error))
            raise running.Failure(f"{said}; the rows before it are written", running.PARTLY) from None
    _report(result, position, file, strict)
    if as_json:
        rows = [row._asdict() for row in result.bad_rows]
        counts = {name: getattr(result, name) for name in ("read", "written", "expired", "bad")}
        output.document({**counts, "bad_rows": rows})
    elif not quiet:
        more = f", {result.expired:,} expired" if result.expired else ""
        more += f", {result.bad:,} not taken" if result.bad else ""
        output.write(f"{store}: {result.read:,} rows read, {result.written:,} written{more}")
    return running.PARTLY if result.bad else running.DONE


@contextmanager
def _source(
    file: str,
    *,
    name: str | None,
    key: str | None,
    numbers: bool,
    source: str | None,
    table: str,
    allow_pickle: bool,
) -> Iterator[tuple[Load, str]]:
    """What loads a file into a store, and what the position of a row counts."""
    from tiered import migrate
    from tiered.cli import formats

    if source is None:
        chosen = formats.named(name, file)
        with _opened(file) as opened:
            rows = chosen.read(opened, key, numbers)
            yield lambda store, progress, strict: migrate.write(rows, store, None, progress, strict), chosen.position
        return
    if file == "-":
        raise running.Failure(f"--from {source} needs a file, not a pipe", running.USAGE)
    if not allow_pickle and source != "diskcache":
        raise running.Failure(PICKLES.format(file), running.USAGE)

    def run(store: Store[Any, Any], progress: Progress | None, strict: bool) -> Migration:
        if source == "shelve":
            return migrate.from_shelve(file, store, allow_pickle=allow_pickle, progress=progress, strict=strict)
        if source == "diskcache":
            return migrate.from_diskcache(file, store, allow_pickle=allow_pickle, progress=progress, strict=strict)
        return migrate.from_sqlitedict(file, store, table, allow_pickle=allow_pickle, progress=progress, strict=strict)

    yield run, "key" if source == "shelve" else "row"


@contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with open(file, "rb") as opened:
        yield opened


def _report(result: Migration, position: str, file: str, strict: bool) -> None:
    """A line on stderr for each row that was not taken, as far as they are known."""
    for row in result.bad_rows:
        running.complain(f"{file}: {position} {row.position}: {row.reason}")
    if result.bad > len(result.bad_rows):
        running.complain(f"{file}: and {result.bad - len(result.bad_rows):,} more rows that were not taken")
    if strict and result.bad:
        running.complain(f"{file}: stopped there; the {result.written:,} rows before it are written")
