"""Commands that look after a store: checkpoints, compaction, snapshots, restoring, verifying, repairing.

What a program has open for writing is asked of that program (`control`); what nobody has is opened meanwhile.
"""

from __future__ import annotations

import sys

import click

from tiered.cli import options, output, running
from tiered.cli.look import ask, holder
from tiered.cli.values import writing


@click.command("save")
@options.store
@options.quiet
def save_command(store: str, quiet: bool) -> None:
    """Checkpoint now."""
    if holder(store) is not None:
        ask(store, "save")
    else:
        with writing(store) as writer:
            writer.save()
    if not quiet:
        output.write(f"{store}: checkpointed")


@click.command("compact")
@options.store
@options.quiet
@options.as_json
def compact_command(store: str, quiet: bool, as_json: bool) -> None:
    """Rewrite the cold tier into less disk. Takes room for a copy."""
    if holder(store) is not None:
        done = ask(store, "compact")
    else:
        with writing(store) as writer:
            done = {"disk_bytes_before": writer.stats().disk_bytes}
            writer.compact()
            done["disk_bytes"] = writer.stats().disk_bytes
    if as_json:
        output.document(done)
    elif not quiet:
        before, after = output.size(done["disk_bytes_before"]), output.size(done["disk_bytes"])
        output.write(f"{store}: {before} before, {after} now")


@click.command("snapshot")
@options.store
@click.argument("file", type=click.Path())
@options.verify
@options.quiet
@options.as_json
def snapshot_command(store: str, file: str, verify: bool, quiet: bool, as_json: bool) -> int:
    """Write the whole STORE into one FILE, while programs use it."""
    from tiered.cli import backup

    return backup.snapshot(store, file, verify, quiet, as_json)


@click.command("restore")
@click.argument("file", type=click.Path())
@options.store
@click.option("--force", is_flag=True, help="Replace the store that is there.")
@click.option("--prefix", metavar="TEXT", help="Only keys that are texts beginning so.")
@options.verify
@options.quiet
@options.as_json
def restore_command(
    file: str, store: str, force: bool, prefix: str | None, verify: bool, quiet: bool, as_json: bool
) -> int:
    """Make a STORE from the snapshot in FILE."""
    from tiered.cli import backup

    return backup.restore(file, store, force, prefix, verify, quiet, as_json)


@click.command("verify")
@click.argument("path", type=click.Path())
@options.quiet
@options.as_json
def verify_command(path: str, quiet: bool, as_json: bool) -> int:
    """Read every byte of a store or snapshot, print what is wrong."""
    from tiered.cli import backup

    return backup.verified(path, quiet, as_json)


@click.command("repair")
@options.store
@click.argument("new", type=click.Path())
@options.as_json
def repair_command(store: str, new: str, as_json: bool) -> int:
    """Save what can be saved of a damaged STORE into a NEW one.

    Prints what was damaged and what is lost. STORE stays as it is.
    """
    from tiered.cli import backup, notation

    done = backup.repair(store, new)
    if as_json:
        lost = [notation.key_to_json(key) for key in done.lost_keys]
        output.document({**done._asdict(), "damage": list(done.damage), "lost_keys": lost})
    elif not done.damage:
        output.write(f"{store}: all is well, and no new store was made")
    else:
        for text in (*done.damage, *(f"lost: {notation.key_text(key)}" for key in done.lost_keys)):
            output.write(text)
        more = "" if done.lost_all_known else " at least"
        print(
            f"{new}: {done.records:,} records were saved;{more} {done.lost_records:,} are lost, and "
            f"{done.dropped_bytes:,} bytes of the journal; {store} is as it was",
            file=sys.stderr,
        )
    return running.DAMAGED if done.damage else running.DONE
