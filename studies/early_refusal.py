"""What stopping a draw early could save `sl.Accept`, and what it would do to its law.

    python studies/early_refusal.py

Fills "Early refusal" in docs/results.md. Plain sampling's continuations of the prompts of
studies/table.py are read token by token. A draw is stopped after some tokens where the mean of
their margins lies further below the threshold than it did for nearly all that were accepted in
the end; the slack is chosen on one half of the prompts and everything counted on the other.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from datasets import Dataset
from sklearn.metrics import roc_auc_score
from table import FOLDER, LIMITED, METHODS, SCORERS, TRUNCATIONS, Fitted, Texts

import sasa_lib as sl

PLACES = (4, 8, 12)  # tokens after which a draw may be stopped
LOST = 0.02  # share of the acceptable draws that may be stopped for nothing
ABOVE = (0.0, 0.5, 1.0)


def main() -> None:
    """Read, choose the slack on half of the prompts, count on the other half."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--n-prompts", type=int, default=64)
    parser.add_argument("--generations", type=int, default=25)
    given = parser.parse_args()
    texts = Texts()
    fitted = Fitted(given.model, texts)
    made = sl.runs.generate(
        fitted.model, fitted.tokenizer, texts.prompts("toxic")[: given.n_prompts],
        sl.runs.Sampling(generations=given.generations, **TRUNCATIONS[LIMITED]),
        folder=FOLDER / "generations", method="plain",
        custom_generate=METHODS["plain"][1](fitted, 0.0, 0),
    )  # fmt: skip
    made = made[made["text"].str.strip() != ""].reset_index(drop=True)
    toxic = sl.load_scorer(SCORERS[0])(made["text"].tolist()) > 0.5
    boundary = fitted.boundary
    corpus = Dataset.from_dict(
        {"prompt": made["prompt"].tolist(), "response": made["text"].tolist()}
    )
    running = [np.empty(0)] * len(made)  # of every text, its mean margin after each token
    for row, states in sl.embeddings.token_states(
        fitted.model, fitted.tokenizer, corpus, layer=boundary.layer
    ):
        margins = boundary.margins(states.numpy(), scaled=True)
        running[row] = margins.cumsum() / np.arange(1, len(margins) + 1)
    final = np.array([margins[-1] for margins in running])
    for place in PLACES:
        reached = np.array([margins[min(place, len(margins)) - 1] for margins in running])
        print(
            f"after {place} tokens: AUC {roc_auc_score(~toxic, reached):.3f} of the judge's "
            f"verdict, correlation with the whole {np.corrcoef(reached, final)[0, 1]:.2f}"
        )
    print(f"the whole: AUC {roc_auc_score(~toxic, final):.3f}")
    first_half = (made["prompt_id"] % 2 == 0).to_numpy()
    rows = [counted(running, final, first_half, above) for above in ABOVE]
    print(pd.DataFrame(rows).round(3).to_string(index=False))


def counted(
    running: list[np.ndarray], final: np.ndarray, chooses: np.ndarray, above: float
) -> dict[str, float]:
    """Tokens for one text that is kept, with and without stopping."""
    accepted = final > above
    lengths = np.array([len(margins) for margins in running])
    read, stopped = lengths.copy(), np.zeros(len(running), dtype=bool)
    for place in PLACES:
        going = (lengths > place) & ~stopped
        reached = np.array([margins[min(place, len(margins)) - 1] for margins in running])
        least = np.quantile(reached[going & accepted & chooses], LOST / len(PLACES))
        now = going & (reached < least)
        read[now], stopped = place, stopped | now
    judged, kept = ~chooses, ~chooses & accepted & ~stopped
    whole = lengths[judged].sum() / (judged & accepted).sum()
    return {
        "above": above,
        "accepted": accepted[judged].mean(),
        "tokens for one": whole,
        "with stopping": read[judged].sum() / kept.sum(),
        "lost": (judged & accepted & stopped).sum() / (judged & accepted).sum(),
        "refused draws stopped": stopped[judged & ~accepted].mean(),
    }


if __name__ == "__main__":
    main()
