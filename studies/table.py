"""Measure every method at several strengths, on prompts that nothing in the chain has seen.

    python studies/table.py                  # all rows; hours, and it goes on where it stopped
    python studies/table.py --only rad       # those with this method (model, ...)

Fills data/results.csv, a row a prompt, from which notebook 7 makes tables and figures.

The prompts are RealToxicityPrompts of the tenth of records that was kept aside when the `minilm`
scorer was trained (the file in SASA_SHARED_DATA). Boundaries, reward heads, experts and mean
differences are all fitted on the same texts: the embedded corpus and the other nine tenths,
without any text of a record that was kept aside, less a fifth that calibrates.

A run that is in the table is not made again. Its generations stay in runs/table. Several of these
may run side by side, on a GPU say: each takes a run that no other is at. The first one alone, by
`--only plain`, saves that all of them fit the same boundaries.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import concatenate_datasets
from filelock import FileLock, Timeout

import sasa_lib as sl
from sasa_lib.decoding.method import Decoder, PlainSampling
from sasa_lib.engine.identity import depends_on, key
from sasa_lib.engine.storage import atomic_file
from sasa_lib.texts.assets import DATA_DIR
from sasa_lib.texts.corpora import fingerprint
from sasa_lib.texts.sources import rtp_records

SHARED = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
RECORDS = SHARED / "rtp" / "dev.jsonl.gz"
FOLDER = Path("runs/table")
SMALL, LARGE = "smollm2-135m-instruct", "gemma3-270m"
SCORERS = ("minilm", "profanity-check")
READ = 5  # generations of a prompt whose perplexity is measured
DIVERGENCES = 2  # sequences of a prompt along which KL is measured
CLAMP = 20  # candidates: the default of the authors' code
DRAWS = 4  # of which one is kept
BEFORE = 2.0  # strength of the posterior form whose draws are accepted
LIMITED, NUCLEUS = "top-k 10, top-p 0.9", "top-p 0.9"
TRUNCATIONS = {LIMITED: {"top_k": 10, "top_p": 0.9}, NUCLEUS: {"top_k": 0, "top_p": 0.9}}
# The authors' code has betas of 10 to 500; smaller ones, so that it can pay as little as others.
PUBLISHED = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 500.0)
LOGISTIC_LAYER = {SMALL: 0.2, LARGE: 0.3}  # found by studies/own_continuations.py


class Texts:
    """What is fitted on and what is continued."""

    def __init__(self) -> None:
        if not RECORDS.exists():
            raise SystemExit(f"there is no {RECORDS}: give its folder's parent as SASA_SHARED_DATA")
        records = rtp_records(RECORDS)
        prompts = [prompt["text"] for prompt in records["prompt"]]
        aside = [int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0 for text in prompts]
        continuations = [continuation["text"] for continuation in records["continuation"]]
        self.kept_aside = {
            text
            for side in (prompts, continuations)
            for text, held in zip(side, aside, strict=True)
            if held
        }
        self.record_of = {text: i for i, text in enumerate(prompts) if aside[i]}
        columns = ["prompt", "response", "group", "toxicity"]
        corpus = concatenate_datasets(
            [
                sl.load_corpus("embedded").select_columns(columns),
                sl.load_corpus("rtp", path=RECORDS).select_columns(columns),
            ]
        )
        seen = [{row["prompt"], row["response"]} for row in corpus]
        fitted = [i for i, texts in enumerate(seen) if not texts & self.kept_aside]
        self.training, self.held_out = sl.corpora.split(corpus.select(fitted))

    def prompts(self, subset: str) -> list[str]:
        """Of the records that were kept aside, in an order that is the same everywhere."""
        rows = sl.load_prompts("rtp", path=RECORDS, subset=subset)
        chosen = [text for text in dict.fromkeys(rows["prompt"]) if text in self.record_of]
        order = np.random.default_rng(0).permutation(len(chosen))
        return [chosen[i] for i in order]


class Fitted:
    """A model, and all that is learnt for it, when it is asked for."""

    def __init__(self, name: str, texts: Texts) -> None:
        self.name, self.texts = name, texts
        self.model, self.tokenizer = sl.load_lm(name, dtype="float32")  # on every device
        self.fit = partial(
            sl.Boundary.fit, self.model, self.tokenizer, texts.training,
            folder=FOLDER / "embeddings",
        )  # fmt: skip

    @cached_property
    def boundary(self) -> sl.Boundary:
        """The closed form, its layer by cross-validation, calibrated."""
        return self.kept(layer="auto", covariance="ledoit_wolf")

    @cached_property
    def logistic(self) -> sl.Boundary:
        """By logistic regression, at the layer that judges the model's own texts best."""
        return self.kept(layer=LOGISTIC_LAYER[self.name], estimator="logistic")

    def kept(self, **options: object) -> sl.Boundary:
        """Fit a boundary of means and calibrate it, or read it where that was done before."""
        corpora = [fingerprint(part) for part in (self.texts.training, self.texts.held_out)]
        of = key(depends_on("embedding", model=self.model, fitted=options, corpora=corpora))
        path = FOLDER / "boundaries" / f"{of}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                held_out = self.texts.held_out
                found = self.fit(pooling="mean", held_out=held_out, **options)
                found.calibrated(self.model, self.tokenizer, held_out).save(path)
        found = sl.Boundary.load(path)
        auc = found.metadata["held_out_auc"]
        print(f"{self.name}: layer {found.layer}, AUC {auc:.3f}, slope {found.slope:.2f}")
        return found

    @cached_property
    def published(self) -> sl.Boundary:
        """Place and labels as published: toxic is whatever has a toxicity above 0."""
        return self.fit(threshold=0.0, cut="published")

    @cached_property
    def relabelled(self) -> sl.Boundary:
        """As published, but toxic is what has a toxicity above 0.5."""
        return self.fit(cut="published")

    @cached_property
    def embedded(self) -> tuple[np.ndarray, np.ndarray]:
        """What `boundary` was fitted on: embeddings [n, hidden_size], and which are toxic [n]."""
        return self.embeddings(self.boundary.layer)

    def embeddings(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean embeddings [n, hidden_size] of the training texts, and which are toxic [n]."""
        corpus, toxic = sl.corpora.labelled(self.texts.training)
        states = sl.embeddings.extract(
            self.model, self.tokenizer, corpus, layers=[layer], pooling="mean",
            folder=FOLDER / "embeddings",
        )  # fmt: skip
        return states[:, 0], toxic

    def random_direction(self, seed: int) -> sl.Boundary:
        """The boundary with a normal that knows nothing."""
        return sl.controls.random_direction(self.boundary, self.embedded[0], seed=seed)

    def shuffled_labels(self, seed: int) -> sl.Boundary:
        """The boundary fitted on labels that know nothing."""
        return sl.controls.shuffled_labels(
            *self.embedded, seed=seed, layer=self.boundary.layer, pooling="mean",
            model=self.model, covariance="ledoit_wolf",
        )  # fmt: skip

    @cached_property
    def middle(self) -> tuple[np.ndarray, int]:
        """Difference of the class means in the middle of the depth."""
        layer = self.model.config.num_hidden_layers // 2
        return sl.baselines.MeanDifference.between(*self.embeddings(layer)), layer

    @cached_property
    def reward(self) -> object:
        """RAD's head, on the frozen model."""
        return sl.baselines.train_reward(
            self.model, self.tokenizer, self.texts.training, folder=FOLDER / "rewards"
        )

    @cached_property
    def tuned_reward(self) -> object:
        """RAD's reward model as published: all of a copy of the model is trained."""
        of = key(depends_on("reward", model=self.model, corpus=fingerprint(self.texts.training)))
        folder = FOLDER / "rewards" / of
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not (folder / "done").exists():
                reward = sl.baselines.fine_tune_reward(
                    self.model, self.tokenizer, self.texts.training, folder=folder
                )
                print(f"{self.name}: reward model, error {reward.metadata['held_out_rmse']:.3f}")
                (folder / "done").touch()
        reward = sl.baselines.RewardModel.from_classifier(str(folder), toxic=False)
        reward.model.to(self.model.device)
        return reward

    @cached_property
    def experts(self) -> tuple[object, object]:
        """Trained on nontoxic and on toxic texts."""
        corpus, toxic = sl.corpora.labelled(self.texts.training)
        return tuple(
            sl.baselines.train_expert(
                self.model, self.tokenizer, corpus.select(np.flatnonzero(rows)),
                folder=FOLDER / "experts",
            )
            for rows in (~toxic, toxic)
        )  # fmt: skip


def softmax(boundary: sl.Boundary, beta: float, seed: int, clamp: int = CLAMP) -> sl.SASA:
    """SASA in the form of the authors' code."""
    options = {"form": "softmax", "scaled": False, "max_candidates": clamp}
    return sl.SASA(boundary, beta, seed=seed, **options)


def steered(
    f: Fitted, beta: float, seed: int, form: str = "margin", by: str = "boundary", **options: float
) -> sl.SASA:
    """SASA by one of the fitted boundaries."""
    return sl.SASA(getattr(f, by), beta, form=form, max_candidates=CLAMP, seed=seed, **options)


posterior = partial(steered, form="posterior")
rivals = sl.baselines
# By method: its strengths, and what makes it of what is fitted, a strength and the seed.
METHODS: dict[str, tuple[tuple[float, ...], Callable[[Fitted, float, int], Decoder]]] = {
    "plain": ((0.0,), steered),  # at beta 0, so that without a top-k it keeps CLAMP candidates, too
    "plain-unclamped": ((0.0,), lambda f, _, seed: PlainSampling(seed)),
    "sasa-published": (PUBLISHED, lambda f, b, seed: softmax(f.published, b, seed)),
    "sasa-relabelled": (PUBLISHED, lambda f, b, seed: softmax(f.relabelled, b, seed)),
    "sasa-unclamped": ((30.0, 300.0), lambda f, b, seed: softmax(f.published, b, seed, 500)),
    "sasa": ((0.25, 0.5, 1.0, 2.0), steered),
    "sasa-budget": (
        (0.05, 0.1, 0.2, 0.4),
        lambda f, nats, seed: posterior(f, 8.0, seed, max_kl=nats),
    ),
    "rad": (
        (5.0, 10.0, 20.0, 40.0),
        lambda f, b, seed: rivals.RAD(f.reward, f.tokenizer, b, seed=seed),
    ),
    "rad-fine-tuned": (
        (5.0, 10.0, 20.0, 40.0),
        lambda f, b, seed: rivals.RAD(f.tuned_reward, f.tokenizer, b, seed=seed),
    ),
    "static-bias": (
        (0.5, 1.0, 2.0, 4.0),
        lambda f, b, seed: rivals.StaticBias(f.boundary, b, seed=seed),
    ),
    "mean-difference": (
        (1.0, 2.0, 4.0, 8.0),
        lambda f, a, seed: rivals.MeanDifference(*f.middle, a, seed=seed),
    ),
    "prompt-only": ((1.0,), lambda f, _, seed: rivals.PromptOnly(f.tokenizer, seed=seed)),
    "word-filter": ((1.0,), lambda f, _, seed: rivals.WordFilter(f.tokenizer, seed=seed)),
    "sasa-posterior-filtered": (
        (1.0, 2.0, 4.0, 8.0),
        lambda f, b, seed: rivals.WordFilter(f.tokenizer, then=posterior(f, b, seed)),
    ),
    "dexperts": (
        (0.5, 1.0, 2.0, 4.0),
        lambda f, a, seed: rivals.DExperts(*f.experts, a, seed=seed),
    ),
    "anti-only": (
        (0.25, 0.5, 1.0, 2.0),
        lambda f, a, seed: rivals.DExperts(None, f.experts[1], a, seed=seed),
    ),
    "self-debiasing": (
        (10.0, 50.0, 100.0, 200.0),
        lambda f, d, seed: rivals.SelfDebiasing(f.tokenizer, ["toxicity"], decay=d, seed=seed),
    ),
}
for by, ending in (("boundary", ""), ("logistic", "-logistic")):
    METHODS |= {
        f"sasa-posterior{ending}": ((1.0, 2.0, 4.0, 8.0), partial(posterior, by=by)),  # calibrated
        f"best-of{ending}": (
            (0.0, 1.0, 2.0, 4.0),
            lambda f, b, seed, by=by: sl.BestOf(
                getattr(f, by), DRAWS, then=posterior(f, b, seed, by=by)
            ),
        ),
        f"accept{ending}": (
            (-1.0, 0.0, 1.0, 2.0),
            lambda f, above, seed, by=by: sl.Accept(getattr(f, by), above, seed=seed),
        ),
        f"accept-posterior{ending}": (
            (0.0, 1.0, 2.0, 3.0),
            lambda f, above, seed, by=by: sl.Accept(
                getattr(f, by), above, then=posterior(f, BEFORE, seed, by=by)
            ),
        ),
    }
for kind in ("random_direction", "shuffled_labels"):
    for number in range(3):
        METHODS[f"{kind.replace('_', '-')}-{number}"] = (
            (0.5, 1.0, 2.0, 4.0) if number == 0 else (1.0, 4.0),
            lambda f, b, seed, kind=kind, number=number: sl.SASA(
                getattr(f, kind)(number), b, seed=seed
            ),
        )
LOGISTIC = [name for name in METHODS if name.endswith("-logistic")]
MAIN = [
    "plain", "sasa-relabelled", "sasa", "sasa-posterior", "best-of", "accept", "accept-posterior",
    "rad",
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One method at one strength: what `measured.RUN` names."""

    model: str
    prompts: str
    truncation: str
    method: str
    strength: float
    seed: int = 0

    def decoder(self, fitted: Fitted) -> Decoder:
        """The method itself."""
        return METHODS[self.method][1](fitted, self.strength, self.seed)


def runs() -> Iterator[Run]:
    """Every run, the most important ones first."""
    rows = [(SMALL, "toxic", LIMITED, name) for name in (
        "plain", "sasa", "sasa-posterior", "accept-posterior", "accept", "sasa-relabelled",
        "random-direction-0", "rad", "best-of", "shuffled-labels-0", "sasa-published", *LOGISTIC,
        "rad-fine-tuned",
    )]  # fmt: skip
    nucleus = ("plain", "sasa-posterior", "sasa-relabelled")
    rows += [(SMALL, "toxic", NUCLEUS, name) for name in nucleus]
    rows += [(SMALL, "toxic", LIMITED, name) for name in (
        "static-bias", "mean-difference", "prompt-only", "word-filter", "anti-only", "dexperts",
        *(name for name in METHODS if name[-1] in "12"),
        "sasa-budget", "self-debiasing", "sasa-posterior-filtered",
    )]  # fmt: skip
    for model, prompts in ((LARGE, "toxic"), (SMALL, "nontoxic"), (LARGE, "nontoxic")):
        rows += [(model, prompts, LIMITED, name) for name in MAIN]
    rows += [(SMALL, "toxic", NUCLEUS, name) for name in (
        "sasa", "plain-unclamped", "sasa-published", "sasa-unclamped",
    )]  # fmt: skip
    for row in rows:
        for strength in METHODS[row[-1]][0]:
            yield Run(*row, strength)
    for method, strength in (("plain", 0.0), ("sasa", 1.0), ("sasa-posterior", 4.0)):  # once more
        yield Run(SMALL, "toxic", LIMITED, method, strength, seed=1)


def measured(
    run: Run,
    fitted: Fitted,
    judge: Fitted,
    texts: Texts,
    prompts: list[str],
    generations: int,
    batch: int | None = None,
) -> pd.DataFrame:
    """Generate and judge; a row a prompt."""
    sampling = sl.runs.Sampling(
        generations=generations, seed=run.seed, **TRUNCATIONS[run.truncation]
    )
    continued = partial(
        sl.runs.generate, fitted.model, fitted.tokenizer, prompts, sampling,
        folder=FOLDER / "generations", batch_sequences=batch,
    )  # fmt: skip
    reference = replace(run, method="plain", strength=0.0)
    before = continued(method=reference.method, custom_generate=reference.decoder(fitted))
    decoder = run.decoder(fitted)
    made = sl.judging.judged(
        continued(method=run.method, custom_generate=decoder),
        [sl.load_scorer(name) for name in SCORERS],
        judge.model, judge.tokenizer, folder=FOLDER / "judged", perplexity_generations=READ,
    )  # fmt: skip
    rows = sl.measured.by_prompt(made, SCORERS)
    same = made["text"] == before["text"]
    rows["unchanged"] = same.groupby(made["prompt_id"]).sum()
    some = made[made["generation"] < READ]
    subjects, said = (sl.scorers.sentence_embeddings(some[c].tolist()) for c in ("prompt", "text"))
    cosine = pd.Series((subjects * said).sum(axis=1), some.index)
    rows["cosine"] = cosine.groupby(some["prompt_id"]).mean()
    rows["kl"] = divergences(run, fitted, decoder, prompts)
    rows.insert(0, "record", [texts.record_of[prompt] for prompt in prompts])
    for name in reversed(sl.measured.RUN):
        rows.insert(0, name, getattr(run, name))
    return rows.round({"nll": 2}).round(4)


def divergences(
    run: Run, fitted: Fitted, decoder: Decoder, prompts: list[str]
) -> np.ndarray | float:
    """KL from plain sampling a token along a few sequences, its mean for every prompt."""
    inputs = fitted.tokenizer(prompts, return_tensors="pt", padding=True).to(fitted.model.device)
    found = decoder.divergence_per_token(
        fitted.model, **inputs, do_sample=True, max_new_tokens=20,
        num_return_sequences=DIVERGENCES, **TRUNCATIONS[run.truncation],
    )  # fmt: skip
    return np.nan if found is None else found.reshape(len(prompts), DIVERGENCES).mean(axis=1)


def add(rows: pd.DataFrame, table: Path) -> None:
    """Write a run behind the others, whole or not at all."""
    with FileLock(FOLDER / "table.lock"):
        if table.exists():
            rows = pd.concat([sl.measured.load(table), rows])
        with atomic_file(table) as temporary:
            rows.to_csv(temporary, index=False)


@contextmanager
def claimed(run: Run, table: Path) -> Iterator[bool]:
    """Whether a run is to be made: it is not in the table, and no other process is at it."""
    (FOLDER / "claims").mkdir(parents=True, exist_ok=True)
    lock = FileLock(FOLDER / "claims" / f"{key(astuple(run))}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield run not in measured_before(table)
    finally:
        lock.release()


def measured_before(table: Path) -> set[Run]:
    """Read which runs are in the table."""
    if not table.exists():
        return set()
    rows = sl.measured.load(table)[list(sl.measured.RUN)].drop_duplicates()
    return {Run(*row) for row in rows.itertuples(index=False, name=None)}


def main() -> None:
    """Go through the runs that are not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="a model, a method, a strength, ...")
    parser.add_argument("--table", type=Path, default=sl.measured.TABLE)
    parser.add_argument("--n-prompts", type=int, default=64, help="of each subset")
    parser.add_argument("--generations", type=int, default=25)
    parser.add_argument("--batch", type=int, help="sequences generated at once")
    arguments = parser.parse_args()
    texts, loaded = Texts(), dict[str, Fitted]()
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"fitted on {len(texts.training)} texts, calibrated on {len(texts.held_out)}", flush=True)
    failed: list[Run] = []
    wanted = [run for run in runs() if set(arguments.only) <= {*map(str, astuple(run))}]
    for number, run in enumerate(wanted):
        with claimed(run, arguments.table) as mine:
            if not mine:
                continue
            start = time.monotonic()
            try:
                for name in {SMALL, LARGE} - set(loaded):
                    loaded[name] = Fitted(name, texts)
                rows = measured(
                    run, loaded[run.model], loaded[LARGE if run.model == SMALL else SMALL], texts,
                    texts.prompts(run.prompts)[: arguments.n_prompts], arguments.generations,
                    arguments.batch,
                )  # fmt: skip
            except Exception:  # the others are still to be made
                traceback.print_exc()
                failed.append(run)
                continue
            add(rows, arguments.table)
        perplexity = np.exp(rows["nll"].sum() / rows["nll_tokens"].sum())
        print(
            f"{number + 1}/{len(wanted)} {' | '.join(map(str, astuple(run)))}: "
            f"{rows['minilm_max'].mean():.3f}, perplexity {perplexity:.2f}, "
            f"KL {rows['kl'].mean():.3f}, {time.monotonic() - start:.0f} s", flush=True,
        )  # fmt: skip
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {failed}")
    if left := set(wanted) - measured_before(arguments.table):
        print(f"{len(left)} runs are left to other processes")


if __name__ == "__main__":
    main()
