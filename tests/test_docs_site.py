"""The documentation site builds strictly, works offline, and its links lead somewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).resolve().parents[1]


class _Links(HTMLParser):
    """What a page links to, and what it loads by itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.linked: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "a":
            self.linked.append(given.get("href") or "")
        elif tag in ("img", "script"):
            self.loaded.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loaded.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_link_leads_somewhere(site):
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 8
    lost = []
    for page in pages:
        links = _Links(page)
        for link in links.linked + links.loaded:
            url = urlsplit(link)
            if url.scheme or not url.path:
                continue
            target = page.parent / unquote(url.path)
            if not (target.is_file() or (target / "index.html").is_file()):
                lost.append(f"{page.relative_to(site)}: {link}")
    assert not lost


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not [link for link in _Links(page).loaded if urlsplit(link).netloc], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_pages_of_the_repository_are_there(site):
    listing = (site / "repository/ssl_weighting/terms.py/index.html").read_text(encoding="utf-8")
    assert "class LossTerm" in re.sub(r"<[^>]+>", "", listing)
    assert (site / "repository/recipes/index.html").is_file()
    api = (site / "api/index.html").read_text(encoding="utf-8")
    assert not re.search(r":(class|meth|func|attr|mod):", api)
    for name in ("algorithms.base.Algorithm", "backbones.base.Backbone", "influence.base.Influence"):
        assert f'id="ssl_weighting.{name}"' in api
