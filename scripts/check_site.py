"""Look at every page of the built site as a reader would: links, pictures, console, width.

    pip install playwright, and a Chromium of the system (no download)
    python scripts/check_site.py runs/laptop/site/html --screenshots shots

Every page is opened from its file, at the widths of a phone, a tablet and a screen; for pictures
also in the dark. What is wrong is printed, a line each; the exit status is 1 if anything is.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PROJECT = Path(__file__).resolve().parent.parent
WIDTHS = (390, 820, 1400)
HEIGHT = 900
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SEARCHED = "nucleus"  # a word that some page must be found for

# What the browser itself cannot say without being asked, by page.
STATE = """() => ({
    wide: document.documentElement.scrollWidth - window.innerWidth,
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    nameless: [...document.images].filter(i => !i.alt).map(i => i.src),
    formulas: document.querySelectorAll('.math').length,
    typeset: document.querySelectorAll('.math mjx-container').length,
    wrong: document.querySelectorAll('[data-mjx-error], mjx-merror').length,
})"""


def main(arguments: list[str] | None = None) -> None:
    """Check, print what is wrong, and fail if anything is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=PROJECT / "runs/laptop/site/html")
    parser.add_argument("--screenshots", type=Path, help="a folder for pictures of every page")
    options = parser.parse_args(arguments)
    if not (options.folder / "index.html").is_file():
        sys.exit(f"there is no site in {options.folder}; `make site`")
    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    wrong = links(options.folder) + browsed(options.folder, options.screenshots)
    print(*wrong, f"{len(pages(options.folder))} pages, {len(wrong)} faults", sep="\n")
    sys.exit(1 if wrong else 0)


def pages(folder: Path) -> list[Path]:
    """All pages of a site."""
    return sorted(folder.resolve().rglob("*.html"))


class _Page(HTMLParser):
    """The anchors of a page, what it links to, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.linked, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.linked.append(given["href"])
        self.loaded += [given[name] for name in ("src", "data") if given.get(name)]
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(given["href"])


def links(folder: Path) -> list[str]:
    """Dead internal links and anchors, missing files, and what is loaded from outside."""
    parsed = {path: _Page(path) for path in pages(folder)}
    wrong = []
    for path, page in parsed.items():
        shown = path.relative_to(folder.resolve())
        for address in page.linked + page.loaded:
            url = urlsplit(address)
            if url.scheme or url.netloc:
                if address in page.loaded and url.scheme != "data":
                    wrong.append(f"{shown}: loads {address}")
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.is_file():
                wrong.append(f"{shown}: {address} leads nowhere")
            elif url.fragment and unquote(url.fragment) not in parsed[target].ids:
                wrong.append(f"{shown}: {address} has no such anchor")
    return wrong


def browsed(folder: Path, screenshots: Path | None = None) -> list[str]:
    """What a browser finds wrong with the pages."""
    from playwright.sync_api import sync_playwright

    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        sys.exit(f"no browser found; looked for {', '.join(BROWSERS)}")
    wrong: list[str] = []
    folder = folder.resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        window = browser.new_page()
        shown = ""
        window.on("pageerror", lambda error: wrong.append(f"{shown}: {error}"))
        window.on(
            "console",
            lambda message: message.type == "error" and wrong.append(f"{shown}: {message.text}"),
        )
        window.on("requestfailed", lambda request: wrong.append(f"{shown}: no {request.url}"))
        window.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:"))
                or wrong.append(f"{shown}: asks for {request.url}")
            ),
        )
        for path in pages(folder):
            shown = str(path.relative_to(folder))
            window.goto(path.as_uri())
            if window.evaluate("'MathJax' in window"):
                window.evaluate("MathJax.startup.promise")
            # Pictures further down load when they are seen.
            window.evaluate("for (const i of document.images) i.loading = 'eager'")
            window.wait_for_load_state("networkidle")
            for width in WIDTHS:
                window.set_viewport_size({"width": width, "height": HEIGHT})
                state = window.evaluate(STATE)
                if state["wide"] > 0:
                    wrong.append(f"{shown}: {state['wide']} pixels too wide at {width}")
                for scheme in ("light", "dark") if screenshots else ():
                    window.emulate_media(color_scheme=scheme)
                    name = f"{shown.replace('/', '.').removesuffix('.html')}-{width}-{scheme}.png"
                    window.screenshot(path=screenshots / name, full_page=width == WIDTHS[0])
            wrong += [f"{shown}: picture {source} is not shown" for source in state["broken"]]
            wrong += [f"{shown}: picture {source} has no words" for source in state["nameless"]]
            if state["wrong"] or state["typeset"] < state["formulas"]:
                wrong.append(f"{shown}: formulas that MathJax does not understand")
        shown = "search.html"
        window.goto(f"{(folder / shown).as_uri()}?q={SEARCHED}")
        window.wait_for_timeout(2000)
        if not window.evaluate("document.querySelectorAll('#search-results li').length"):
            wrong.append(f"{shown}: finds nothing for {SEARCHED!r}")
        browser.close()
    return wrong


if __name__ == "__main__":
    main()
