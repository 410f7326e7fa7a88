"""The shape of the package: layers, who may import and call what, sizes, and what must be documented."""

from __future__ import annotations

import ast
import warnings
from collections.abc import MutableMapping
from pathlib import Path

import pytest

import tiered
from tiered import errors
from tiered.config import SETTINGS

ROOT = Path(tiered.__file__).resolve().parent
README = ROOT.parent / "README.md"

ONE_FILE_EACH = [f"eviction.{name}" for name in ("arc", "fifo", "lru", "random", "s3fifo", "sieve", "wtinylfu")]
SAMPLED = [f"eviction.{name}" for name in ("lfu", "smallest", "largest", "ttl")]

# From the bottom up.  A module may import those of rows above its own, and nothing else of the package.
LAYERS = [
    ["errors", "log", "native", "refusal"],
    [
        "clock",
        "schedule",
        "jitter",
        "process",
        "eviction.policy",
        "eviction.sketch",
        "eviction.ghosts",
        "eviction.flow",
        "arrays",
        "scalars",
        "filters",
        "group_commit",
        "events",
    ],
    ["eviction.window"],
    ["registry", "eviction", "eviction.order", "eviction.sampled", *ONE_FILE_EACH],
    ["extensions", *SAMPLED],
    ["conversion"],
    ["config", "files", "keys", "codec", "expiry", "record"],
    ["advisor", "mark", "removal"],
    ["calls", "compression", "entries", "arena", "journal", "snapshot"],
    ["heap"],
    ["environment", "hot", "write_buffer", "recovery", "retention"],
    ["admission", "cold_state", "hot_keys", "watermark"],
    ["cold_reader"],
    ["cold_update"],
    ["cold", "overlay"],
    ["copying", "pending", "stats"],
    ["checkpoint"],
    ["helper"],
    ["checkpointer", "maintenance"],
    ["tiers"],
    ["checkpoints", "disk_cap", "memory_cap", "moment"],
    ["writing"],
    ["snapshots"],
    ["engine", "ranges"],
    ["follower"],
    ["opening", "check", "mapping", "restoration"],
    ["sharing", "salvaging", "sub"],
    ["control"],
    ["awaited", "handle"],
    ["doctor", "memoize", "reading", "transaction", "verification", "view"],
    ["store"],
    ["__init__", "aio", "metrics", "migrate"],
    ["cli.notation", "cli.running"],
    ["cli.options", "cli.output", "cli.formats", "cli.pictures"],
    ["cli.backup"],
    ["cli.benchmark", "cli.census", "cli.completion", "cli.demo", "cli.values"],
    ["cli.look"],
    ["cli.operate", "cli.settings", "cli.top", "cli.transfer"],
    ["cli.inspection"],
    ["cli.advice"],
    ["cli.report"],
    ["cli.program"],
    ["cli"],
    ["__main__"],
]
IMPORTERS = {
    "lmdb": {"cold", "environment"},
    "zstandard": {"compression"},
    "msgpack": {
        *("arrays", "codec", "cold_state", "conversion", "extensions", "helper", "overlay", "pending", "snapshot"),
        "writing",
        "cli.formats",
    },
    "numpy": {"arrays"},
    "prometheus_client": {"metrics"},
    "mmap": {"journal"},
    "fcntl": {"control", "files"},
    "subprocess": {"helper", "opening"},  # `opening` imports ahead.
    "ctypes": {"opening", "process"},
}
FORBIDDEN = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing"}
LINES_PER_MODULE, LINES_PER_FUNCTION = 500, 60
# Longer than the rest, with the lines they may have; splitting one is welcome, and so is a smaller number here.
LONGER_MODULES = {"store": 600}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


PATHS = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in PATHS.items()}
every_module = pytest.mark.parametrize("name", PATHS)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def nodes(tree: ast.AST):
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if not is_type_checking(child):
            yield child
            yield from nodes(child)


def imported(name: str):
    """`(module, line)` of everything that a module imports, those of the package as "tiered.x"."""
    for node in nodes(TREES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{name}:{node.lineno}"
            module = node.module or ""
            if node.level:
                package = "tiered.eviction" if PATHS[name].parent != ROOT else "tiered"
                module = f"{package}.{module}".rstrip(".")
            if module in ("tiered", "tiered.cli", "tiered.eviction"):
                for alias in node.names:
                    known = f"{module}.{alias.name}".removeprefix("tiered.") in PATHS
                    yield (f"{module}.{alias.name}" if known else module), node.lineno
            else:
                yield module, node.lineno


def test_every_module_has_its_layer():
    layered = [name for row in LAYERS for name in row]
    assert len(set(layered)) == len(layered)
    unplaced = set(PATHS) - set(layered)
    assert not unplaced, f"put these into LAYERS: {sorted(unplaced)}"
    assert not set(layered) - set(PATHS)


@every_module
def test_imports_point_down_only(name):
    row = next((at for at, names in enumerate(LAYERS) if name in names), len(LAYERS))
    below = {module for names in LAYERS[:row] for module in names}
    for module, line in imported(name):
        if module == "tiered" or module.startswith("tiered."):
            wanted = "__init__" if module == "tiered" else module.removeprefix("tiered.")
            assert wanted in below, f"{name}.py:{line} imports {wanted}, which does not lie below it"


@every_module
def test_packages_are_imported_only_where_they_belong(name):
    for module, line in imported(name):
        top = module.partition(".")[0]
        assert name in IMPORTERS.get(top, {name}), f"{name}.py:{line} imports {top}"
        assert top not in FORBIDDEN or (name, top) == ("migrate", "pickle"), f"{name}.py:{line} imports {top}"


def test_pickle_is_imported_only_where_a_caller_has_allowed_it():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(alias.name == "pickle" for alias in node.names):
                assert name == "migrate"
                assert any(
                    isinstance(function, ast.FunctionDef)
                    and function.name == "_unpickler"
                    and node in ast.walk(function)
                    for function in ast.walk(tree)
                ), f"{name}.py:{node.lineno}"


def test_the_lists_of_importers_are_not_longer_than_needed():
    for top, names in IMPORTERS.items():
        assert {name for name in PATHS if top in {module.partition(".")[0] for module, _ in imported(name)}} == names


@every_module
def test_only_files_syncs_and_renames(name):
    if name == "files":
        return
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called, owner = node.func.attr, node.func.value
        of = owner.id if isinstance(owner, ast.Name) else ""
        assert called not in ("fsync", "fdatasync", "msync"), f"{name}.py:{node.lineno}"
        assert not (of == "os" and called in ("rename", "replace", "renames", "link", "sync")), (
            f"{name}.py:{node.lineno}"
        )
        assert not (called == "rename" and of != "files"), f"{name}.py:{node.lineno}"
        assert not (called == "flush" and ("map" in ast.dump(owner))), f"{name}.py:{node.lineno}"


@every_module
def test_nothing_is_evaluated_or_executed(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{name}.py:{node.lineno}"


@every_module
def test_no_exception_is_swallowed_whole(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            empty = all(
                isinstance(step, (ast.Pass, ast.Continue))
                or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
                for step in node.body
            )
            assert not (broad and empty), f"{name}.py:{node.lineno}: except {ast.unparse(node.type or ast.Name(''))}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            kinds = {ast.unparse(argument) for argument in node.args}
            assert not kinds & {"Exception", "BaseException"}, f"{name}.py:{node.lineno}: {ast.unparse(node)}"


@every_module
def test_every_module_says_what_it_is(name):
    assert ast.get_docstring(TREES[name]), name


@every_module
def test_modules_are_short(name):
    lines = len(PATHS[name].read_text().splitlines())
    limit = LONGER_MODULES.get(name, LINES_PER_MODULE)
    assert lines <= limit, f"{name}.py has {lines} lines, the aim is {LINES_PER_MODULE}; split it"


def test_modules_that_are_longer_than_the_aim_are_reported(record_property):
    longer = {name: len(PATHS[name].read_text().splitlines()) for name in LONGER_MODULES}
    record_property("longer", longer)
    assert all(name in PATHS for name in LONGER_MODULES)
    assert all(lines > LINES_PER_MODULE for lines in longer.values()), f"no longer long, take it out: {longer}"


@every_module
def test_functions_are_short(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LINES_PER_FUNCTION, f"{name}.py:{node.lineno}: {node.name} has {lines} lines"


@pytest.mark.parametrize("name", ["utils", "util", "common", "helpers", "manager", "base", "misc", "core"])
def test_no_module_is_called_what_says_nothing(name):
    assert name not in {module.rpartition(".")[2] for module in PATHS}


# What users see


def test_all_is_sorted_and_is_what_can_be_imported():
    names = list(tiered.__all__)
    assert names == sorted(names)
    modules = {name.partition(".")[0] for name in PATHS}
    public = {name for name in vars(tiered) if not name.startswith("_")} - modules
    assert public | set(tiered._HOMES) == set(names)
    assert all(callable(getattr(tiered, name)) for name in names)
    for name in names:
        assert getattr(tiered, name).__doc__, name


def test_everything_public_in_a_store_is_documented():
    inherited = set(dir(MutableMapping))
    for name, found in vars(tiered.Store).items():
        if not name.startswith("_") and name not in inherited:
            assert found.__doc__, name


def exception_classes():
    return [
        found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, errors.TieredError)
    ]


def test_every_exception_is_in_the_tree_in_the_docstring_under_its_base():
    lines = errors.__doc__.splitlines()
    depths = {}
    for number, line in enumerate(lines):
        for found in exception_classes():
            if line.strip("│├└─ ").partition(" ")[0] == found.__name__:
                depths[found.__name__] = (number, len(line) - len(line.lstrip("│├└─ ")))
    for found in exception_classes():
        assert found.__name__ in depths, f"draw {found.__name__} in the docstring of errors.py"
        if found is errors.TieredError:
            continue
        at, depth = depths[found.__name__]
        above = [(line, name) for name, (line, other) in depths.items() if line < at and other < depth]
        assert max(above)[1] == found.__bases__[0].__name__, f"{found.__name__} is drawn under another base"


def test_every_exception_is_exported_and_documented():
    for found in exception_classes():
        assert found.__name__ in tiered.__all__
        assert found.__doc__


def test_errors_of_a_store_carry_its_path_and_damage_its_offset():
    for found in exception_classes():
        if issubclass(found, errors.StoreError):
            error = found("/some/where", "went wrong")
            assert (error.path, str(error)) == ("/some/where", "/some/where: went wrong")
    assert errors.CorruptionError("/x", "bad", 40_960).offset == 40_960


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_readme(name):
    assert f"`{name}`" in README.read_text() or f"{name}=" in README.read_text(), f"{name} is not in README.md"


def test_every_setting_is_named_where_open_is_documented():
    for name in SETTINGS:
        assert name in tiered.open.__doc__


def test_reading_the_modules_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, path in PATHS.items():
            compile(path.read_text(), name, "exec")
