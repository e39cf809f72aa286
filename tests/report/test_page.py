"""report.html: one page, whole, harmless and readable, also in a real browser."""

import re
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from ssl_weighting.app.cli import main
from ssl_weighting.app.examples import extremes
from ssl_weighting.app.report.charts import stacked
from ssl_weighting.app.report.facts import duration
from ssl_weighting.app.report.page import render, write_page
from ssl_weighting.app.runs import Run

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    '"><img src=http://127.0.0.1:9/x.png onerror="document.title=\'owned\'">',
    "</p></style><style>body { display: none }</style>",
    "{{ 7 * 7 }} {% raw %} <svg onload=alert(1)>",
    "' autofocus onfocus=alert(1) x='",
    "javascript:alert(1) \u202e\x00\x1b[2J" + "long" * 2000,
]


@pytest.fixture
def copy(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / tiny_run.parent.name / tiny_run.name)


@pytest.fixture
def hostile(copy):
    """A run whose examples are called what an attacker likes, and so are its classes."""
    run = Run(copy)
    data = run.data()
    data.sets["unlabeled"].source.describe = lambda rows: [
        HOSTILE[i % len(HOSTILE)] for i in range(len(rows))
    ]
    data.all_class_names = tuple(f"{HOSTILE[i % len(HOSTILE)][:60]}{i}" for i in range(10))
    return run, data


class Elements(HTMLParser):
    """Names of the elements and attributes of a page, and whether all are closed."""

    def __init__(self, page):
        super().__init__()
        self.names, self.attributes, self.open, self.addresses, self.ids = set(), set(), [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.addresses += [value[4:-1] for _, value in attrs if (value or "").startswith("url(")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def shown_in(run):
    """How many examples a run's page shows."""
    harmful, helpful = extremes(Run(run).weights, 16, 1.0)
    assert len(harmful) == 16
    assert len(helpful) > 5
    return len(harmful) + len(helpful)


def test_fit_leaves_a_page(tiny_run):
    page = (tiny_run / "report.html").read_text()
    assert len(page) < 3_000_000
    elements = Elements(page)
    assert not elements.open
    assert page.count("<figure>") >= 9
    doubtful = [
        float(row["likelier_probability"]) > float(row["probability"])
        for row in Run(tiny_run).doubtful_labels
    ]
    assert len(doubtful) == 170
    pairs = page.count('<div class="pair">')
    assert page.count('<img src="data:image/png') == shown_in(tiny_run) + min(16, sum(doubtful)) + 2 * pairs
    assert "inside the pool. Of each kind" in page
    assert page.count('role="img"') == page.count('viewBox="0 0 420 250"') >= 8
    error = Run(tiny_run).metrics["test/error"][1][-1]
    assert f"{100 * error:.2f} %" in page


def test_it_needs_nothing_else(tiny_run):
    elements = Elements((tiny_run / "report.html").read_text())
    assert "script" not in elements.names
    assert not [name for name in elements.attributes if name.startswith("on") or name == "style"]
    assert all(address.startswith(("data:", "#")) for address in elements.addresses)
    assert set(elements.ids) >= {address[1:] for address in elements.addresses if address[0] == "#"}
    assert len({*elements.ids}) == len(elements.ids)
    assert not elements.names & {"metadata", "rdf:rdf"}


def test_the_command_draws_it_anew(copy, capsys):
    before = (copy / "report.html").read_text()
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")
    same = re.compile(r"page of [\d: -]+")
    assert same.sub("", (copy / "report.html").read_text()) == same.sub("", before)


def test_hostile_names_are_text(hostile):
    page = render(*hostile)
    elements = Elements(page)
    assert not elements.open
    assert "script" not in elements.names
    assert not [name for name in elements.attributes if name.startswith("on")]
    assert "49" not in re.sub(r"<svg.*?</svg>", "", page) or "{{ 7 * 7 }}" in page
    assert "{{ 7 * 7 }}" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert len(page) < 3_000_000


def test_no_key_reaches_it(copy, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "key-of-the-environment")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["trainer"]["logger"] = {
        "class_path": "WandbLogger",
        "init_args": {"settings": "key-of-the-logger"},
    }
    config["model"]["hf_token"] = "key-of-the-model"
    config["data"]["init_args"]["address"] = "https://me:key-of-the-address@example.org/"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    page = render(Run(copy), None)
    assert "key-of-the" not in page
    assert "https://example.org/" in page


def test_without_the_data_the_page_says_so(copy):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"] = {"class_path": "Cifar10", "init_args": {"root": "nowhere", "download": False}}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    (copy / "report.html").unlink()
    page = write_page(Run(copy)).read_text()
    assert "the data could not be read: data.root=nowhere" in page
    assert "<img" not in page
    assert "row " in page
    assert write_page(Run(copy)).is_file(), "one by number replaces one by number"


def test_a_good_page_is_not_replaced_by_a_poorer_one(copy, tiny_run, capsys):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"] = {"class_path": "Cifar10", "init_args": {"root": "nowhere", "download": False}}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    before = (copy / "report.html").read_bytes()
    assert main(["report", str(copy), str(tiny_run)]) == 2
    said = capsys.readouterr()
    assert re.search(r"report.html: stays as it is, .*data.root=nowhere.*; move it away", said.err)
    assert said.out.strip() == str(tiny_run / "report.html"), "the other page is drawn"
    assert (copy / "report.html").read_bytes() == before


def test_a_run_whose_weights_did_not_move(copy):
    run = Run(copy)
    still = run.weights.set_column(2, "updates", pa.array(np.zeros(len(run.weights), np.int32)))
    pq.write_table(still, copy / "weights.parquet")
    (copy / "timing.json").unlink()
    page = render(Run(copy), None)
    assert "No weight moved" in page
    assert "has a weight of its own" not in page
    assert "Weights over training" not in page
    assert "No example moved" in page
    Elements(page)


def changed(copy, **columns):
    """The run with columns of its weights replaced."""
    table = Run(copy).weights
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, copy / "weights.parquet")
    return Run(copy)


def test_only_labels_that_training_did_not_see_judge(copy):
    run = Run(copy)
    given = np.isin(run.weights["index"].to_numpy(), run.split.labeled.numpy())
    labels = run.weights["label"].to_numpy()
    page = render(run, None)
    assert "Telling good from bad" in page
    assert "Weight against correctness" in page
    count = f">trained with its label</td><td>{given.sum()}</td>"
    assert count in page.replace("</span>", ""), "they are in the pool, and a group of their own"
    page = render(changed(copy, label=pa.array(labels, mask=~given)), None)
    for absent in (
        "Telling good from bad",
        "Weight against correctness",
        "pseudo-label right",
        "card is-right",
    ):
        assert absent not in page
    assert count in page.replace("</span>", "")


def test_where_all_weights_rose_the_page_says_that_none_did_harm(copy):
    run = Run(copy)
    weight = np.linspace(1.1, 1.9, len(run.weights)).astype(np.float32)
    page = render(changed(copy, weight=weight, updates=np.ones(len(weight), np.int32)), None)
    assert "None did harm: no weight of the" in page
    assert "Most helpful" in page


def test_a_run_with_fixed_weights_names_no_influence(copy):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    influence = config["model"]["influence"]["class_path"].rpartition(".")[2]
    subtitle = re.search('<p class="soft">UDA.*</p>', render(Run(copy), None))[0]
    assert influence in subtitle
    config["model"]["weighting"] |= {"kind": "fixed", "init": 1.0}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    subtitle = re.search('<p class="soft">UDA.*</p>', render(Run(copy), None))[0]
    assert "UDA · fixed weights λ = 1 · " in subtitle
    assert influence not in subtitle


@pytest.mark.parametrize("kept", [True, False])
def test_it_says_whom_the_weights_were_learned_on(copy, kept):
    run = Run(copy)
    if not kept:
        run.split = replace(run.split, validation=run.split.validation[:0])
    page = render(run, None)
    judges = "the validation set" if kept else "the labelled examples themselves"
    assert page.count(f"helps on {judges}, and") == page.count(f"raises the loss on {judges}.") == 1
    assert ("the validation set" in page) == kept
    assert ("none: all labels train" in page) != kept


def numbers_beside(chart):
    """What is written on a chart's vertical axis."""
    return re.findall('text-anchor="end"[^>]*>(.*?)<', chart)


def test_no_axis_shows_weights_that_nobody_had(copy):
    rows = (copy / "weights_history.csv").read_text().splitlines()
    bins = ["0.0"] * 64
    bins[32] = str(float(len(Run(copy).weights)))
    rows[1] = ",".join(["0", "-0.5", "0.5", *bins])  # all 0, as numpy bins them
    (copy / "weights_history.csv").write_text("\n".join(rows) + "\n")
    page = render(Run(copy), None)
    over_training = page[page.index("Weights over training") :].partition("</figure>")[0]
    numbers = [float(text) for text in numbers_beside(over_training)]
    assert min(numbers) == 0


def test_numbers_of_narrow_bars_do_not_overlap():
    values = np.repeat([0.0, 0.00156, 0.5, 0.7512, 2.0], [500, 5, 120, 30, 345])
    picture = stacked({"right": values}, ["c0"], "")
    texts = re.findall('<text [^>]*text-anchor="middle"[^>]* x="([^"]*)"[^>]*>([^<]*)<', picture)
    places = [(float(x) - 3 * len(text), float(x) + 3 * len(text)) for x, text in texts if text != "weight λ"]
    assert len(places) == 4, "one has no room"
    assert all(a[1] < b[0] for a, b in pairwise(places))


def test_bars_are_as_wide_as_their_share_of_the_examples():
    ties = {"right": np.repeat([0.0, 1.0], [300, 100]), "wrong": np.repeat([0.0, 0.5], [100, 500])}
    corners = re.findall(
        r'd="M (\S+) (\S+)L (\S+) \S+L \S+ (\S+)L[^z"]*z"[^>]* fill="var\(--(c\d)\)"',
        stacked(ties, ["c0", "c1"], ""),
    )
    bars = [(colour, *map(float, numbers)) for *numbers, colour in corners]
    widths = [right - left for colour, left, _, right, _ in bars if colour == "c0"]
    assert len(widths) == 3, "equal weights are in one bar"
    assert np.array(widths) / sum(widths) == pytest.approx([0.4, 0.5, 0.1], abs=0.01)
    heights = {(colour, i % 3): bottom - top for i, (colour, _, bottom, _, top) in enumerate(bars)}
    whole = heights["c0", 2]
    assert [heights["c0", i] / whole for i in range(3)] == pytest.approx([0.75, 0, 1], abs=0.01)


def test_weights_that_differ_by_a_rounding_error(copy):
    run = Run(copy)
    near = np.ones(len(run.weights), np.float32)
    near[::2] = np.nextafter(np.float32(1), np.float32(2))
    page = render(changed(copy, weight=near), None)
    assert "Weights at the end" in page
    against = page[page.index("Weight against confidence") :].partition("</figure>")[0]
    numbers = numbers_beside(against)
    assert len(numbers) > 1
    assert len({*numbers}) == len(numbers), "no two numbers of an axis read the same"


def test_seventy_thousand_examples_take_seconds(copy):
    count, numbers = 70_000, np.random.default_rng(0)
    labels = numbers.integers(0, 12, count)
    table = {
        "index": np.arange(count),
        "weight": numbers.gamma(2, 0.5, count).astype(np.float32),
        "updates": numbers.integers(0, 5, count).astype(np.int32),
        "influence": numbers.normal(size=count).astype(np.float32),
        "pseudo_label": numbers.integers(0, 10, count).astype(np.int32),
        "confidence": numbers.beta(5, 1, count).astype(np.float32),
        "label": labels,
    }
    pq.write_table(pa.table(table), copy / "weights.parquet")
    began = time.process_time()
    page = render(Run(copy), None)
    assert time.process_time() - began < 10
    assert len(page) < 1_000_000


@pytest.mark.parametrize(("seconds", "said"), [(41.6, "42 s"), (185, "3 min 05 s"), (25920, "7 h 12 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that is on this machine; nothing is downloaded."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright, so no page was opened in a browser"
    )
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on the PATH, so no page was opened in a browser")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"], timeout=120_000
        )
        yield chromium
        chromium.close()


class Visit:
    """A page, opened, and all that happened."""

    def __init__(self, browser, path, width=1280, scheme="light"):
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.messages, self.requests = [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: self.messages.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri(), timeout=60_000)

    def ask(self, script):
        return self.page.evaluate(script)

    def check(self, path):
        assert self.messages == []
        assert [url for url in self.requests if not url.startswith("data:")] == [path.as_uri()]


def test_a_browser_draws_curves_and_gallery(browser, tiny_run):
    path = tiny_run / "report.html"
    visit = Visit(browser, path)
    visit.check(path)
    lines = "[...document.querySelectorAll('figure > svg path[stroke-width=\"2\"]')]"
    widths = visit.ask(lines + ".map(e => e.getBoundingClientRect().width)")
    assert sum(width > 100 for width in widths) >= 6
    assert {*visit.ask(lines + ".map(e => getComputedStyle(e).stroke)")} >= {
        "rgb(49, 87, 201)",
        "rgb(217, 98, 43)",
    }, "the style is let in"
    pictures = visit.ask("[...document.images].map(e => e.complete && e.naturalWidth)")
    assert pictures == [8] * shown_in(tiny_run)


@pytest.mark.parametrize("width", [360, 375, 800])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_is_too_small(browser, hostile, width, scheme):
    path = write_page(*hostile)
    visit = Visit(browser, path, width, scheme)
    assert visit.ask("document.documentElement.scrollWidth") <= width
    light, dark = visit.ask(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(c => c.match(/\\d+/g).reduce((a, b) => a + Number(b), 0))"
    )
    assert (light > dark) == (scheme == "dark")


@pytest.mark.parametrize(("scheme", "accent"), [("light", (49, 87, 201)), ("dark", (136, 166, 255))])
def test_shades_follow_the_theme(browser, tiny_run, scheme, accent):
    path = tiny_run / "report.html"
    visit = Visit(browser, path, scheme=scheme)
    shades = visit.page.locator("figure > svg:has(image)")
    assert shades.count() == 2
    for i in range(2):
        picture = Image.open(BytesIO(shades.nth(i).screenshot())).convert("RGB")
        assert (np.asarray(picture) == accent).all(-1).sum() > 10, "the fullest cell"
    visit.check(path)


def test_hostile_names_do_nothing_in_a_browser(browser, hostile):
    path = write_page(*hostile)
    visit = Visit(browser, path)
    visit.page.wait_for_timeout(300)
    visit.check(path)
    assert visit.page.title() == "digits_uda, seed 0"
    assert visit.ask("getComputedStyle(document.body).display") == "block"
    assert HOSTILE[0] in visit.page.inner_text("body")


def test_what_is_not_ours_is_forbidden(browser, tiny_run, tmp_path):
    """The second wall: even unescaped, a script, a foreign picture or style would do nothing."""
    page = (tiny_run / "report.html").read_text()
    path = tmp_path / "attacked.html"
    evil = "<script>document.title = 'owned'</script><img src=http://127.0.0.1:9/x><style>main {display: none}</style>"
    path.write_text(page.replace("<main>", f"<main>{evil}"))
    visit = Visit(browser, path)
    assert visit.page.title() == "digits_uda, seed 0"
    assert visit.ask("getComputedStyle(document.querySelector('main')).display") == "block"
    assert len(visit.messages) >= 3, "the browser says what it refused"
