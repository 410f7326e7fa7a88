"""`tiered-cli report`: one page that says what there is, parses, needs nothing else, and is readable on a phone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command_lines import call, calling, made

import tiered
from tiered.cli import pictures
from tiered.cli.pictures import Axis

VOID = {"meta", "br", "link", "img", "input", "hr"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DOCUMENT = {"name": "Ada", "bio": "reads books " * 10}


class Page(HTMLParser):
    """A page as a browser takes it: which tags and texts are in it, and whether each tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module", autouse=True)
def command_line() -> Iterator[None]:
    with calling():
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values: dict[Any, Any] = {("user", number): DOCUMENT for number in range(3000)}
    values |= {f"<b>&\"'tag</b>:{number}": number for number in range(500)}
    values |= dict.fromkeys((f"session:{number}" for number in range(200)), b"x" * 300)
    values["k" * 20_000] = "a key that fits no screen"
    return made(tmp_path_factory.mktemp("report") / "shop <i>.tiered", values)


@pytest.fixture(scope="module")
def report(path: Path) -> str:
    file = path.parent / "report.html"
    status, out, errors = call("report", path, "--html", file)
    assert (status, errors) == (0, "")
    assert "open it in a browser" in out.decode()
    return file.read_text(encoding="utf-8")


def test_it_parses_and_says_what_inspect_says(report: str) -> None:
    page = Page(report)
    for shown in ("3,701", "as of", "well", "Sizes", "Hit ratio over time", "Hit ratio by memory", "Keys", "Settings"):
        assert shown in page.text
    assert "zstd:3" in page.text
    assert sum(found.get("class") == "bar" for _, found in page.tags) > 10
    assert "no program has the store open for writing" in page.text


def test_keys_and_paths_are_text_and_never_markup(report: str) -> None:
    page = Page(report)
    assert not any(tag == "b" or (tag == "i" and not found) for tag, found in page.tags)
    assert "<b>&\"'tag" in page.text
    assert "shop <i>.tiered" in page.text


def test_it_needs_nothing_else_and_runs_nothing(report: str) -> None:
    page = Page(report)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "xlink:href"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in report
    assert "@import" not in report
    policies = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_it_is_light_and_dark_and_fits_a_phone(report: str) -> None:
    assert "prefers-color-scheme: dark" in report
    page = Page(report)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_a_page_that_is_there_is_not_replaced_unasked(path: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.html").write_text("mine")
    status, _, errors = call("report", path, "--html", tmp_path / "mine.html")
    assert (status, (tmp_path / "mine.html").read_text()) == (1, "mine")
    assert "--force" in errors
    assert call("report", path, "--html", tmp_path / "mine.html", "--force")[0] == 0
    assert call("report", tmp_path / "missing", "--html", tmp_path / "other.html")[0] == 1
    assert not (tmp_path / "other.html").exists()


def test_the_hit_ratio_of_a_program_at_work_is_a_line(tmp_path: Path, clock: Any) -> None:
    with tiered.open(tmp_path / "live", memory="1MB", clock=clock) as store:
        store.update(dict.fromkeys(range(100), DOCUMENT))
        for reads in (10, 100, 1000, 500):
            for number in range(reads):
                store[number % 100]
            clock.sleep(31)
            store.tick()
        status, _, errors = call("report", tmp_path / "live", "--html", tmp_path / "r.html")
        assert (status, errors) == (0, "")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    [svg] = [found for tag, found in page.tags if tag == "svg"]
    assert ("viewbox" in svg, "width" in svg, "width:100%" in (svg["style"] or "")) == (True, False, True)
    assert any(tag == "polyline" for tag, _ in page.tags)
    assert "hit ratio by minutes" in " ".join(found.get("aria-label") or "" for _, found in page.tags)
    assert "memory" in page.text


def test_samples_count_the_reads_of_all_handles(opener: Any, clock: Any) -> None:
    store, other = opener(stepwise=True, clock=clock), opener(stepwise=True, clock=clock)
    store["a"] = 1
    store.tick()
    for handle in (store, other, other):
        assert handle["a"] == 1
    store.save()
    store._engine.hot.clear()
    assert store["a"] == 1
    clock.sleep(31)
    store.tick()
    first, last = store._engine.samples
    assert (last.hits - first.hits, last.reads - first.reads) == (3, 4)


def test_of_a_damaged_store_it_says_what_cannot_be_read_and_of_an_empty_one_that_there_is_nothing(
    tmp_path: Path,
) -> None:
    with tiered.open(tmp_path / "damaged", helper=False, compression="none") as store:
        store.update({"a": 1, "b": "spoiled " * 100})
    [data] = (tmp_path / "damaged").glob("cold-*/data.mdb")
    data.write_bytes(data.read_bytes().replace(b"spoiled spoiled", b"spoiled sXoiled"))
    made(tmp_path / "empty", {})
    for name, said in (("damaged", "1 cannot be read"), ("empty", "None: there are no keys.")):
        assert call("report", tmp_path / name, "--html", tmp_path / f"{name}.html")[0] == 0
        assert said in Page((tmp_path / f"{name}.html").read_text(encoding="utf-8")).text


# Pictures


def test_a_line_goes_through_its_points_at_their_heights() -> None:
    axes = Axis("memory", "{:g}".format, doubling=True), Axis("hit ratio", pictures.percent)
    drawn = Page(pictures.lines([(1, 0.0), (2, 0.5), (4, 1.0)], *axes, mark=2, marked="now"))
    [line] = [found["points"] for tag, found in drawn.tags if tag == "polyline"]
    places = [tuple(map(float, point.split(","))) for point in (line or "").split()]
    assert places == [
        (pictures.LEFT, pictures.HEIGHT - pictures.BOTTOM),
        ((pictures.LEFT + pictures.WIDTH - pictures.RIGHT) / 2, (pictures.HEIGHT - pictures.BOTTOM + pictures.TOP) / 2),
        (pictures.WIDTH - pictures.RIGHT, pictures.TOP),
    ]
    assert {"now", "1", "2", "4", "0%", "100%"} <= set(drawn.texts)


@pytest.mark.parametrize("points", [[(5.0, 0.5)], [(0.0, 0.1), (0.0, 0.2)], [(float(n), 1.0) for n in range(200)]])
def test_odd_lines_are_drawn_within_the_picture(points: list[tuple[float, float]]) -> None:
    drawn = Page(pictures.lines(points, Axis("time", str), Axis("share", str)))
    [line] = [found["points"] for tag, found in drawn.tags if tag == "polyline"]
    for point in (line or "").split():
        x, y = map(float, point.split(","))
        assert 0 <= x <= pictures.WIDTH
        assert 0 <= y <= pictures.HEIGHT


def test_bars_are_as_long_as_their_values() -> None:
    drawn = Page(pictures.bars([("a", 100.0), ("b", 50.0), ("c", 0.0)], str))
    assert [found["style"] for tag, found in drawn.tags if tag == "i"] == ["width:100.0%", "width:50.0%", "width:0.3%"]


# In a browser


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_opens_it_on_a_phone_without_scrolling_sideways(path: Path, report: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    )
    page = path.parent / "report.html"
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "3,701" in done.stdout
    # A copy as narrow as a phone, which may run a script, says how wide it wants to be.
    policy = "default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;"
    assert policy in report
    script = '<script>document.title = "wide: " + document.body.scrollWidth</script>'
    narrow = "<style>html { width: 360px; }</style></head>"
    probe = tmp_path / "probe.html"
    text = report.replace(policy, "").replace("</head>", narrow).replace("</body>", f"{script}</body>")
    probe.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    wide = re.search(r"wide: (\d+)", done.stdout)
    assert wide
    assert 300 <= int(wide[1]) <= 360
