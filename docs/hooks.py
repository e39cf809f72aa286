"""Takes along what pages link to outside docs/: the repository's other documents as pages, its files as listings.

So one relative link serves a reader of the repository and one of the site, with no address of either in it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

PREFIX = "repository/"
# Documents that the navigation names; what they and the pages link to follows.
DOCUMENTS = ("CHANGELOG.md", "CONTRIBUTING.md", "docker/README.md", "recipes/README.md")
LINK = re.compile(r"(?P<before>!?\[[^\]]*\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")

ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>(?:~[\w.]*\.)?(?P<name>[^<]*)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page links to, directly or through another such page."""
    root = _root(config)
    waiting = list(DOCUMENTS)
    texts = {_source(file.src_uri): file.content_string for file in files.documentation_pages()}
    while waiting or texts:
        while texts:
            source, text = texts.popitem()
            waiting += [target for target in _targets(source, text) if (root / target).exists()]
        name = waiting.pop() if waiting else None
        if (
            name is None
            or name.startswith("docs/")
            or files.get_file_from_path(_site(name, root)) is not None
        ):
            continue
        document = name.endswith(".md")
        text = (root / name).read_text(encoding="utf-8") if document else _listing(root / name, name)
        level = InclusionLevel.INCLUDED if name in DOCUMENTS else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, _site(name, root), content=text, inclusion=level))
        if document or (root / name).is_dir():
            texts[_source(_site(name, root))] = text
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Point links at the site's pages."""
    here, root = page.file.src_uri, _root(config)

    def moved(link: re.Match[str]) -> str:
        target = _resolved(_source(here), link["target"])
        if target.startswith("../") or not (root / target).exists():
            return link[0]
        return f"{link['before']}{posixpath.relpath(_site(target, root), posixpath.dirname(here))}{link['anchor'] or ''})"

    return LINK.sub(moved, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings' cross-references, which are Sphinx's, as plain code."""
    return ROLE.sub(r"<code>\g<name></code>", html)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent


def _source(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    return uri.removeprefix(PREFIX) if uri.startswith(PREFIX) else f"docs/{uri}"


def _site(name: str, root: Path) -> str:
    """Where a file of the repository lies on the site."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return (
        f"{PREFIX}{name}" if name.endswith(".md") else f"{PREFIX}{name}{'/index' * (root / name).is_dir()}.md"
    )


def _resolved(source: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _targets(source: str, text: str) -> list[str]:
    found = [_resolved(source, link["target"]) for link in LINK.finditer(text)]
    return [target for target in found if not target.startswith("../")]


def _listing(path: Path, name: str) -> str:
    """A page that shows a file, or that names those of a folder."""
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.is_file())
        return f"# {name}\n\n" + "\n".join(f"- [{child}]({child})" for child in names)
    return f"# {name}\n\n````{path.suffix.lstrip('.') or 'text'}\n{path.read_text(encoding='utf-8')}\n````\n"
