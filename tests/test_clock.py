"""Clocks: they move on their own or when told, and never backwards."""

from __future__ import annotations

import time

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
