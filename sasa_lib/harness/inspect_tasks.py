"""Tasks of Inspect AI: `inspect eval sasa_lib/realtoxicityprompts --model sasa/NAME`.

Every generation is an epoch of its prompt; what is reported is over prompts, with intervals, and
equals what `sasa_lib.metrics` says of the same generations. A text that cannot be judged is an
error of its sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, GenerateConfig
from inspect_ai.scorer import (
    Metric,
    SampleScore,
    Score,
    Scorer,
    ScoreReducer,
    Target,
    mean,
    metric,
    score_reducer,
    scorer,
)
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver

from sasa_lib.evaluation import metrics
from sasa_lib.evaluation.agreement import PerspectiveScale
from sasa_lib.evaluation.scorers import load_scorer
from sasa_lib.evaluation.statistics import bootstrap_interval, wilson_interval
from sasa_lib.harness import inspect_model
from sasa_lib.texts.prompts import load_prompts

OF_TOXICITY = {
    "expected_max_toxicity": metrics.expected_max_toxicity,
    "toxic_rate": metrics.toxic_rate,
    "toxic_fraction": metrics.toxic_fraction,
    "mean_toxicity": metrics.mean_toxicity,
}
judge_named = cache(load_scorer)
SAMPLED = {"temperature": 1.0, "top_k": 10, "top_p": 0.9}  # as everywhere in this library


@metric
def low() -> Metric:
    """Lower end of the mean's 95% interval."""

    def measure(scores: list[SampleScore]) -> float:
        return interval(scores)[0]

    return measure


@metric
def high() -> Metric:
    """Upper end of the mean's 95% interval."""

    def measure(scores: list[SampleScore]) -> float:
        return interval(scores)[1]

    return measure


@metric
def on_perspective(judge: str, version: str) -> Metric:
    """What Perspective would have made of the generations, its interval with the judge's error."""
    scale = PerspectiveScale.of(judge, version)

    def measure(scores: list[SampleScore]) -> dict[str, float]:
        toxicity = [score.score.metadata["toxicity"] for score in scores]
        # Inspect asks while a run is under way, when prompts have unlike numbers of generations.
        if len(set(map(len, toxicity))) != 1:
            return {}
        return {
            f"perspective_{name}{ending}": float(row[column])
            for name, row in scale.equivalent(np.array(toxicity)).iterrows()
            for column, ending in (("value", ""), ("low", "_low"), ("high", "_high"))
        }

    return measure


@solver
def of_epoch() -> Solver:
    """Tell the provider `sasa` the epoch, so that a run that is retried repeats no continuation."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        asked = state.messages[-1]
        asked.metadata = (asked.metadata or {}) | {"place": state.epoch - 1}
        return state

    return solve


def interval(scores: list[SampleScore]) -> tuple[float, float]:
    """95% interval over prompts: Wilson's of a rate, a bootstrap of all else."""
    values = np.array([score.score.as_float() for score in scores])
    if not len(values):  # Inspect asks while nothing is scored yet
        return float("nan"), float("nan")
    if np.isin(values, (0.0, 1.0)).all():
        return wilson_interval(values == 1)
    return bootstrap_interval(lambda drawn: float(values[drawn].mean()), len(values))


@score_reducer(name="of_prompt")
def of_prompt() -> ScoreReducer:
    """Bring the scores of a prompt's generations together, by the metrics' definitions."""

    def reduce(scores: list[Score]) -> Score:
        toxicity = np.array([[score.value["toxicity"] for score in scores]])  # [1, generations]
        value = {name: of(toxicity) for name, of in OF_TOXICITY.items()}
        for name in set(scores[0].value) - {"toxicity"}:
            value[name] = float(np.mean([score.value[name] for score in scores]))
        return Score(value=value, metadata={"toxicity": toxicity[0].tolist()})

    return reduce


@scorer(metrics={"*": [mean(), low(), high()]})
def toxicity(judge: str = "minilm", refusals: bool = False) -> Scorer:
    """Toxicity of what was written, without its prompt, in [0, 1].

    Parameters
    ----------
    judge : str
        As for `sasa_lib.load_scorer`.
    refusals : bool
        Say of each answer also whether it refuses; see `sasa_lib.metrics.refusals`.
    """

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        value = {"toxicity": float(judge_named(judge)([text])[0])}
        if refusals:
            value["refused"] = float(metrics.refusals([text])[0])
        return Score(value=value, answer=text)

    return score


@task
def realtoxicityprompts(
    subset: str = "toxic",
    source: str = "rtp",
    path: str | None = None,
    generations: int = 25,
    judge: str = "minilm",
) -> Task:
    """Continue beginnings of web texts (Gehman et al. 2020).

    Parameters
    ----------
    subset : {"toxic", "nontoxic", "challenging"}
    source : {"rtp", "embedded"}
        The hub's (or a file's, by path), or those that a package carries.
    path : str, optional
        File of records in the original format.
    generations : int
        Of each prompt.
    judge : str
        As for `sasa_lib.load_scorer`.
    """
    prompts = load_prompts(source, path=path, subset=subset)["prompt"]
    return _task(prompts, None, generations, judge, continued=True)


@task
def bold(
    domain: str = "gender", path: str | None = None, generations: int = 25, judge: str = "minilm"
) -> Task:
    """Continue beginnings of Wikipedia sentences about groups (Dhamala et al. 2021)."""
    rows = load_prompts("bold", path=path, subset=domain)
    return _task(rows["prompt"], rows["group"], generations, judge, continued=True)


@task
def attaq(path: str | None = None, generations: int = 25, judge: str = "minilm") -> Task:
    """Answer adversarial questions (Kour et al. 2023)."""
    rows = load_prompts("attaq", path=path)
    return _task(rows["prompt"], rows["category"], generations, judge)


@task
def do_not_answer(generations: int = 1, judge: str = "minilm") -> Task:
    """Answer questions that should not be answered (Wang et al. 2023), which a package carries."""
    rows = load_prompts("do-not-answer")
    return _task(rows["prompt"], rows["category"], generations, judge)


def _task(
    prompts: Sequence[str],
    groups: Sequence[str] | None,
    generations: int,
    judge: str,
    *,
    continued: bool = False,
) -> Task:
    judging = judge_named(judge)  # an unknown one is refused before anything is generated
    reported: list[Metric | dict[str, list[Metric]]] = [{"*": [mean(), low(), high()]}]
    if PerspectiveScale.exists(judging.name, judging.version):
        reported.append(on_perspective(judging.name, judging.version))
    as_text = inspect_model.CONTINUE if continued else None
    samples = [
        Sample(
            input=[ChatMessageUser(content=prompt, metadata=as_text)],
            id=number,
            metadata=None if groups is None else {"group": groups[number]},
        )
        for number, prompt in enumerate(prompts)
    ]
    return Task(
        dataset=MemoryDataset(samples),
        solver=[of_epoch(), generate()],
        scorer=toxicity(judge, refusals=not continued),
        metrics=reported,
        epochs=Epochs(generations, of_prompt()),
        config=GenerateConfig(max_tokens=20 if continued else 60, **SAMPLED),
    )
