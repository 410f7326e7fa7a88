"""Commands for single keys and ranges of them.  Values are shown and taken as JSON, in the `notation`.

Reading beside a program that writes shows what its calls had returned from by then.  What writes needs the store
for itself.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import click

from tiered.cli import options, output, running


def reading(path: str) -> Any:
    """The store, opened to be read beside whoever has it."""
    import tiered

    return tiered.open(path, "r", helper=False)


def writing(path: str, create: bool = False) -> Any:
    """The store, opened to be written."""
    import tiered

    return tiered.open(path, "c" if create else "w", helper=False)


def absent(store: Any, key: Any) -> running.Failure:
    """What is said of a key that is not there: if the same word in another notation is, that."""
    from tiered.cli import notation

    other: Any = str(key) if type(key) is int else int(key) if type(key) is str and key.isdecimal() else None
    hint = f"; there is {notation.key_text(other)}, give it as '{notation.key_text(other)}'"
    known = other is not None and other in store
    return running.Failure(f"no key {notation.key_text(key)}{hint if known else ''}", running.ABSENT)


@click.command("get")
@options.store
@options.key
@click.option("--raw", is_flag=True, help="A text or bytes as they are, without quotes or a line's end.")
@options.as_json
def get_command(store: str, key: Any, raw: bool, as_json: bool) -> None:
    """Print the value of a KEY, as JSON."""
    from tiered.cli import notation

    with reading(store) as reader:
        try:
            value = reader[key]
        except KeyError:
            raise absent(reader, key) from None
        if raw:
            _write_raw(value)
        elif as_json:
            ttl = reader.ttl(key)
            shown = {"key": notation.key_to_json(key), "value": notation.to_json(value), "ttl_seconds": ttl}
            output.document(shown)
        else:
            output.line(notation.to_json(value))


def _write_raw(value: Any) -> None:
    if type(value) is str:
        value = value.encode("utf-8", "surrogatepass")
    if type(value) is not bytes:
        raise running.Failure(f"a {type(value).__name__} is neither text nor bytes; leave out --raw")
    sys.stdout.buffer.write(value)


@click.command("set")
@options.store
@options.key
@click.argument("value")
@click.option("--ttl", callback=options.seconds_of, help="Time to live, 90 or 15m; else the store's default.")
@click.option("--raw", is_flag=True, help="VALUE is a text as it is.")
@click.option("--bytes", "as_bytes", is_flag=True, help="VALUE is bytes as they are.")
@click.option("--create", is_flag=True, help="Make the store if there is none.")
def set_command(store: str, key: Any, value: str, ttl: float | None, raw: bool, as_bytes: bool, create: bool) -> None:
    """Write a VALUE under a KEY.

    VALUE is JSON, or a text as it is; - reads it from stdin.
    """
    given = _given(value, raw, as_bytes)
    with writing(store, create) as writer:
        if ttl is None:
            writer[key] = given
        else:
            writer.set(key, given, ttl=ttl)


def _given(text: str, raw: bool, as_bytes: bool) -> Any:
    from tiered.cli import notation

    data = sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape")
    if as_bytes:
        return data
    try:
        return data.decode() if raw else notation.parse_value(data.decode())
    except ValueError as error:
        raise running.Failure(f"VALUE: {error}", running.USAGE) from None


@click.command("del")
@options.store
@click.argument("keys", nargs=-1, required=True, callback=options.keys_of)
def del_command(store: str, keys: tuple[Any, ...]) -> None:
    """Delete KEYS; prints how many there were."""
    with writing(store) as writer:
        deleted = writer.delete_many(keys)
    if not deleted:
        raise running.Failure("none of these keys is there", running.ABSENT)
    output.write(str(deleted))


def ranged(command: Any) -> Any:
    """The options that choose a range of keys."""
    for option in (
        click.option("--prefix", callback=options.key_of, help="Only keys that begin so: a text, or an array."),
        click.option("--start", callback=options.key_of, help="From this key on."),
        click.option("--stop", callback=options.key_of, help="Up to this key, without it."),
        click.option("--reverse", is_flag=True, help="The last first."),
        click.option("-n", "--limit", type=click.IntRange(min=0), help="So many at most."),
    ):
        command = option(command)
    return command


def _limited(found: Iterator[Any], limit: int | None) -> Iterator[Any]:
    from itertools import islice

    return islice(found, limit)


@click.command("keys")
@options.store
@ranged
@click.option("--raw", is_flag=True, help="Texts as they are, without quotes; other keys are left out.")
@options.as_json
def keys_command(store: str, limit: int | None, raw: bool, as_json: bool, **bounds: Any) -> None:
    """Print keys in key order, one a line, as JSON."""
    from tiered.cli import notation

    with reading(store) as reader:
        for key in _limited(iter(reader.keys(**bounds)), limit):
            if raw:
                if type(key) is str:
                    output.write(key)
            else:
                output.line({"key": notation.key_to_json(key)} if as_json else notation.key_to_json(key))


@click.command("scan")
@options.store
@ranged
@options.as_json
def scan_command(store: str, limit: int | None, as_json: bool, **bounds: Any) -> None:
    """Print keys and values in key order, one pair a line.

    Key, tabulator, value, both as JSON.
    """
    from tiered.cli import notation

    with reading(store) as reader:
        for key, value in _limited(iter(reader.items(**bounds)), limit):
            shown_key, shown = notation.key_to_json(key), notation.to_json(value)
            if as_json:
                output.line({"key": shown_key, "value": shown})
            else:
                output.write(f"{notation.dumps(shown_key)}\t{notation.dumps(shown)}")


@click.command("ttl")
@options.store
@options.key
@options.as_json
def ttl_command(store: str, key: Any, as_json: bool) -> None:
    """Print the seconds that a KEY has left to live, or "never"."""
    with reading(store) as reader:
        try:
            ttl = reader.ttl(key)
        except KeyError:
            raise absent(reader, key) from None
    if as_json:
        output.document({"ttl_seconds": ttl})
    else:
        output.write("never" if ttl is None else f"{ttl:.3f}")


@click.command("expire")
@options.store
@options.key
@click.argument("seconds", callback=options.lifetime_of)
def expire_command(store: str, key: Any, seconds: float) -> None:
    """Give a KEY so many SECONDS to live from now on, or 15m, 2h, 7d, "never"."""
    with writing(store) as writer:
        if not writer.touch(key, None if seconds == math.inf else seconds):
            raise absent(writer, key)


@click.command("type")
@options.store
@options.key
@options.as_json
def type_command(store: str, key: Any, as_json: bool) -> None:
    """Print the type of a KEY's value."""
    from tiered.errors import UnknownTypeError

    with reading(store) as reader:
        try:
            name = type(reader[key]).__name__
        except KeyError:
            raise absent(reader, key) from None
        except UnknownTypeError as error:
            name = error.name
    if as_json:
        output.document({"type": name})
    else:
        output.write(name)
