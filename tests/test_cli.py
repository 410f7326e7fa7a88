"""`tiered-cli` on stores of all kinds: what it prints, for people and programs, its status, what it leaves alone."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_lines import Called, CommandLine
from programs import ROOT, alive, children, line_of, running, wait_until

import tiered
from tiered.cli.program import FAMILIES

HUGE = "k" * 30_000
WRITER = """
    import sys, tiered
    store = tiered.open(sys.argv[1], save="")
    store.update({"a": 1, ("user", 1): {"name": "Ada"}})
    store.save()
    store["b"] = "two"
    print("ready", flush=True)
    for line in sys.stdin:
        print([store["a"] for _ in range(int(line))][0], flush=True)
    """
# Each command with arguments that fit any store; `STORE` and `NEW` stand for paths.
READS = [
    ("inspect", "STORE"),
    ("inspect", "STORE", "--json"),
    ("stats", "STORE"),
    ("stats", "STORE", "--json"),
    ("memory", "STORE", "--json"),
    ("top", "STORE", "-n1", "--interval", "0.1", "--json"),
    ("explain", "STORE", "a", "--json"),
    ("doctor", "STORE", "--json"),
    ("check", "STORE", "--json"),
    ("verify", "STORE", "--json"),
    ("get", "STORE", "a", "--json"),
    ("keys", "STORE", "--json"),
    ("scan", "STORE", "--json"),
    ("ttl", "STORE", "a", "--json"),
    ("type", "STORE", "a", "--json"),
    ("config", "get", "STORE", "--json"),
    ("snapshot", "STORE", "NEW", "--json", "--verify"),
    ("repair", "STORE", "NEW", "--json"),
]
WRITES = [
    ("set", "STORE", "new", "1"),
    ("expire", "STORE", "a", "100"),
    ("del", "STORE", "a"),
    ("config", "set", "STORE", "save", "900 1"),
    ("save", "STORE", "-q"),
    ("compact", "STORE", "--json"),
]
DONE, FAILED, USAGE, DAMAGED, ABSENT, ADVICE = 0, 1, 2, 3, 4, 5


@pytest.fixture(scope="module")
def cli() -> Iterator[CommandLine]:
    line = CommandLine()
    yield line
    line.close()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Stores of all kinds, shared by the tests, which leave them as they are."""
    root = tmp_path_factory.mktemp("stores")
    settings: dict[str, Any] = {"helper": False, "compression": "none"}
    with tiered.open(root / "closed", **settings) as store:
        store.update({"a": 1, "b": "two", 42: b"\x00", ("user", 1): {"name": "Ada"}, ("user", 2): (1, 2)})
        store.set("soon", [1], ttl=1000)
    tiered.open(root / "empty", **settings).close()
    with tiered.open(root / "huge-key", **settings) as store:
        store.update({HUGE: "huge", "a": 1})
    with tiered.open(root / "damaged", **settings) as store:
        store.update({"a": 1, "b": "spoiled"})
    data = root / "damaged" / "cold-0001" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"spoiled", b"rotten!"))
    with running(WRITER, root / "crashed") as killed:
        line_of(killed)
        killed.kill()
        killed.wait()
    with running(WRITER, root / "live") as writer:
        line_of(writer)
        yield {name: root / name for name in _KINDS}


_KINDS = ("closed", "empty", "huge-key", "damaged", "missing", "live", "crashed")
KINDS = pytest.mark.parametrize("kind", _KINDS)


def contents(directory: Path) -> dict[str, bytes]:
    """All files of a store, but for the table of readers that LMDB keeps, and what a writer notes after each sync."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name not in ("lock.mdb", "SYNCED"))
    return {str(path): path.read_bytes() for path in files}


def said_properly(called: Called) -> None:
    """No traceback, and errors are one line with the program's name."""
    assert "Traceback" not in called.errors, called.errors
    if called.status in (FAILED, USAGE, ABSENT):
        assert called.errors.count("\n") == 1, called
        assert called.errors.startswith("tiered-cli: "), called


@KINDS
@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_what_reads_changes_nothing_and_says_what_it_found(
    cli: CommandLine, places: dict[str, Path], tmp_path: Path, kind: str, command: tuple[str, ...]
) -> None:
    path = places[kind]
    before = contents(path)
    words = {"STORE": str(path), "NEW": str(tmp_path / "new")}
    called = cli(*(words.get(word, word) for word in command))
    said_properly(called)
    assert contents(path) == before
    assert path.exists() == (kind != "missing")
    name = command[0]
    live_only, one_key = name in ("memory", "top"), name in ("explain", "get", "ttl", "type")
    if kind == "missing" or (live_only and kind != "live"):
        expected = FAILED
    elif kind == "damaged":
        expected = DAMAGED if name in ("inspect", "check", "verify", "keys", "scan", "snapshot", "repair") else DONE
    else:
        expected = ABSENT if one_key and kind == "empty" else DONE
    assert called.status == expected, called
    if "--json" in command and called.out:
        shown = called.out.splitlines() if name in ("keys", "scan", "top") else [called.out]
        assert all(json.loads(document) is not None for document in shown)
    assert "\x1b" not in called.out


@KINDS
@pytest.mark.parametrize("command", WRITES, ids=" ".join)
def test_what_writes_does_it_or_says_why_not(
    cli: CommandLine, places: dict[str, Path], tmp_path: Path, kind: str, command: tuple[str, ...]
) -> None:
    path = places[kind]
    if kind not in ("missing", "live"):
        path = shutil.copytree(path, tmp_path / kind)
    called = cli(*(str(path) if word == "STORE" else word for word in command))
    said_properly(called)
    asked = command[0] in ("config", "save", "compact")
    if kind == "missing" or (kind == "live" and not asked):
        assert called.status == FAILED
    elif kind == "empty" and command[0] in ("expire", "del"):
        assert called.status == ABSENT
    elif kind == "damaged" and command[0] == "compact":
        assert called.status in (FAILED, DAMAGED)
    else:
        assert called.status == DONE, called
    assert path.exists() == (kind != "missing")


# Keys and values


def test_values_are_written_and_read_in_the_notation(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert cli("set", path, "a", "1").status == FAILED
    assert cli("set", path, "a", '{"x": {"$tuple": [1]}}', "--create") == (0, "", "")
    assert cli("set", path, '["user", 1]', "Ada", "--ttl", "100") == (0, "", "")
    assert cli("set", path, "42", "-", "--bytes", stdin=b"\x00\xff") == (0, "", "")
    assert cli("set", path, '"42"', "[1]", "--raw") == (0, "", "")
    with tiered.open(path, "r") as store:
        assert dict(store) == {"a": {"x": (1,)}, ("user", 1): "Ada", 42: b"\x00\xff", "42": "[1]"}
        assert 90 < store.ttl(("user", 1)) <= 100
    assert cli("get", path, "42") == (0, '{"$bytes": "AP8="}\n', "")
    assert cli("get", path, '["user", 1]', "--raw") == (0, "Ada", "")
    assert cli("get", path, "a", "--json").json() == {"key": "a", "value": {"x": {"$tuple": [1]}}, "ttl_seconds": None}
    assert cli("keys", path).out == '"42"\n"a"\n["user", 1]\n42\n'
    assert cli("keys", path, "--raw").out == "42\na\n"
    assert cli("keys", path, "--prefix", '["user"]', "--json").lines() == [{"key": ["user", 1]}]
    assert cli("keys", path, "--reverse", "-n1").out == "42\n"
    assert cli("scan", path, "--start", "a", "--stop", '["user", 9]').out == (
        '"a"\t{"x": {"$tuple": [1]}}\n["user", 1]\t"Ada"\n'
    )
    assert cli("type", path, "a").out == "dict\n"
    assert cli("expire", path, "a", "50") == (0, "", "")
    assert 40 < float(cli("ttl", path, "a").out) <= 50
    assert cli("expire", path, "a", "never") == (0, "", "")
    assert cli("ttl", path, "a").out == "never\n"
    assert cli("del", path, "a", "42", "none") == (0, "2\n", "")


def test_a_time_to_live_has_a_unit_or_is_in_seconds(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    for given, seconds in {"90": 90, "60.5": 60.5, ".5d": 43200, "70s": 70, "15m": 900, "2h": 7200}.items():
        assert cli("set", path, "a", "1", "--ttl", given, "--create") == (0, "", "")
        assert seconds - 30 < float(cli("ttl", path, "a").out) <= seconds
        assert cli("expire", path, "a", "never") == (0, "", "")
        assert cli("expire", path, "a", given) == (0, "", "")
        assert seconds - 30 < float(cli("ttl", path, "a").out) <= seconds
    for wrong in ("0", "0m", "-1", "1w", "h", "1 h", "1h30m", "inf", "nan", "", "never ever", "9" * 400):
        for command in (("expire", path, "a", "--", wrong), ("set", path, "a", "1", f"--ttl={wrong}")):
            assert cli(*command).status == USAGE, command
    assert "is not seconds above zero, such as 90, or with a unit: 15m" in cli("expire", path, "a", "1w").errors
    assert cli("set", path, "a", "1", "--ttl", "never").status == USAGE


def test_what_is_nested_too_deeply_to_be_shown_is_one_line(cli: CommandLine, tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    with tiered.open(tmp_path / "s", helper=False) as store:
        store["deep"] = deep
    for command in (("get", tmp_path / "s", "deep"), ("dump", tmp_path / "s", tmp_path / "out.jsonl")):
        called = cli(*command)
        assert called.status == FAILED
        assert called.errors == (
            "tiered-cli: a value is nested too deeply to be shown or taken as text; 256 levels are sure to be kept\n"
        )
    assert cli("set", tmp_path / "s", "k", "[" * 100_000).status in (FAILED, USAGE)


def test_what_cannot_be_done_has_a_next_step(cli: CommandLine, places: dict[str, Path]) -> None:
    path = places["closed"]
    assert cli("get", path, '"42"').errors == "tiered-cli: no key \"42\"; there is 42, give it as '42'\n"
    assert cli("get", path, "nope") == (ABSENT, "", 'tiered-cli: no key "nope"\n')
    assert "leave out --raw" in cli("get", path, '["user", 1]', "--raw").errors
    assert "in quotes" in cli("get", path, "[user").errors
    assert "See 'tiered-cli get --help'" in cli("get", path).errors
    assert "See 'tiered-cli --help'" in cli("nonsense").errors
    assert f"process {os.getpid()}" not in cli("set", places["live"], "a", "1").errors
    assert "close it there" in cli("set", places["live"], "a", "1").errors
    assert "nothing of it is in memory" in cli("memory", path).errors
    assert "flag=" not in cli("get", places["missing"], "a").errors


def test_what_a_killed_program_had_written_is_seen_and_left_in_the_journal(
    cli: CommandLine, places: dict[str, Path]
) -> None:
    found = cli("inspect", places["crashed"], "--json").json()
    assert (found["writer"], found["records"], found["journal"]["records"]) == (None, 3, 1)
    assert cli("get", places["crashed"], "b") == (DONE, '"two"\n', "")


def test_without_rich_one_line_says_what_to_install(places: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ModuleNotFoundError('none', name='rich')")
    done = subprocess.run(
        [sys.executable, "-m", "tiered", "inspect", places["closed"]],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (FAILED, "tiered-cli: needs rich: pip install 'tiered[cli]'\n")


def test_the_user_s_own_types_are_shown_once_their_module_is_imported(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cities.py").write_text(
        "import enum, tiered\n@tiered.register('level')\nclass Level(enum.Enum):\n    HIGH = 1\n"
    )
    code = "import sys, tiered; sys.path.insert(0, sys.argv[2]); import cities\n"
    code += "with tiered.open(sys.argv[1], helper=False) as store: store['a'] = cities.Level.HIGH"
    subprocess.run([sys.executable, "-c", code, tmp_path / "s", tmp_path], check=True, env={"PYTHONPATH": ROOT})
    called = cli("get", tmp_path / "s", "a")
    assert (called.status, called.errors.count("\n")) == (FAILED, 1)
    assert cli("type", tmp_path / "s", "a").out == "level\n"
    done = subprocess.run(
        [sys.executable, "-m", "tiered", "--import", "cities", "get", tmp_path / "s", "a"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "$packed" in done.stdout
    assert cli("--import", "nonsense", "get", tmp_path / "s", "a").status == FAILED


# Looking inside


def test_inspect_says_all_there_is_about_a_store(cli: CommandLine, places: dict[str, Path]) -> None:
    found = cli("inspect", places["closed"], "--json").json()
    assert set(found) == {
        *("path", "as_of", "health", "writer", "records", "logical_bytes", "key_bytes", "packed_bytes", "stored_bytes"),
        *("file_bytes", "used_bytes", "free_bytes", "compression_ratio", "dictionary", "dictionary_count"),
        *("checkpoint", "journal", "snapshots", "readers", "oldest_reader", "damaged_bytes", "settings", "census"),
    }
    assert (found["records"], found["health"], found["writer"]) == (6, "well", None)
    assert found["checkpoint"]["records"] == 6
    census = found["census"]
    assert (census["method"], census["counted"]) == ("exact", 6)
    assert {child["prefix"]: child["count"] for child in census["keys"]} == {"str": 3, "int": 1, "tuple": 2}
    assert census["value_types"] == {"int": 1, "str": 1, "list": 1, "dict": 1, "tuple": 1, "bytes": 1}
    assert census["ttls"]["never"] == 5
    assert census["ttls"]["1 h"] == 1
    live = cli("inspect", places["live"], "--json").json()
    assert live["records"] == 3
    assert live["writer"]["pid"] > 0
    people = cli("inspect", places["closed"]).out
    for word in ("health", "save points", "free pages", "nobody", "keys (all 6 records)", "user  2"):
        assert word in people, word


def test_inspect_of_a_large_store_is_a_sample_and_says_so(cli: CommandLine, tmp_path: Path) -> None:
    with tiered.open(tmp_path / "s", memory="8MB", compression="zlib:1") as store:
        store.update((f"user:{n}" if n % 4 else n, [n]) for n in range(50_000))
        store.save()
        store.update((f"user:{n}", "new") for n in range(20_000) if n % 4)
    found = cli("inspect", tmp_path / "s", "--json").json()
    assert found["census"]["method"] == "sample"
    assert 10_000 < found["census"]["counted"] <= 25_000
    shares = {child["prefix"]: child["count"] / found["records"] for child in found["census"]["keys"]}
    assert shares["str"] == pytest.approx(37_500 / 50_000, abs=0.02)
    assert found["census"]["value_types"]["str"] == pytest.approx(15_000, abs=1000)  # Only the newest of each counts.
    assert "from a sample of" in cli("inspect", tmp_path / "s").out
    exact = cli("inspect", tmp_path / "s", "--exact", "--json").json()
    counts = {child["prefix"]: child["count"] for child in exact["census"]["keys"]}
    assert (exact["census"]["method"], sum(counts.values())) == ("exact", exact["records"])


def test_a_store_too_large_to_walk_over_is_looked_at_in_places(tmp_path: Path, monkeypatch: Any) -> None:
    from tiered.cli import census

    monkeypatch.setattr(census, "WALK_ENTRIES", 1000)
    monkeypatch.setattr(census, "EXACT_RECORDS", 1000)
    monkeypatch.setattr(census, "PLACES", 50)
    with tiered.open(tmp_path / "s", helper=False) as store:
        store.update((n, n) for n in range(20_000))
        store.save()
        counts, method = census.taken(store._engine, len(store), exact=False)
    assert method == "places"
    assert 1000 < counts.counted <= 2600
    assert counts.keys.children["int"].count == counts.counted


def test_figures_of_an_open_store_are_those_of_its_program(cli: CommandLine, places: dict[str, Path]) -> None:
    found = cli("stats", places["live"], "--json").json()
    assert found["source"] == "writer"
    assert found["stats"]["state"] == "open"
    assert found["memory"]["budget_bytes"] == 64 << 20
    assert "which has it open" in cli("stats", places["live"]).out
    read = cli("stats", places["closed"], "--json").json()
    assert (read["source"], read["stats"]["records"]) == ("reader", 6)
    assert "hot" in cli("explain", places["live"], "a", "--json").json()["tiers"]
    assert cli("explain", places["closed"], "a", "--json").json()["tiers"] == ["cold"]
    memory = cli("memory", places["live"], "--reclaim", "--json").json()
    assert memory["reclaimed_bytes"] >= 0
    assert memory["hot_entry_bytes"] == 0


def test_top_counts_what_happens_between_two_looks(cli: CommandLine, tmp_path: Path) -> None:
    with running(WRITER, tmp_path / "s") as writer:
        line_of(writer)
        command = [sys.executable, "-m", "tiered", "top", tmp_path / "s", "-n2", "--interval", "0.5", "--json"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}
        ) as top:
            assert top.stdout is not None
            assert writer.stdin is not None
            first = json.loads(top.stdout.readline())
            assert first["reads_per_second"] == 0
            writer.stdin.write("5000\n")
            writer.stdin.flush()
            second = json.loads(top.stdout.readline())
        assert second["reads_per_second"] > 1000
        assert second["hit_ratio"] == 1.0
        assert second["memory_budget_bytes"] == 64 << 20
    lines = cli("top", tmp_path / "s", "-n1").errors
    assert "no program has it open" in lines


def test_ctrl_c_is_the_way_to_end_top_and_no_question_stays(places: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "tiered", "top", places["live"], "--interval", "0.1", "--json"]
    surroundings = {**os.environ, "PYTHONPATH": ROOT}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings, start_new_session=True
    ) as top:
        assert top.stdout is not None
        top.stdout.readline()
        os.killpg(top.pid, signal.SIGINT)
        errors = top.communicate(timeout=30)[1]
    assert (top.returncode, errors) == (0, b"")
    assert not [name for name in os.listdir(places["live"]) if name.startswith("control-")]


def test_top_ends_with_the_process_that_was_called(places: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tiered", "top", places["live"], "--interval", "0.1", "--json"]
    shown = tmp_path / "shown"
    with (
        open(shown, "w") as file,
        subprocess.Popen(command, stdout=file, env={**os.environ, "PYTHONPATH": ROOT}) as top,
    ):
        wait_until(lambda: shown.stat().st_size)
        (child,) = children(top.pid)
        top.kill()
    try:
        wait_until(lambda: not alive(child))
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


def test_the_doctor_s_advice_has_a_status_of_its_own(cli: CommandLine, tmp_path: Path) -> None:
    with tiered.open(tmp_path / "s", helper=False, disk="100KB") as store:
        store.update((n, bytes(1000)) for n in range(30))
        store.config_set("compression", "none")
        store.update((n, bytes(1000)) for n in range(60))
    called = cli("doctor", tmp_path / "s", "--json")
    assert called.status == ADVICE
    assert [each["what"] for each in json.loads(called.out)] == ["the store is near its cap"]
    assert cli("doctor", tmp_path / "s").out.startswith("the store is near its cap: ")


# Operating


def test_a_program_that_has_the_store_open_does_what_it_is_asked(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with running(WRITER, path) as writer:
        line_of(writer)
        assert cli("inspect", path, "--json").json()["journal"]["records"] == 1
        assert cli("save", path) == (0, f"{path}: checkpointed\n", "")
        assert cli("inspect", path, "--json").json()["journal"]["records"] == 0
        assert " before, " in cli("compact", path).out
        assert cli("config", "set", path, "memory", "32mb") == (0, "", "")
        assert cli("config", "get", path, "memory", "--json").json() == {"memory": 32 << 20}
        assert cli("config", "set", path, "default_ttl", "60") == (0, "", "")
        assert cli("config", "set", path, "helper", "no").status == FAILED
    assert cli("config", "get", path, "default_ttl").out == "default_ttl  60\n"


def test_settings_of_a_store_that_nobody_has_open_are_those_it_remembers(cli: CommandLine, tmp_path: Path) -> None:
    tiered.open(tmp_path / "s", helper=False).close()
    assert cli("config", "set", tmp_path / "s", "save", "900 1") == (0, "", "")
    assert cli("config", "set", tmp_path / "s", "disk", "1GB") == (0, "", "")
    assert cli("config", "get", tmp_path / "s", "save").out == "save  900 1\n"
    assert cli("config", "set", tmp_path / "s", "disk", "none") == (0, "", "")
    with tiered.open(tmp_path / "s", "r") as store:
        assert (store.config_get("disk"), store.config_get("save")) == ({"disk": None}, {"save": ((900, 1),)})
    for name, value in (("memory", "32mb"), ("nonsense", "1"), ("save", "soon")):
        called = cli("config", "set", tmp_path / "s", name, value)
        assert called.status == FAILED
        said_properly(called)
    assert "memory" not in cli("config", "get", tmp_path / "s").out


def test_the_demo_checks_every_document(cli: CommandLine, tmp_path: Path) -> None:
    found = cli("demo", "--keep", tmp_path / "s", "--json").json()
    assert (found["wrong"], found["records"]) == (0, 20_000)
    assert found["packed_bytes"] > 2 * found["memory_budget_bytes"]
    assert cli("demo", "--keep", tmp_path / "s").status == FAILED


# The frame


def terminal(*arguments: object, columns: int = 80, **environment: str) -> str:
    """What a command shows on a terminal so wide."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    surroundings = {**os.environ, "PYTHONPATH": ROOT, "TERM": "xterm-256color", **environment}
    for name in ("COLUMNS", "LINES"):
        surroundings.pop(name, None)
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "tiered", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=surroundings,
    ) as process:
        os.close(theirs)
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # Linux says EIO at the end of a terminal.
        process.wait()
    os.close(ours)
    return shown.decode()


def test_on_a_terminal_of_80_columns_nothing_is_wider_and_nothing_is_cut(places: dict[str, Path]) -> None:
    shown = terminal("inspect", places["closed"])
    assert "\x1b[1m" in shown
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown).splitlines()
    assert max(map(len, plain)) <= 80
    assert any("object_value_bytes_max" in line for line in plain)
    assert "\x1b[3" not in terminal("inspect", places["closed"], NO_COLOR="1")
    assert max(map(len, terminal("--help").splitlines())) <= 80


def test_top_is_drawn_again_in_place_on_a_terminal(places: dict[str, Path]) -> None:
    shown = terminal("top", places["live"], "-n2", "--interval", "0.1")
    assert "memory share" in shown
    assert "\x1b[" in shown


def test_in_a_pipe_there_is_no_colour_no_cut_and_no_blank_at_the_end_of_a_line(
    cli: CommandLine, places: dict[str, Path]
) -> None:
    for command in ("inspect", "stats", "check"):
        out = cli(command, places["closed"], COLUMNS="20", TERM="xterm-256color").out
        assert "\x1b" not in out
        assert all(line == line.rstrip() for line in out.splitlines())
        assert str(places["closed"]) in out or command == "inspect"


def test_a_reader_of_the_output_that_has_enough_is_not_complained_of(places: dict[str, Path], tmp_path: Path) -> None:
    with tiered.open(tmp_path / "s", helper=False) as store:
        store.update((n, "x" * 100) for n in range(20_000))
    command = f"{sys.executable} -m tiered scan {tmp_path / 's'} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert done.stdout.splitlines()[1:] == ["141"]
    assert done.stderr == ""


def test_every_command_is_listed_in_the_help_and_has_help_of_its_own(cli: CommandLine) -> None:
    names = [name for family in FAMILIES.values() for name in family]
    assert len(set(names)) == len(names)
    shown = cli("--help")
    assert (shown.status, shown.errors) == (0, "")
    for name in names:
        assert re.search(rf"^  {name} ", shown.out, re.MULTILINE), name
        own = cli(name, "--help")
        assert own.status == 0
        assert own.out.startswith(f"Usage: tiered-cli {name}")
    assert cli() == shown


def test_every_command_that_prints_data_can_print_json(cli: CommandLine) -> None:
    silent = {"set", "del", "expire", "save", "config", "completion", "dump", "report"}
    for name in (name for family in FAMILIES.values() for name in family if name not in silent):
        assert "--json" in cli(name, "--help").out, name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_how_to_complete(cli: CommandLine, shell: str) -> None:
    assert "_TIERED_CLI_COMPLETE" in cli("completion", shell).out


def test_commands_are_completed(cli: CommandLine) -> None:
    called = cli(_TIERED_CLI_COMPLETE="bash_complete", COMP_WORDS="tiered-cli ins", COMP_CWORD="1")
    assert called.out == "plain,inspect\n"


def test_an_encoding_that_lacks_a_letter_is_no_error(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "s", helper=False) as store:
        store["ä"] = "→"
    done = subprocess.run(
        [sys.executable, "-m", "tiered", "scan", tmp_path / "s"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout.split(b"\t")[1]) == "→"


def test_help_comes_at_once_and_imports_no_engine() -> None:
    code = "import sys; sys.argv = ['tiered-cli', '--help']; import tiered.cli.program as p; p.group.main(['--help'], "
    code += "standalone_mode=False); print(*(m for m in ('rich', 'lmdb', 'msgpack', 'decimal') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ROOT})
    assert done.stdout.splitlines()[-1] == ""
    seconds = []
    for _ in range(3):
        began = os.times()
        subprocess.run([sys.executable, "-m", "tiered", "--help"], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
        ended = os.times()
        seconds.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
    assert min(seconds) < 0.3
