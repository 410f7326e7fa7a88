"""What mypy makes of programs that use `tiered`: types of results, and wrong uses that are errors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from mypy import api

ROOT = Path(__file__).resolve().parents[1]
HEAD = """
from typing import Any
import tiered
from tiered import aio
Document = dict[str, int]
users: tiered.Store[str, Document] = tiered.open("users")
counts: tiered.Store[str, int] = tiered.open("counts")
def first_of(txn: tiered.Transaction[str, Document]) -> tuple[str, int]:
    return 'a', len(txn)
def length(text: str) -> int:
    return len(text)
async def late_length(text: str) -> int:
    return len(text)
async def later(store: aio.AsyncStore[str, Document]) -> None:
"""

# An expression, and the type that it reveals.
REVEALED = {
    "tiered.open('x')": "Store[Any, Any]",
    "tiered.open('x')['k']": "Any",
    "users": "Store[str, dict[str, int]]",
    "users['a']": "dict[str, int]",
    "users.get('a')": "dict[str, int] | None",
    "users.get('a', None)": "dict[str, int] | None",
    "users.get('a', {})": "dict[str, int]",
    "users.get('a', 0)": "dict[str, int] | int",
    "users.pop('a')": "dict[str, int]",
    "users.pop('a', None)": "dict[str, int] | None",
    "users.popitem()": "tuple[str, dict[str, int]]",
    "users.setdefault('a', {})": "dict[str, int]",
    "users.get_many(['a'])": "dict[str, dict[str, int]]",
    "users.delete_many(['a'])": "int",
    "users.keys()": "KeysView[str]",
    "users.values()": "ValuesView[dict[str, int]]",
    "users.items()": "ItemsView[str, dict[str, int]]",
    "users.items(prefix='a', reverse=True)": "ItemsView[str, dict[str, int]]",
    "[key for key in users]": "list[str]",
    "dict(users.items())": "dict[str, dict[str, int]]",
    "next(reversed(users))": "str",
    "len(users)": "int",
    "'a' in users": "bool",
    "users.ttl('a')": "float | None",
    "users.touch('a', 5)": "bool",
    "counts.incr('a')": "int",
    "counts.incr('a', 2)": "int",
    "users.transaction()": "Transaction[str, dict[str, int]]",
    "users.transaction().__enter__()['a']": "dict[str, int]",
    "users.transaction().get('a')": "dict[str, int] | None",
    "users.transaction().pop('a', None)": "dict[str, int] | None",
    "users.transact(first_of)": "tuple[str, int]",
    "users.transact(lambda txn: txn['a'])": "dict[str, int]",
    "users.view()": "View[str, dict[str, int]]",
    "users.view().__enter__().get('a')": "dict[str, int] | None",
    "users.view().items()": "ItemsView[str, dict[str, int]]",
    "users.edit('a').__enter__()": "dict[str, int]",
    "users.edit('a', {}).__enter__()": "dict[str, int]",
    "users.transaction().edit('a').__enter__()": "dict[str, int]",
    "users.sub('x')": "Sub[Any, dict[str, int]]",
    "users.sub('x')['a']": "dict[str, int]",
    "users.sub('x').pop('a', None)": "dict[str, int] | None",
    "users.sub('x').sub('y')": "Sub[Any, dict[str, int]]",
    "users.sub('x').view().__enter__().get('a')": "dict[str, int] | None",
    "users.sub('x').transaction().__enter__()": "Sub[Any, dict[str, int]]",
    "users.view().sub('x')": "SubView[Any, dict[str, int]]",
    "users.__enter__()": "Store[str, dict[str, int]]",
    "users.memoize(ttl=5)(length)('a')": "int",
    "users.memoize()(length).cache_info()": "CacheInfo",
    "await users.memoize()(late_length)('a')": "int",
    "await store.memoize()(late_length)('a')": "int",
    "users.stats()": "Stats",
    "users.check()": "list[Finding]",
    "aio.AsyncStore(users)": "AsyncStore[str, dict[str, int]]",
    "await aio.open('x')": "AsyncStore[Any, Any]",
    "await aio.open('x').__aenter__()": "AsyncStore[Any, Any]",
    "await store['a']": "dict[str, int]",
    "await store.get('a')": "dict[str, int] | None",
    "await store.get('a', {})": "dict[str, int]",
    "await store.pop('a')": "dict[str, int]",
    "await store.pop('a', None)": "dict[str, int] | None",
    "await store.setdefault('a', {})": "dict[str, int]",
    "await store.get_many(['a'])": "dict[str, dict[str, int]]",
    "await store.count()": "int",
    "[key async for key in store.keys(prefix='a')]": "list[str]",
    "[item async for item in store.items()]": "list[tuple[str, dict[str, int]]]",
    "await store.transaction().__aenter__()": "AsyncTransaction[str, dict[str, int]]",
    "await store.view().__aenter__()": "AsyncView[str, dict[str, int]]",
    "await store.edit('a').__aenter__()": "dict[str, int]",
    "await store.transact(first_of)": "tuple[str, int]",
    "await store.sub('x').get('a')": "dict[str, int] | None",
}

WRONG = [
    "users[1] = {}",
    "users['a'] = 'text'",
    "users['a'] = {'a': 'text'}",
    "users[1]",
    "users.memoize()(length)(1)",
    "users.get(1)",
    "users.pop(1)",
    "users.set('a', 1)",
    "users.set('a', {}, ttl='soon')",
    "users.setdefault('a', 1)",
    "users.set_many({1: {}})",
    "users.update({'a': 1})",
    "users.update(a=1)",
    "counts.incr('a', 'x')",
    "counts.incr('a', 0.5)",
    "del users[1]",
    "users.view()['a'] = {}",
    "users.transaction()['a'] = 1",
    "users.edit('a', 1)",
    "users.nothing",
    "tiered.open(5)",
    "await store.set('a', 1)",
    "await store.get(1)",
    "store['a'] = {}",
    "first: Document = await store.get('a')",
]
# Codes of mypy for a type that does not fit; which of them it is depends on its version.
MISFITS = {"arg-type", "assignment", "attr-defined", "call-overload", "dict-item", "index"}


@pytest.fixture(scope="module")
def said() -> Iterator[dict[int, list[str]]]:
    """What mypy says of each line of a program of all of them: one run, since it takes seconds."""
    directory = Path(mkdtemp())
    try:
        lines = [f"    reveal_type({expression})" for expression in REVEALED] + [f"    {wrong}" for wrong in WRONG]
        program = directory / "program.py"
        program.write_text(HEAD + "\n".join(lines) + "\n")
        config = directory / "mypy.ini"
        config.write_text(
            f"[mypy]\nstrict = True\nmypy_path = {ROOT}\n[mypy-msgpack.*]\nignore_missing_imports = True\n"
        )
        out, problems, _ = api.run(
            ["--config-file", str(config), "--cache-dir", str(directory / "cache"), "--no-error-summary", str(program)]
        )
        assert problems == ""
        found: dict[int, list[str]] = {}
        for line in out.splitlines():
            match = re.match(r".*program\.py:(\d+): (.*)", line)
            assert match, f"mypy complains of something else: {line}"
            found.setdefault(int(match[1]) - HEAD.count("\n") - 1, []).append(match[2])
        yield found
    finally:
        shutil.rmtree(directory)


def short(revealed: str) -> str:
    """A revealed type without its modules, and with `X | None` for `Union[X, None]`."""
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", revealed.replace("*", ""))
    text = re.sub(r"tuple\[[^\[\]]*, fallback=(\w+)\]", r"\1", text)  # A named tuple, as some versions of mypy show it.
    text = re.sub(r"\b(Dict|List|Tuple)\[", lambda match: match[0].lower(), text)
    while match := re.search(r"\bUnion\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", text):
        parts = re.sub(r", (?![^\[]*\])", " | ", match[1])
        text = text[: match.start()] + parts + text[match.end() :]
    return text


@pytest.mark.parametrize("expression", REVEALED)
def test_an_expression_has_the_type_that_a_reader_would_expect(said: dict[int, list[str]], expression: str) -> None:
    notes = said.get(list(REVEALED).index(expression), [])
    revealed = [short(match[1]) for note in notes if (match := re.search(r'Revealed type is "(.*)"', note))]
    assert revealed == [REVEALED[expression]], notes
    assert len(notes) == 1, notes


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_use_is_an_error(said: dict[int, list[str]], wrong: str) -> None:
    notes = said.get(len(REVEALED) + WRONG.index(wrong), [])
    codes = [match[1] for note in notes if (match := re.search(r"error: .*\[([a-z-]+)\]$", note))]
    assert len(codes) == 1, notes
    assert set(codes) <= MISFITS, notes
