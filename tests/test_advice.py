"""`tiered-cli advise`: what a program's advisor says, as text, JSON and a picture."""

from __future__ import annotations

import json
import struct
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_lines import call, calling, made

import tiered
from tiered.advisor import Advice, Estimate
from tiered.cli import advice, running

MB = 1 << 20


RATIOS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 0.975)
GIVEN = Advice(
    8 * MB,
    tuple(Estimate(MB << number, ratio) for number, ratio in enumerate(RATIOS)),
    Estimate(30 * MB, 0.968),
    20_000,
    100,
    0.1,
)


@pytest.fixture(scope="module", autouse=True)
def command_line() -> Iterator[None]:
    with calling():
        yield


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store that this process has open, whose advisor says what is given."""
    monkeypatch.setattr(tiered.Store, "advise", lambda store: GIVEN)
    with tiered.open(tmp_path / "live.tiered") as store:
        store["a"] = 1
        yield tmp_path / "live.tiered"


def test_it_says_which_hit_ratio_which_memory_gives_and_how_much_is_enough(live: Path) -> None:
    status, out, errors = call("advise", live)
    assert (status, errors) == (0, "")
    lines = [line.split() for line in out.decode().splitlines()]
    assert ["8.0", "MB", "80.0%", "now"] in lines
    assert ["64.0", "MB", "97.5%"] in lines
    assert "30.0 MB are enough: a hit ratio of 96.8%" in out.decode()
    found = json.loads(call("advise", live, "--json")[1])
    assert found["memory_bytes"] == 8 * MB
    assert [each["hit_ratio"] for each in found["curve"]] == list(RATIOS)
    assert found["enough"] == {"memory_bytes": 30 * MB, "hit_ratio": 0.968}


def test_the_curve_is_drawn_as_svg_and_as_a_page(live: Path, tmp_path: Path) -> None:
    for name in ("curve.svg", "curve.html"):
        assert call("advise", live, "--plot", tmp_path / name)[0] == 0
    root = xml.etree.ElementTree.fromstring((tmp_path / "curve.svg").read_text())
    [line] = root.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(line.attrib["points"].split()) == len(RATIOS)
    assert "var(" not in (tmp_path / "curve.svg").read_text()
    page = (tmp_path / "curve.html").read_text()
    assert "30.0 MB are enough" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    status, _, errors = call("advise", live, "--plot", tmp_path / "curve.gif")
    assert (status, ".svg" in errors) == (2, True)


def test_the_curve_is_painted_as_png(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(call("advise", live, "--json")[1])
    # In a process of its own: matplotlib keeps its fonts open.
    assert call("advise", live, "--plot", tmp_path / "curve.png")[0] == 0
    picture = (tmp_path / "curve.png").read_bytes()
    assert (picture[:8], *struct.unpack(">II", picture[16:24])) == (b"\x89PNG\r\n\x1a\n", 960, 540)
    assert len(picture) > 10_000, "there is a line in it, and words"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(running.Failure, match=r"tiered\[plot\]"):
        advice.painted(found)


def test_the_report_has_the_curve(live: Path, tmp_path: Path) -> None:
    assert call("report", live, "--html", tmp_path / "r.html")[0] == 0
    assert "hit ratio by memory" in (tmp_path / "r.html").read_text()


def test_without_reads_there_is_nothing_to_draw(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiered.Store, "advise", lambda store: GIVEN._replace(reads=0))
    assert call("advise", live)[:2] == (0, b"no reads were seen yet\n")
    assert call("advise", live, "--plot", tmp_path / "curve.svg")[0] == 1
    assert not (tmp_path / "curve.svg").exists()
    assert call("report", live, "--html", tmp_path / "r.html")[0] == 0
    assert "None: no reads were seen yet" in (tmp_path / "r.html").read_text()


def test_it_is_what_the_advisor_of_a_program_at_work_has_found_out(tmp_path: Path) -> None:
    with tiered.open(tmp_path / "s", memory="1MB", advisor=True) as store:
        store.update((number, bytes(500)) for number in range(4000))
        store.save()
        for _ in range(3):
            for number in range(4000):
                store[number]
        found = json.loads(call("advise", tmp_path / "s", "--json")[1])
        advice = store.advise()
        assert found["curve"] == [{"memory_bytes": memory, "hit_ratio": ratio} for memory, ratio in advice.curve]
        assert (found["reads"], found["memory_bytes"]) == (advice.reads, 1 << 20)
        assert call("report", tmp_path / "s", "--html", tmp_path / "r.html")[0] == 0
        assert "hit ratio by memory" in (tmp_path / "r.html").read_text()
        store.config_set("advisor", "no")
        status, _, errors = call("advise", tmp_path / "s")
        assert (status, "advisor=True" in errors) == (1, True)


def test_an_advisor_that_is_off_says_how_to_switch_it_on(live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(store: Any) -> Any:
        raise tiered.ConfigError("the advisor is off; open the store with advisor=True")

    monkeypatch.setattr(tiered.Store, "advise", off)
    status, _, errors = call("advise", live)
    assert (status, len(errors.splitlines())) == (1, 1)
    assert "advisor=True" in errors


def test_a_store_that_nobody_has_open_has_no_advice(tmp_path: Path) -> None:
    status, _, errors = call("advise", made(tmp_path / "a", {"a": 1}))
    assert (status, len(errors.splitlines())) == (1, 1)
    assert "no program has it open" in errors
