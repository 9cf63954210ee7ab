"""Checks of the built site: links, pages and examples of public names, nothing from a network.

python .ci/check_site.py docs/_build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}
MODULES = (
    "sklvebm",
    "sklvebm.baselines",
    "sklvebm.datasets",
    "sklvebm.metrics",
    "sklvebm.plotting",
)


class Page(HTMLParser):
    """Anchors, links and loaded files of a page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        """Collect what a tag names."""
        found = {name: value for name, value in attributes if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.add(found["href"])
        # other links of the head are hints, such as the canonical address
        is_file = tag != "link" or found.get("rel") in ("stylesheet", "preload", "icon")
        if is_file and LOADED.get(tag) in found:
            self.loaded.add(found[LOADED[tag]])


def problems(site):
    """Return what is wrong with a site, one line each."""
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
        if "_static" not in path.parts  # templates of the theme
    }
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for link in sorted(page.links | page.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    found.append(f"{where}: needs a network for {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                found.append(f"{where}: no file for {link}")
            elif target in pages and unquote(parts.fragment) not in {"", *pages[target].anchors}:
                found.append(f"{where}: no anchor for {link}")
    return found


def missing_pages(site, names):
    """Return the public names, such as "sklvebm.MixtureStack", that have no page."""
    return [name for name in names if not (site / "api" / "generated" / f"{name}.html").exists()]


def missing_examples(site, names):
    """Return the public names whose pages show no script of the gallery and no example."""
    found = []
    for name in names:
        page = site / "api" / "generated" / f"{name}.html"
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        if "sphx-glr-thumbcontainer" not in text:
            found.append(f"no script of the gallery uses {name}")
        if ">Examples<" not in text:
            found.append(f"no example of {name}")
    return found


def main(site):
    """Print what is wrong, and exit with an error if anything is."""
    import importlib

    names = [f"{m}.{name}" for m in MODULES for name in importlib.import_module(m).__all__]
    found = problems(site) + [f"no page for {name}" for name in missing_pages(site, names)]
    found += missing_examples(site, names)
    print("\n".join(found) or f"{len(names)} public names have pages and examples; links resolve")
    sys.exit(bool(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
