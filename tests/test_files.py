"""Files of a store: names, locks, atomic replacement, preallocation."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from programs import ROOT

from tiered import files
from tiered.errors import LockedError, StoreFullError


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("CURRENT", True),
        ("CURRENT.new", True),
        ("LOCK", True),
        ("APPLY", True),
        ("journal-prepared.log", True),
        ("journal-00000001.log", True),
        ("cold-0001", True),
        ("journal-1.log", False),
        ("journal-000000001.log", False),
        ("xjournal-00000001.log", False),
        ("cold-1", False),
        ("cold-0001.bak", False),
        ("data.mdb", False),
        ("notes.txt", False),
        ("HOT", True),
        ("HOT.0123abcd.tmp", True),
        ("notes.txt.0123abcd.tmp", False),
    ],
)
def test_files_of_a_store_are_known_by_their_names(name, ours):
    assert files.is_store_file(name) is ours


def test_segments_and_cold_tiers_are_listed_by_number(tmp_path):
    for number in (10, 2, 12_345_678):
        files.segment_path(tmp_path, number).touch()
    for number in (3, 1):
        files.cold_path(tmp_path, number).mkdir()
    (tmp_path / files.PREPARED).touch()
    (tmp_path / "journal-x.log").touch()
    assert files.segment_numbers(tmp_path) == [2, 10, 12_345_678]
    assert files.cold_numbers(tmp_path) == [1, 3]


def test_current_names_the_live_cold_tier(tmp_path):
    assert files.read_current(tmp_path) is None
    files.write_current(tmp_path, 7)
    assert files.read_current(tmp_path) == 7
    files.write_current(tmp_path, 8)
    assert files.read_current(tmp_path) == 8
    assert os.listdir(tmp_path) == [files.CURRENT]
    assert (tmp_path / files.CURRENT).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "nonsense", [b"", b"cold-", b"cold-00012", b"../cold-0001", b"\xff\xfe\x00", b"cold-0001 cold-0002"]
)
def test_a_current_that_names_no_cold_tier_is_a_value_error(tmp_path, nonsense):
    (tmp_path / files.CURRENT).write_bytes(nonsense)
    with pytest.raises(ValueError, match="names no cold tier"):
        files.read_current(tmp_path)


@pytest.mark.parametrize("failing", ["sync_data", "replace"])
def test_current_is_the_old_one_if_replacing_it_fails(tmp_path, monkeypatch, failing):
    files.write_current(tmp_path, 1)

    def fail(*arguments):
        raise OSError(errno.EIO, "as if the disk were broken")

    monkeypatch.setattr(*((files, "sync_data") if failing == "sync_data" else (os, "replace")), fail)
    with pytest.raises(OSError):
        files.write_current(tmp_path, 2)
    monkeypatch.undo()
    assert files.read_current(tmp_path) == 1
    files.write_current(tmp_path, 3)
    assert files.read_current(tmp_path) == 3


def test_current_is_synced_before_it_is_renamed_and_its_directory_before_and_after(tmp_path, monkeypatch):
    calls = []
    real_replace, real_sync, real_fsync = os.replace, os.fdatasync, os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("fdatasync") or real_sync(fd))
    monkeypatch.setattr(os, "replace", lambda old, new: calls.append("replace") or real_replace(old, new))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or real_fsync(fd))
    files.write_current(tmp_path, 1)
    assert calls == ["fsync", "fdatasync", "replace", "fsync"], "the name it leads to, its content, its own name"


def test_a_child_forked_while_another_thread_uses_a_lock_does_not_keep_it(tmp_path):
    code = """
        import os, signal, sys, threading
        from pathlib import Path
        from tiered import open  # With it comes what lets go of locks in a child.
        from tiered.files import FileLock

        lock, using, pipe = FileLock(Path(sys.argv[1])), threading.Event(), os.pipe()
        lock.acquire()

        def use(descriptor):
            using.set()
            os.read(pipe[0], 1)  # Never: as in a system call, which lets go of the interpreter lock.

        thread = threading.Thread(target=use, args=(lock._fd,), daemon=True)
        thread.start()
        using.wait()
        child = os.fork()
        if child == 0:
            signal.pause()
        print(child, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "LOCK")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT}
    ) as program:
        child = int(program.stdout.readline())
        assert program.wait(10) == -signal.SIGKILL
        try:
            lock = files.FileLock(tmp_path / "LOCK")
            lock.acquire(10)  # It may have died before its child came to let go of it.
            lock.release()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_forked_while_the_file_of_a_lock_is_being_opened_does_not_keep_the_lock(tmp_path, monkeypatch):
    real_open, children = os.open, []
    stop, go_on = os.pipe()

    def forked_then(*arguments):
        fd = real_open(*arguments)
        if not children:
            child = os.fork()
            if not child:  # It has the file open, and no object that knows of it.
                os.close(go_on)
                os.read(stop, 1)
                os._exit(0)
            children.append(child)
        return fd

    monkeypatch.setattr(os, "open", forked_then)
    lock, other = files.FileLock(tmp_path / "LOCK"), files.FileLock(tmp_path / "LOCK")
    lock.acquire()
    monkeypatch.undo()
    try:
        lock.abandon()  # As the end of the process does: closed, not unlocked.
        other.acquire()
        other.release()
    finally:
        os.close(go_on)
        os.waitpid(children[0], 0)
        os.close(stop)


def test_preallocated_files_are_zeros_and_private(tmp_path):
    fd = files.preallocate(tmp_path / "file", 10_000)
    try:
        assert os.pread(fd, 20_000, 0) == bytes(10_000)
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert os.get_inheritable(fd) is False
        with pytest.raises(FileExistsError):
            files.preallocate(tmp_path / "file", 10_000)
    finally:
        os.close(fd)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_by_name_and_leaves_no_file_behind(tmp_path, monkeypatch, code):
    def fail(fd, offset, size):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StoreFullError, match="free some space") as caught:
        files.preallocate(tmp_path / "file", 10_000)
    assert caught.value.path == str(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_another_failure_of_preallocation_leaves_no_file_behind_either(tmp_path, monkeypatch):
    def fail(fd, offset, size):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(OSError):
        files.preallocate(tmp_path / "file", 10_000)
    assert os.listdir(tmp_path) == []


def test_disk_bytes_are_the_blocks_of_all_files_below(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    (tmp_path / "cold-0001").mkdir()
    (tmp_path / "cold-0001" / "data.mdb").write_bytes(b"x" * 50_000)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert 150_000 <= files.disk_bytes(tmp_path) <= 200_000


def test_the_file_system_is_named_as_the_kernel_names_it(tmp_path):
    assert files.filesystem_type(Path("/proc")) == "proc"
    known = {line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert files.filesystem_type(tmp_path) in known | {""}
    assert not files.reserves_space(Path("/proc"))


def test_network_file_systems_are_refused_unless_allowed(tmp_path, monkeypatch, opener):
    import tiered

    monkeypatch.setattr(files, "filesystem_type", lambda path: "nfs4")
    with pytest.raises(tiered.UnsupportedError, match="nfs4"):
        opener()
    store = opener(allow_network=True)
    store["key"] = "value"
    assert not store._engine.journal.mapped, "no mapped writes where space is not reserved"


# Locks


def test_a_lock_excludes_others_until_it_is_released(tmp_path):
    first, second = files.FileLock(tmp_path / "LOCK"), files.FileLock(tmp_path / "LOCK")
    first.acquire()
    assert first.held
    with pytest.raises(LockedError):
        second.acquire()
    assert not second.held
    first.release()
    assert not first.held
    second.acquire()
    second.release()
    second.release()


def test_the_error_names_the_holder(tmp_path):
    lock = files.FileLock(tmp_path / "LOCK")
    lock.acquire()
    with pytest.raises(LockedError, match=rf"process {os.getpid()} on .*since \d{{4}}-") as caught:
        files.FileLock(tmp_path / "LOCK").acquire()
    assert caught.value.path == str(tmp_path)
    (tmp_path / "LOCK").write_bytes(b"nonsense")
    with pytest.raises(LockedError, match="another process"):
        files.FileLock(tmp_path / "LOCK").acquire()
    lock.release()


def test_waiting_for_a_lock_ends_when_it_is_released_or_the_time_is_over(tmp_path):
    first, second = files.FileLock(tmp_path / "LOCK"), files.FileLock(tmp_path / "LOCK")
    first.acquire()
    began = time.monotonic()
    with pytest.raises(LockedError):
        second.acquire(0.05)
    assert 0.04 <= time.monotonic() - began < 10
    release = threading.Timer(0.05, first.release)
    release.start()
    second.acquire(10)
    release.join()
    second.release()


def test_a_lock_is_not_lost_when_its_file_is_read_and_closed_in_the_same_process(tmp_path):
    lock = files.FileLock(tmp_path / "LOCK")
    lock.acquire()
    with open(tmp_path / "LOCK", "rb") as file:
        file.read()
    with pytest.raises(LockedError):
        files.FileLock(tmp_path / "LOCK").acquire()
    lock.release()


def test_a_released_lock_is_free_although_another_descriptor_of_it_lives_on(tmp_path):
    """What a forked child that never used the store still has open."""
    lock = files.FileLock(tmp_path / "LOCK")
    lock.acquire()
    inherited = os.dup(lock._fd)
    try:
        lock.release()
        second = files.FileLock(tmp_path / "LOCK")
        second.acquire()
        second.release()
    finally:
        os.close(inherited)


def test_abandoning_a_lock_in_a_child_leaves_it_with_the_parent(tmp_path):
    lock = files.FileLock(tmp_path / "LOCK")
    lock.acquire()
    inherited = os.dup(lock._fd)
    child = files.FileLock(tmp_path / "LOCK")
    child._fd = files.Descriptor(inherited)
    child.abandon()
    assert not child.held
    with pytest.raises(LockedError):
        files.FileLock(tmp_path / "LOCK").acquire()
    lock.release()


def test_the_lock_of_a_process_that_is_gone_is_free(tmp_path):
    code = (
        "import sys, os, pathlib; from tiered.files import FileLock; "
        "lock = FileLock(pathlib.Path(sys.argv[1])); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "LOCK")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(LockedError, match=f"process {child.pid} "):
            files.FileLock(tmp_path / "LOCK").acquire()
        child.kill()
        child.wait()
        lock = files.FileLock(tmp_path / "LOCK")
        lock.acquire(5)
        lock.release()


def test_locks_are_not_inherited_by_programs_that_are_started(tmp_path):
    lock = files.FileLock(tmp_path / "LOCK")
    lock.acquire()
    assert fcntl.fcntl(lock._fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    lock.release()


# An interrupt may meet the finalizer of something else, whose interpreter then says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_descriptor_is_closed_with_its_last_reference_whatever_signals_come(tmp_path):
    """An interrupt before the first line of a finalizer in Python would keep it from closing anything."""
    before = len(os.listdir("/proc/self/fd"))
    interrupts, inside = 0, False
    made: list[files.Descriptor] = []

    def interrupt(*_):
        nonlocal interrupts, inside
        if inside:
            inside = False
            interrupts += 1
            raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(1000):
            with contextlib.suppress(KeyboardInterrupt):
                inside = True
                for _ in range(10):
                    made = list(map(files.Descriptor, map(os.dup, [2] * 20)))
                    made = []
                inside = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    del made
    assert interrupts
    assert len(os.listdir("/proc/self/fd")) == before
