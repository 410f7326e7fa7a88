#!/usr/bin/env python3
"""Write a whole store into one file, while programs go on using it.

    tools/snapshot.py users.tiered backup/users.tsnap --verify

Fit for cron: says nothing with --quiet but errors, and its exit status tells what happened (`tiered.cli.running`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # A checkout works as it is, installed or not.

from tiered.cli import backup, running


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], epilog=running.STATUS)
    parser.add_argument("store", help="directory of the store; another program may have it open")
    parser.add_argument("file", help="where to write; an older snapshot there is replaced at the end")
    parser.add_argument("--verify", action="store_true", help="read the file again afterwards")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    arguments = parser.parse_args()
    return running.run(lambda: backup.snapshot(arguments.store, arguments.file, arguments.verify, arguments.quiet))


if __name__ == "__main__":
    sys.exit(main())
