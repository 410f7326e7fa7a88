"""Why a value cannot be kept, told from the inside out while it is encoded."""

from __future__ import annotations


class Refused(Exception):
    """Why a value cannot be kept; the steps to it are added, innermost first, on the way out.

    Never leaves `codec.encode`, which raises a `TypeError` with its text.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []

    def __str__(self) -> str:
        if len(self.steps) > 16:
            return f"value: {self.reason}"
        return f"value{''.join(reversed(self.steps))}: {self.reason}"


def key_name(key: object) -> str:
    """A dict's key as a step; only plain ones are shown."""
    if type(key) in (str, bytes, int, float, bool, type(None)):
        shown = repr(key)
        return shown if len(shown) <= 40 else f"{shown[:37]}..."
    return f"<{type_name(type(key))}>"


def type_name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
