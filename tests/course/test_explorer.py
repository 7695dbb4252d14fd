"""The explorer: against another computation, as a picture, and driven without a browser."""

import io
import re
import warnings
from dataclasses import replace
from html import unescape
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from tiny_lm import tiny_boundary, tiny_lm

import sasa_lib as sl
from sasa_lib.course.explorer import Explorer
from sasa_lib.course.trace import LIMIT, Exploration, colours_of, explore, pieces_of

WIDGET = "application/vnd.jupyter.widget-view+json"
FEW = {"top_k": 5, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def tiny():
    return tiny_lm()


@pytest.fixture
def explorer(tiny):
    other = replace(tiny_boundary(), normal=-tiny_boundary().normal)
    boundaries = {"first": tiny_boundary(), "turned": other}
    return Explorer(*tiny, boundaries, prompt="the cat", **FEW)


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def crafted(prompt: str, tokens: list[str], candidates: list[list[str]]) -> Exploration:
    """An exploration of these texts; the first candidate of every step is the drawn one."""
    rows = [
        {
            "step": step,
            "token_id": i,
            "token": token,
            "reference": 0.5,
            "new": 0.25,
            "margin": 0.5 - step,
            "drawn": i == 0,
        }
        for step, texts in enumerate(candidates)
        for i, token in enumerate(texts)
    ]
    margins = 0.5 - np.arange(len(tokens))
    return Exploration(prompt, tuple(tokens), margins, pd.DataFrame(rows), {"beta": 1.0})


def words_of(html: str) -> str:
    return unescape(re.sub("<[^>]*>", "", re.sub("</(?:td|th|div|summary)>", " ", html)))


def test_what_is_shown_is_what_the_model_sees(smollm2, texts):
    model, tokenizer = smollm2
    boundary = sl.Boundary.fit(
        model, tokenizer, texts.select(range(8)), layer=12, pooling="mean", progress=False
    )
    prompt, seen = "He looked at me and said", []
    shown = explore(
        model, tokenizer, prompt, boundary, beta=2.0, seed=1, on_token=seen.append, **FEW
    )
    ids = tokenizer(prompt)["input_ids"]
    assert len(shown.tokens) == 4
    for step, margin in enumerate(shown.margins):
        table = shown.step(step)
        # Every candidate behind the text so far, read from the start, without a cache.
        phrases = torch.tensor([[*ids, token] for token in table["token_id"]])
        with torch.no_grad():
            hidden = model(phrases, output_hidden_states=True).hidden_states[12][:, -1]
        expected = boundary.margins(hidden.numpy(), scaled=True)
        assert table["margin"].to_numpy() == pytest.approx(expected, abs=1e-3)
        assert margin == table.loc[table["drawn"], "margin"].item()
        by_hand = table["reference"] / (1 + np.exp(-3 * expected)) ** 2
        assert table["new"].to_numpy() == pytest.approx(by_hand / by_hand.sum(), abs=1e-3)
        drawn = table[table["drawn"]].iloc[0]
        assert shown.tokens[step] == drawn["token"]
        ids.append(int(drawn["token_id"]))
    assert prompt + "".join(shown.tokens) == tokenizer.decode(ids)
    # Streamed: what there was after every token.
    assert [partial.tokens for partial in seen] == [shown.tokens[:n] for n in (1, 2, 3, 4)]
    assert seen[1].candidates.equals(shown.candidates[shown.candidates["step"] < 2])


def test_beta_0_changes_no_probability(tiny):
    still = explore(*tiny, "the cat", tiny_boundary(), beta=0.0, **FEW).candidates
    assert still["reference"].to_numpy() == pytest.approx(still["new"].to_numpy(), abs=1e-6)
    moved = explore(*tiny, "the cat", tiny_boundary(), beta=3.0, **FEW).candidates
    assert (moved["reference"] - moved["new"]).abs().max() > 0.01


def test_a_character_of_several_tokens_stands_with_the_last(smollm2):
    tokenizer = smollm2[1]
    ids = tokenizer("so 🦔 ran")["input_ids"]
    pieces = pieces_of(tokenizer, ids, 1)
    assert "".join(pieces) == " 🦔 ran" and len(pieces) == len(ids) - 1
    assert "" in pieces and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    shown = crafted("so", list(pieces), [[piece] for piece in pieces]).to_html()
    assert "\N{REPLACEMENT CHARACTER}" in shown  # the empty one can be seen and clicked


def test_no_offensive_word_is_left_when_masked():
    offending = crafted(
        # Across prompt and continuation, across tokens, in a candidate alone, and with the word
        # that it would continue; in the last, "ass" is offensive by itself and "glass" is not.
        "You idi",
        ["ot", " bull", "shit", " gl", "as"],
        [["ot", "om"], [" bull", " bastard"], ["shit", "dog"], [" gl"], ["as", "ass", "ib"]],
    )
    bad = ("idiot", "bullshit", "shit", "bastard", "ass")

    def found(text: str) -> set[str]:
        return {word for word in bad if re.search(rf"\b{word}\b", text.replace("␣", " "))}

    assert found(words_of(offending.to_html(masked=False))) >= {"idiot", "bullshit", "bastard"}
    for shown in (offending.to_html(), offending._repr_html_()):
        assert not found(words_of(shown))
    masked = offending.masked()
    assert masked.prompt + "".join(masked.tokens) == "You i**** b******* glas"
    assert masked.step(1)["token"].tolist()[1] == " b******"
    assert masked.step(2)["token"].tolist() == ["****", "dog"]
    assert masked.step(4)["token"].tolist() == ["as", "a**", "ib"]
    assert masked.step(0)["token"].tolist() == ["**", "om"]
    assert not found(" ".join(t.get_text() for t in offending.figure().axes[0].texts))
    assert "idi" not in repr(offending) and "bull" not in repr(offending)


def test_tokens_are_text_and_not_markup():
    token = '<script>alert("1")</script>'
    html = crafted("<b>&amp;", [token], [[token, "<i>"]]).to_html(masked=False)
    assert "<script" not in html and "<i>" not in html and "<b>&amp;" not in html
    assert words_of(html).count(token) == 3 and words_of(html).startswith("<b>&amp;")
    # Nothing comes from elsewhere, and nothing runs.
    assert not re.search(r"\b(?:src|onclick|url)\b|https?:", html)


def test_spaces_and_line_ends_can_be_seen():
    html = crafted(
        "a", [" cat", " ", ".\n", "\x00"], [[" cat"], [" "], [".\n"], ["\x00"]]
    ).to_html()
    links = re.findall(r"( ?)<a [^>]*>([^<]*)</a>(<br>)?", html)
    assert links == [(" ", "cat", ""), ("", "␣", ""), ("", ".↵", "<br>"), ("", "�", "")]
    assert "<code>␣cat</code>" in html


def test_every_token_leads_to_its_candidates():
    shown = crafted("a", [" b", " c"], [[" b", " d"], [" c", " e"]])
    html = shown.to_html()
    targets = re.findall(r'href="#([^"]*)"', html)
    assert len(set(targets)) == 2
    for target, candidate in zip(targets, "de", strict=True):
        part = html.split(f'id="{target}"')[1].split("</details>")[0]
        assert f"␣{candidate}</code>" in part
    assert replace(shown, prompt="z").to_html().split('href="')[1] != html.split('href="')[1]


def test_the_text_is_readable_on_every_colour():
    def luminance(colour: str) -> float:
        c = np.array(to_rgb(colour))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for margin in np.linspace(-2 * LIMIT, 2 * LIMIT, 81):
        low, high = sorted(luminance(colour) for colour in colours_of(margin))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert to_rgb(colours_of(-3)[0]) == pytest.approx(to_rgb(sl.plots.TOXIC), abs=0.01)
    assert to_rgb(colours_of(3)[0]) == pytest.approx(to_rgb(sl.plots.NONTOXIC), abs=0.01)


def test_the_figure_has_every_token_above_its_margin():
    tokens = [" $x$ is", " 日", "\n", *[" word"] * 30]
    shown = crafted("One", tokens, [[token] for token in tokens])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = shown.figure(masked=False)
        figure.savefig(io.BytesIO(), format="png")
    axes = figure.axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:7] == ["One", "$x$␣is", "+0.50", "□", "−0.50", "↵", "−1.50"]
    assert texts[7::2] == ["word"] * 30 and len(axes.patches) == len(tokens)
    boxes = [patch.get_bbox() for patch in axes.patches]
    assert max(box.x1 for box in boxes) <= axes.get_xlim()[1]
    assert boxes[3].y0 > boxes[2].y0 and boxes[-1].y1 < axes.get_ylim()[0]
    for before, after in pairwise(boxes):
        assert after.y0 > before.y0 or after.x0 >= before.x1  # none over another
    # Texts keep within their boxes, and within the lines' width.
    figure.draw_without_rendering()
    for text, box in zip(axes.texts[1::2], axes.patches, strict=True):
        inner, outer = text.get_window_extent(), box.get_window_extent()
        assert outer.x0 <= inner.x0 + 1 and inner.x1 - 1 <= outer.x1


def test_the_controls_change_what_is_shown(explorer):
    first = explorer.exploration
    assert explorer.message == "" and first.settings["beta"] == 1.0
    assert [button.description for button in explorer.tokens] == [t.strip() for t in first.tokens]
    explorer.beta.value = 4.0
    second = explorer.exploration
    assert second.settings["beta"] == 4.0
    steered = first.step(0)["new"] - second.step(0)["new"]
    assert steered.abs().max() > 0.01
    assert first.step(0)["reference"].equals(second.step(0)["reference"])
    explorer.boundary.value = "turned"
    turned = explorer.exploration
    assert turned.step(0)["margin"].to_numpy() == pytest.approx(-second.step(0)["margin"], abs=1e-5)
    explorer.form.value, explorer.top_k.value, explorer.top_p.value = "margin", 2, 1.0
    assert (explorer.exploration.candidates.groupby("step").size() == 2).all()
    assert explorer.exploration.settings["form"] == "margin"
    explorer.prompt.value = "she sees"
    assert explorer.exploration.prompt == "she sees"
    explorer.seed.value, before = 5, explorer.exploration
    assert explorer.exploration.settings["seed"] == 5
    assert explorer.exploration is not before
    before = explorer.exploration
    explorer.button.click()  # the same again: nothing to do
    assert explorer.exploration is before


def test_a_click_on_a_token_shows_its_candidates(explorer):
    assert explorer.selected is None and "<table" not in explorer.table
    explorer.tokens[2].click()
    assert explorer.selected == 2 and "Step 3" in explorer.table
    step = explorer.exploration.step(2)
    cells = re.findall(r"<tr><td[^>]*>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", explorer.table)
    assert [(float(before), float(after)) for _, before, after in cells] == [
        (pytest.approx(row.reference, abs=5e-4), pytest.approx(row.new, abs=5e-4))
        for row in step.itertuples()
    ]
    assert ["drawn" in name for name, _, _ in cells] == step["drawn"].tolist()
    borders = [button.layout.border_top for button in explorer.tokens]
    assert len(set(borders)) == 2 and borders.count(borders[2]) == 1
    explorer.tokens[0].click()
    assert "Step 1" in explorer.table
    explorer.seed.value = 1  # another text: nothing of the old one is left
    assert explorer.selected is None and "<table" not in explorer.table


def test_tokens_come_one_by_one(tiny, monkeypatch):
    counts = []
    redraw = Explorer._redraw
    monkeypatch.setattr(
        Explorer,
        "_redraw",
        lambda self, change=None: (redraw(self, change), counts.append(len(self.tokens))),
    )
    Explorer(*tiny, {"first": tiny_boundary()}, prompt="the cat", **FEW)
    assert counts == [0, 1, 2, 3, 4]


def test_the_switch_unmasks(explorer):
    explorer._show(crafted("You idiot", [" <shit>"], [[" <shit>", " cat"]]))
    explorer.select(0)
    assert explorer.tokens[0].description == "<s***>"
    assert "i****" in explorer._prompt.value and "s***" in explorer.table
    assert "shit" not in explorer._repr_mimebundle_()["text/html"]
    explorer.masked.value = False
    assert explorer.tokens[0].description == "<shit>"
    assert "idiot" in explorer._prompt.value and "&lt;shit&gt;" in explorer.table
    assert "shit" in explorer._repr_mimebundle_()["text/html"]


def test_the_widget_has_a_still_twin(explorer):
    bundle = explorer._repr_mimebundle_()
    assert bundle[WIDGET]["model_id"] == explorer.model_id
    assert bundle["text/html"] == explorer.exploration.to_html()
    assert explorer.tokens[0].description in words_of(bundle["text/html"])
    assert explorer.prompt.value not in bundle["text/plain"]
    explorer.prompt.value = ""
    assert "prompt is empty" in explorer._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize(
    "given, said",
    [
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "cat " * 62}, "the prompt has 62 tokens and 4 new ones exceed"),
        ({"beta": -1.0}, "beta must be a finite number of at least 0, got -1.0"),
        ({"beta": float("nan")}, "beta must be a finite number of at least 0"),
        ({"form": "<b>"}, "unknown form &#x27;&lt;b&gt;&#x27;"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1"),
        ({"top_p": 1.5}, "top_p must be a finite number above 0 and at most 1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        (
            {"boundaries": {"x": replace(tiny_boundary(), states=-tiny_boundary().states)}},
            "fitted on",
        ),
    ],
)
def test_what_does_not_fit_is_answered_in_a_sentence(tiny, given, said):
    given = {"boundaries": {"first": tiny_boundary()}, "prompt": "the cat"} | FEW | given
    wrong = Explorer(*tiny, **given)
    assert said in wrong.message and "Traceback" not in wrong.message
    assert wrong.exploration is None and wrong.tokens == [] and not wrong.button.disabled


def test_an_error_is_over_once_the_control_is_right(explorer):
    explorer.prompt.value = ""
    assert "empty" in explorer.message and explorer.tokens == []
    explorer.prompt.value = "a dog"
    assert explorer.message == "" and len(explorer.tokens) == 4


def test_an_explorer_needs_a_boundary(tiny):
    with pytest.raises(ValueError, match="needs a boundary"):
        Explorer(*tiny, {})
