"""The decoder opened up, token by token: in a notebook to play with, or as a still picture.

`explore` generates one continuation and keeps what every step weighed. The `Exploration` that it
returns draws itself as HTML that needs no kernel, or as a figure where HTML loses its colours (on
GitHub). `Explorer` puts controls around it, and needs ipywidgets and a live kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from html import escape

import ipywidgets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sasa_lib.course.plots.style import SERIES
from sasa_lib.course.trace import (
    LARGEST_BETA,
    LARGEST_K,
    Exploration,
    candidate_table,
    colours_of,
    explore,
    label_of,
    legend_of,
    usage_hints,
)
from sasa_lib.decoding.sasa import FORMS
from sasa_lib.subspace.boundary import Boundary


class Explorer(ipywidgets.VBox):
    """The decoder to play with: whatever is changed, the prompt is continued anew.

    Beneath the controls stands the continuation, each token coloured by its margin; a click on a
    token shows the candidates of its step. What does not fit is answered in a sentence.

    Where there is no live kernel (an HTML export, GitHub), `Exploration.to_html` stands in for it,
    as the text was when it was displayed.

    Parameters
    ----------
    model, tokenizer
        As returned by `sasa_lib.load_lm`.
    boundaries : mapping from str to Boundary
        To choose from, all of the same model; the first one is chosen.
    prompt, beta, form, top_k, top_p, max_new_tokens, seed
        To begin with, as in `explore`.
    masked : bool
        Mask offensive words, except in the box in which the prompt is typed.

    Attributes
    ----------
    exploration : Exploration or None
        What is shown; None after an error.
    selected : int or None
        The step whose candidates are shown.
    prompt, boundary, form, beta, top_k, top_p, seed, masked, button
        The controls.

    Examples
    --------
    >>> Explorer(model, tokenizer, {"toxicity": boundary})  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        boundaries: Mapping[str, Boundary],
        *,
        prompt: str = "He looked at me and said",
        beta: float = 1.0,
        form: str = "posterior",
        top_k: int = 10,
        top_p: float = 0.9,
        max_new_tokens: int = 20,
        seed: int = 0,
        masked: bool = True,
    ) -> None:
        if not boundaries:
            raise ValueError("the explorer needs a boundary: {'toxicity': boundary}")
        self.exploration: Exploration | None = None
        self.selected: int | None = None
        self._explore = partial(explore, model, tokenizer, max_new_tokens=max_new_tokens)
        self._boundaries = dict(boundaries)
        self._made_with: dict[str, object] | None = None
        self._buttons: list[ipywidgets.Button] = []
        given = {"prompt": prompt, "boundary": next(iter(boundaries)), "form": form, "beta": beta}
        given |= {"top_k": top_k, "top_p": top_p, "seed": seed}

        # Numbers outside their sliders are answered by `explore`, with the slider at its end.
        largest = max(LARGEST_BETA, 2 * beta) if beta < float("inf") else LARGEST_BETA
        late = {"continuous_update": False}
        self.prompt = ipywidgets.Text(prompt, layout={"width": "auto", "flex": "1"}, **late)
        self.boundary = ipywidgets.Dropdown(options=list(boundaries))
        self.form = ipywidgets.Dropdown(options=FORMS, value=form if form in FORMS else FORMS[0])
        self.beta = ipywidgets.FloatSlider(beta, min=0, max=largest, step=0.1, **late)
        self.top_k = ipywidgets.IntSlider(top_k, min=1, max=max(LARGEST_K, top_k), **late)
        self.top_p = ipywidgets.FloatSlider(top_p, min=0.05, max=1, step=0.05, **late)
        self.seed = ipywidgets.IntText(seed, **late)
        self._controls = {name: getattr(self, name) for name in given}
        for name, control in self._controls.items():
            control.description = {"top_k": "top-k", "top_p": "top-p"}.get(name, name)
            control.style.description_width = "5em"
            control.observe(self.generate, "value")
        self.button = ipywidgets.Button(description="Generate", button_style="primary")
        self.button.on_click(self.generate)
        self.masked = ipywidgets.Checkbox(masked, description="mask offensive words", indent=False)
        self.masked.observe(self._redraw, "value")
        super().__init__(self._laid_out())
        self._generate(given)

    def _laid_out(self) -> list[ipywidgets.Widget]:
        """Controls on top, then the text, and the candidates of the token that was chosen."""
        self._message = ipywidgets.HTML()
        self._prompt = ipywidgets.HTML()
        self._newline = ipywidgets.Box(layout={"width": "100%", "height": "0", "margin": "0"})
        row = {"flex_flow": "row wrap", "align_items": "center"}
        self._text = ipywidgets.Box(layout=row)
        self._table = ipywidgets.HTML()
        return [
            ipywidgets.HBox([self.prompt, self.button]),
            ipywidgets.HBox([self.boundary, self.form, self.seed], layout=row),
            ipywidgets.HBox([self.beta, self.top_k, self.top_p], layout=row),
            self.masked,
            self._message,
            self._text,
            ipywidgets.HTML(legend_of()),
            self._table,
        ]

    @property
    def tokens(self) -> list[ipywidgets.Button]:
        """The buttons that are the tokens of the continuation."""
        return self._buttons[: len(self.exploration.tokens) if self.exploration else 0]

    @property
    def message(self) -> str:
        """What is said about the latest generation: nothing, or what was wrong."""
        return self._message.value

    @property
    def table(self) -> str:
        """HTML of the candidates of the selected token."""
        return self._table.value

    def generate(self, change: object = None) -> None:
        """Continue the prompt as the controls say; all of them call this when they change."""
        self._generate({name: control.value for name, control in self._controls.items()})

    def select(self, step: int | None) -> None:
        """Show the candidates of a step, counted from 0, or of none."""
        self.selected = step
        self._redraw()

    def _generate(self, settings: dict[str, object]) -> None:
        if settings == self._made_with:  # the same seed: it would be the same text
            return
        self._made_with = None
        self.exploration = self.selected = None
        self._redraw()
        self._message.value = "generating ..."
        self.button.disabled = True
        try:
            boundary = self._boundaries[settings["boundary"]]
            self._explore(**settings | {"boundary": boundary}, on_token=self._show)
            self._made_with = settings
            self._message.value = ""
        except Exception as error:  # a traceback would go to a log that nobody looks at
            self.exploration = None
            self._redraw()
            self._message.value = f'<b role="alert">{_sentence(error)}</b>'
        finally:
            self.button.disabled = False

    def _show(self, exploration: Exploration) -> None:
        self.exploration = exploration
        self._redraw()

    def _redraw(self, change: object = None) -> None:
        """Bring everything below the controls up to date; only what changed is sent."""
        if self.exploration is None:
            self._text.children = ()
            self._table.value = ""
            return
        shown = self.exploration.masked() if self.masked.value else self.exploration
        self._prompt.value = f"<span>{escape(shown.prompt)}</span>"
        children, hints = [self._prompt], usage_hints(shown)
        for i, token in enumerate(shown.tokens):
            if i == len(self._buttons):
                self._buttons.append(_token_button())
                self._buttons[i].on_click(lambda button, step=i: self.select(step))
            gap, label = label_of(token)
            button = self._buttons[i]
            button.description, button.tooltip = label, hints[i]
            button.style.button_color, button.style.text_color = colours_of(shown.margins[i])
            below = shown.margins[i] < 0
            button.style.text_decoration = "underline dashed" if below else None
            chosen = i == self.selected
            button.layout.border = f"2px solid {SERIES[2] if chosen else 'transparent'}"
            button.layout.margin = f"1px 0 1px {5 * gap}px"
            children += [button, self._newline] if "\n" in token else [button]
        self._text.children = children
        if self.selected is None:
            self._table.value = "Click a token to see what else could have been drawn."
        else:
            step = shown.step(self.selected)
            self._table.value = f"<b>Step {self.selected + 1}</b>{candidate_table(step)}"

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, object]:
        """Return the widget, and beside it a still picture for where no widget can live."""
        bundle = super()._repr_mimebundle_(**kwargs)
        still = self.message
        if self.exploration is not None:
            still = self.exploration.to_html(masked=self.masked.value)
        return bundle | {"text/plain": f"Explorer({self.exploration!r})", "text/html": still}


def _token_button() -> ipywidgets.Button:
    layout = {"width": "auto", "height": "28px", "padding": "0 2px"}
    return ipywidgets.Button(layout=layout)


def _sentence(error: Exception) -> str:
    """HTML of the first line of what an error says."""
    return escape((str(error).strip().splitlines() or [type(error).__name__])[0])
