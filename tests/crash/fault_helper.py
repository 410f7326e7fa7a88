"""The first, the second, … system call of the helper process fails, until it is done without having met one.

Arguments: seed, and how many of the calls to try, 0 for all.

Each fails once, with EIO or ENOSPC; with 0, with both.  Whatever an operation raises is an error of this package;
what is read is right all the time; a checkpoint that lacked room is made when it is asked for again; and closed and
opened again, with a helper that meets no fault, the store holds everything acknowledged.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seam import scratch

import tiered

PASSES = 1 << 30


def operations(store: Any) -> list[tuple[Callable[[], object], dict[int, str]]]:
    """What is done to a store, every kind of work that its helper has, and what each of them writes."""

    def write(first: int) -> tuple[Callable[[], object], dict[int, str]]:
        pairs = {number: f"value {number} of {first} " * 20 for number in range(first, first + 300)}
        return lambda: store.set_many(pairs), pairs

    def quiet(operation: Callable[[], object]) -> tuple[Callable[[], object], dict[int, str]]:
        return operation, {}

    save = quiet(store.save)
    file = Path(store.path).with_name("snapshot.tsnap")
    others = [quiet(lambda: store.snapshot(file)), quiet(store.compact)]
    return [write(0), save, write(200), save, write(100), *others, write(400), save]


class Trial:
    """One life of a store whose helper meets a fault."""

    def __init__(self, folder: Path, number: int, code: int) -> None:
        self.path, self.met = folder / "store", folder / "met"
        self.model: dict[int, str] = {}
        # For the helper, which is another process: this one has looked at its environment already.
        os.environ["SEAM"] = f"{folder} * {number} {code}"
        os.environ["SEAM_MET"] = str(self.met)

    def run(self) -> str:
        """How the store ended."""
        store = tiered.open(self.path, memory="1MB", save="", durability="always")
        end = "fine"
        for operation, written in operations(store):
            before, failed = self.model, True
            try:
                operation()
                failed = False
            except tiered.PoisonedError:
                end = "poisoned"
            except tiered.StoreFullError:
                with contextlib.suppress(tiered.StoreFullError):
                    operation()
                end = "full for a while" if end == "fine" else end
            except tiered.TieredError:
                end = "told" if end == "fine" else end
            self.model = dict(store.items())
            after = before | written
            if failed and self.model != after:  # Some of its batches, each of them whole.
                after = before | {key: value for key, value in written.items() if self.model.get(key) == value}
            assert self.model == after, "another state than written"
        with contextlib.suppress(tiered.TieredError):
            store.close()
        return end if self.met.exists() else "not met"

    def verify(self) -> None:
        """Opened again, with another helper, it is whole."""
        del os.environ["SEAM"]
        with tiered.open(self.path, "w", memory="1MB", lock_timeout=10) as store:
            assert dict(store.items()) == self.model, "another state after opening again"
            assert store.check() == []
            store["more"] = 1
            store.save()
        assert tiered.verify(self.path) == []


def attempt(root: Path, number: int, code: int) -> str:
    """Run it once, with one fault; how it ended."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    faulthandler.dump_traceback_later(60, exit=True)
    trial = Trial(root, number, code)
    try:
        end = trial.run()
        trial.verify()
    except Exception as error:
        met = trial.met.read_text().strip() if trial.met.exists() else "not met"
        raise AssertionError(
            f"call {number} of the helper ({met}) fails with {errno.errorcode[code]}: {error}"
        ) from error
    return end


def main() -> None:
    seed, count = map(int, sys.argv[1:])
    uniform = random.Random(seed)
    ends: Counter[str] = Counter()
    with scratch() as root:
        assert attempt(root / "0", PASSES, errno.EIO) == "not met"
        number = 0
        while True:
            number += 1 if count == 0 else uniform.randrange(1, 2 * max(1, 130 // count))
            codes = [errno.EIO, errno.ENOSPC] if count == 0 else [uniform.choice([errno.EIO, errno.ENOSPC])]
            found = [attempt(root / "0", number, code) for code in codes]
            if "not met" in found:
                break
            ends.update(found)
    print(f"{number} calls, {sum(ends.values())} runs with a fault in the helper: {dict(ends)}")


if __name__ == "__main__":
    main()
