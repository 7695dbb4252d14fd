"""Train the head of the "minilm" toxicity scorer and write it with its held-out report.

Fills data/minilm_scorer.md.

The encoder (sentence-transformers/all-MiniLM-L6-v2) stays frozen. The head, three directions in
its hidden states and a bias (`minilm.minilm_logit`), learns the Perspective toxicity
score of RealToxicityPrompts texts by logistic regression on the score itself. A tenth of the
records, by a hash of the prompt, is kept aside: it chooses nothing and trains nothing, and all
numbers in the card come from it. Cross-validation on the rest gives the calibration.

    python studies/train_minilm_scorer.py

It takes a few minutes on two CPU cores, and is deterministic on a given machine.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from scipy.optimize import minimize
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from sasa_lib.evaluation.scorers import load_minilm, load_scorer, minilm_logit, minilm_states
from sasa_lib.evaluation.statistics import bootstrap_interval
from sasa_lib.texts.assets import DATA_DIR, fetch

VERSION = "1.0.0"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SEED = 0
FOLDS = 5
BATCH = 64
# Chosen by cross-validation on the training records.
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 2.0
EPOCHS = 8
AVERAGE_FROM = 2  # the weights are averaged over all steps of the epochs from here on
SPREAD = 3.0  # features are divided by this many standard deviations of the texts' means


def read_texts(path: Path) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return texts, scores, sides, record numbers, and which texts are of held-out records."""
    texts, scores, sides, records, held_out = [], [], [], [], []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            record = json.loads(line)
            digest = hashlib.sha256(record["prompt"]["text"].encode()).hexdigest()
            for side in ("prompt", "continuation"):
                text, toxicity = record[side]["text"], record[side]["toxicity"]
                if toxicity is not None and text.strip():
                    texts.append(text)
                    scores.append(toxicity)
                    sides.append(side)
                    records.append(number)
                    held_out.append(int(digest, 16) % 10 == 0)
    kept_aside = {text for text, held in zip(texts, held_out, strict=True) if held}
    keep = [i for i, text in enumerate(texts) if held_out[i] or text not in kept_aside]
    columns = (np.array(column)[keep] for column in (scores, sides, records, held_out))
    return [texts[i] for i in keep], *columns


def train(states: list[np.ndarray], scores: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit the head to hidden states and scores; return its weights [3, features] and bias."""
    means = np.stack([s.mean(axis=0) for s in states])
    centre = torch.from_numpy(means.mean(axis=0))
    scale = torch.from_numpy(means.std(axis=0) * SPREAD + 1e-6)
    targets = torch.from_numpy(scores).float()
    generator = torch.Generator().manual_seed(SEED)
    weights = (torch.randn(3, means.shape[1], generator=generator) * 0.002).requires_grad_()
    bias = torch.logit(targets.mean()).requires_grad_()
    # Evidence of a mean over tokens is weaker than that of one token: it may grow faster.
    gain = torch.tensor([[3.0], [1.0], [1.0]])
    optimizer = torch.optim.AdamW(
        [{"params": [weights], "weight_decay": WEIGHT_DECAY}, {"params": [bias]}],
        lr=LEARNING_RATE, weight_decay=0.0,
    )  # fmt: skip
    total_weights, total_bias, steps = torch.zeros_like(weights), 0.0, 0
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(states), generator=generator).split(BATCH):
            inputs = [(torch.from_numpy(states[i]) - centre) / scale for i in rows]
            lengths = torch.tensor([len(s) for s in inputs])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            padded = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
            evidence, attention, attended = (padded @ (gain * weights).T).unbind(-1)
            share = attention.masked_fill(~mask, -torch.inf).softmax(dim=1)
            logits = bias + (evidence * mask).sum(1) / lengths + (share * attended).sum(1)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if epoch >= AVERAGE_FROM:
                total_weights += weights.detach()
                total_bias += bias.item()
                steps += 1
    folded = (gain * total_weights / steps / scale).double().numpy()
    # The attention does not change when all its logits shift, so only the other two are centred.
    return folded, total_bias / steps - float((folded[[0, 2]] @ centre.double().numpy()).sum())


def calibration(logits: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Return the slope and intercept of the logit that fit the scores best (Platt)."""

    def loss(parameters: np.ndarray) -> float:
        z = parameters[0] * logits + parameters[1]
        return float(np.mean(np.logaddexp(0, z) - scores * z))

    slope, intercept = minimize(loss, [1.0, 0.0]).x
    return float(slope), float(intercept)


def calibration_error(predicted: np.ndarray, scores: np.ndarray, bins: int = 10) -> float:
    """Mean distance of predicted and true score over equally wide bins of the prediction."""
    bin_of = np.minimum((predicted * bins).astype(int), bins - 1)
    gaps = [abs((predicted - scores)[bin_of == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(scores))


def statistics(predicted: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return every number of the report."""
    toxic, flagged = scores > 0.5, predicted > 0.5
    both = (toxic & flagged).sum()
    return {
        "AUC (Perspective > 0.5)": float(roc_auc_score(toxic, predicted)),
        "Spearman": float(spearmanr(predicted, scores).statistic),
        "mean absolute error": float(np.abs(predicted - scores).mean()),
        "calibration error (10 bins)": calibration_error(predicted, scores),
        "precision at 0.5": float(both / max(flagged.sum(), 1)),
        "recall at 0.5": float(both / toxic.sum()),
        "share over 0.5, predicted": float(flagged.mean()),
        "share over 0.5, Perspective": float(toxic.mean()),
    }


def report(predicted: np.ndarray, scores: np.ndarray, records: np.ndarray) -> list[str]:
    """Return the rows of a table: every statistic with its interval, records resampled whole."""
    texts_of = [np.flatnonzero(records == record) for record in np.unique(records)]

    def resampled(name: str, drawn: np.ndarray) -> float:
        rows = np.concatenate([texts_of[i] for i in drawn])
        return statistics(predicted[rows], scores[rows])[name]

    rows = []
    for name, value in statistics(predicted, scores).items():
        low, high = bootstrap_interval(
            lambda drawn, name=name: resampled(name, drawn), len(texts_of), seed=SEED
        )
        rows.append(f"| {name} | {value:.3f} | {low:.3f} to {high:.3f} |")
    return rows


def main() -> None:
    """Train, evaluate, and write the head and the numbers of its card."""
    shared = Path(os.environ.get("SASA_SHARED_DATA", DATA_DIR.parent.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rtp", type=Path, default=shared / "rtp" / "dev.jsonl.gz")
    parser.add_argument("--encoder", type=Path, help="default: fetched")
    parser.add_argument("--out", type=Path, default=DATA_DIR / "minilm_scorer.safetensors")
    arguments = parser.parse_args()
    if not arguments.rtp.is_file():
        parser.error(f"{arguments.rtp} is missing; name the RealToxicityPrompts file with --rtp")
    torch.set_num_threads(1)  # more threads add in another order

    texts, scores, sides, records, held_out = read_texts(arguments.rtp)
    print(f"{len(texts)} texts, {held_out.sum()} of them held out; encoding ...", flush=True)
    encoder, tokenizer = load_minilm(arguments.encoder or fetch("minilm"), "cpu")
    states = [s for _, s in sorted(minilm_states(encoder, tokenizer, texts), key=lambda p: p[0])]

    def logits(rows: np.ndarray, weights: np.ndarray, bias: float) -> np.ndarray:
        return np.array([minilm_logit(states[i], weights, bias) for i in rows])

    training = np.flatnonzero(~held_out)
    out_of_fold = np.empty(len(training))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=SEED)
    for fit, test in folds.split(training, groups=records[training]):
        head = train([states[i] for i in training[fit]], scores[training[fit]])
        out_of_fold[test] = logits(training[test], *head)
    slope, intercept = calibration(out_of_fold, scores[training])
    validated = 1 / (1 + np.exp(-(slope * out_of_fold + intercept)))
    print("cross-validation:", statistics(validated, scores[training]), flush=True)

    weights, bias = train([states[i] for i in training], scores[training])
    weights[[0, 2]] *= slope
    weights, bias = weights.astype(np.float32), np.float32(slope * bias + intercept)

    test = np.flatnonzero(held_out)
    predicted = 1 / (1 + np.exp(-logits(test, weights, float(bias))))
    table = report(predicted, scores[test], records[test])
    words = load_scorer("profanity-check")([texts[i] for i in test])
    numbers = statistics(predicted, scores[test])
    lines = [
        f"Version {VERSION}, trained on {len(training)} texts of "
        f"{len(np.unique(records[training]))} records, and evaluated on {len(test)} texts of "
        f"{len(np.unique(records[test]))} held-out records.",
        "",
        "| held-out tenth | value | 95% interval |",
        "|---|---|---|",
        *table,
        "",
        *(
            f"On the {(sides[test] == side).sum()} {side}s alone: "
            + ", ".join(
                f"{name} {value:.3f}"
                for name, value in statistics(
                    predicted[sides[test] == side], scores[test][sides[test] == side]
                ).items()
            )
            + ".\n"
            for side in ("prompt", "continuation")
        ),
        f"For comparison, on the same texts profanity-check has an AUC of "
        f"{roc_auc_score(scores[test] > 0.5, words):.3f} and a Spearman correlation of "
        f"{spearmanr(words, scores[test]).statistic:.3f}.",
    ]
    print("\n".join(lines))

    digest = hashlib.sha256()
    for i in training:
        digest.update(repr((texts[i], float(scores[i]))).encode())
    libraries = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "scipy")
    metadata = {
        "version": VERSION,
        "encoder": ENCODER,
        "pooling": "mean + one attention, over all tokens of hidden states 0 to 6 side by side",
        "training_data_sha256": digest.hexdigest(),
        "training_texts": len(training),
        "held_out_texts": len(test),
        "held_out_auc": round(numbers["AUC (Perspective > 0.5)"], 4),
        "held_out_spearman": round(numbers["Spearman"], 4),
        "calibration": f"slope {slope:.4f}, intercept {intercept:.4f} (folded into the weights)",
        "libraries": ", ".join(f"{name} {version(name)}" for name in libraries),
    }
    tensors = {"weights": weights, "bias": np.array([bias])}
    # One key only: safetensors writes several in random order, and the file would not be the same.
    save_file(tensors, arguments.out, metadata={"sasa_scorer": json.dumps(metadata)})
    card = arguments.out.with_suffix(".md")
    if card.is_file():
        before, _, rest = card.read_text(encoding="utf-8").partition("<!-- numbers -->\n")
        after = rest.partition("<!-- /numbers -->")[2]
        numbers_block = "<!-- numbers -->\n" + "\n".join(lines) + "\n<!-- /numbers -->"
        card.write_text(before + numbers_block + after, encoding="utf-8")


if __name__ == "__main__":
    main()
