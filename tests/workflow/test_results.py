"""What README and docs print of the table of all methods is what the table holds."""

import importlib.util
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study():
    path = PROJECT / "studies" / "write_results.py"
    spec = importlib.util.spec_from_file_location("write_results", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def blocks(study):
    return study.blocks()


def test_pages_agree_with_the_table_to_the_printed_digit(study, blocks):
    for name in study.PAGES:
        page = (PROJECT / name).read_text(encoding="utf-8")
        assert study.BLOCK.search(page)
        assert study.written(page, blocks) == page, "run python studies/write_results.py"


def test_every_block_is_in_a_page_and_has_rows(study, blocks):
    pages = "".join((PROJECT / name).read_text(encoding="utf-8") for name in study.PAGES)
    assert {match[1] for match in study.BLOCK.findall(pages)} == set(blocks)
    rows = len(study.Measured().drawn())
    assert blocks["methods"].count("\n") >= 2 + rows > 5
