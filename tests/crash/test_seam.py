"""Scenarios stopped at, cut off from power at, and failing at every system call that they make.

`cut`, `fault` and `fault_helper` are programs of their own, run with `seam` preloaded, and say what they do.  Here each
scenario is stopped at some of its calls; tools/torture.py does all of it, with scenarios that nobody
thought of.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import seam


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiled = seam.compiled(tmp_path_factory.mktemp("seam"))
    if compiled is None:
        pytest.skip("no C compiler, or not Linux: calls of LMDB cannot be seen")
    return compiled


@pytest.mark.parametrize(
    ("scenario", "durability", "journal"),
    [
        ("create", "everysec", "mapped"),
        ("segments", "everysec", "mapped"),
        ("segments", "always", "pwrite"),
        ("checkpoints", "checkpoint", "mapped"),
        ("compaction", "everysec", "pwrite"),
    ],
)
def test_a_kill_or_a_power_cut_at_any_call_leaves_a_prefix_that_holds_what_was_synced(
    library: Path, scenario: str, durability: str, journal: str
) -> None:
    said = seam.run(library, "cut.py", scenario, durability, journal, 1, 1, 35)
    assert int(said.split()[2]) == 35, said


@pytest.mark.parametrize(
    ("scenario", "durability", "journal"),
    [
        ("create", "everysec", "mapped"),
        ("segments", "always", "mapped"),
        ("segments", "everysec", "pwrite"),
        ("checkpoints", "always", "pwrite"),
        ("compaction", "everysec", "mapped"),
    ],
)
def test_whichever_call_fails_the_store_is_poisoned_or_fine_and_never_wrong(
    library: Path, scenario: str, durability: str, journal: str
) -> None:
    said = seam.run(library, "fault.py", scenario, durability, journal, 1, 16)
    assert "16 runs with a fault" in said


def test_whichever_call_of_the_helper_fails_nothing_acknowledged_is_lost(library: Path) -> None:
    said = seam.run(library, "fault_helper.py", 1, 20)
    assert "runs with a fault in the helper" in said
    assert int(said.split()[2]) >= 8, said
