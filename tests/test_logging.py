"""What is logged, at which level, and that no key or value ever is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import tiered
from tiered import files

SECRET = "s3cret"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    """The lines logged so far, of a level or above, each with its traceback."""
    caplog.set_level(logging.DEBUG, "tiered")
    return lambda level=logging.DEBUG: [
        caplog.handler.format(record) for record in caplog.records if record.levelno >= level
    ]


def crashed(store: Any) -> None:
    """Leave a store as a killed program does."""
    store["not checkpointed"] = 1
    store._engine.poison("of the test")
    with pytest.raises(tiered.PoisonedError):
        store.close()


def test_checkpoints_are_details(opener: Any, lines: Any) -> None:
    store = opener(stepwise=True)
    store["a"] = 1
    store.save()
    store.compact()
    assert sum("checkpoint of 1 records" in line for line in lines()) == 1
    assert sum("compacted into" in line for line in lines()) == 1
    store.close()
    assert lines(logging.INFO) == []


def test_recovery_is_information_and_a_torn_journal_a_warning(opener: Any, lines: Any, tmp_path: Path) -> None:
    store = opener(stepwise=True)
    store["a"] = 1
    crashed(store)
    opener(stepwise=True).close()
    assert any("recovered" in line for line in lines(logging.INFO))
    assert not any("recovered" in line for line in lines(logging.WARNING))
    store = opener(stepwise=True)
    store["a"] = SECRET
    store["b"] = SECRET
    crashed(store)
    [number] = files.segment_numbers(tmp_path / "store.tiered")
    segment = files.segment_path(tmp_path / "store.tiered", number)
    data = segment.read_bytes()
    segment.write_bytes(data.replace(SECRET.encode(), b"damage", 2)[: data.rindex(SECRET.encode()) + 2])
    opener(stepwise=True).close()
    assert any("never reached the disk" in line for line in lines(logging.WARNING))
    assert not any(SECRET in line for line in lines())


def test_a_store_that_refuses_writes_is_an_error(opener: Any, lines: Any) -> None:
    crashed(opener(stepwise=True))
    [line] = lines(logging.ERROR)
    assert "writes are refused from now on" in line


def test_no_line_holds_a_key_or_a_value(opener: Any, lines: Any, tmp_path: Path, clock: Any) -> None:
    store = opener(stepwise=True, clock=clock, snapshot_save="1 1", snapshot_dir=str(tmp_path / "snapshots"))

    def broken(event: Any) -> None:
        raise RuntimeError("of the test")

    store.on("checkpoint", broken)
    for number in range(3000):
        store.set(f"{SECRET} {number}", {SECRET: SECRET, "n": number}, ttl=5 if number % 2 else None)
    store.save()
    clock.sleep(20)
    for _ in range(10):
        store.tick()
        clock.sleep(5)
    store.compact()
    crashed(store)
    opener(stepwise=True).close()
    assert len(lines()) > 5
    assert any("a callback for 'checkpoint' raised" in line for line in lines(logging.ERROR))
    assert not any(SECRET in line for line in lines())


def test_the_package_adds_no_handler(store: Any) -> None:
    store["a"] = 1
    store.save()
    assert logging.getLogger("tiered").handlers == []
    assert logging.getLogger("tiered").level == logging.NOTSET
