"""What a program in another process may ask of the one that has a store open for writing, and its answers.

A question is a file in the store's directory.  The asker makes it, the writer adds to it, the asker removes it:

    NAME/control-0123456789abcdef    mode 0600; lines of JSON:
        {"ask": "stats", ...}        the question, in one write
        {"taken": 4711}              the writer's process, which is at it
        {"answer": ...}              or {"error": type, "text": message}

There is no socket, whose path could be too long, no descriptor that a fork could carry away, and nothing is published
that nobody asked for.  While nobody asks, it costs the maintenance thread one `stat` of the directory now and then, for
each store; only a directory that has changed is listed.  A question is answered by a thread of its own, through one of
the program's handles, as if the program had called it; once that handle is closed, the answer is that it is.

The asker holds a lock (flock) on its file.  One that nobody holds is left by an asker that was killed, and the
writer removes it.  A writer that was killed is told by the lock on LOCK, which went with it; that is looked for in
/proc/locks, since trying to take it could get in the way of a program that opens the store just then.  Who may make
files in the directory (mode 0700) may do anything to the store anyway; still, only files of the writer's own user, or
of root, are heeded.

A program that has opened a store and has neither written nor evicted anything since has no thread yet, and does not
answer.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tiered import files, keys
from tiered.engine import Engine
from tiered.errors import LockedError, ReadOnlyError, StoreError, TieredError
from tiered.log import LOG
from tiered.maintenance import MAINTENANCE
from tiered.sharing import HANDLES
from tiered.stats import stats_of

if TYPE_CHECKING:
    from tiered.store import Store

LOOK_SECONDS = 0.2
SETTLED_NS = 100_000_000
"""A directory changed less than this ago may change again without a later time: it is looked at again."""
STALE_SECONDS = 10.0
QUESTION_BYTES_MAX = 1 << 17
TAKEN_SECONDS_MAX = 3.0
POLL_SECONDS = 0.02
LOOKS, LOOKS_SECONDS = 8, 0.001


# Who has the store open


class Holder(NamedTuple):
    """The program that has a store open for writing."""

    pid: int
    host: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.command}) since {self.since}"


def holder(directory: Path) -> Holder | None:
    """Who has the store open for writing, None if nobody does.  Takes no lock and writes nothing."""
    import json  # Not at the top, nor below: importing the package is to be quick.

    path = directory / files.LOCK
    try:
        who = json.loads(path.read_bytes())
        found = Holder(int(who["pid"]), str(who["host"]), " ".join(str(who["command"]).split()), str(who["since"]))
        inode = path.stat().st_ino
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if _holds(found.pid, inode) else None


def _holds(pid: int, inode: int) -> bool:
    try:
        # The system tells its locks a page at a time, and passes one over where others are let go of in between: 6 in
        # 100 looks, on a machine where locks came and went all the time.
        for _ in range(LOOKS):
            if _is_told(pid, inode):
                return True
            time.sleep(LOOKS_SECONDS)
        return False
    except OSError:
        pass  # Not Linux.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_told(pid: int, inode: int) -> bool:
    with open("/proc/locks", encoding="ascii") as lines:
        # The device is not compared: some file systems name another one here than `stat` does.
        held = [line.split()[1:6] for line in lines]
    return any(
        kind == "FLOCK" and owner == str(pid) and place.rpartition(":")[2] == str(inode)
        for kind, _, _, owner, place in (words for words in held if len(words) == 5)
    )


# Asking


def ask(directory: Path, what: str, **arguments: Any) -> Any:
    """The answer of the program that has the store open for writing.

    Raises `LockedError` where it does not answer, `StoreError` where nobody has the store open or what was asked
    for failed there, `ReadOnlyError` where no question can be put.  Waits as long as the answer takes.
    """
    import fcntl
    import json

    who = holder(directory)
    if who is None:
        raise StoreError(directory, "no program has it open for writing")
    path = directory / f"{files.CONTROL}{os.urandom(8).hex()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ReadOnlyError(directory, f"cannot ask {who}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        question = json.dumps({"ask": what, **arguments}).encode() + b"\n"
        os.write(fd, question)
        return _answer(directory, who, fd, len(question))
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(fd)


def _answer(directory: Path, who: Holder, fd: int, start: int) -> Any:
    """Wait for the lines that are to come after the question."""
    import json

    began, taken = time.monotonic(), False
    while True:
        lines = os.pread(fd, os.fstat(fd).st_size - start, start).split(b"\n")[:-1]
        taken = taken or bool(lines)
        if len(lines) > 1:
            reply = json.loads(lines[1])
            if "error" in reply:
                raise StoreError(directory, f"{reply['text']} (process {who.pid}, which has it open)")
            return reply["answer"]
        if holder(directory) != who:
            raise StoreError(directory, f"{who} has ended, or closed the store, before it answered")
        if not taken and time.monotonic() - began > TAKEN_SECONDS_MAX:
            raise LockedError(
                directory,
                f"open for writing by {who}, which does not answer: it is stopped, busy, or has done nothing with the "
                "store yet",
            )
        time.sleep(POLL_SECONDS)


# Answering


class _Looked:
    """What was seen of a store's directory at the last look."""

    def __init__(self) -> None:
        self.changed_ns = -1
        self.taken: set[str] = set()


_looked: weakref.WeakKeyDictionary[Engine, _Looked] = weakref.WeakKeyDictionary()
_look_at = 0.0


def attend() -> None:
    """Look for questions, and have them answered: what the maintenance thread does now and then."""
    global _look_at
    now = time.monotonic()
    if now < _look_at:
        return
    _look_at = now + LOOK_SECONDS
    for engine in MAINTENANCE.open_engines():
        if engine.journal is None or engine.closed:
            continue
        try:
            _look(engine)
        except OSError as error:
            LOG.debug("%s: looking for questions of other programs failed: %s", engine.directory, error)


def _look(engine: Engine) -> None:
    looked = _looked.setdefault(engine, _Looked())
    changed_ns = os.stat(engine.directory).st_mtime_ns
    if changed_ns == looked.changed_ns:
        return
    # Before the names are read: what comes after is seen next time.
    looked.changed_ns = changed_ns if time.time_ns() - changed_ns > SETTLED_NS else -1
    names = [name for name in os.listdir(engine.directory) if name.startswith(files.CONTROL)]
    looked.taken.intersection_update(names)
    for name in names:
        if name not in looked.taken and _take(engine, engine.directory / name):
            looked.taken.add(name)
    if len(looked.taken) < len(names):
        looked.changed_ns = -1


def _take(engine: Engine, path: Path) -> bool:
    """Have a question answered; False where there is none yet."""
    import fcntl
    import json

    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True  # Gone by now, or nothing that an asker makes.
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            # Its asker is gone, unless it has made the file just now.
            fcntl.flock(fd, fcntl.LOCK_UN)
            if abs(time.time() - status.st_mtime) > STALE_SECONDS:
                path.unlink()
            return False
        lines = os.pread(fd, QUESTION_BYTES_MAX, 0).split(b"\n")
        if len(lines) != 2:
            return len(lines) > 2  # One that was taken already, by a program that is gone.
        os.write(fd, json.dumps({"taken": os.getpid()}).encode() + b"\n")
        thread = threading.Thread(target=_reply, args=(engine, fd, lines[0]), name="tiered-control", daemon=True)
        thread.start()
        undo.pop_all()
    return True


def _reply(engine: Engine, fd: int, line: bytes) -> None:
    """Answer one question; the asker hears of whatever goes wrong."""
    import json

    try:
        question = json.loads(line)
        reply = {"answer": QUESTIONS[question.pop("ask")](engine, **question)}
    except (TieredError, OSError) as error:
        reply = {"error": type(error).__name__, "text": getattr(error, "message", str(error))}
    except Exception as error:  # Whatever it is, somebody waits for an answer.
        LOG.info("%s: a question of another program failed: %r", engine.directory, error)
        reply = {"error": type(error).__name__, "text": f"the question failed: {error!r}"}
    try:
        os.write(fd, json.dumps(reply).encode() + b"\n")
    except OSError as error:
        LOG.debug("%s: a question of another program could not be answered: %s", engine.directory, error)
    finally:
        os.close(fd)


def _store(engine: Engine) -> Store[Any, Any]:
    """The program's own handle, the one for writing if there is one."""
    handles = sorted(HANDLES.of(engine), key=lambda handle: handle._readonly)
    if not handles:
        raise StoreError(engine.directory, "the store is being closed")
    first: Store[Any, Any] = handles[0]
    return first


def _stats(engine: Engine, count: bool = True) -> dict[str, Any]:
    """Figures; without `count`, records are those of the last checkpoint: counting takes time where many are dirty."""
    records = len(_store(engine)) if count else engine.state.records
    stats = stats_of(engine, records, HANDLES.hits_of(engine))
    return {
        "pid": os.getpid(),
        "command": " ".join(sys.orig_argv)[:200],
        "open_seconds": engine.clock.monotonic() - engine.opened_at,
        "stats": {**stats._asdict(), "hit_ratio": stats.hit_ratio},
        "memory": _store(engine).memory_stats()._asdict(),
    }


def _explain(engine: Engine, key: str) -> dict[str, Any] | None:
    try:
        return _store(engine).explain(keys.decode(bytes.fromhex(key)))._asdict()
    except KeyError:
        return None


def _save(engine: Engine) -> dict[str, Any]:
    _store(engine).save()
    return {}


def _compact(engine: Engine) -> dict[str, Any]:
    before = engine.disk_bytes()
    _store(engine).compact()
    return {"disk_bytes_before": before, "disk_bytes": engine.disk_bytes()}


def _reclaim(engine: Engine) -> dict[str, Any]:
    return {"reclaimed_bytes": _store(engine).reclaim()}


def _doctor(engine: Engine) -> list[dict[str, str]]:
    return [diagnosis._asdict() for diagnosis in _store(engine).doctor()]


def _history(engine: Engine) -> list[dict[str, Any]]:
    now = engine.clock.monotonic()
    return [{"seconds_ago": now - sample.at, **sample._asdict()} for sample in list(engine.samples)]


def _advise(engine: Engine) -> dict[str, Any]:
    advice = _store(engine).advise()
    return {
        "memory_bytes": advice.memory,
        "curve": [{"memory_bytes": memory, "hit_ratio": ratio} for memory, ratio in advice.curve],
        "enough": {"memory_bytes": advice.enough.memory, "hit_ratio": advice.enough.hit_ratio},
        "reads": advice.reads,
        "sampled_keys": advice.sampled_keys,
        "sampled_share": advice.sampled_share,
    }


def _config_get(engine: Engine, name: str) -> dict[str, object]:
    return _store(engine).config_get(name)


def _config_set(engine: Engine, name: str, value: object) -> dict[str, object]:
    _store(engine).config_set(name, value)
    return _store(engine).config_get(name)


QUESTIONS: dict[str, Callable[..., Any]] = {
    "stats": _stats,
    "explain": _explain,
    "doctor": _doctor,
    "history": _history,
    "advise": _advise,
    "save": _save,
    "compact": _compact,
    "reclaim": _reclaim,
    "config_get": _config_get,
    "config_set": _config_set,
}
"""What can be asked, and who answers."""
