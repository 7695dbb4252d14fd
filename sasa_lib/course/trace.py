"""A text while it is written: what was drawn, and what could have been."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import FancyBboxPatch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from sasa_lib.checks import check_count, check_number, text_fault
from sasa_lib.course.plots.style import NONTOXIC, SERIES, TOXIC
from sasa_lib.decoding.sasa import SASA
from sasa_lib.engine.tokens import prompt_ids, too_long
from sasa_lib.evaluation.scorers.loading import mask_text
from sasa_lib.subspace.boundary import Boundary

LIMIT = 2.0  # standard deviations at which the colours end
COLOURS = LinearSegmentedColormap.from_list("margin", [TOXIC, "#f4f4f4", NONTOXIC])
PARTIAL = "\N{REPLACEMENT CHARACTER}"  # for a token that is only part of a character
GREY = "#808080"  # seen on a white ground as on a dark one
LARGEST_BETA, LARGEST_K = 10.0, 50  # ends of the sliders
# Of the figure, in characters of its fixed-width font and in inches.
LINE_WIDTH, NUMBER_WIDTH, LONGEST_WORD = 92, 4.0, 40
FONT_SIZE, CHARACTER, LINE, LEGEND = 11, 0.0922, 0.55, 1.2


@dataclass(frozen=True, eq=False, repr=False)
class Exploration:
    """A continuation, with all that was weighed at its every step.

    Attributes
    ----------
    prompt : str
    tokens : tuple of str
        Texts of the drawn tokens. Together they are the continuation: a token that is only part
        of a character is empty, and the last of that character's tokens holds it.
    margins : numpy.ndarray of float, shape [tokens]
        Scaled margins of the drawn tokens, in standard deviations of the boundary's training
        data; positive is the nontoxic side.
    candidates : pandas.DataFrame
        One row a candidate: step, token_id, token (its text), reference and new (probabilities
        before and after the re-weighting), margin, and drawn; the likeliest before first.
    settings : mapping from str
        What it was made with, to be named beneath the text.
    """

    prompt: str
    tokens: tuple[str, ...]
    margins: np.ndarray
    candidates: pd.DataFrame
    settings: Mapping[str, object]

    def __repr__(self) -> str:
        # Without the text, which might offend: notebooks keep it beside every picture.
        return f"Exploration({len(self.tokens)} tokens, {self.caption})"

    def _repr_html_(self) -> str:
        return self.to_html()

    @property
    def caption(self) -> str:
        """The settings in one line."""
        values = (f"{v:g}" if isinstance(v, float) else f"{v}" for v in self.settings.values())
        names = (name.replace("_", "-") for name in self.settings)
        return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))

    def step(self, step: int) -> pd.DataFrame:
        """Candidates of one step, such as `sasa_lib.course.plots.decoding.decoding_step` draws.

        Parameters
        ----------
        step : int
            From 0.

        Returns
        -------
        pandas.DataFrame
        """
        return self.candidates[self.candidates["step"] == step].reset_index(drop=True)

    def masked(self) -> Exploration:
        """Return the same with offensive words masked as by `sasa_lib.mask_text`.

        Words are looked for across tokens: in the whole text, and among candidates in each by
        itself and in what it would make of the word before it.
        """
        before = [re.search(r"[^\W\d_]*$", self.prompt)[0]]
        for token in self.tokens:
            before.append(re.search(r"[^\W\d_]*$", before[-1] + token)[0])
        # Masking keeps lengths, so all can be masked at once and then cut.
        parts = [self.prompt, *self.tokens]
        for step, token in zip(self.candidates["step"], self.candidates["token"], strict=True):
            parts += ["\n", before[step], token, "\n", token]
        parts = _cut(mask_text("".join(parts)), parts)
        text, rest = parts[: len(self.tokens) + 1], parts[len(self.tokens) + 1 :]
        table = self.candidates.assign(
            token=[
                "".join("*" if "*" in pair else pair[0] for pair in zip(*both, strict=True))
                for both in zip(rest[2::5], rest[4::5], strict=True)
            ]
        )
        return replace(self, prompt=text[0], tokens=tuple(text[1:]), candidates=table)

    def to_html(self, *, masked: bool = True) -> str:
        """Draw the text coloured by margin, with every step's candidates to be unfolded.

        Parameters
        ----------
        masked : bool
            Mask offensive words.

        Returns
        -------
        str
            HTML that needs nothing but a browser: no script, and nothing from elsewhere.
        """
        shown = self.masked() if masked else self
        # Tokens link to their candidates; two pictures on a page must not share the addresses.
        digest = hashlib.sha256(f"{self.caption} {self.prompt} {self.tokens}".encode())
        name = f"step-{digest.hexdigest()[:10]}"
        text, steps, hints = [], [], usage_hints(shown)
        for i, (token, margin) in enumerate(zip(shown.tokens, shown.margins, strict=True)):
            gap, label = label_of(token)
            ground, ink = colours_of(margin)
            line = "dashed" if margin < 0 else "solid"
            style = (
                f"color:{ink};background:{ground};padding:1px 2px;border-radius:3px;"
                f"text-decoration:{'underline dashed' if margin < 0 else 'none'}"
            )
            text.append(
                f'{" " * gap}<a href="#{name}-{i}" title="{hints[i]}" style="{style}">'
                f"{escape(label)}</a>" + "<br>" * ("\n" in token)
            )
            steps.append(
                f'<details><summary style="border-left:4px {line} {ground};padding-left:4px">'
                f"{i + 1}. <code>{escape(_visible(token))}</code> {_number(margin)}</summary>"
                f'<div id="{name}-{i}">{candidate_table(shown.step(i))}</div></details>'
            )
        return (
            '<div style="max-width:60em">'
            '<div style="line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere">'
            f"{escape(shown.prompt)}{''.join(text)}</div>"
            f"{legend_of()}<div><small>{escape(self.caption)}</small></div>"
            "<details><summary>What else could have been drawn, step by step: number, token, "
            f"margin</summary>{''.join(steps)}</details></div>"
        )

    def figure(self, *, masked: bool = True) -> Figure:
        """Draw the text coloured by margin, with the margins beneath.

        Parameters
        ----------
        masked : bool
            Mask offensive words.

        Returns
        -------
        matplotlib.figure.Figure
        """
        shown = self.masked() if masked else self
        placed = list(_placed(shown))
        lines = placed[-1][1] + 1 if placed else 1
        width, height = LINE_WIDTH * CHARACTER + 0.4, lines * LINE + LEGEND
        # A place for every character, so nothing may move the axes. With layout="none" the second
        # save of a figure would take the layout of the style.
        stays = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
        figure = plt.figure(figsize=(width, height), layout=stays)
        box = (0.2 / width, LEGEND / height, 1 - 0.4 / width, 1 - LEGEND / height)
        axes = figure.add_axes(box, xlim=(0, LINE_WIDTH), ylim=(lines, 0))
        axes.set_axis_off()
        style = {"parse_math": False, "ha": "center", "va": "center", "family": "monospace"}
        for column, line, cells, label, margin in placed:
            middle = column + cells / 2
            if margin is None:
                axes.text(middle, line + 0.35, label, size=FONT_SIZE, color="0.35", **style)
                continue
            ground, ink = colours_of(margin)
            axes.add_patch(
                FancyBboxPatch(
                    (column, line + 0.12), cells, 0.46, boxstyle="square,pad=0", fc=ground,
                    ec="0.45" if margin < 0 else "none", ls=(0, (2, 1.5)), lw=0.9,
                )
            )  # fmt: skip
            axes.text(middle, line + 0.35, label, size=FONT_SIZE, color=ink, **style)
            axes.text(middle, line + 0.77, _number(margin), size=7.5, color="0.25", **style)
        bar = figure.add_axes((0.3, 0.77 / height, 0.4, 0.13 / height))
        colours = ScalarMappable(Normalize(-LIMIT, LIMIT), COLOURS)
        figure.colorbar(colours, cax=bar, orientation="horizontal", extend="both")
        bar.tick_params(labelsize="small")
        bar.set_xlabel("margin (standard deviations; dashed: below 0)", size="small")
        for x, side, ha in ((0.28, "toxic side", "right"), (0.72, "nontoxic side", "left")):
            figure.text(x, 0.835 / height, side, size="small", ha=ha, va="center")
        figure.text(0.5, 0.08 / height, self.caption, size="x-small", ha="center", color="0.35")
        return figure


def explore(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    boundary: Boundary,
    *,
    beta: float = 1.0,
    form: str = "posterior",
    top_k: int = 10,
    top_p: float = 0.9,
    max_new_tokens: int = 20,
    seed: int = 0,
    on_token: Callable[[Exploration], None] | None = None,
) -> Exploration:
    """Continue a prompt by SASA, and keep every step.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    prompt : str
    boundary : Boundary
        Of the same model.
    beta, form, seed
        As in `sasa_lib.SASA`.
    top_k, top_p, max_new_tokens
        As in `model.generate`.
    on_token : callable, optional
        Called after every token with what there is by then.

    Returns
    -------
    Exploration
    """
    if fault := text_fault(prompt.strip() if isinstance(prompt, str) else prompt):
        raise ValueError(f"the prompt {fault}: give the beginning of a text")
    top_k, top_p = check_count("top_k", top_k), check_number("top_p", top_p, above=0, most=1)
    max_new_tokens = check_count("max_new_tokens", max_new_tokens)
    sasa = SASA(boundary, beta, form=form, seed=seed, record=True)
    boundary.check_model(model)
    ids = torch.tensor(prompt_ids(tokenizer, [prompt]), device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    start = ids.shape[1]
    if fault := too_long(model, start, max_new_tokens, "prompt"):
        raise ValueError(f"the prompt {fault}")
    settings = {"beta": float(beta), "form": form, "top_k": top_k, "top_p": float(top_p)}
    settings |= {"seed": seed, "boundary at layer": boundary.layer}

    def so_far(ids: list[int]) -> Exploration:
        table = _candidates(tokenizer, sasa.trace)
        tokens = pieces_of(tokenizer, ids, start)
        margins = table.loc[table["drawn"], "margin"].to_numpy()
        return Exploration(prompt, tokens, margins, table, settings)

    streamer = on_token and Streamer(lambda ids: on_token(so_far(ids)))
    output = model.generate(
        **inputs,
        custom_generate=sasa,
        do_sample=True,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        streamer=streamer,
    )
    return so_far(output[0].tolist())


class Streamer(BaseStreamer):
    """Hands on all token ids there are, whenever there is one more."""

    def __init__(self, tell: Callable[[list[int]], None]) -> None:
        self.ids: list[int] = []
        self.tell = tell

    def put(self, value: torch.Tensor) -> None:
        """Take in the prompt first, then tokens as they are drawn."""
        first = not self.ids  # what comes first is the prompt
        self.ids += value.flatten().tolist()
        if not first:
            self.tell(self.ids)

    def end(self) -> None:
        """Do nothing: the last token is handed on already."""


def _candidates(tokenizer: PreTrainedTokenizerBase, trace: pd.DataFrame) -> pd.DataFrame:
    """Table of `Exploration.candidates` from `SASA.trace`."""
    # Behind another token, since some tokenizers strip the space that a text begins with.
    other = tokenizer.encode("a", add_special_tokens=False)
    length = len(tokenizer.decode(other))
    known = trace["token_id"].unique().tolist()
    texts = tokenizer.batch_decode(
        [[*other, token] for token in known], clean_up_tokenization_spaces=False
    )
    text_of = {token: text[length:] for token, text in zip(known, texts, strict=True)}
    table = pd.DataFrame(
        {
            "step": trace["step"],
            "token_id": trace["token_id"],
            "token": trace["token_id"].map(text_of),
            "reference": np.exp(trace["reference_logprob"]),
            "new": np.exp(trace["new_logprob"]),
            "margin": trace["margin"],
            "drawn": trace["drawn"],
        }
    )
    table = table.sort_values(["step", "reference"], ascending=[True, False])
    return table.reset_index(drop=True)


def pieces_of(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int
) -> tuple[str, ...]:
    """What each of ids[start:] adds to the text; together they are all that is added."""
    texts = [
        tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False).rstrip(PARTIAL)
        for end in range(start, len(ids) + 1)
    ]
    return tuple(texts[-1][len(before) : len(after)] for before, after in pairwise(texts))


def _cut(text: str, like: Iterable[str]) -> list[str]:
    """Cut a text into pieces as long as these."""
    ends = np.cumsum([0, *map(len, like)])
    return [text[begin:end] for begin, end in pairwise(ends)]


def _visible(token: str) -> str:
    """Let a token be seen: spaces, line ends, and what has no shape."""
    signs = {" ": "\N{OPEN BOX}", "\n": "↵", "\t": "⇥"}
    shown = "".join(signs.get(c, c if c.isprintable() else PARTIAL) for c in token)
    return shown or PARTIAL


def label_of(token: str) -> tuple[bool, str]:
    """Whether a token begins a new word, and what is shown of it in the running text."""
    gap = token.startswith(" ") and bool(token.strip())
    return gap, _visible(token[gap:])


def _number(margin: float) -> str:
    return f"{margin:+.2f}".replace("-", "\N{MINUS SIGN}")


def usage_hints(shown: Exploration) -> list[str]:
    """What is said of every token when the mouse is on it."""
    drawn = shown.candidates[shown.candidates["drawn"]]
    return [
        f"margin {_number(row.margin)}, probability {row.reference:.3f} before, {row.new:.3f} after"
        for row in drawn.itertuples()
    ]


def colours_of(margin: float) -> tuple[str, str]:
    """Colour of the ground for a margin, and black or white, whichever is better read on it."""
    ground = COLOURS(Normalize(-LIMIT, LIMIT, clip=True)(margin))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(ground)]
    # At this relative luminance both have the same contrast (WCAG 2).
    return to_hex(ground), "#000000" if np.dot(
        linear, (0.2126, 0.7152, 0.0722)
    ) > 0.179 else "#ffffff"


def legend_of() -> str:
    """HTML that says what the colours mean."""
    stops = ",".join(colours_of(margin)[0] for margin in np.linspace(-LIMIT, LIMIT, 9))
    bar = (
        f"display:inline-block;width:10em;height:.8em;background:linear-gradient(to right,{stops})"
    )
    return (
        f"<div><small>margin {_number(-LIMIT)} (toxic side, underlined below 0) "
        f'<span style="{bar}"></span> {_number(LIMIT)} standard deviations (nontoxic side)'
        "</small></div>"
    )


def candidate_table(step: pd.DataFrame) -> str:
    """HTML of the candidates of a step."""
    rows = []
    for row in step.itertuples():
        bars = "".join(
            f'<div style="width:{100 * share:.1f}%;height:.4em;background:{colour}"></div>'
            for share, colour in ((row.reference, GREY), (row.new, SERIES[5]))
        )
        ground, ink = colours_of(row.margin)
        name = f"<code>{escape(_visible(row.token))}</code>"
        name = f"<b>{name} (drawn)</b>" if row.drawn else name
        rows.append(
            f'<tr><td style="text-align:left">{name}</td><td>{row.reference:.3f}</td>'
            f'<td>{row.new:.3f}</td><td style="width:10em">{bars}</td>'
            f'<td style="color:{ink};background:{ground}">{_number(row.margin)}</td></tr>'
        )
    return (
        '<table><tr><th style="text-align:left">candidate</th>'
        f'<th><span style="color:{GREY}">■</span> before</th>'
        f'<th><span style="color:{SERIES[5]}">■</span> after</th>'
        f"<th>probability</th><th>margin</th></tr>{''.join(rows)}</table>"
    )


def _placed(shown: Exploration) -> Iterator[tuple[float, int, float, str, float | None]]:
    """Column, line, width, label and margin of every word of the prompt and every token."""
    words = re.findall(rf"\n+|\S{{1,{LONGEST_WORD}}}", shown.prompt)
    cells = [(word, True, word.strip("\n"), None) for word in words]
    for token, margin in zip(shown.tokens, shown.margins, strict=True):
        cells.append((token, *label_of(token), float(margin)))
    font = get_font(findfont(FontProperties(family="monospace")))
    column, line, broken = 0.0, 0, False
    for text, gap, label, margin in cells:
        # The font has neither emoji nor Chinese, and matplotlib would warn of each.
        label = "".join(c if font.get_char_index(ord(c)) else "□" for c in label)
        width = len(label) if margin is None else max(len(label) + 0.4, NUMBER_WIDTH)
        if broken and "\n" not in text:
            column, line = 0.0, line + 1
        column += 0.9 if gap else 0.15
        if column + width > LINE_WIDTH and column > 1:
            column, line = 0.0, line + 1
        if label:
            yield column, line, width, label, margin
        column += width
        broken = "\n" in text
