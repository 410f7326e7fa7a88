"""What `import tiered` brings along: nothing that takes long and that many programs never use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiered

HEAVY = [
    *(
        "asyncio",
        "concurrent.futures",
        "ctypes",
        "dataclasses",
        "hashlib",
        "html",
        "inspect",
        "json",
        "logging",
    ),
    *(
        "multiprocessing",
        "pickle",
        "random",
        "shutil",
        "socket",
        "sqlite3",
        "ssl",
        "subprocess",
        "tempfile",
        "unittest",
        "urllib.request",
        "xml",
    ),
    *("click", "numpy", "prometheus_client", "pytest", "rich"),
]


def modules_after(code: str) -> set[str]:
    """The modules that a program has imported, apart from those of an empty one."""
    listing = "import sys; before = set(sys.modules)\n{}\nprint(*set(sys.modules) - before, sep='\\n')"
    path = os.pathsep.join([os.path.dirname(os.path.dirname(tiered.__file__)), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", listing.format(code)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def imported() -> set[str]:
    """The modules of a program that imports the package and is about to open a store."""
    return modules_after("import tiered; tiered.open")


def test_importing_the_package_imports_its_errors_and_the_rest_when_a_name_is_asked_for(imported: set[str]) -> None:
    assert {name for name in modules_after("import tiered") if "tiered" in name} == {"tiered", "tiered.errors"}
    rest = {"lmdb", "msgpack", "zstandard", "pathlib", "decimal", "uuid", *HEAVY}
    assert not rest & modules_after("import tiered")
    assert {"tiered", "tiered.store", "lmdb", "msgpack"} <= imported


def test_every_name_is_there_by_any_kind_of_import() -> None:
    assert "tiered.store" in modules_after("from tiered import open")
    assert {"tiered.verification", "tiered.salvaging"} <= modules_after("from tiered import *; open, verify, View")
    assert "tiered.codec" in modules_after("import tiered.codec")


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_module_is_not_imported_before_it_is_used(imported: set[str], name: str) -> None:
    if name == "subprocess" and sys.version_info < (3, 11):
        pytest.skip("zstandard needs platform, which imports it before Python 3.11")
    assert name not in imported


def test_the_facade_for_asyncio_is_imported_only_when_asked_for(imported: set[str]) -> None:
    assert "tiered.aio" not in imported


def test_what_a_message_in_the_log_takes_is_imported_when_a_store_is_opened() -> None:
    assert "logging" in modules_after("import tiered; tiered.open(helper=False).close()")


@pytest.mark.parametrize("name", ["verification", "restoration", "salvaging"])
def test_what_repairs_and_restores_is_imported_only_when_asked_for(imported: set[str], name: str) -> None:
    assert f"tiered.{name}" not in imported


def test_what_is_imported_when_asked_for_is_there_as_everything_else() -> None:
    assert {"verify", "restore", "salvage", "Salvaged"} <= set(dir(tiered))
    assert "tiered.verification" in modules_after("from tiered import verify")
    assert tiered.verify is tiered.verify
    with pytest.raises(AttributeError, match="no attribute 'verfy'"):
        tiered.verfy  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("helper", [True, False])
def test_the_operations_of_an_open_store_import_nothing_where_ctrl_c_could_leave_an_import_half_way(
    tmp_path: Path, helper: bool
) -> None:
    code = f"""
import tiered
store = tiered.open({str(tmp_path / "store")!r}, memory="1MB", helper={helper})
before = set(sys.modules)
store.update((number, b"x" * 100) for number in range(3000))
store.set("a", {{"x": [1]}}, ttl=100)
store.get_many([1, 2]), store["a"], list(store.keys()), len(store), store.incr("n"), store.pop("n")
with store.transaction() as txn:
    txn["b"] = 1
store.save(), store.sync(), store.compact(), store.view().close(), store.stats(), store.reclaim()
store["c"] = 1
store.close()"""
    assert modules_after(code) == set()
