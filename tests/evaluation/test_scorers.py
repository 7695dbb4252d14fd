"""The scorers as a user meets them, and the minilm head against an independent computation."""

import gzip
import hashlib
import json
import os
import sys
import threading
import traceback
import types
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from scipy.special import expit, softmax
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tiny_lm import WORDS, tiny_lm
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sasa_lib.evaluation.scorers import (
    MINILM_HEAD,
    Scorer,
    ScorerError,
    classifiers,
    load_scorer,
    minilm_scorer,
    perspective_scorer,
)
from sasa_lib.evaluation.scorers import scorer as scorer_module
from sasa_lib.evaluation.scorers.minilm import sentence_embeddings
from sasa_lib.evaluation.scorers.perspective import PERSPECTIVE_ATTEMPTS
from sasa_lib.texts.assets import AssetError, fetch

PROJECT = Path(__file__).resolve().parents[2]
MILD = "Thank you for the lovely walk along the river yesterday."
HOSTILE = "Shut up, you stupid worthless idiot, everybody hates you."
TEXTS = [
    MILD,
    HOSTILE,
    "the committee will meet again on\n\n Tuesday, and",
    "I think that",
    "ugh � 🙂 not ag",
    "A long report. " * 40,
    "no",
]
SMALL = dict(
    vocab_size=21, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    id2label={0: "ok", 1: "toxic"}, label2id={"ok": 0, "toxic": 1}, initializer_range=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    try:
        return fetch("minilm")
    except AssetError as error:
        pytest.skip(f"the encoder cannot be fetched: {error}")


@pytest.fixture(scope="module")
def minilm(encoder):
    return load_scorer("minilm", device="cpu")


@pytest.fixture(params=["minilm", "profanity-check"])
def scorer(request):
    name = request.param
    return request.getfixturevalue("minilm") if name == "minilm" else load_scorer(name)


def test_scores_are_probabilities_in_the_order_of_the_texts(scorer):
    scores = scorer(TEXTS)
    assert scores.dtype == np.float64 and scores.shape == (len(TEXTS),)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[1] > 0.5 > scores[0]
    assert scorer.name in ("minilm", "profanity-check") and scorer.version[0].isdigit()


def test_scores_do_not_depend_on_order_batch_or_repetition(scorer):
    scores = scorer(TEXTS)
    np.testing.assert_allclose(scorer(TEXTS[::-1])[::-1], scores, atol=1e-6, rtol=0)
    np.testing.assert_allclose([scorer([t])[0] for t in TEXTS], scores, atol=1e-6, rtol=0)
    np.testing.assert_allclose(scorer(TEXTS * 3), np.tile(scores, 3), atol=1e-6, rtol=0)


def test_batch_size_does_not_change_the_scores(minilm):
    small = load_scorer("minilm", device="cpu", batch_size=2)
    np.testing.assert_allclose(small(TEXTS), minilm(TEXTS), atol=1e-6, rtol=0)


def test_odd_texts_have_a_defined_score(scorer):
    np.testing.assert_array_equal(scorer(["", " \n\t "]), [0.0, 0.0])
    assert scorer([]).shape == (0,)
    odd = scorer(["\x00", "\u200b", "word " * 2000])
    assert np.isfinite(odd).all() and (odd <= 0.5).all()


def test_minilm_agrees_with_the_formula_of_its_card(encoder, minilm):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    head = load_file(MINILM_HEAD)
    mean, attention, attended = head["weights"].astype(float)
    for text in TEXTS:
        with torch.inference_mode():
            inputs = tokenizer(text, return_tensors="pt")
            layers = model.eval()(**inputs, output_hidden_states=True).hidden_states
        tokens = [
            np.concatenate([layer[0, t] for layer in layers]) for t in range(len(layers[0][0]))
        ]
        share = softmax([attention @ h for h in tokens])
        logit = head["bias"][0] + np.mean([mean @ h for h in tokens])
        logit += sum(s * (attended @ h) for s, h in zip(share, tokens, strict=True))
        assert minilm([text])[0] == pytest.approx(expit(logit), abs=1e-6)


def test_sentence_embeddings_are_the_encoders_means_and_tell_subjects_apart(encoder):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder)
    texts = ["The cat sat on the mat.", "A kitten was sitting on a rug.", "Taxes rose in spring."]
    embedded = sentence_embeddings(texts)
    for text, vector in zip(texts, embedded, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(dim=0)
        np.testing.assert_allclose(vector, mean / mean.norm(), atol=1e-5)
    assert embedded[0] @ embedded[1] > 0.5 > embedded[0] @ embedded[2]


def test_minilm_reaches_its_card_on_the_held_out_records(minilm):
    shared = Path(os.environ.get("SASA_SHARED_DATA", PROJECT.parent / "shared" / "data"))
    path = shared / "rtp" / "dev.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    held_out = [
        record[side]
        for record in records
        if int(hashlib.sha256(record["prompt"]["text"].encode()).hexdigest(), 16) % 10 == 0
        for side in ("prompt", "continuation")
        if record[side]["toxicity"] is not None
    ]
    assert len(held_out) > 600
    truth = np.array([text["toxicity"] for text in held_out])
    scores = minilm([text["text"] for text in held_out])
    assert roc_auc_score(truth > 0.5, scores) > 0.94
    assert spearmanr(truth, scores).statistic > 0.84
    assert abs(scores.mean() - truth.mean()) < 0.03


def test_wrong_use_is_refused_in_a_sentence(scorer, tmp_path):
    with pytest.raises(ValueError, match="expected a list of texts, got a single str"):
        scorer("one text")
    with pytest.raises(TypeError, match="cannot score item 1: must be a str, got NoneType"):
        scorer(["a text", None])
    for unknown in ("bert", "hf:"):
        with pytest.raises(ValueError, match=f"unknown scorer '{unknown}'; known are minilm, prof"):
            load_scorer(unknown)
    with pytest.raises(ValueError, match="label='toxic' says nothing to 'minilm'"):
        load_scorer("minilm", label="toxic")
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
            load_scorer("minilm", batch_size=size)
    with pytest.raises(ValueError, match="unknown device 'gpu' on this machine"):
        load_scorer("minilm", device="gpu")
    damaged = tmp_path / "head.safetensors"
    damaged.write_bytes(b"not safetensors")
    for path in (damaged, tmp_path / "absent.safetensors"):
        with pytest.raises(ValueError, match="not the head of a minilm scorer"):
            minilm_scorer(tmp_path, path)


class Counting:
    """Scores a text by its length and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return np.array([len(text) / 100 for text in texts])


def test_a_text_is_scored_once_however_often_it_is_there():
    score = Counting()
    found = Scorer("counting", "1", score)(["one", "three", "", "one", "a\x00b", "a"])
    np.testing.assert_allclose(found, [0.03, 0.05, 0.0, 0.03, 0.03, 0.01])
    assert score.asked == ["one", "three", "a\x00b", "a"]


def test_scores_that_are_no_numbers_are_refused():
    score_of = {"a": 0.5, "b": np.nan, "c": np.inf, "d": 1.2}
    broken = Scorer("broken", "1", lambda texts: np.array([score_of[text] for text in texts]))
    with pytest.raises(ScorerError, match="cannot score item 1: its score is nan; the weights may"):
        broken(list(score_of))
    scores, faults = broken.scored(list(score_of))
    np.testing.assert_array_equal(scores, [0.5, np.nan, np.nan, 1.0])
    assert list(faults) == [1, 2] and "its score is inf" in faults[2]


BAD = ["good", None, "half \ud800", 7, "", "good", "\udc80", np.nan]


def test_what_is_no_text_is_set_aside_and_the_rest_is_scored(scorer):
    expected = scorer(["good", ""])
    scores, faults = scorer.scored(BAD)
    np.testing.assert_array_equal(scores[[0, 4, 5]], [expected[0], 0.0, expected[0]])
    assert np.isnan(np.delete(scores, [0, 4, 5])).all()
    assert {row: reason.split(",")[0] for row, reason in faults.items()} == {
        1: "must be a str",
        2: "holds half a surrogate pair at character 5",
        3: "must be a str",
        6: "holds half a surrogate pair at character 0",
        7: "must be a str",
    }
    said = "5 of 8 texts set aside, such as 1: must be a str, got NoneType .scored by"
    with pytest.warns(UserWarning, match=said):
        np.testing.assert_array_equal(scorer(BAD, set_aside=True), scores)
    with pytest.raises(ScorerError, match="cannot score item 1: holds half a surrogate pair"):
        scorer(["good", "half \ud800"])


def test_a_fault_is_found_before_anything_is_scored():
    score = Counting()
    with pytest.raises(TypeError, match="cannot score item 1"):
        Scorer("counting", "1", score)(BAD)
    assert score.asked == []


@pytest.mark.parametrize(
    "texts",
    [
        pd.Series(["a", "dropped", "ccc"], index=[7, 8, 9]).drop(8),
        np.array(["a", "ccc"]),
        (text for text in ("a", "ccc")),
    ],
    ids=["Series", "array", "generator"],
)
def test_any_sequence_is_a_list_of_texts(texts):
    scores, faults = Scorer("counting", "1", Counting()).scored(texts)
    np.testing.assert_array_equal(scores, [0.01, 0.03])
    assert faults == {}


@pytest.fixture
def classifier(encoder, tmp_path):
    """A function that saves a tiny random classifier with certain labels and returns its name."""

    def save(labels, problem_type=None):
        config = BertConfig(
            vocab_size=30522, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=40, problem_type=problem_type,
            id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)},
        )  # fmt: skip
        model = BertForSequenceClassification(config)
        with torch.no_grad():
            # A regression's output is the score itself.
            model.classifier.weight.normal_(std=0.05 if problem_type == "regression" else 3)
        model.save_pretrained(tmp_path / "classifier")
        AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "classifier")
        return f"hf:{tmp_path / 'classifier'}"

    return save


@pytest.mark.parametrize(
    ("labels", "problem_type", "label", "column", "activation"),
    [
        (["neutral", "Toxic"], None, None, 1, "softmax"),
        (["Hate-Speech", "normal"], "single_label_classification", None, 0, "softmax"),
        (["LABEL_0", "LABEL_1"], None, "label_1", 1, "softmax"),
        (["insult", "toxicity", "threat"], "multi_label_classification", None, 1, "sigmoid"),
        (["toxic", "severe_toxic"], "multi_label_classification", "severe_toxic", 1, "sigmoid"),
        (["toxic"], None, None, 0, "sigmoid"),
        (["toxicity"], "regression", None, 0, "identity"),
    ],
)
def test_any_classifier_scores_by_its_toxic_label(
    classifier, labels, problem_type, label, column, activation
):
    name = classifier(labels, problem_type)
    score = load_scorer(name, label=label, device="cpu", batch_size=3)
    assert score.name == name and score.version.endswith(labels[column])
    path = name.removeprefix("hf:")
    model = BertForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for text, value in zip(TEXTS, score(TEXTS), strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=40)
        with torch.no_grad():
            logits = model(**inputs).logits[0].numpy()
        function = {"softmax": softmax, "sigmoid": expit, "identity": lambda x: x.clip(0, 1)}
        assert value == pytest.approx(function[activation](logits)[column], abs=1e-6)


@pytest.mark.parametrize(("value", "refused"), [(4.0, True), (-2.0, True), (1.1, False)])
def test_a_regression_on_another_scale_is_refused(classifier, value, refused):
    name = classifier(["toxicity"], "regression")
    path = name.removeprefix("hf:")
    model = BertForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.fill_(value)
    model.save_pretrained(path)
    score = load_scorer(name, device="cpu")
    if not refused:
        assert score(TEXTS).tolist() == [1.0] * len(TEXTS)
        return
    with pytest.raises(ScorerError, match=r"no toxicity in \[0, 1\]: a regression must"):
        score(TEXTS)


def test_other_weights_or_another_label_are_another_version(classifier):
    labels = ["toxic", "severe_toxic"]
    name = classifier(labels)
    versions = {load_scorer(name, label=label).version for label in labels}
    classifier(labels)
    assert len(versions | {load_scorer(name).version}) == 3


@pytest.mark.parametrize(
    ("of_tokenizer", "of_config"), [("<pad>", None), (None, None), ("<pad>", 0), ("<pad>", 1)]
)
def test_a_decoder_as_classifier_reads_the_last_token_of_every_text(
    tmp_path, of_tokenizer, of_config
):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(pad_token_id=of_config, **SMALL)).eval()
    model.save_pretrained(tmp_path)
    tokenizer = tiny_lm()[1]
    tokenizer.padding_side, tokenizer.pad_token = "left", of_tokenizer
    tokenizer.save_pretrained(tmp_path)
    texts = ["he sees it", "the cat and the dog", "she", "a bird likes the tree or the house"]
    expected = []
    for text in texts:
        with torch.no_grad():
            ids = tokenizer(text, return_tensors="pt").input_ids
            logits = model.score(model.transformer(ids).last_hidden_state[0, -1])
        expected.append(logits.softmax(-1)[1].item())
    scores = load_scorer(f"hf:{tmp_path}", device="cpu")(texts)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.ptp(scores) > 0.01


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (BertConfig(max_position_embeddings=10, **SMALL), BertForSequenceClassification),
        (
            # Positions begin behind the pad token's, so that 10 are left.
            RobertaConfig(max_position_embeddings=12, pad_token_id=1, **SMALL),
            RobertaForSequenceClassification,
        ),
        (
            GPT2Config(n_positions=10, **SMALL),
            GPT2ForSequenceClassification,
        ),
    ],
    ids=["bert", "roberta", "gpt2"],
)
def test_a_text_is_cut_where_the_model_can_take_no_more(tmp_path, config, model):
    torch.manual_seed(0)
    classifier = model(config).eval()
    classifier.save_pretrained(tmp_path)
    tokenizer = tiny_lm()[1]
    tokenizer.save_pretrained(tmp_path)
    words = (WORDS * 2)[:20]
    texts = [" ".join(words[:n]) for n in (9, 10, 11, 20)]
    scores = load_scorer(f"hf:{tmp_path}", device="cpu")(texts)
    with torch.no_grad():
        expected = [
            classifier(tokenizer(text, return_tensors="pt").input_ids[:, :10]).logits.softmax(-1)
            for text in texts
        ]
    np.testing.assert_allclose(scores, [row[0, 1] for row in expected], atol=1e-6)
    np.testing.assert_allclose(scores[2:], scores[1], atol=1e-6)
    assert abs(scores[0] - scores[1]) > 1e-4


def test_classifiers_that_are_unclear_or_none_are_refused(classifier, encoder, tmp_path):
    for labels in (["LABEL_0", "LABEL_1"], ["hate", "offensive", "neither"]):
        name = classifier(labels)
        with pytest.raises(ValueError, match=rf"no single label .* one of {', '.join(labels)}"):
            load_scorer(name)
    with pytest.raises(
        ValueError, match=r"has no label 'toxic'; give label=\.{3} one of hate, off"
    ):
        load_scorer(name, label="toxic")
    with pytest.raises(ValueError, match="neither a folder with a text classifier nor one that"):
        load_scorer(f"hf:{tmp_path / 'absent'}")
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.id2label = {0: "ok", 1: "toxic"}
    BertModel(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="no trained classifier on top"):
        load_scorer(f"hf:{tmp_path / 'base'}")


def test_detoxify_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "detoxify", None)
    with pytest.raises(ScorerError, match="install it by: python -m pip install detoxify"):
        load_scorer("detoxify")


def test_detoxify_scores_by_its_toxicity(monkeypatch):
    class Detoxify:
        def __init__(self, model_type, device):
            assert (model_type, device) == ("unbiased", "cpu")

        def predict(self, texts):
            values = torch.tensor([len(text) / 1000 for text in texts])
            # As the real one: a number instead of a list if there is one text.
            return {"toxicity": values.squeeze().tolist(), "insult": [0.0] * len(texts)}

    module = types.SimpleNamespace(Detoxify=Detoxify)
    monkeypatch.setitem(sys.modules, "detoxify", module)
    monkeypatch.setattr(classifiers, "version", lambda package: f"{package}-0.5.2")
    score = load_scorer("detoxify", device="cpu", batch_size=3)
    np.testing.assert_allclose(score(TEXTS), [len(text) / 1000 for text in TEXTS], atol=1e-6)
    assert (score.name, score.version) == ("detoxify", "detoxify-0.5.2+unbiased")

    def unreachable(*args, **options):
        raise OSError("no route to host\nmore")

    module.Detoxify = unreachable
    with pytest.raises(ScorerError, match=r"cannot load its model \(no route to host\); it needs"):
        load_scorer("detoxify")


class Perspective:
    """A local server that speaks like Perspective and answers with what is in `answers` first."""

    def __init__(self):
        self.answers, self.requests, self.waits = [], [], []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fake.requests.append((dict(self.headers), json.loads(body), self.path))
                status, content = fake.answers.pop(0) if fake.answers else (200, None)
                if status == "drop":
                    self.close_connection = True
                    return
                if content is None:
                    value = len(json.loads(body)["comment"]["text"]) / 100
                    content = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}}}
                content = content if isinstance(content, str) else json.dumps(content)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Location", "/end")
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1alpha1/comments:analyze"

    def scorer(self, **options):
        options = {"url": self.url, "queries_per_second": 1e6, "sleep": self.waits.append} | options
        return perspective_scorer("secret-key", **options)


@pytest.fixture
def perspective(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fake = Perspective()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


def refusal(kind, field="errorType"):
    return 400, {"error": {"code": 400, "message": "the text", "details": [{field: kind}]}}


def test_perspective_is_asked_as_its_reference_says(perspective):
    np.testing.assert_allclose(
        perspective.scorer()(["four", "", "four", "seven"]), [0.04, 0, 0.04, 0.05]
    )
    headers, body, path = perspective.requests[0]
    assert body == {
        "comment": {"text": "four"},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": True,
    }
    assert headers["X-Goog-Api-Key"] == "secret-key" and "secret" not in path
    assert len(perspective.requests) == 2


def test_perspective_is_asked_no_faster_than_the_quota_allows(perspective):
    perspective.scorer(queries_per_second=0.5)(["a", "b", "c"])
    assert len(perspective.waits) == 2
    assert all(1.5 < wait <= 2 for wait in perspective.waits)
    with pytest.raises(ValueError, match="queries_per_second must be a finite number above 0, got"):
        perspective.scorer(queries_per_second=0)


def test_perspective_is_asked_again_after_growing_random_waits(perspective):
    perspective.answers = [(429, {}), (503, "busy"), ("drop", None), (500, {})]
    assert perspective.scorer()(["four"]) == [0.04]
    assert len(perspective.requests) == 5
    for i, wait in enumerate(perspective.waits):
        assert 0.5 * 2**i <= wait <= 1.5 * 2**i
    assert len(set(perspective.waits)) == 4

    perspective.answers = [(429, {})] * PERSPECTIVE_ATTEMPTS
    with pytest.raises(
        ScorerError, match=r"did not answer 8 attempts \(HTTP 429\); try again later"
    ):
        perspective.scorer()(["four"])


def test_an_unreachable_perspective_says_so_without_the_key(perspective):
    perspective.server.shutdown()
    perspective.server.server_close()
    with pytest.raises(ScorerError, match=r"attempts \(ConnectionError\)") as error:
        perspective.scorer()(["four"])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("COMMENT_EMPTY", "it counts as empty"),
        ("COMMENT_TOO_LONG", "more than 20,480 bytes"),
        ("LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "not taken for English"),
        ("SOMETHING_NEW", "HTTP 400 SOMETHING_NEW; leave it out"),
    ],
)
def test_a_text_that_perspective_refuses_is_named_by_its_place(perspective, kind, message):
    perspective.answers = [(200, None), refusal(kind)]
    with pytest.raises(ScorerError, match=f"cannot score item 2: .*{message}") as error:
        perspective.scorer()(["first", "first", "second"])
    shown = "".join(traceback.format_exception(error.value))
    assert "the text" not in shown and "'second', " not in shown


def test_a_text_that_perspective_refuses_does_not_cost_the_others_their_scores(perspective):
    score = perspective.scorer()
    perspective.answers = [(200, None), refusal("COMMENT_EMPTY"), (200, None)]
    texts = ["one", "\u200b", "three", "\u200b", "half \ud800"]
    with pytest.warns(UserWarning, match="3 of 5 texts set aside, such as 1: it counts as empty"):
        scores = score(texts, set_aside=True)
    np.testing.assert_array_equal(scores, [0.03, np.nan, 0.05, np.nan, np.nan])
    asked = [body["comment"]["text"] for _, body, _ in perspective.requests]
    assert asked == ["one", "\u200b", "three"]


def test_a_refusal_that_stops_the_run_costs_no_more_requests(perspective):
    perspective.answers = [refusal("COMMENT_EMPTY")]
    with pytest.raises(ScorerError, match="cannot score item 0: it counts as empty"):
        perspective.scorer()(["\u200b", "one"])
    assert len(perspective.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (401, {}), (403, {"error": {"code": 403}}), (404, "<html>"), (410, ""), (301, ""),
        refusal("API_KEY_INVALID", "reason"), (200, "<html>gone</html>"), (200, {"moved": True}),
    ],
)  # fmt: skip
def test_a_perspective_that_is_gone_says_what_to_use(perspective, answer):
    perspective.answers = [answer]
    with pytest.raises(ScorerError, match=r"shut down .* or refuses the key .* use 'minilm' or"):
        perspective.scorer()(["four"])
    assert len(perspective.requests) == 1


def test_perspective_needs_a_key(monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(ScorerError, match="needs an API key in the environment variable PERSP"):
        load_scorer("perspective")


GERMAN = [
    "Ich habe heute keine Zeit, weil ich noch arbeiten muss und meine Schwester kommt.",
    "Du bist der freundlichste Mensch, den ich in meinem ganzen Leben getroffen habe.",
    "Morgen fahren wir mit dem Zug ans Meer, wenn das Wetter so bleibt wie heute.",
]
ENGLISH = [
    "I have no time today, because I still have to work and my sister is coming over.",
    "You are the kindest person whom I have met in all of my life so far, my dear.",
    "Tomorrow we take the train to the sea, if the weather stays as it is today.",
]


@pytest.mark.parametrize("name", ["minilm", "profanity-check"])
def test_texts_in_other_languages_get_a_warning_and_no_others_do(name):
    scorer = load_scorer(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer(["a naïve café — “quoted” 😀", "12 + 30", "😀😀", "", "Ærøskøbing is a town"])
        scorer([*ENGLISH, *GERMAN])  # as often as not
    with pytest.warns(UserWarning, match=rf"2 of 3 texts, such as 1, seem not .*'{name}' knows"):
        scorer(["a tree", "ты дурак", "你好吗 ok"])
    with pytest.warns(UserWarning, match=r"3 of 4 texts, such as 0, seem not to be English"):
        scorer([*GERMAN, ENGLISH[0]])


# German, French, Spanish, Italian, Dutch, Portuguese, Polish, Turkish, Swedish.
OTHERS = [
    "Ich habe heute keine Zeit, weil ich noch arbeiten muss und meine Schwester kommt.",
    "Du bist der größte Idiot, den ich in meinem ganzen Leben getroffen habe.",
    "Je ne sais pas ce que tu veux dire, mais cela ne me plaît pas du tout.",
    "Quelle belle journée pour aller se promener au bord de la mer avec les enfants",
    "No sé qué decir de esto, pero me parece que eres una persona muy amable",
    "Eres un imbécil y nadie quiere hablar contigo porque siempre mientes a todos",
    "Non so cosa dire, ma questa mattina ho mangiato una mela molto buona",
    "Ik weet niet wat ik moet zeggen, maar het is een mooie dag vandaag",
    "Eu não sei o que dizer, mas hoje é um dia muito bonito para caminhar",
    "Nie wiem co powiedzieć, ale dzisiaj jest bardzo ładny dzień na spacer po parku",
    "Bugün hava çok güzel ve ben parkta yürümek istiyorum ama vaktim yok maalesef",
    "Jag vet inte vad jag ska säga men det är en fin dag idag för alla",
]


@pytest.mark.parametrize("text", OTHERS)
def test_a_sentence_in_another_language_holds_no_frequent_english_word(text):
    words = set(scorer_module.WORD.findall(text.lower()))
    assert len(words) >= scorer_module.MANY_WORDS and not words & scorer_module.ENGLISH
