"""The README's examples run.

Python blocks with prompts (`>>>`) are run by doctest, output compared; others are run
whole where the line before them is `<!-- run -->`.  They are one session, read from top to
bottom: a block may use what those before it made.
"""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import NamedTuple

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
_FENCE = re.compile(
    r"^(?P<fence>```+|~~~+)\s*(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"<!--\s*run\s*-->\s*\Z")


class Block(NamedTuple):
    """A Python block of a document."""

    line: int
    text: str
    kind: str


def blocks(document: str) -> list[Block]:
    """The Python blocks of a document: "doctest", "run", or "" for those that are only shown."""
    found = []
    for match in _FENCE.finditer(document):
        language = match["info"].split()[:1]
        if language not in (["python"], ["pycon"], ["py"]):
            continue
        marked = _MARK.search(document[: match.start()])
        kind = "doctest" if re.search(r"^>>> ", match["body"], re.MULTILINE) else "run" if marked else ""
        found.append(Block(document.count("\n", 0, match.start("body")) + 1, match["body"], kind))
    return found


RUNNABLE = [block for block in blocks(README.read_text(encoding="utf-8")) if block.kind]


def run(block: Block, name: str, names: dict[str, object]) -> None:
    """Run a block in the current directory.  Raises what it raises, AssertionError for other output."""
    if block.kind == "run":
        exec(compile("\n" * (block.line - 1) + block.text, name, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(block.text, {}, name, name, block.line - 1)
    test.globs = names
    report: list[str] = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=options).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in RUNNABLE:
        run(block, "README.md", names)


def test_the_readme_has_examples_that_run():
    assert RUNNABLE, "no Python block with prompts or marked <!-- run -->"


EXAMPLE = """
# Title

```python
>>> 1 + 1
2
```

```bash
>>> not python
```

<!-- run -->
```python
value = 3
assert value == 3
```

```python
only shown
```
"""


def test_blocks_are_found_with_their_lines_and_kinds():
    assert [(block.line, block.kind) for block in blocks(EXAMPLE)] == [(5, "doctest"), (15, "run"), (20, "")]
    for block in blocks(EXAMPLE)[:2]:
        run(block, "example", {})


@pytest.mark.parametrize("text", [">>> 1 + 1\n3\n", ">>> nothing\n", ">>> assert False\n"])
def test_an_example_with_another_output_fails(text):
    with pytest.raises(AssertionError):
        run(Block(1, text, "doctest"), "example", {})


def test_a_marked_block_that_raises_fails_with_its_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run(Block(7, "x = 1\nx / 0\n", "run"), "example", {})
    assert caught.traceback[-1].lineno == 7
