"""The screens of the command line in the README are what it shows; "..." stands for what differs from run to run."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROOT, line_of, running

README = Path(ROOT) / "README.md"
SHOP = """
    import sys, tiered
    store = tiered.open("shop.tiered", save="900 1")
    store.update({("order", n): {"item": "book", "count": n % 7, "paid": n % 3 == 0} for n in range(3000)})
    store.update({f"user:{n}": {"name": f"User {n}", "bio": "reads books " * 9} for n in range(500)})
    store.set_many({f"session:{n}": (n, "basket") for n in range(200)}, ttl=1800)
    store["logo"] = bytes(12000)
    store.save()
    store["user:500"] = {"name": "Ada"}
    print("ready", flush=True)
    sys.stdin.readline()
    """


def screens(text: str) -> list[tuple[str, str]]:
    """Commands and what they are to show, of all blocks that are marked."""
    blocks = re.findall(r"<!-- screens -->\n```console\n(.*?)```", text, re.DOTALL)
    calls = [call.partition("\n") for block in blocks for call in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, shown) for command, _, shown in calls]


def same(wanted: str, got: str) -> bool:
    return doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)


def test_the_screens_of_the_readme_are_what_the_commands_show(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "tiered-cli"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tiered "$@"\n')
    script.chmod(0o755)
    surroundings = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHONPATH": ROOT}
    found = screens(README.read_text(encoding="utf-8"))
    assert len(found) > 15
    with running(SHOP, cwd=tmp_path) as shop:
        line_of(shop)
        for command, wanted in found:
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=surroundings, text=True, capture_output=True, timeout=60
            )
            got = done.stdout + done.stderr
            got += "\n" if got and not got.endswith("\n") else ""
            assert same(wanted, got), f"$ {command}\n{got}"


@pytest.mark.parametrize(("wanted", "right"), [("a\n", True), ("b\n", False), ("...\n", True), ("", False)])
def test_a_screen_that_differs_is_told(wanted: str, right: bool) -> None:
    text = f"<!-- screens -->\n```console\n$ echo a\n{wanted}```\n"
    assert [same(shown, "a\n") for _, shown in screens(text)] == [right]
