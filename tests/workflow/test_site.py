"""The site: a page for every notebook, no dead link, nothing loaded from elsewhere."""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts"))
import build_site  # noqa: E402
import check_site  # noqa: E402

# Deprecations between Sphinx and its extensions, which are theirs to settle.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

NOTEBOOKS = build_site.names(PROJECT / "notebooks")
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)


def executed(number):
    """A notebook as it is after papermill, with one output of every kind."""
    return new_notebook(
        cells=[
            new_markdown_cell(f"# {number} · Title\n\nAs in notebook 3, [its card](../data/"
                              "contrast_pairs.md), `notebook 4`.\n\n$$\\frac{1}{2}$$"),
            new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
            new_markdown_cell("## What is shown"),
            new_code_cell(
                "1 / 0  # never executed",
                execution_count=1,
                outputs=[
                    new_output("stream", name="stderr", text="embedding: 100%"),
                    new_output("stream", name="stdout", text="printed f***"),
                    new_output("display_data", {"image/png": PICTURE}),
                    new_output("execute_result", {"text/html": "<table><td>1</td></table>"}),
                ],
            ),
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of tiny executed notebooks under the names of the real ones."""
    for package in build_site.PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed: pip install -r docs/requirements.txt")
    run = tmp_path_factory.mktemp("site") / "smoke"
    (run / "figures").mkdir(parents=True)
    for number, name in enumerate(NOTEBOOKS, 1):
        nbformat.write(executed(number), run / f"{name}.ipynb")
    for name in build_site.FIGURES:
        shutil.copy(PROJECT / "figures" / "cost.png", run / "figures" / name)
    build_site.build(run, run / "site")
    return run / "site" / "html"


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
    page = read(site / "notebooks" / f"{NOTEBOOKS[0]}.html")
    assert "printed f***" in page
    assert "<td>1</td>" in page
    assert 'alt="Figure: What is shown"' in page
    assert "Parameters and their defaults" in page
    assert "embedding: 100%" not in page  # a progress bar
    assert "ZeroDivisionError" not in page
    assert r"\[\frac{1}{2}\]" in page
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
