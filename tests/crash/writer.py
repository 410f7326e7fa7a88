"""The program that is killed: threads that write, noting each step before and after it in a file of their own.

Arguments: the store, the folder for the notes, the first step of each thread, durability, what goes on beside.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings

import operations

import tiered

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads, which this is about.


def work(store: tiered.Store, folder: str, thread: int, step: int) -> None:
    notes = os.open(f"{folder}/{thread}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        made = operations.operation(thread, step)
        os.write(notes, b"i%d\n" % step)
        operations.perform(store, made)
        os.write(notes, b"a%d\n" % step)
        step += 1


def leave_a_child() -> None:
    """Fork a process that lives on when this one is killed, with everything that it inherits."""
    if os.fork() == 0:
        os.write(1, b"%d\n" % os.getpid())
        for fd in range(3):
            os.close(fd)
        signal.pause()
        os._exit(0)


def disturb(store: tiered.Store, beside: str) -> None:
    while True:
        time.sleep(0.02)
        if "f" in beside:
            leave_a_child()
            beside = beside.replace("f", "")
        if "c" in beside:
            store.compact()
        if "s" in beside:
            store.save()
        if "p" in beside:
            store.snapshot(f"{store.path}.tsnap")
        if "y" in beside:
            store.sync()


def main() -> None:
    path, folder, steps, durability, beside = sys.argv[1:]
    print("opening", flush=True)
    helper = "h" in beside
    store = tiered.open(path, memory="1MB", durability=durability, save="0 2000 1 1", helper=helper, lock_timeout=5)
    for thread, step in enumerate(map(int, steps.split(","))):
        threading.Thread(target=work, args=(store, folder, thread, step)).start()
    disturb(store, beside)


main()
