"""A map of texts to move about in: what stands behind a point appears under the mouse.

The still picture of the same is `sasa_lib.course.plots.boundaries.subspaces`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import ColorBar, ColumnDataSource, CustomJS, HoverTool, LinearColorMapper, Select
from bokeh.plotting import figure
from bokeh.resources import INLINE

from sasa_lib.checks import check_scores, check_texts
from sasa_lib.evaluation.scorers.loading import mask_text

SHOWN = 240  # characters of a text
HEIGHT = 560  # pixels
TOOLTIP = """<div style="max-width:24em;white-space:normal;overflow-wrap:anywhere">@text<br>
<small>annotated @value{0.00}, margin @margin{+0.00} sd</small></div>"""
CHOOSE = """
const at = layers.indexOf(this.value);
source.data = {...source.data, x: xs[at], y: ys[at], margin: margins[at]};
"""


class TextMap:
    """Two-dimensional maps of texts, layer by layer, with every text to be read on its point.

    A notebook shows it by itself, in JupyterLab and in its HTML copy, without a kernel and
    without a network. Points are coloured by their annotated value; circles are nontoxic,
    triangles toxic, and a click in the legend hides either.

    Parameters
    ----------
    maps : mapping from layer to array [n, 2]
        Such as UMAP coordinates. The first layer is shown first.
    margins : mapping from layer to array [n]
        Scaled margins of the same texts, for the same layers.
    texts : sequence of str, length n
    values : array [n]
        The annotated value in [0, 1].
    threshold : float
        Above it a text counts as toxic.
    attribute : str
        What the values measure.
    masked : bool
        Mask offensive words as `sasa_lib.mask_text` does. What is masked is nowhere in the HTML.
    """

    def __init__(
        self,
        maps: Mapping[int, np.ndarray],
        margins: Mapping[int, np.ndarray],
        texts: Sequence[str],
        values: np.ndarray,
        *,
        threshold: float = 0.5,
        attribute: str = "toxicity",
        masked: bool = True,
    ) -> None:
        if not maps or maps.keys() - margins.keys():
            raise ValueError("a map of texts needs at least one layer, and margins for each layer")
        self.maps = {layer: np.asarray(points) for layer, points in maps.items()}
        self.margins = {layer: np.asarray(margins[layer]) for layer in maps}
        texts = check_texts(texts, "text", empty=True)
        self.values = check_scores("values", values)
        for layer, points in self.maps.items():
            shapes = points.shape, self.margins[layer].shape, self.values.shape
            if shapes != ((len(texts), 2), (len(texts),), (len(texts),)):
                raise ValueError(
                    f"layer {layer}: expected points [n, 2], margins [n] and values [n] for "
                    f"n = {len(texts)} texts, got shapes {shapes[0]}, {shapes[1]} and {shapes[2]}"
                )
        lines = [" ".join(text.split()) for text in texts]
        if masked:  # all at once, which is a hundred times faster
            lines = mask_text("\n".join(lines)).split("\n")
        self.texts = [line[:SHOWN] + "..." * (len(line) > SHOWN) for line in lines]
        self.threshold, self.attribute = threshold, attribute

    def __repr__(self) -> str:
        return f"TextMap({len(self.texts)} texts, layers {', '.join(map(str, self.maps))})"

    def _repr_html_(self) -> str:
        # A document of its own, so that its styles and scripts and those around it do not meet.
        return (
            f'<iframe srcdoc="{escape(self.to_html())}" title="Map of texts, with the text on '
            f'every point" style="width:100%;height:{HEIGHT + 70}px;border:0"></iframe>'
        )

    def to_html(self) -> str:
        """Return a whole HTML document that needs nothing but a browser."""
        layers = [str(layer) for layer in self.maps]
        places = np.stack(list(self.maps.values())).astype(np.float32)
        margins = np.stack(list(self.margins.values())).astype(np.float32)
        plot = figure(
            height=HEIGHT,
            sizing_mode="stretch_width",
            tools="pan,wheel_zoom,box_zoom,reset",
            active_scroll="wheel_zoom",
            x_axis_label="UMAP 1 (no unit)",
            y_axis_label="UMAP 2 (no unit)",
        )
        colours = LinearColorMapper("Cividis256", low=0, high=1)
        choice = Select(title="layer", value=layers[0], options=layers, width=120)
        toxic = self.values > self.threshold
        for name, rows, marker in (("nontoxic", ~toxic, "circle"), ("toxic", toxic, "triangle")):
            (rows,) = np.nonzero(rows)
            x, y, margin = places[:, rows, 0], places[:, rows, 1], margins[:, rows]
            source = ColumnDataSource(
                {
                    "x": x[0],
                    "y": y[0],
                    "margin": margin[0],
                    "value": self.values[rows],
                    "text": [self.texts[row] for row in rows],
                }
            )
            plot.scatter(
                "x",
                "y",
                source=source,
                marker=marker,
                size=7,
                fill_color={"field": "value", "transform": colours},
                line_color="#444444",
                line_width=0.5,
                legend_label=name,
            )
            arrays = {"xs": x.tolist(), "ys": y.tolist(), "margins": margin.tolist()}
            arguments = {"source": source, "layers": layers, **arrays}
            choice.js_on_change("value", CustomJS(args=arguments, code=CHOOSE))
        plot.add_tools(HoverTool(tooltips=TOOLTIP))
        plot.add_layout(
            ColorBar(color_mapper=colours, title=f"annotated {self.attribute}"), "right"
        )
        plot.legend.click_policy = "hide"
        plot.grid.visible = False
        plot.axis.major_tick_line_color = plot.axis.minor_tick_line_color = None
        plot.axis.major_label_text_font_size = "0pt"
        page = column(choice, plot, sizing_mode="stretch_width")
        return file_html(page, INLINE, "Map of texts")
