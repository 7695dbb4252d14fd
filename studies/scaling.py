"""How generation on Ray scales: one and two actors measured here, up to 200 simulated from that.

    python studies/scaling.py                                                   on an idle machine
    python studies/scaling.py --prompts 4 --tiny-prompts 64 --repeats 1         whether it works

Fills the tables of docs/cluster.md. Efficiency at n actors is throughput(n) / (n *
throughput(1)), measured within a repeat.
Throughput is prompts/s

- of the whole call: the actors' start and the model's loading count, Ray's own start does not;
- begun: from the first actor's first batch to the end of the call, so that the others' later
  start counts, and the tail, in which one actor still works and another has nothing left;
- steady: while all actors work, from the last one's first batch until the first has no shard
  left; a shard that is cut by this counts by its share of time. (nan: there was no such time.)

The ceiling is what the machine allows without Ray: a process's speed beside another that does the
same work, over its speed alone; one thread each, the model loaded before the clock starts.

All of it is seen from outside, by `runs.generate` and what it leaves: a shard's file was written
when its work was done, and its column `seconds` says how long that took.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from flat_memory import WORDS, save_model

import sasa_lib as sl
from sasa_lib.evaluation.runs import SHARD_PROMPTS, SHARDS_OF_ACTOR

MODEL = "smollm2-135m-instruct"
FOLDER = Path("runs/scaling")
SAMPLING = sl.runs.Sampling()  # 25 generations of 20 tokens, the paper's size
MEASURED, SIMULATED = (1, 2), (1, 2, 8, 64, 200)
RATES = ("whole call", "begun", "steady")
AHEAD = 2  # shards an actor has at once, that at work among them: as cluster.Pool.each says
DRAWS = 21
EMPTY_SHARDS = 500


@dataclass(frozen=True)
class Case:
    """What is generated: a model, a method, and prompts, the longest first as the library does."""

    name: str
    model: str
    prompts: list[str]
    decoder: Callable | None = None
    sampling: sl.runs.Sampling = SAMPLING
    batch: int = SAMPLING.generations  # a prompt a batch, so that `seconds` are each prompt's own


@dataclass(frozen=True)
class Shard:
    """When work on a shard began and ended, in seconds since the call, and its prompts' own."""

    begin: float
    end: float
    seconds: pd.Series


@dataclass(frozen=True)
class Run:
    """A call as measured: its seconds, and the shards of every actor in order."""

    seconds: float
    actors: list[list[Shard]]
    asked: int

    @property
    def start_up(self) -> float:
        """Seconds until the first actor began its first batch."""
        return min(own[0].begin for own in self.actors)

    def rates(self) -> dict[str, float]:
        """Prompts/s by the three definitions."""
        shards = [shard for own in self.actors for shard in own]
        prompts = sum(len(shard.seconds) for shard in shards)
        start = max(own[0].begin for own in self.actors)
        stop = min(own[-1].end for own in self.actors)
        within = sum(
            len(s.seconds) * max(0, min(s.end, stop) - max(s.begin, start)) / (s.end - s.begin)
            for s in shards
        )
        all_worked = len(self.actors) == self.asked and stop > start
        steady = within / (stop - start) if all_worked else np.nan
        begun = self.seconds - self.start_up
        return dict(zip(RATES, (prompts / self.seconds, prompts / begun, steady), strict=True))


Results = list[tuple[Case, dict[int, list[Run]]]]  # by number of actors, a run a repeat


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=8, help=f"measured with {MODEL}")
    parser.add_argument("--tiny-prompts", type=int, default=400, help="with a tiny random model")
    parser.add_argument("--simulated-prompts", type=int, default=10_000, help="for each method")
    options = parser.parse_args()
    print(
        f"{psutil.cpu_count()} CPUs, {psutil.cpu_percent(interval=2):.0f}% of them busy, load "
        f"{psutil.getloadavg()[0]:.1f} before this starts; what others do counts as Ray's fault"
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder, "model"))
        tiny = Case("tiny model", str(Path(folder, "model")), sentences(options.tiny_prompts))
        real = embedded(options.prompts)
        print("threads of an actor:", *sl.cluster.pool("ray").each(threads, [None]), flush=True)
        serial = driver_seconds(tiny.model)
        rows, results = measure([tiny, *real], options.repeats)
    print(f"\n### MEASURED\n\n{markdown(compared(rows))}")
    large = scaled(results[1:], options.simulated_prompts, serial)
    print(f"\n### SIMULATED\n\n{markdown(large.iloc[:, 1:])}")
    small = validated(results, serial)
    print(f"\nSIMULATED against MEASURED:\n\n{markdown(small.iloc[:, 1:])}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    pd.concat([rows, large, small]).to_csv(FOLDER / "scaling.csv", index=False)
    print(f"\nEvery number: {FOLDER}/scaling.csv")


def sentences(number: int) -> list[str]:
    """Prompts of three words for the tiny model."""
    return [" ".join(words) for words in islice(product(WORDS, repeat=3), number)]


def embedded(number: int) -> list[Case]:
    """Plain sampling and SASA with the embedded model, on prompts of all lengths."""
    model, tokenizer = loaded(MODEL)
    prompts = sl.load_prompts("embedded", subset="toxic")["prompt"]
    prompts = sorted(prompts, key=lambda prompt: -len(tokenizer(prompt)["input_ids"]))
    prompts = [prompts[i] for i in np.linspace(0, len(prompts) - 1, number).astype(int)]
    corpus = sl.load_corpus("embedded", max_examples=200)
    how = {"layer": 0.4, "pooling": "mean", "covariance": "ledoit_wolf", "progress": False}
    sasa = sl.SASA(sl.Boundary.fit(model, tokenizer, corpus, **how), 1.0, form="posterior", seed=0)
    return [
        Case("SmolLM2, plain", MODEL, prompts),
        Case("SmolLM2, SASA posterior", MODEL, prompts, sasa),
    ]


def threads() -> Callable[[object], int]:
    """Make what asks an actor for the number of its threads."""
    return lambda item: torch.get_num_threads()


@functools.cache
def loaded(name: str) -> tuple:
    """Load a model once in each process."""
    return sl.load_lm(name, device="cpu")


def generate(case: Case, folder: str, **engine: object) -> Path:
    """Make the call that is measured."""
    return sl.runs.generate(
        *loaded(case.model), case.prompts, case.sampling, folder=folder, method="m",
        custom_generate=case.decoder, batch_sequences=case.batch, table=False, progress=False,
        **engine,
    )  # fmt: skip


def on_ray(case: Case, actors: int) -> Run:
    """Generate anew on Ray, and find out which actor did what when."""
    loaded(case.model)
    with tempfile.TemporaryDirectory() as folder:
        start = time.time()
        run = generate(case, folder, engine="ray", actors=actors)
        whole = time.time() - start
        shards = []
        for file in run.glob("shard-*.parquet"):
            # A file keeps the time of its writing when the driver gives it its name.
            end = file.stat().st_mtime - start
            rows = pd.read_parquet(file, columns=["prompt", "seconds"])
            seconds = rows.groupby("prompt")["seconds"].sum()
            shards.append(Shard(end - seconds.sum(), end, seconds))
    return Run(whole, told_apart(shards, actors), actors)


def told_apart(shards: list[Shard], actors: int) -> list[list[Shard]]:
    """Shards by the actor that made them: what begins while all known are at work is another's."""
    found: list[list[Shard]] = []
    for shard in sorted(shards, key=lambda shard: shard.begin):
        first = min(found, key=lambda own: own[-1].end, default=None)
        if first is None or (len(found) < actors and first[-1].end > shard.begin):
            found.append([shard])
        else:
            first.append(shard)
    return found


def alone(case: Case) -> float:
    """Seconds of generating in this process, without Ray, on one thread."""
    torch.set_num_threads(1)
    loaded(case.model)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        generate(case, folder, engine="local")
        return time.perf_counter() - start


def driver_seconds(model: str) -> float:
    """Driver's seconds a shard, at most: two actors, shards with next to nothing to do."""
    sampling = sl.runs.Sampling(generations=1, max_new_tokens=1)
    prompts = sentences(EMPTY_SHARDS * SHARD_PROMPTS)
    before = psutil.Process().cpu_times()
    run = on_ray(Case("", model, prompts, None, sampling, SHARD_PROMPTS), 2)
    after = psutil.Process().cpu_times()
    cpu = (after.user + after.system - before.user - before.system) / EMPTY_SHARDS
    most = len(prompts) / run.rates()["begun"] / EMPTY_SHARDS
    print(
        f"driver: {1000 * most:.1f} ms a shard at most (wall time a shard of two actors with next "
        f"to nothing to do; what is simulated takes this), {1000 * cpu:.1f} ms of its CPU's",
        flush=True,
    )
    return most


def measure(cases: list[Case], repeats: int) -> tuple[pd.DataFrame, Results]:
    """Run all sides of a case in turn, `repeats` times; print each as it comes."""
    rows, results = [], []

    def note(**row: object) -> None:
        rows.append({"kind": "measured", **row})
        print(*(f"{v:.3f}" if isinstance(v, float) else v for v in row.values()), flush=True)

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as one, ProcessPoolExecutor(1, spawn) as other:
        for case in cases:
            results.append((case, {actors: [] for actors in MEASURED}))
            part = replace(case, prompts=case.prompts[::4])
            for process in (one, other):
                process.submit(alone, replace(case, prompts=case.prompts[-1:])).result()
            for repeat in range(repeats):
                where = {"case": case.name, "repeat": repeat}
                for actors in MEASURED:
                    run = on_ray(case, actors)
                    results[-1][1][actors].append(run)
                    found = {"seconds": run.seconds, "start-up": run.start_up, **run.rates()}
                    found["shards"] = "+".join(str(len(own)) for own in run.actors)
                    note(**where, how="ray", actors=actors, prompts=len(case.prompts), **found)
                for workers in MEASURED:
                    working = [p.submit(alone, part) for p in (one, other)[:workers]]
                    seconds = [work.result() for work in working]
                    found = {"prompts": len(part.prompts), "seconds": max(seconds)}
                    found["steady"] = sum(len(part.prompts) / s for s in seconds)
                    note(**where, how="processes", actors=workers, **found)
    return pd.DataFrame(rows), results


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Rates and efficiencies of every case, as "median (range)" over the repeats."""
    sides = rows.pivot(index=["case", "repeat"], columns=["how", "actors"])
    lines = {}
    for rate in RATES:
        one, two = sides[rate, "ray", 1], sides[rate, "ray", 2]
        lines |= {f"{rate}: prompts/s, 1 actor": one, f"{rate}: prompts/s, 2 actors": two}
        lines[f"{rate}: **efficiency at 2**"] = two / (2 * one)
    ceiling = sides["steady", "processes", 2] / (2 * sides["steady", "processes", 1])
    lines["ceiling: 2 processes without Ray"] = ceiling
    lines["steady: efficiency over the ceiling"] = lines["steady: **efficiency at 2**"] / ceiling
    for actors in MEASURED:
        lines[f"start-up, s, {actors} at once"] = sides["start-up", "ray", actors]
    spread = (
        pd.DataFrame(lines)
        .groupby("case")
        .agg(lambda x: f"{x.median():.2f} ({x.min():.2f} to {x.max():.2f})")
    )
    return spread.loc[rows["case"].unique()].T.rename_axis("median (range)").reset_index()


def simulate(
    shards: Sequence[float], starts: Sequence[float], serial: float, ahead: int = AHEAD
) -> float:
    """Seconds from the call until the driver has the last shard, by events.

    Parameters
    ----------
    shards : sequence of float
        Seconds of work, in the order in which they are handed out.
    starts : sequence of float
        When each actor is ready.
    serial : float
        The driver's seconds a shard; it sees to one after the other, as they are finished, and
        hands the actor another one then.
    ahead : int
        Shards that an actor has at once: what it works on, and what waits there.

    Returns
    -------
    float
    """
    number = count()  # orders what happens at once: every actor's first place before any second
    places = [
        (start, next(number), actor, False)
        for _ in range(ahead)
        for actor, start in enumerate(starts)
    ]
    heapq.heapify(places)
    free, driver, left = list(starts), 0.0, iter(shards)
    while places:
        now, _, actor, finished = heapq.heappop(places)
        if finished:
            driver = max(driver, now) + serial
            heapq.heappush(places, (driver, next(number), actor, False))
        elif (seconds := next(left, None)) is not None:
            free[actor] = max(free[actor], now) + seconds
            heapq.heappush(places, (free[actor], next(number), actor, True))
    return driver


def grouped(prompts: Sequence[float], actors: int) -> list[float]:
    """Seconds of shards, from those of prompts with a batch each: as the library groups them."""
    size = max(1, min(SHARD_PROMPTS, len(prompts) // (SHARDS_OF_ACTOR * actors)))
    return [sum(prompts[start : start + size]) for start in range(0, len(prompts), size)]


def drawn(case: Case, runs: list[Run], prompts: int, actors: int, serial: float) -> np.ndarray:
    """Simulated seconds of the call and without the first start-up, a row a draw.

    Prompts and starts are drawn from those measured, and the longest prompts still come first.
    """
    order = {prompt: place for place, prompt in enumerate(case.prompts)}
    lanes = [own for run in runs for own in run.actors]
    pairs = [pair for own in lanes for pair in pairwise(own)]
    between = [(b.begin - a.end) / len(b.seconds) for a, b in pairs] or [0.0]
    known = pd.concat([shard.seconds for own in lanes for shard in own])
    known = known.iloc[known.index.map(order).argsort(kind="stable")].to_numpy()
    known = known + np.median(between)
    ready = [own[0].begin for own in lanes]
    times = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        seconds = known[np.sort(rng.integers(len(known), size=prompts))]
        starts = rng.choice(ready, actors)
        end = simulate(grouped(seconds, actors), starts, serial)
        times.append((end, end - min(starts)))
    return np.array(times)


def scaled(results: Results, prompts: int, serial: float) -> pd.DataFrame:
    """Simulate many actors, each as fast as one was beside a second one."""
    times = {
        case.name: {n: drawn(case, runs[min(n, 2)], prompts, n, serial) for n in SIMULATED}
        for case, runs in results
    }
    times["each, one after the other"] = {n: sum(t[n] for t in times.values()) for n in SIMULATED}
    rows = []
    for name, of in times.items():
        for actors, seconds in of.items():
            whole, begun = np.median(of[1] / (actors * seconds), axis=0)
            row = {"kind": "simulated", "case": name, "actors": actors, "prompts": prompts}
            row["shards"] = len(grouped(range(prompts), actors))
            row["makespan, s"] = np.median(seconds[:, 0])
            rows.append(row | {"efficiency, whole call": whole, "efficiency, begun": begun})
    return pd.DataFrame(rows)


def validated(results: Results, serial: float) -> pd.DataFrame:
    """What was measured, predicted: from its own service times, and from those of one actor."""
    rows = []
    for case, runs in results:
        for actors in MEASURED:
            row = {"kind": "simulated", "case": case.name, "actors": actors}
            row["prompts"] = len(case.prompts)
            for name, of in (("predicted, s", actors), ("from 1 actor's times, s", 1)):
                times = drawn(case, runs[of], len(case.prompts), actors, serial)
                row[name] = np.median(times[:, 0])
            rows.append(row | {"measured, s": np.median([run.seconds for run in runs[actors]])})
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Write a table as Markdown."""
    shown = table.map(lambda cell: f"{cell:,.2f}" if isinstance(cell, float) else str(cell))
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
