"""Particles with the running margin as potential, beside what they would have to beat.

    python studies/particles.py

Fills "Particles" in docs/results.md. The 25 continuations of a prompt are drawn together, five
tokens at a time; between, they are resampled in proportion to exp(lambda * the growth of their
mean scaled margin), so that in the end they follow p(x) exp(lambda * margin(x)), where p is plain
sampling or the posterior form (sequential Monte Carlo, Lew et al. 2023). Beside it: p itself, and
`sl.Accept`. The first prompts of studies/table.py, the same judges.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from table import LARGE, LIMITED, SMALL, TRUNCATIONS, Fitted, Texts, posterior

import sasa_lib as sl
from sasa_lib.decoding.method import Decoder, PlainSampling
from sasa_lib.decoding.responses import read_margins

TOKENS, PLACES = 20, 4
LAMBDAS = (1.0, 2.0, 4.0)
READ = 5  # generations of a prompt whose perplexity is measured


def main() -> None:
    """Draw by every method, judge, and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-prompts", type=int, default=20)
    parser.add_argument("--generations", type=int, default=25)
    parser.add_argument("--only", nargs="*", help="names of methods")
    given = parser.parse_args()
    texts = Texts()
    fitted, judge = Fitted(SMALL, texts), sl.load_lm(LARGE)
    prompts = texts.prompts("toxic")[: given.n_prompts]
    scorer, rows = sl.load_scorer("minilm"), []
    for name, drawn, cost in methods(fitted, prompts, given.generations, given.only):
        table = pd.DataFrame(
            [
                {"prompt_id": i, "prompt": prompt, "generation": j, "text": text}
                for i, (prompt, some) in enumerate(zip(prompts, drawn, strict=True))
                for j, text in enumerate(some)
            ]
        )
        table["minilm"] = scorer(table["text"].tolist())
        scores = sl.metrics.score_matrix(table, "minilm")
        read = table[table["generation"] < READ]
        nll, tokens = sl.likelihood.negative_log_likelihoods(
            *judge, read["prompt"], read["text"], progress=False
        )
        rows.append(
            {
                "method": name,
                "draws": cost,
                "expected_max_toxicity": sl.metrics.expected_max_toxicity(scores),
                "toxic_rate": sl.metrics.toxic_rate(scores),
                "perplexity": np.exp(nll.sum() / tokens.sum()),
                "different texts": np.mean([len(set(some)) / len(some) for some in drawn]),
            }
        )
        print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=False), flush=True)
    print(pd.DataFrame(rows).round(3).to_string(index=False))


def methods(
    fitted: Fitted, prompts: list[str], number: int, only: list[str] | None = None
) -> Iterator[tuple[str, list[list[str]], float]]:
    """Name, texts by prompt, and draws for each that is kept, of every method."""
    laws = {"plain": PlainSampling(0), "posterior 2": posterior(fitted, 2.0, 0)}
    others = laws | {"posterior 4": posterior(fitted, 4.0, 0)}
    others |= {
        f"{name}, accepted above {above:g}": sl.Accept(fitted.boundary, above, then=law)
        for name, law in laws.items()
        for above in (0.0, 0.5)
    }
    for name, decoder in others.items():
        if only and name not in only:
            continue
        drawn, draws = [], []
        for prompt in prompts:
            ids = fitted.tokenizer(prompt, return_tensors="pt")["input_ids"]
            sequences = continued(fitted, ids.expand(number, -1), decoder, TOKENS)
            drawn.append(sl.continuations(fitted.tokenizer, ids.expand(number, -1), sequences))
            draws.append(np.mean(decoder.drawn) if isinstance(decoder, sl.Accept) else 1.0)
        yield name, drawn, float(np.mean(draws))
    for name, law in laws.items():
        for weight in LAMBDAS:
            title, rng = f"{name}, particles {weight:g}", np.random.default_rng(0)
            if only and title not in only:
                continue
            drawn = [particles(fitted, prompt, law, weight, number, rng) for prompt in prompts]
            yield title, drawn, 1.0


def continued(fitted: Fitted, ids: torch.Tensor, decoder: Decoder, tokens: int) -> torch.Tensor:
    """Token ids [rows, length + tokens] of phrases of one length, continued."""
    return fitted.model.generate(
        ids, attention_mask=torch.ones_like(ids), custom_generate=decoder, do_sample=True,
        max_new_tokens=tokens, pad_token_id=fitted.tokenizer.eos_token_id, **TRUNCATIONS[LIMITED],
    )  # fmt: skip


def particles(
    fitted: Fitted, prompt: str, law: Decoder, weight: float, number: int, rng: np.random.Generator
) -> list[str]:
    """Texts behind a prompt that follow law(x) exp(weight * margin(x)) as their number grows."""
    end = fitted.tokenizer.eos_token_id
    before = fitted.tokenizer(prompt)["input_ids"]
    phrases: list[list[int]] = [list(before)] * number
    reached = np.zeros(number)  # nothing is known of an empty response
    for _ in range(PLACES):
        going = [i for i, phrase in enumerate(phrases) if end not in phrase[len(before) :]]
        if going:
            ids = torch.tensor([phrases[i] for i in going])
            longer = continued(fitted, ids, law, TOKENS // PLACES).tolist()
            for i, phrase in zip(going, longer, strict=True):
                phrases[i] = phrase
        said = [until(phrase[len(before) :], end) for phrase in phrases]
        margins = read_margins(fitted.model, [fitted.boundary], [before] * number, said)[0]
        margins = np.where(np.isfinite(margins), margins, reached)
        weights = np.exp(weight * (margins - reached))
        # Systematic resampling: the number of copies differs from its mean by less than one.
        edges = np.cumsum(weights / weights.sum())
        chosen = np.searchsorted(edges, (rng.uniform() + np.arange(number)) / number)
        chosen = np.minimum(chosen, number - 1)
        phrases, reached = [list(phrases[i]) for i in chosen], margins[chosen]
    return [
        fitted.tokenizer.decode(until(phrase[len(before) :], end), skip_special_tokens=True)
        for phrase in phrases
    ]


def until(tokens: list[int], end: int) -> list[int]:
    """Tokens before the first end token."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


if __name__ == "__main__":
    main()
