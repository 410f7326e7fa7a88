"""The logger of the package, `tiered`, to which no handler is added.

Levels:

    DEBUG    checkpoints, compactions
    INFO     what `open` recovers; scheduled snapshots
    WARNING  what somebody should see to: a torn journal, a checkpoint put off, a helper that died, files put aside
    ERROR    work in the background that failed: a store that refuses writes, no snapshot, a callback that raised

A line names the store and files of it, never a key or a value.

`logging` takes a tenth of the time of `import tiered`.  It is imported when the first store is
opened (`opening`): not before, and not with the first message, when there may be
neither memory nor a descriptor left for it.
"""

from __future__ import annotations

from typing import Any


class _Logger:
    def prepare(self) -> None:
        import logging

        self.logger = logging.getLogger("tiered")  # Once: it takes a lock, in which an interrupt may leave `logging`.

    def __getattr__(self, name: str) -> Any:
        if name == "logger":
            self.prepare()
        return self.logger if name == "logger" else getattr(self.logger, name)


LOG: Any = _Logger()
"""Stands for the logger: has its methods."""
