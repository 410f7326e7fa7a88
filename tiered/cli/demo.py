"""`demo`: what the package does, on data made up on the spot, in a temporary store that is gone at the end."""

from __future__ import annotations

import time
from typing import Any

import click

from tiered.cli import options, output

RECORDS, MEMORY_BYTES = 20_000, 1 << 20
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "juniper", "kestrel", "larch")


def made(number: int) -> dict[str, Any]:
    """A document, told by its number."""
    words = [WORDS[number * step % len(WORDS)] for step in (1, 3, 5, 7, 11)]
    return {
        "id": number,
        "name": " ".join(words[:2]),
        "tags": words[2:],
        "text": " ".join(words * 4),
        "score": number / 7,
    }


@click.command("demo")
@click.option("--keep", type=click.Path(), metavar="STORE", help="Make the store there, and leave it.")
@options.as_json
def demo_command(keep: str | None, as_json: bool) -> None:
    """Documents through a store larger than its memory, all checked."""
    import tiered
    from tiered.cli.running import Failure

    settings: dict[str, Any] = {"memory": MEMORY_BYTES}
    if keep is not None:
        try:
            with tiered.open(keep, "r"):
                raise Failure(f"{keep}: there is a store already; name a new one")
        except tiered.NotAStoreError:
            pass
    with tiered.open(keep, "c", **settings) if keep is not None else tiered.open(**settings) as store:
        began = time.perf_counter()
        store.update(((WORDS[n % len(WORDS)], n), made(n)) for n in range(RECORDS))
        store.save()
        loaded = time.perf_counter()
        wrong = sum(store[WORDS[n % len(WORDS)], n] != made(n) for n in range(RECORDS))
        read = time.perf_counter()
        stats, memory = store.stats(), store.memory_stats()
    found = {
        "records": RECORDS,
        "wrong": wrong,
        "packed_bytes": stats.packed_bytes,
        "stored_bytes": stats.stored_bytes,
        "memory_budget_bytes": memory.budget_bytes,
        "memory_accounted_bytes": memory.accounted_bytes,
        "writes_per_second": RECORDS / (loaded - began),
        "reads_per_second": RECORDS / (read - loaded),
        "hit_ratio": stats.hit_ratio,
        "evictions": stats.evictions,
    }
    if as_json:
        output.document(found)
        return
    packed, budget = output.size(stats.packed_bytes), output.size(memory.budget_bytes)
    output.write(f"{RECORDS:,} documents, {packed} packed, with {budget} of memory:")
    output.write(f"written  {found['writes_per_second']:,.0f} a second, until all were checkpointed")
    output.write(
        f"on disk  {output.size(stats.stored_bytes)}, compressed {stats.packed_bytes / stats.stored_bytes:.1f} : 1"
    )
    output.write(f"read     {found['reads_per_second']:,.0f} a second, in the order written")
    output.write(f"evicted  {stats.evictions:,} times, from memory only")
    output.write(f"memory   {output.size(memory.accounted_bytes)} at the end")
    output.write(f"wrong    {wrong}")
    if keep is not None:
        output.write(f"kept in {keep}; next: tiered-cli inspect {keep}")
