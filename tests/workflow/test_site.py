"""The site: a page for every notebook, no dead link, nothing loaded from elsewhere."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts"))
import build_site  # noqa: E402
import check_site  # noqa: E402

NOTEBOOKS = build_site.names(PROJECT / "notebooks")
SMOKE = PROJECT / "runs" / "smoke"


@pytest.fixture(scope="module")
def site():
    """The site of the notebooks at toy size, which `make smoke` has executed and built."""
    html = SMOKE / "site" / "html"
    if not (html / "index.html").is_file():
        pytest.skip(f"there is no {html}: `make course site PROFILE=smoke` builds it")
    return html


def terms():
    text = (PROJECT / "docs" / "glossary.md").read_text(encoding="utf-8")
    return re.findall(r"^(?! |`|#|In )(.+)$", text, re.MULTILINE)


def read(path):
    return path.read_text(encoding="utf-8")


def test_no_link_is_dead_and_nothing_comes_from_elsewhere(site):
    assert check_site.links(site) == []


def test_every_notebook_has_a_page_in_reading_order(site):
    front = read(site / "index.html")
    places = [front.index(f'internal" href="notebooks/{name}.html"') for name in NOTEBOOKS]
    assert places == sorted(places)
    assert all((site / "notebooks" / f"{name}.html").is_file() for name in NOTEBOOKS)


def test_a_page_shows_what_was_executed(site):
    name = "04_generation"
    page = read(site / "notebooks" / f"{name}.html")
    cells = nbformat.read(SMOKE / f"{name}.ipynb", as_version=4).cells
    tables = [
        output["data"]["text/html"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "<td" in output.get("data", {}).get("text/html", "")
    ]
    shown = [re.findall(r"<td[^>]*>([^<]{3,40})</td>", table) for table in tables]
    assert tables and all(cell in page for cells in shown for cell in cells)
    assert 'alt="Figure: ' in page
    assert "Parameters and their defaults" in page
    assert "text/s]" not in page  # a progress bar
    assert r"\[" in page  # a formula
    assert "_static/mathjax.js" in page


def test_a_profile_at_toy_size_says_so(site):
    assert "the numbers mean nothing" in read(site / "index.html")


def test_every_public_name_is_documented(site):
    import sasa_lib

    inventory = read(site / "genindex.html")
    for name in sasa_lib.__all__:
        assert name in inventory, name


def test_search_knows_the_pages(site):
    index = read(site / "searchindex.js")
    assert all(f"notebooks/{name}" in index for name in NOTEBOOKS)
    assert "glossary" in index


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("see notebook 3.", "see [notebook 3](03_c.ipynb)."),
        ("Notebook 3's boundary (notebook 1)", "[Notebook 3](03_c.ipynb)'s boundary (notebook 1)"),
        ("`notebook 3`, notebook 30, notebooks", "`notebook 3`, notebook 30, notebooks"),
        ("# Of notebook 3\nnotebook 3", "# Of notebook 3\n[notebook 3](03_c.ipynb)"),
        (
            "[notebook 3](x), $a$ notebook 3 $b$",
            "[notebook 3](x), $a$ [notebook 3](03_c.ipynb) $b$",
        ),
    ],
)
def test_references_become_links(text, linked):
    assert build_site.linked(text, "01_a", ["01_a", "03_c"]) == linked


def test_what_was_not_executed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "PROJECT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").touch()
    with pytest.raises(SystemExit, match="not executed: 01_a; `make course PROFILE=laptop`"):
        build_site.main([])


def test_an_unfinished_notebook_is_none(tmp_path):
    (tmp_path / "01_a.unfinished.ipynb").touch()
    (tmp_path / "02_b.ipynb").touch()
    assert build_site.names(tmp_path) == ["02_b"]


def test_terms_are_in_alphabetical_order():
    assert len(terms()) > 30
    assert terms() == sorted(terms(), key=str.lower)


def test_what_is_cited_is_in_the_bibliography():
    known = re.findall(r"^@\w+\{(.+),$", read(PROJECT / "docs" / "references.bib"), re.MULTILINE)
    assert known == sorted(set(known))
    for path in (PROJECT / "docs").glob("*.md"):
        for keys in re.findall(r"\{cite:\w+\}`([^`]+)`", read(path)):
            assert set(keys.split(",")) <= set(known), path.name


def test_dead_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"><a href="#gone"><a href="b.html"><a href="a.html#here">'
        '<a href="https://example.org"><img src="https://example.org/x.png"><img src="gone.png">'
    )
    assert check_site.links(tmp_path) == [
        "a.html: #gone has no such anchor",
        "a.html: b.html leads nowhere",
        "a.html: loads https://example.org/x.png",
        "a.html: gone.png leads nowhere",
    ]
