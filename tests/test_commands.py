"""The command line: what it does, its exit status, and that errors of users are one line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT, line_of, running

import tiered

TOOLS = Path(ROOT) / "tools"
CLI = [sys.executable, "-W", "error", "-m", "tiered"]


def call(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of `python -m tiered …`, or of a script in `tools/`."""
    command = [*CLI, *map(str, arguments)]
    if isinstance(arguments[0], Path):
        command = [sys.executable, "-W", "error", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": ROOT, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with tiered.open(tmp_path / "users.tiered", helper=False, compression="none") as store:
        store.update({"a": 1, "b:1": "two", "b:2": "spoiled"})
    return tmp_path / "users.tiered"


def ways(name: str) -> Any:
    """Both ways to call a command."""
    return pytest.mark.parametrize("command", [[name], [TOOLS / f"{name}.py"]], ids=["tiered-cli", "tools"])


@ways("snapshot")
def test_a_snapshot_is_made_and_described(path: Path, tmp_path: Path, command: list[Any]) -> None:
    status, out, errors = call(*command, path, tmp_path / "s.tsnap", "--verify")
    assert (status, errors) == (0, "")
    assert "s.tsnap: 3 records, " in out
    assert "all is well" in out
    assert tiered.verify(tmp_path / "s.tsnap") == []
    assert call(*command, path, tmp_path / "s.tsnap", "-q") == (0, "", "")


@ways("restore")
def test_a_store_is_restored(path: Path, tmp_path: Path, command: list[Any]) -> None:
    call("snapshot", path, tmp_path / "s.tsnap")
    assert call(*command, tmp_path / "s.tsnap", tmp_path / "new", "--verify", "--prefix", "b:")[0] == 0
    with tiered.open(tmp_path / "new", "r") as store:
        assert dict(store) == {"b:1": "two", "b:2": "spoiled"}
    status, out, errors = call(*command, tmp_path / "s.tsnap", tmp_path / "new")
    assert (status, out) == (1, "")
    assert "force" in errors
    assert errors.count("\n") == 1
    assert call(*command, tmp_path / "s.tsnap", tmp_path / "new", "--force", "--quiet") == (0, "", "")
    with tiered.open(tmp_path / "new", "r") as store:
        assert len(store) == 3


@pytest.mark.parametrize("command", [["verify"], [TOOLS / "restore.py", "--verify"]], ids=["tiered-cli", "tools"])
def test_damage_has_a_status_of_its_own_and_a_line_for_each_finding(
    path: Path, tmp_path: Path, command: list[Any]
) -> None:
    file = tmp_path / "s.tsnap"
    call("snapshot", path, file)
    assert call(*command, file)[0] == 0
    file.write_bytes(file.read_bytes().replace(b"spoiled", b"rotten!"))
    status, out, errors = call(*command, file)
    assert status == 3
    assert out.count("damaged snapshot: ") == 1
    assert out.startswith("damaged snapshot: ")
    assert "restore from a snapshot that verifies" in errors
    status, out, errors = call("restore", file, tmp_path / "new")
    assert (status, out) == (3, "")
    assert errors.startswith("tiered-cli: ")
    assert errors.count("\n") == 1
    data = path / "cold-0001" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"spoiled", b"rotten!"))
    assert call("verify", path)[0] == 3
    assert call("snapshot", path, file)[0] == 3


@pytest.mark.parametrize("zeros", [False, True])
def test_a_damaged_key_ends_each_command_by_one_line_or_a_finding_with_its_status(path: Path, zeros: bool) -> None:
    [data] = path.glob("cold-*/data.mdb")
    content = bytearray(data.read_bytes())
    at = content.index(b"\x02b:1")
    content[at - 8 : at + 4] = bytes(12) if zeros else content[at - 8 : at] + b"\x02b:\xff"
    data.write_bytes(content)
    for command in ("keys", "scan", "dump", "inspect", "check", "verify"):
        status, _, errors = call(command, path)
        assert (command, status, errors.count("\n"), "damaged" in errors) == (command, 3, 1, True), errors


def test_repair_makes_a_new_store_of_what_can_be_saved_and_leaves_the_damaged_one(path: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert call("repair", path, new) == (0, f"{path}: all is well, and no new store was made\n", "")
    assert not new.exists()
    data = path / "cold-0001" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"spoiled", b"rotten!"))
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    status, out, errors = call("repair", path, new)
    assert status == 3
    assert 'lost: "b:2"' in out.splitlines()
    assert "2 records were saved; 1 are lost" in errors
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    with tiered.open(new, "r") as store:
        assert dict(store) == {"a": 1, "b:1": "two"}
    assert sorted(os.listdir(tmp_path)) == ["new", "users.tiered"]
    assert call("repair", path, new)[0] == 1
    lost = json.loads(call("repair", path, tmp_path / "newer", "--json")[1])
    assert (lost["records"], lost["lost_records"], lost["lost_keys"]) == (2, 1, ["b:2"])


@pytest.mark.parametrize(
    "arguments",
    [
        ("snapshot", "missing", "s.tsnap"),
        ("snapshot", "users.tiered", "no/such/directory/s.tsnap"),
        ("snapshot", "users.tiered", "notes.txt"),
        ("restore", "missing.tsnap", "new"),
        ("verify", "missing"),
        ("repair", "missing", "new"),
        (TOOLS / "snapshot.py", "missing", "s.tsnap"),
        (TOOLS / "restore.py", "missing.tsnap", "new"),
    ],
    ids=str,
)
def test_an_error_of_the_user_is_one_line(
    path: Path, tmp_path: Path, monkeypatch: Any, arguments: tuple[Any, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    status, out, errors = call(*arguments)
    assert (status, out) == (1, "")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


def test_advice_is_in_words_of_the_command_line(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.tsnap"
    call("snapshot", path, file)
    with tiered.open(path):
        errors = [
            call("snapshot", tmp_path / "missing", file)[2],
            call("restore", file, path)[2],
            call("restore", file, path, "--force")[2],
            call("get", tmp_path / "missing", "key")[2],
            call("dump", path, tmp_path / "missing" / "file.jsonl")[2],
        ]
    makes = "no store there; check the path; 'tiered-cli load' makes a store"
    for error, expected in zip(errors, [makes, "with --force", "close it there", makes, "make it first"], strict=True):
        assert expected in error
        assert "Errno" not in error
        assert "flag=" not in error
        assert "force=" not in error


@pytest.mark.parametrize(
    "arguments", [(), ("snapshot",), ("nonsense",), (TOOLS / "snapshot.py",), (TOOLS / "restore.py", "x")]
)
def test_wrong_usage_is_status_2(arguments: tuple[Any, ...]) -> None:
    status = call(*arguments)[0] if arguments else call("--nonsense")[0]
    assert status == 2


@pytest.mark.parametrize("command", [["verify"], ["repair", "new"]], ids=["verify", "repair"])
def test_a_page_of_lmdb_whose_reading_ends_the_process_is_a_finding(
    path: Path, tmp_path: Path, monkeypatch: Any, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = path / "cold-0001" / "data.mdb"
    data = bytearray(file.read_bytes())
    page = data.index(b"spoiled") // 4096 * 4096
    data[page + 17] = 0xFF  # Its first record lies 64 KB further on, it says, where the file has ended.
    file.write_bytes(data)
    status, out, errors = call(command[0], path, *command[1:])
    assert status == 3, (status, out, errors)
    assert "LMDB's pages are damaged: the process that read them died of signal" in out
    assert errors.count("\n") == 1


def test_the_version_and_help_are_there(tmp_path: Path) -> None:
    assert call("--version")[1] == f"tiered, version {tiered.__version__}\n"
    for arguments in (
        ("--help",),
        ("snapshot", "-h"),
        (TOOLS / "snapshot.py", "--help"),
        (TOOLS / "restore.py", "--help"),
    ):
        status, out, _ = call(*arguments)
        assert status == 0
        assert "Usage" in out or "usage" in out
    assert "Exit status: 0 done" in call("--help")[1]


def test_without_click_one_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('none', name='click')")
    status, out, errors = call("verify", "x", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (status, out) == (1, "")
    assert errors == "tiered-cli: needs click: pip install 'tiered[cli]'\n"


def test_beside_a_program_that_writes_it_is_the_last_checkpoint_and_says_so(tmp_path: Path) -> None:
    code = """
        import sys, tiered
        store = tiered.open(sys.argv[1], helper=False, save="")
        store["saved"] = 1
        store.save()
        store["dirty"] = 2
        print("ready", flush=True)
        sys.stdin.readline()
        """
    with running(code, tmp_path / "s.tiered") as writer:
        line_of(writer)
        status, out, errors = call("snapshot", tmp_path / "s.tiered", tmp_path / "s.tsnap", "--verify")
        assert (status, errors) == (0, "")
        assert "1 records" in out
        assert "1 later writes are in the journal still" in out
        assert call("verify", tmp_path / "s.tiered")[0] == 0
        status, _, errors = call("restore", tmp_path / "s.tsnap", tmp_path / "s.tiered", "--force")
        assert status == 1
        assert str(writer.pid) in errors


@pytest.mark.parametrize("rich", [True, False])
def test_on_a_terminal_there_is_a_bar_if_rich_is_there(path: Path, tmp_path: Path, rich: bool) -> None:
    if not rich:
        (tmp_path / "rich.py").write_text("raise ImportError('none')")
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [*CLI, "snapshot", path, tmp_path / "s.tsnap"],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "TERM": "xterm"},
            timeout=60,
        )
        os.close(theirs)
        theirs = -1
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # Linux says EIO at the end of a terminal.
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)
    assert done.returncode == 0
    assert (b"snapshot of" in shown) == rich
