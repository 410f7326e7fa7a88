"""The exceptions of this package.

    TieredError
    ├── StoreError                  the store as a whole; carries `path`
    │   ├── NotAStoreError          the path is a file, or a directory without a store in it
    │   ├── StoreExistsError        a store is where one is to be restored
    │   ├── FormatError             written by a newer version than this one
    │   ├── LockedError             another process has it open for writing, or a handle is in the way
    │   ├── ForkedError             a handle used in a forked child
    │   ├── ClosedError             a handle used after close()
    │   ├── ReadOnlyError           a write through a read-only handle, or to a read-only medium
    │   ├── PoisonedError           a write or sync failed earlier; writes are refused, reads go on
    │   ├── StoreFullError          no room on the disk; writes are refused until there is
    │   ├── MemoryFullError         no room in memory, and `spill` is off
    │   ├── CorruptionError         bytes on disk are not what was written; carries `offset`
    │   ├── ConflictError           something a transaction had read was changed by another; run it again
    │   ├── ReentrantError          used inside an operation of the same thread, as by a signal handler
    │   ├── ViewExpiredError        a view was open too long, or kept too much memory
    │   └── UnsupportedError        this platform or file system cannot keep the promises
    ├── ConfigError                 a setting that does not exist or a value out of its bounds (a ValueError)
    ├── UnknownTypeError            a value of a registered type that this program does not know; carries `name`
    ├── KeyTooLongError             an encoded key above 32 KiB (a ValueError)
    ├── ValueTooLargeError          a value above 1 GiB when encoded (a ValueError)
    └── BatchTooLargeError          a batch larger than the write buffer (a ValueError)

A missing key is a plain `KeyError`; a key or value of a wrong type is a plain
`TypeError`.  No exception of lmdb, zstandard, msgpack or struct leaves the package.
"""

from __future__ import annotations

import os


class TieredError(Exception):
    """Root of every exception that this package defines."""


class StoreError(TieredError):
    """Something about one store; `path` names the file or directory."""

    def __init__(self, path: str | os.PathLike[str], message: str) -> None:
        super().__init__(path, message)
        self.path = os.fspath(path)
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class NotAStoreError(StoreError):
    """The path is a file, or a directory that does not hold a store."""


class StoreExistsError(StoreError):
    """A store is there already, and restoring would replace it; `force=True` does."""


class FormatError(StoreError):
    """The store was written in a format this version does not know."""


class LockedError(StoreError):
    """Another process has the store open for writing, or a handle of this one stands in the way."""


class ForkedError(StoreError):
    """A handle opened before `fork` was used in the child; open the store again there."""


class ClosedError(StoreError):
    """The handle was used after `close()`."""


class ReadOnlyError(StoreError):
    """A write through a handle opened with `flag="r"`, or on a read-only file system."""


class PoisonedError(StoreError):
    """A write or sync failed earlier: writes are refused, reads go on."""


class StoreFullError(StoreError):
    """The disk is full; nothing was lost, and writing resumes when there is room."""


class MemoryFullError(StoreError):
    """With `spill=False`, live records would take more than memory has for them; nothing of the write was done."""


class CorruptionError(StoreError):
    """Bytes on disk are not what was written; `offset` is where, if known."""

    def __init__(self, path: str | os.PathLike[str], message: str, offset: int | None = None) -> None:
        super().__init__(path, message)
        self.offset = offset


class UnsupportedError(StoreError):
    """The platform or file system cannot keep the promises of a store."""


class ConflictError(StoreError):
    """Something that a transaction had read was changed by another before its end; nothing of it was written."""


class ReentrantError(StoreError):
    """A signal handler, finalizer or codec used the store inside an operation of the same thread; nothing was done."""


class ViewExpiredError(StoreError):
    """A view was open for longer than its `max_age`, or kept more than its share of the memory; open another."""


class ConfigError(TieredError, ValueError):
    """A setting does not exist, or its value is out of bounds; the name of a value type is taken."""


class UnknownTypeError(TieredError):
    """A value is of a registered type that this program does not know, or knows otherwise; `name` is the type's."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message

    def __str__(self) -> str:
        return self.message


class KeyTooLongError(TieredError, ValueError):
    """The encoded key is longer than 32 KiB."""


class ValueTooLargeError(TieredError, ValueError):
    """The encoded value is larger than 1 GiB."""


class BatchTooLargeError(TieredError, ValueError):
    """The batch does not fit the write buffer; nothing of it was written."""
