"""Any mixture of good and bad items: exactly the bad ones are named, the good ones are as alone."""

import itertools
import re
import warnings
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_lm import WORDS, tiny_boundary, tiny_lm

from sasa_lib.evaluation import runs, sampling
from sasa_lib.evaluation.judging import judged
from sasa_lib.evaluation.likelihood import negative_log_likelihoods
from sasa_lib.evaluation.scorers import Scorer, ScorerError, load_scorer
from sasa_lib.evaluation.scorers.scorer import RefusedError
from sasa_lib.subspace.embeddings import extract

MODEL, TOKENIZER = tiny_lm()
BOUNDARY = tiny_boundary()
SAMPLING = sampling.Sampling(generations=2, max_new_tokens=3)
for layers in ([1], [1, -1]):  # how a model reads is looked at once
    extract(MODEL, TOKENIZER, ["it"], layers=layers, progress=False)
few = settings(max_examples=15, deadline=None, derandomize=True)

# Bad items, and what is said of each.
NO_TEXT = {
    "none": (None, "must be a str, got NoneType"), "int": (3, "got int"), "bool": (True, "bool"),
    "nan": (float("nan"), "got float"), "bytes": (b"the cat", "got bytes"),
    "list": (["it"], "got list"), "surrogate": ("the cat \ud83d", "half a surrogate pair"),
}  # fmt: skip
EMPTY = {"empty": ("", "is empty"), "blank": (" \n", "is empty")}
LONG = {"long": ("a dog " * 40, r"80 tokens.*context of tiny \(64\)")}
UNSCORED = {"refused": ("she likes the bird", "the service is tired")}
CONTAINERS = ("list", "tuple", "array", "generator", "series", "shuffled", "filtered")
fine = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)


def contained(items, container):
    """The same items in what a caller may have them in."""
    if container == "array":
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return array
    if container == "generator":
        return (item for item in items)
    if container == "series":
        return pd.Series(items, dtype=object)
    if container == "shuffled":
        return pd.Series(items, index=range(len(items))[::-1], dtype=object)
    if container == "filtered":
        twice = pd.Series([*itertools.chain.from_iterable((i, "it") for i in items)], dtype=object)
        return twice[np.arange(len(twice)) % 2 == 0]
    return tuple(items) if container == "tuple" else list(items)


@st.composite
def mixtures(draw, kinds, least=1):
    """Items, of some of them what is wrong, and a container; some good ones among them."""
    good = draw(st.lists(fine, min_size=1, max_size=4))
    bad = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=least, max_size=4))
    order = draw(st.permutations([(text, None) for text in good] + [kinds[kind] for kind in bad]))
    items = [item for item, _ in order]
    return items, {row: why for row, (_, why) in enumerate(order) if why}


def warned(call, faults, total):
    """What a call returns, having warned once of what it sets aside, if anything."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = call()
    said = [str(one.message) for one in caught if "set aside" in str(one.message)]
    assert len(said) == bool(faults)
    if faults:
        first = min(faults)
        pattern = rf"^{len(faults)} of {total} .* set aside, such as {first}: .*{faults[first]}"
        assert re.search(pattern, said[0], re.DOTALL)
    return made


def refused(call, faults, kind=ValueError):
    """Check that a call without `set_aside` names the first bad item, and reads no text before."""
    passes = []
    hook = MODEL.model.register_forward_pre_hook(lambda *args: passes.append(1))
    try:
        BOUNDARY.check_model(MODEL)
        probing = len(passes)
        row = min(faults)
        with pytest.raises(kind, match=rf"(?s)^.*\b{row}\b.*{faults[row]}") as caught:
            call()
    finally:
        hook.remove()
    assert "\n" not in str(caught.value)
    assert len(passes) <= 2 * probing


@few
@given(mixtures(NO_TEXT | EMPTY | LONG), st.sampled_from(CONTAINERS))
def test_prompts(mixture, container):
    items, faults = mixture

    def make(prompts, folder, **options):
        return runs.generate(
            MODEL, TOKENIZER, prompts, SAMPLING, folder=folder, method="plain", progress=False,
            **options,
        )  # fmt: skip

    good = {row: item for row, item in enumerate(items) if row not in faults}
    with TemporaryDirectory() as mixed, TemporaryDirectory() as alone:
        refused(lambda: make(contained(items, container), mixed), faults)
        made = warned(
            lambda: make(contained(items, container), mixed, set_aside=True), faults, len(items)
        )
        expected = make(list(good.values()), alone)
        said = pd.read_parquet(f"{made.attrs['run']}/set-aside.parquet")
    assert made["prompt_id"].tolist() == [row for row in good for _ in range(2)]
    assert made["prompt"].tolist() == expected["prompt"].tolist()
    assert made["text"].tolist() == expected["text"].tolist()
    assert said["row"].tolist() == list(faults)
    for reason, (row, why) in zip(said["reason"], faults.items(), strict=True):
        assert re.search(rf"prompt {row} .*{why}", reason)


def gaps(found, expected, faults):
    """Check rows that are set aside to be NaN, and the others as they are alone."""
    good = [row for row in range(len(found)) if row not in faults]
    np.testing.assert_allclose(found[good], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(found[list(faults)]).all()


@few
@given(mixtures(NO_TEXT | EMPTY | LONG), st.sampled_from(CONTAINERS), st.booleans())
def test_texts_that_are_embedded(mixture, container, keep):
    items, faults = mixture
    good = [item for row, item in enumerate(items) if row not in faults]

    def alone(item):
        return extract(MODEL, TOKENIZER, [item], layers=[1, -1], progress=False)

    with TemporaryDirectory() as folder:
        options = {"layers": [1, -1], "folder": folder if keep else None, "progress": False}
        refused(lambda: extract(MODEL, TOKENIZER, contained(items, container), **options), faults)
        for _ in range(1 + keep):
            found = warned(
                lambda: extract(
                    MODEL, TOKENIZER, contained(items, container), set_aside=True, **options
                ),
                faults, len(items),
            )  # fmt: skip
            gaps(found, np.concatenate([alone(item) for item in good]), faults)


@few
@given(mixtures(NO_TEXT | EMPTY | LONG), st.sampled_from(CONTAINERS))
def test_texts_that_get_a_margin(mixture, container):
    items, faults = mixture

    def margins(texts, **options):
        return BOUNDARY.score_texts(MODEL, TOKENIZER, texts, **options)

    refused(lambda: margins(contained(items, container)), faults)
    found = warned(lambda: margins(contained(items, container), set_aside=True), faults, len(items))
    good = [item for row, item in enumerate(items) if row not in faults]
    gaps(found, np.concatenate([margins([item]) for item in good]), faults)


def test_rows_of_a_corpus():
    rows = {
        "prompt": ["it", None, "the cat", "a dog", "a dog " * 30, ""],
        "response": ["sees", "a cat", "", None, "a dog " * 5, "finds it"],
    }
    faults = {1: "prompt must be", 2: "is empty", 3: "must be a str", 4: "context"}
    corpus = datasets.Dataset.from_dict(rows)
    options = {"layers": [1], "pooling": "mean", "progress": False}
    refused(lambda: extract(MODEL, TOKENIZER, corpus, **options), faults)
    found = warned(lambda: extract(MODEL, TOKENIZER, corpus, set_aside=True, **options), faults, 6)
    gaps(found, extract(MODEL, TOKENIZER, corpus.select([0, 5]), **options), faults)


@few
@given(
    mixtures(NO_TEXT | LONG, least=0), mixtures(NO_TEXT | LONG), st.sampled_from(CONTAINERS),
    st.sampled_from([1, 3, 16]),
)  # fmt: skip
def test_texts_whose_likelihood_is_asked(prompts, texts, container, size):
    number = min(len(prompts[0]), len(texts[0]))
    (prompts, bad_prompts), (texts, faults) = prompts, texts
    prompts, texts = prompts[:number], texts[:number]
    faults = faults | {row: f"prompt.*{why}" for row, why in bad_prompts.items()}
    # A prompt that is too long is named by what is too long, the two together.
    faults = {
        row: "context" if "context" in why else why
        for row, why in sorted(faults.items())
        if row < number
    }

    def likelihoods(prompts, texts, **options):
        return negative_log_likelihoods(
            MODEL, TOKENIZER, contained(prompts, container), contained(texts, container),
            batch_size=size, progress=False, **options,
        )  # fmt: skip

    if faults:
        refused(lambda: likelihoods(prompts, texts), {min(faults): "."})
    nll, tokens = warned(
        lambda: likelihoods(prompts, texts, set_aside=True),
        {row: "." for row in faults}, number,
    )  # fmt: skip
    good = [row for row in range(number) if row not in faults]
    alone = [
        negative_log_likelihoods(MODEL, TOKENIZER, [prompts[i]], [texts[i]], progress=False)
        for i in good
    ]
    gaps(nll, [one[0] for one, _ in alone], faults)
    assert tokens[good].tolist() == [one[0] for _, one in alone]
    assert not tokens[list(faults)].any()


def stub(asks_service=False):
    """A scorer of lengths that refuses one text, as services do, and counts what it is asked."""
    asked, refused_text = [], UNSCORED["refused"][0]

    def score(texts):
        asked.extend(texts)
        if asks_service and refused_text in texts:
            raise RefusedError("the service is tired")
        return np.array([np.nan if text == refused_text else len(text) / 1e3 for text in texts])

    scorer = Scorer("stub", "1", score, asks_service=asks_service)
    return scorer, asked


@few
@given(mixtures(NO_TEXT | UNSCORED), st.sampled_from(CONTAINERS), st.booleans())
def test_texts_that_are_scored(mixture, container, service):
    items, faults = mixture
    if not service:
        faults = {row: why.replace("the service is tired", "nan") for row, why in faults.items()}
    scorer, _ = stub(service)
    unreadable = [row for row, why in faults.items() if why not in ("nan", "the service is tired")]
    # Items that are no texts are seen before any is scored.
    named = {min(unreadable): faults[min(unreadable)]} if unreadable else faults
    first = items[min(named)]
    refused(
        lambda: scorer(contained(items, container)),
        named,
        ScorerError if isinstance(first, str) else TypeError,
    )
    found = warned(lambda: scorer(contained(items, container), set_aside=True), faults, len(items))
    good = [item for row, item in enumerate(items) if row not in faults]
    gaps(found, [len(item) / 1e3 for item in good], faults)


@few
@given(mixtures(NO_TEXT), st.sampled_from(CONTAINERS))
def test_texts_that_a_real_scorer_scores(mixture, container):
    items, faults = mixture
    scorer = load_scorer("profanity-check")
    with pytest.raises((TypeError, ScorerError), match=rf"item {min(faults)}: "):
        scorer(contained(items, container))
    found = warned(lambda: scorer(contained(items, container), set_aside=True), faults, len(items))
    good = [item for row, item in enumerate(items) if row not in faults]
    gaps(found, np.concatenate([scorer([item]) for item in good]), faults)


@few
@given(
    mixtures(NO_TEXT | LONG | UNSCORED), st.booleans(), st.booleans(),
    st.sampled_from([None, 1]), st.randoms(use_true_random=False),
)  # fmt: skip
@example((["it", "she likes the bird"], {1: "tired"}), True, True, None, None)
def test_generations_that_are_judged(mixture, keep, service, read, random):
    """Of a table whose rows are shuffled, with two generations a prompt."""
    items, faults = mixture
    table = pd.DataFrame(
        {
            "prompt_id": [row // 2 for row in range(len(items))],
            "prompt": [WORDS[row // 2] for row in range(len(items))],
            "generation": [row % 2 for row in range(len(items))],
            "text": pd.Series(items, dtype=object),
        }
    )
    order = list(range(len(items)))
    if random:
        random.shuffle(order)
    table = table.iloc[order]
    faults = {order.index(row): why for row, why in faults.items()}
    # The judging model does not read what is beyond the first generations, however long.
    which = table.groupby("prompt_id", sort=False).cumcount().to_numpy()
    faults = {
        row: why
        for row, why in sorted(faults.items())
        if not ("context" in why and read and which[row] >= read)
    }
    bad = set(table["prompt_id"].iloc[list(faults)])
    good = table[~table["prompt_id"].isin(bad)]
    with TemporaryDirectory() as folder:
        scorer, asked = stub(service)
        options = {
            "folder": folder if keep else None, "perplexity_generations": read, "progress": False,
        }  # fmt: skip
        unread = {r for r, why in faults.items() if "tired" in why or (read and which[r] >= read)}
        if set(faults) - unread:
            with pytest.raises(ValueError, match=rf"text {min(set(faults) - unread)} "):
                judged(table, [scorer], MODEL, TOKENIZER, **options)
            assert not asked
        elif faults:
            with pytest.raises((ValueError, TypeError, ScorerError)):
                judged(table, [scorer], MODEL, TOKENIZER, **options)
        for _ in range(1 + keep):
            found = warned(
                lambda: judged(table, [scorer], MODEL, TOKENIZER, set_aside=True, **options),
                {row: "." for row in faults}, len(items),
            )  # fmt: skip
            assert found["text"].tolist() == good["text"].tolist()
            assert found["prompt_id"].tolist() == good["prompt_id"].tolist()
            np.testing.assert_allclose(found["stub"], [len(text) / 1e3 for text in good["text"]])
            if len(good):
                alone, _ = stub()
                expected = judged(
                    good, [alone], MODEL, TOKENIZER, perplexity_generations=read, progress=False
                )
                np.testing.assert_allclose(found["nll"], expected["nll"], rtol=1e-4)
                assert found["nll_tokens"].tolist() == expected["nll_tokens"].tolist()


@pytest.mark.parametrize("items", [["", None, "a dog " * 40], [float("nan")], ["\ud83d"]])
def test_nothing_good_is_refused(items, tmp_path):
    with pytest.raises(ValueError, match="prompt 0 "):
        runs.generate(
            MODEL, TOKENIZER, items, SAMPLING, folder=tmp_path, method="plain", set_aside=True,
        )  # fmt: skip
    with pytest.raises(ValueError, match="text 0 "):
        extract(MODEL, TOKENIZER, items, set_aside=True)
    with pytest.raises(ValueError, match="text 0 "):
        BOUNDARY.score_texts(MODEL, TOKENIZER, items, set_aside=True)


@pytest.mark.parametrize("items", ["the cat", b"the cat", {"the cat": 1}, 3, None])
def test_what_is_no_list_is_refused(items, tmp_path):
    calls = [
        lambda: runs.generate(MODEL, TOKENIZER, items, SAMPLING, folder=tmp_path, method="plain"),
        lambda: extract(MODEL, TOKENIZER, items),
        lambda: BOUNDARY.score_texts(MODEL, TOKENIZER, items),
        lambda: negative_log_likelihoods(MODEL, TOKENIZER, items, ["it"]),
        lambda: negative_log_likelihoods(MODEL, TOKENIZER, ["it"], items),
        lambda: load_scorer("profanity-check")(items),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"expected a list .* single {type(items).__name__}"):
            call()
