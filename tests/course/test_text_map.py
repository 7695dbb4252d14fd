"""The map of texts that a notebook shows: a document of its own, masked."""

import re
from html import unescape

import numpy as np
import pytest

from sasa_lib.course.text_map import TextMap

TEXTS = ["You stupid idiot,\nit rains", "A <b>good</b> day & night", "word " * 100]
VALUES = np.array([0.9, 0.1, 0.5])


@pytest.fixture
def given():
    points = np.random.default_rng(0).normal(size=(2, 3, 2))
    margins = np.array([[-1.5, 0.5, 0.25], [-2.0, 1.0, 0.0]])
    return dict(zip((12, 30), points, strict=True)), dict(zip((12, 30), margins, strict=True))


def test_it_is_masked_unless_asked_otherwise(given):
    html = TextMap(*given, TEXTS, VALUES).to_html()
    assert "s***** i****, it rains" in html and "stupid" not in html and "idiot" not in html
    html = TextMap(*given, TEXTS, VALUES, masked=False).to_html()
    assert "You stupid idiot, it rains" in html


def test_it_needs_neither_a_network_nor_the_page_around_it(given):
    shown = TextMap(*given, TEXTS, VALUES)
    html = shown.to_html()
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=\"[^$]", html)
    outer = shown._repr_html_()
    assert outer.startswith("<iframe srcdoc=") and "<" not in outer[1:].removesuffix("</iframe>")
    assert "<title>Map of texts</title>" in unescape(outer)


def test_a_class_is_a_shape_and_both_layers_are_within(given):
    html = TextMap(*given, TEXTS, VALUES, threshold=0.5).to_html()
    assert '"value":"triangle"' in html  # circles are what needs not be said
    all_nontoxic = TextMap(*given, TEXTS, VALUES, threshold=0.95).to_html()
    assert '"text",[]' in all_nontoxic and '"text",[]' not in html
    assert '"options":["12","30"]' in html
    assert len(re.findall(r"word word", html)) and "word " * 60 not in html  # cut


def test_what_does_not_fit_is_said(given):
    maps, margins = given
    with pytest.raises(ValueError, match="margins for each layer"):
        TextMap(maps, {12: margins[12]}, TEXTS, VALUES)
    with pytest.raises(ValueError, match=r"layer 12: .* n = 2 texts"):
        TextMap(maps, margins, TEXTS[:2], VALUES)
    with pytest.raises(ValueError, match="at least one layer"):
        TextMap({}, {}, [], [])
