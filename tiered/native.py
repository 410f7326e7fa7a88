"""Whether the compiled part, `tiered._native`, is there: the only module that imports it.

It is one small C extension of functions and types that are too hot for Python.  Each has a
twin in pure Python in the module that uses it; the twin defines what it does, one contract
suite tests both, and formats and results never depend on which one runs.  `pip install` builds it
where there is a C compiler.  `TIERED_PURE=1` in the environment leaves it out, for tests and for comparison.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any


def _found() -> Any:
    if os.environ.get("TIERED_PURE", "") not in ("", "0"):
        return None
    try:
        return import_module("tiered._native")
    except ImportError:
        return None


native: Any = _found()
"""The compiled part, or None."""
COMPILED = native is not None
