"""Clocks: they move on their own or when told, and never backwards."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from tiered.clock import Clock, ManualClock


def test_the_clock_tells_the_wall_time_in_milliseconds():
    before = time.time() * 1000
    now = Clock().now_ms()
    assert isinstance(now, int)
    assert before - 1 <= now <= time.time() * 1000 + 1


def test_a_wall_clock_set_back_does_not_bring_the_time_back(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    assert clock.now_ms() == 5000
    monkeypatch.setattr(time, "time_ns", lambda: 3_000_000_000)
    assert clock.now_ms() == 5000
    monkeypatch.setattr(time, "time_ns", lambda: 5_001_000_000)
    assert clock.now_ms() == 5001


def test_the_time_is_never_below_the_one_advanced_to(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    clock.advance(9000)
    assert clock.now_ms() == 9000
    clock.advance(7000)
    assert clock.now_ms() == 9000
    monkeypatch.setattr(time, "time_ns", lambda: 9_500_000_000)
    assert clock.now_ms() == 9500


def test_intervals_do_not_depend_on_the_wall_time(monkeypatch):
    clock = Clock()
    first = clock.monotonic()
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert clock.monotonic() >= first


def test_a_manual_clock_moves_only_when_told_to():
    clock = ManualClock(1000)
    assert (clock.now_ms(), clock.monotonic()) == (1000, 0.0)
    assert clock.now_ms() == 1000
    clock.sleep(1.5)
    assert (clock.now_ms(), clock.monotonic()) == (2500, 1.5)
    clock.advance(4000)
    assert clock.now_ms() == 4000
    clock.sleep(1)
    assert clock.now_ms() == 4000
    clock.sleep(1)
    assert clock.now_ms() == 4500


def test_an_expired_key_stays_dead_when_the_wall_clock_is_set_back_before_reopening(opener):
    clock = ManualClock(10_000_000)
    store = opener(clock=clock)
    store.set("key", "value", ttl=10)
    store["stays"] = 1
    clock.sleep(11)
    assert "key" not in store
    store.save()
    store.close()
    again = opener(clock=ManualClock(10_000_000))
    assert "key" not in again
    assert list(again) == ["stays"]
    again.set("key", "value", ttl=1)
    assert again.ttl("key") == 1


def test_a_clock_set_back_is_logged_once_told_by_the_doctor_and_over_when_it_has_caught_up(
    opener: Any, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = opener(clock=clock, stepwise=True)
    store.set("session", 1, ttl=10)
    store.tick()
    clock.set_back(4)
    store.tick()
    assert (caplog.records, store.doctor()) == ([], []), "clocks are corrected by so much"
    clock.set_back(96)
    with caplog.at_level(logging.WARNING, "tiered"):
        store.tick()
        store.tick()
        assert [record.getMessage().partition("clock is ")[2] for record in caplog.records] == [
            "behind the store's time, by 100.0 seconds: until it has caught up, nothing expires"
        ]
        [told] = store.doctor()
        assert told.what == "the clock is behind the store's time"
        assert "by 100.0 seconds" in told.evidence
        assert "until it shows 2023-11-14 22:13:20 UTC" in told.evidence
        clock.sleep(99)
        assert store.ttl("session") == 10
        store.tick()
        assert "right again" in caplog.records[-1].getMessage()
    assert store.doctor() == []
    clock.sleep(12)
    assert "session" not in store


def test_a_store_that_was_open_while_the_clock_was_ahead_says_so_when_it_is_opened(
    opener: Any, clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with opener(clock=clock) as store:
        store["a"] = 1
    behind = ManualClock(clock.wall_ms() - 86_400_000)
    with caplog.at_level(logging.WARNING, "tiered"):
        store = opener(clock=behind)
    assert "by 86400.0 seconds" in caplog.text
    assert [found.what for found in store.doctor()] == ["the clock is behind the store's time"]
