"""The applier alone: CPU time per record and part, device writes and memory, without the program beside it.

Segments of documents in random key order are written as a store under a budget of a quarter of the packed size would
close them, and applied in this process, each followed by the slices that are due. Parts are timed at calls that handle
many records, so timing them costs nothing that shows; what a part calls counts for the inner one only.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import MB, device_written_bytes, disk_bytes, fresh_process, rss_anon_bytes, table
from workload import Workload, temporary_folder

from tiered import checkpoint, codec, cold, cold_update, compression, files, journal, keys, pending
from tiered.journal import PUT, Journal, SegmentFile

ENTRY_BYTES = 130
"""What the write buffer takes for a record beside its segment."""
RECORDS_MAX = 65_536
PARTS = {
    "read": (pending.Pending, "__init__"),
    "pack": (pending.Pending, "changes"),
    "compress": (compression.Compressor, "compress_all"),
    "look up and put": (cold_update.Update, "write"),
    "observe": (checkpoint.Applier, "_observe"),
    "fold": (cold_update.Update, "fold"),
    "merge": (cold_update.Update, "merge"),
    "train": (checkpoint.Applier, "_train"),
    "slice commit": (checkpoint.Applier, "slice"),
}


class Parts:
    """CPU seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def measured(*arguments: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            begin = time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                taken = time.process_time() - begin
                self.seconds[name] += taken - self._inner.pop()
                self._inner[-1] += taken

        return measured


def segments(directory: Path, workload: Workload) -> Iterator[tuple[SegmentFile, int]]:
    """Closed segments, each with its last sequence number."""
    made = Journal(directory, 1, 1, 0)
    share = workload.packed_bytes // 4 // 4
    capacity = max(journal.SEGMENT_BYTES_MIN, share)
    pairs = itertools.chain.from_iterable(workload.pairs())
    for count in itertools.count():
        for filled, (name, document) in enumerate(pairs, 1):
            number, payload = codec.encode(document)
            encoded = keys.encode(name)
            if made.active is None:
                made.open_segment(capacity, capacity)
            made.append(PUT, 0, encoded, payload, number, 0)
            assert made.active is not None
            room = share - made.active.position - filled * (ENTRY_BYTES + len(encoded))
            if room < 0 or filled == RECORDS_MAX or made.active.capacity - made.active.position < 4096:
                break
        if made.active is None:
            return
        closed = made.close_segment(1_700_000_000_000 + count)
        yield SegmentFile(closed.path), closed.last
        made.forget(closed, closed.last)


def run(job: dict[str, Any]) -> dict[str, Any]:
    """In the fresh process: apply everything."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # As in the helper.
    workload = Workload.load(job["workload"])
    directory = Path(job["path"])
    directory.mkdir()
    files.write_current(directory, 1)
    environment = cold.Cold(files.cold_path(directory, 1), create=True)
    applier = checkpoint.Applier(directory, environment, "zstd:3")
    parts = Parts()
    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, parts.timed(name, getattr(owner, attribute)))
    apply = parts.timed("commit and the rest", applier.apply)
    before, written, peak, applies, seconds = rss_anon_bytes(), 0, 0, 0, 0.0
    for segment, until in segments(directory, workload):
        at, begin = device_written_bytes(), time.perf_counter()
        apply([segment], until)
        peak = max(peak, rss_anon_bytes())
        while applier.slice() and applier.owes:
            peak = max(peak, rss_anon_bytes())
        seconds += time.perf_counter() - begin
        written += device_written_bytes() - at
        applies += 1
    used = environment.used_bytes()
    figures = {name: taken / workload.records * 1e6 for name, taken in parts.seconds.items()}
    reads = workload.reads("uniform", workload.records)
    encodings = [keys.encode(name) for chunk, _ in reads for name in chunk]
    for encoded in encodings:
        environment.get(encoded)  # Maps the pages.
    begin = time.process_time()
    for encoded in encodings:
        environment.get(encoded)
    return {
        "parts": figures,
        "get": (time.process_time() - begin) / max(1, len(encodings)) * 1e6,
        "wall": seconds / workload.records * 1e6,
        "written": written / workload.records,
        "used": used / workload.records,
        "disk": disk_bytes(directory) / workload.records,
        "peak": (peak - before) / MB,
        "applies": applies,
        "runs": len(environment.state().runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="300000,3000000", help="sizes (default: 300000,3000000)")
    parser.add_argument("--dir", help="parent of the temporary folder: on the disk to be measured")
    parser.add_argument("--data", help="folder for the documents, which are kept there and found again")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run(options.job)))
        return
    columns = {}
    for records in map(int, options.records.split(",")):
        with temporary_folder(options.dir) as folder:
            data = Path(options.data or folder) / str(records)
            if not (data / "workload.json").exists():
                data.mkdir(parents=True)
                Workload.prepare(data, records, 100_000)
            columns[records] = fresh_process(__file__, {"workload": str(data), "path": str(folder / "store")})
    results = list(columns.values())
    names = [name for name in ("commit and the rest", *PARTS) if any(name in result["parts"] for result in results)]
    rows = [[name, *(result["parts"].get(name, 0.0) for result in results)] for name in names]
    rows.append(["all, CPU", *(sum(result["parts"].values()) for result in results)])
    rows.append(["all, wall clock", *(result["wall"] for result in results)])
    rows.append(["a cold get, CPU", *(result["get"] for result in results)])
    for name, title in (("written", "device writes, bytes"), ("used", "pages used, bytes"), ("disk", "disk, bytes")):
        rows.append([title, *(result[name] for result in results)])
    rows.append(["growth of RssAnon, MB", *(result["peak"] for result in results)])
    rows.append(["applies", *(result["applies"] for result in results)])
    rows.append(["runs left", *(result["runs"] for result in results)])
    table(["us per record", *(f"{records:,}" for records in columns)], rows)


if __name__ == "__main__":
    main()
