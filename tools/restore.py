#!/usr/bin/env python3
"""Make a store from a snapshot file, or verify one.

    tools/restore.py backup/users.tsnap users.tiered
    tools/restore.py backup/users.tsnap --verify

The exit status tells what happened (`tiered.cli.running`).  Nothing is at the store's path before all of it is well.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A checkout works as it is, installed or not.

from tiered.cli import backup, running


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog=running.STATUS)
    parser.add_argument("file", help="the snapshot")
    parser.add_argument("store", nargs="?", help="directory of the new store; may be left out with --verify")
    parser.add_argument("--force", action="store_true", help="replace the store that is there")
    parser.add_argument("--prefix", help="only keys that are texts beginning so")
    parser.add_argument("--verify", action="store_true", help="read the store again afterwards; without one, the file")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    arguments = parser.parse_args()
    if arguments.store is None:
        if not arguments.verify:
            parser.error("the store is missing")
        return running.run(lambda: backup.verified(arguments.file, arguments.quiet))
    given = (arguments.force, arguments.prefix, arguments.verify, arguments.quiet)
    return running.run(lambda: backup.restore(arguments.file, arguments.store, *given))


if __name__ == "__main__":
    sys.exit(main())
