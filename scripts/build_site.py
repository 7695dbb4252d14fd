"""Build the site of a profile's executed notebooks with Sphinx: `make site`.

    python scripts/build_site.py --profile laptop

The pages of `docs/`, the executed notebooks, the cards of the data and a page for every module of
the library are laid out in `runs/<profile>/site/source`; what Sphinx makes of them lies in
`runs/<profile>/site/html`. Nothing is executed, and nothing is fetched, neither here nor by a
reader's browser.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import sys
from inspect import ismodule
from pathlib import Path
from typing import Any

import nbformat

PROJECT = Path(__file__).resolve().parent.parent
DOCS = PROJECT / "docs"
PACKAGES = ("sphinx", "myst-nb", "furo", "sphinxcontrib-bibtex", "django-static-mathjax")
FIGURES = ("12_remaining_toxicity.png",)  # of the run, which docs/ shows
FOLDED = {
    "parameters": "Parameters and their defaults",
    "injected-parameters": "Parameters of this run",
}
LONG_CELL = re.compile(r"<td([^>]*>[^<]{30,}<)")  # of a table, which must not become a thin column

# Parts of Markdown in which a notebook's number is no reference: code, formulas, links, headings.
NO_REFERENCE = r"`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\[[^\]]*\]\([^)]*\)|^#.*?$"
REFERENCE = re.compile(rf"({NO_REFERENCE})|\b([Nn]otebook) (\d+)\b", re.DOTALL | re.MULTILINE)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="laptop")
    options = parser.parse_args(arguments)
    run = PROJECT / "runs" / options.profile
    missing = [name for name in names(PROJECT / "notebooks") if name not in names(run)]
    if missing:
        sys.exit(f"not executed: {', '.join(missing)}; `make course PROFILE={options.profile}`")
    build(run, run / "site")
    print(f"The site:  {(run / 'site' / 'html' / 'index.html').relative_to(PROJECT)}")


def names(folder: Path) -> list[str]:
    """Names of the numbered notebooks of a folder, in reading order."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    return [path.stem for path in paths if not path.stem.endswith(".unfinished")]


def build(run: Path, folder: Path) -> None:
    """Lay out the sources of a run's site in folder/source and make folder/html of them."""
    try:
        for package in PACKAGES:
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{package} is not installed: pip install --requirement docs/requirements.txt")
    from sphinx.cmd.build import build_main

    source, html = folder / "source", folder / "html"
    for stale in (source, html):
        shutil.rmtree(stale, ignore_errors=True)
    lay_out(run, source)
    executed = f"Executed with the profile `{run.name}`."
    if run.name == "smoke":
        executed += " That is toy size: everything runs, and the numbers mean nothing."
    settings = f"myst_substitutions.executed={executed}"
    command = ["-q", "-b", "html", "-d", str(folder / "doctrees"), "-D", settings]
    if build_main([*command, "--fresh-env", str(source), str(html)]):
        sys.exit("Sphinx could not build the site")


def lay_out(run: Path, source: Path) -> None:
    """Gather the sources: pages, notebooks, cards, figures, the library's modules, MathJax."""
    shutil.copytree(DOCS, source)
    for name in ("data", "figures", "notebooks", "api"):
        (source / name).mkdir()
    for card in (PROJECT / "data").glob("*.md"):
        shutil.copy(card, source / "data")
    for figure in (PROJECT / "figures").glob("*.png"):
        shutil.copy(figure, source / "figures")
    for name in FIGURES:
        shutil.copy(run / "figures" / name, source / "figures")
    notebooks = names(run)
    for name in notebooks:
        notebook = nbformat.read(run / f"{name}.ipynb", as_version=4)
        nbformat.write(page(notebook, name, notebooks), source / "notebooks" / f"{name}.ipynb")
    for name, text in library().items():
        (source / "api" / f"{name}.md").write_text(text, encoding="utf-8")
    for name, target in (("es5/tex-svg.js", "mathjax.js"), ("LICENSE", "mathjax-LICENSE.txt")):
        shutil.copy(mathjax(name), source / "_static" / target)


def page(notebook: Any, name: str, notebooks: list[str]) -> Any:
    """Make an executed notebook a page: parameters folded, figures named, references linked."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [heading])[-1]
            cell.source = linked(cell.source, name, notebooks).replace("(../docs/", "(../")
        elif cell.cell_type == "code":
            # A figure's own words are in the picture; a reader who cannot see it learns its place.
            cell.metadata["mystnb"] = {"image": {"alt": f"Figure: {heading}"}}
            for tag in set(FOLDED) & set(cell.metadata.get("tags", [])):
                cell.metadata["tags"] = ["hide-input"]
                cell.metadata["mystnb"]["code_prompt_show"] = FOLDED[tag]
                cell.metadata["mystnb"]["code_prompt_hide"] = FOLDED[tag]
            for output in cell.outputs:
                data = output.get("data", {})
                if "text/html" in data:
                    data["text/html"] = LONG_CELL.sub(r"<td data-long\1", data["text/html"])
    return notebook


def linked(text: str, name: str, notebooks: list[str]) -> str:
    """Make "notebook 3" a link to that notebook, unless it is this one or there is none."""
    by_number = {int(other[:2]): other for other in notebooks if other != name}

    def link(match: re.Match) -> str:
        other = match[3] and by_number.get(int(match[3]))
        return f"[{match[0]}]({other}.ipynb)" if other else match[0]

    return REFERENCE.sub(link, text)


def library() -> dict[str, str]:
    """Pages about the library: a table of its public names, and a page for every module."""
    import sasa_lib

    public = [getattr(sasa_lib, name) for name in sasa_lib.__all__]
    entries = [f"{thing.__module__}.{thing.__name__}" for thing in public if not ismodule(thing)]
    folder = Path(sasa_lib.__file__).parent
    files = sorted(path.relative_to(folder) for path in folder.glob("*/**/[a-z]*.py"))
    modules = [".".join(file.with_suffix("").parts) for file in files]
    table = "\n".join(f"   {entry}" for entry in entries)
    listed = "\n".join(modules)
    pages = {
        "index": "# Library\n\n`import sasa_lib as sl` gives these names and most modules.\n\n"
        f"```{{eval-rst}}\n.. autosummary::\n   :nosignatures:\n\n{table}\n```\n\n"
        f"```{{toctree}}\n:caption: Modules\n:maxdepth: 1\n\n{listed}\n```\n"
    }
    for module in modules:
        directive = f".. automodule:: sasa_lib.{module}\n   :members:"
        pages[module] = f"# {module}\n\n```{{eval-rst}}\n{directive}\n```\n"
    return pages


def mathjax(name: str) -> Path:
    """Path of a file of MathJax, which the package django-static-mathjax carries (no Django)."""
    files = importlib.metadata.files("django-static-mathjax") or []
    return Path(next(f for f in files if f.as_posix() == f"mathjax/static/mathjax/{name}").locate())


if __name__ == "__main__":
    main()
