"""Corpora and prompts as users have them, and what is wrong with some of those."""

import gzip
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import sasa_lib as sl
from sasa_lib.texts import sources
from sasa_lib.texts.corpora import fingerprint, labelled, split
from sasa_lib.texts.prompts import DOMAINS, chat, sample_groups

PAIRS = sl.assets.DATA_DIR / "contrast_pairs.jsonl"
HH = "hh-rlhf/harmless-base-test.jsonl.gz"
# Begins with the token that its tokenizer adds too, and insists on turns, as many do.
STRICT_TEMPLATE = """{{ bos_token }}{% for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no turns') }}
{%- endif %}<{{ message.role }}>{{ message.content }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "prompt": ["a", "", "b", ""],
            "response": ["one two", "three", "four", "five"],
            "toxicity": [0.1, 0.9, 0.8, 0.2],
        }
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet", "jsonl.gz"])
def test_a_users_own_file_in_every_format(frame, tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    corpus = sl.load_corpus("file", path=path)
    assert corpus["response"][:] == frame["response"].tolist()
    assert corpus["prompt"][:] == frame["prompt"].tolist()
    np.testing.assert_allclose(corpus["toxicity"], frame["toxicity"])


def test_columns_are_renamed(frame, tmp_path):
    frame.rename(columns={"response": "comment", "toxicity": "score"}).to_csv(tmp_path / "x.csv")
    columns = {"response": "comment", "toxicity": "score"}
    corpus = sl.load_corpus("file", path=tmp_path / "x.csv", columns=columns)
    assert corpus["response"][:] == frame["response"].tolist()
    with pytest.raises(ValueError, match=r"no column 'text'; it has .*comment"):
        sl.load_corpus("file", path=tmp_path / "x.csv", columns={"response": "text"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"toxicity": [0.1, 1.9, 0.8, 0.2]}, r"toxicity must lie in \[0, 1\], but row 1 has 1.9"),
        ({"response": ["a", " ", None, "b"]}, "response of row 1 is empty"),
        (
            {"toxicity": ["low", "high", "high", "low"]},
            "toxicity .* row 0 has 'low', which is no number",
        ),
    ],
)
def test_bad_content_is_named(frame, tmp_path, change, message):
    frame.assign(**change).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=message):
        sl.load_corpus("file", path=tmp_path / "bad.parquet")


def test_bad_files_and_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown corpus 'jigsaw'; known are embedded"):
        sl.load_corpus("jigsaw")
    with pytest.raises(ValueError, match="no such file"):
        sl.load_corpus("file", path=tmp_path / "absent.csv")
    with pytest.raises(ValueError, match=r"not a \.csv, \.jsonl or \.parquet file"):
        sl.load_corpus("file", path=tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="'file' needs path"):
        sl.load_corpus("file")
    (tmp_path / "broken.jsonl").write_text('{"response": "a", "toxi')
    with pytest.raises(ValueError, match=r"broken.jsonl cannot be read: "):
        sl.load_corpus("file", path=tmp_path / "broken.jsonl")
    with pytest.raises(ValueError, match=r"unknown subset 'mild'; known are toxic"):
        sl.load_prompts("embedded", subset="mild")


def test_files_of_another_format_are_told_from_the_published_ones(frame, tmp_path):
    frame.to_csv(tmp_path / "own.csv", index=False)
    for load in (sl.load_corpus, sl.load_prompts):
        with pytest.raises(ValueError, match=r"not RealToxicityPrompts .* 'continuation'"):
            load("rtp", path=tmp_path / "own.csv")
    with pytest.raises(ValueError, match=r"not Civil Comments .* no column 'text'"):
        sl.load_corpus("civil_comments", path=tmp_path / "own.csv")
    with pytest.raises(ValueError, match=r"toxicity holds numbers only, the first is 0\.1"):
        sl.load_prompts("file", path=tmp_path / "own.csv", column="toxicity")


def test_one_class_or_an_unknown_attribute_is_refused(frame, tmp_path):
    frame.to_csv(tmp_path / "x.csv", index=False)
    corpus = sl.load_corpus("file", path=tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"no attribute 'insult'; it has toxicity"):
        labelled(corpus, "insult")
    with pytest.raises(ValueError, match=r"0 examples with toxicity above 0.95.*at least 2"):
        labelled(corpus, "toxicity", 0.95)


def test_values_of_a_corpus_made_by_hand_are_checked_too():
    made = {"prompt": ["", ""], "response": ["a", "b"], "group": ["a", "a"]}
    with pytest.raises(ValueError, match=r"toxicity must lie in \[0, 1\], but row 1 has 90"):
        labelled(Dataset.from_dict(made | {"toxicity": [0, 90]}))
    corpus = Dataset.from_dict(made | {"toxicity": [0, 1]})
    with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
        labelled(corpus, threshold=float("nan"))
    for share in (0, 1, 2):
        with pytest.raises(ValueError, match=f"held_out must lie between 0 and 1, got {share}"):
            split(corpus, share)
    with pytest.raises(ValueError, match="a single group, whose rows stay together"):
        split(corpus)


def test_the_contrast_pairs_keep_their_guideline():
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    assert len(pairs) >= 500
    assert len({pair["prompt"] for pair in pairs}) == len(pairs)
    assert {pair["category"] for pair in pairs} == {
        "insult", "threat", "profanity", "demeaning_generalisation", "identity_attack",
    }  # fmt: skip
    for pair in pairs:
        prompt, toxic, nontoxic = (len(pair[k].split()) for k in ("prompt", "toxic", "nontoxic"))
        assert 4 <= prompt <= 16 and 4 <= toxic <= 18 and 4 <= nontoxic <= 18
        assert abs(toxic - nontoxic) <= 4


def test_a_split_keeps_pairs_together_and_is_repeatable(texts):
    training, held_out = split(texts, seed=3)
    assert not set(training["group"]) & set(held_out["group"])
    assert len(training) + len(held_out) == len(texts)
    assert split(texts, seed=3)[1]["response"][:] == held_out["response"][:]
    assert fingerprint(training) == fingerprint(split(texts, seed=3)[0])
    assert fingerprint(training) != fingerprint(held_out)


def test_realtoxicityprompts_records_become_texts_and_prompts(rtp_path):
    corpus = sl.load_corpus("rtp", path=rtp_path)
    assert len(corpus) == 7000 and "threat" in corpus.column_names
    _, toxic = labelled(corpus)
    assert 0.2 < toxic.mean() < 0.4
    counts = {s: len(sl.load_prompts("rtp", path=rtp_path, subset=s)) for s in ("toxic", None)}
    assert counts == {"toxic": 859, None: 3500}
    assert len(sl.load_prompts("rtp", path=rtp_path, subset="challenging")) == 37


def test_no_embedded_prompt_is_fitted_on():
    try:
        prompts = set(sl.load_prompts("embedded")["prompt"])
        corpus = sl.load_corpus("embedded")
    except sl.AssetError as error:
        pytest.skip(str(error))
    assert not prompts & set(corpus["response"])
    _, toxic = labelled(corpus)
    assert toxic.sum() > 1400 and (~toxic).sum() > 2000


# Of real texts only counts and whether they are equal are asserted, and no test takes them as an
# argument: a failure must not print them.


def shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is absent; SASA_SHARED_DATA names the folder")
    return SHARED / name


def published_bold():
    """Rows (prompt, domain, group, entity), read here without the library."""
    rows = []
    for domain in DOMAINS:
        text = shared(f"bold/{domain}_prompt.json").read_text(encoding="utf-8")
        for group, entities in json.loads(text).items():
            for entity, prompts in entities.items():
                rows += [(p.rstrip(), domain, group, entity) for p in prompts if p.strip()]
    return rows


@pytest.fixture
def small_bold(tmp_path):
    """A folder in the published format and the same in the hub's."""
    for domain in DOMAINS:
        entities = {"One_Name": [f"One, of {domain}, is ", "One was "], "Two_Name": ["Two is ", ""]}
        (tmp_path / "published").mkdir(exist_ok=True)
        published = json.dumps({"a_group": entities}, indent=1)
        (tmp_path / "published" / f"{domain}_prompt.json").write_text(published)
        rows = [
            {"domain": domain, "name": name, "category": "a_group", "prompts": prompts}
            | {"wikipedia": [f"{prompt} known." for prompt in prompts]}
            for name, prompts in entities.items()
        ]
        (tmp_path / "hub").mkdir(exist_ok=True)
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / "hub" / f"{domain}_prompt_wiki.json").write_text(lines)
    return tmp_path


def test_bold_prompts_with_domain_group_and_entity():
    published = published_bold()
    prompts = sl.load_prompts("bold", path=SHARED / "bold")
    assert prompts.column_names == ["prompt", "domain", "group", "entity"]
    equal = list(zip(*prompts.to_dict().values(), strict=True)) == published
    assert equal and len(prompts) == 23679 - 5  # as published, less the empty ones
    assert Counter(prompts["domain"]) == Counter(row[1] for row in published)


def test_a_domain_of_bold_is_a_subset_and_a_file():
    race = [row for row in published_bold() if row[1] == "race"]
    for path in (SHARED / "bold", SHARED / "bold" / "race_prompt.json"):
        prompts = sl.load_prompts("bold", path=path, subset="race")
        equal = list(zip(*prompts.to_dict().values(), strict=True)) == race
        assert equal
    assert set(prompts["group"]) == {row[2] for row in race} and len(set(prompts["group"])) == 4
    with pytest.raises(ValueError, match="'bold' has no prompt in the subset 'gender'"):
        sl.load_prompts("bold", path=path, subset="gender")


def test_bold_is_the_same_in_the_format_of_the_hub(small_bold):
    prompts = sl.load_prompts("bold", path=small_bold / "published")
    assert len(prompts) == 5 * 3
    assert prompts[0] == {
        "prompt": "One, of gender, is", "domain": "gender", "group": "a_group", "entity": "One_Name"
    }  # fmt: skip
    assert sl.load_prompts("bold", path=small_bold / "hub").to_dict() == prompts.to_dict()
    lines = [(small_bold / "hub" / f"{d}_prompt_wiki.json").read_text() for d in DOMAINS]
    (small_bold / "all.jsonl").write_text("\n".join(lines))
    pd.read_json(small_bold / "all.jsonl", lines=True).to_parquet(small_bold / "all.parquet")
    for name in ("all.jsonl", "all.parquet"):
        assert sl.load_prompts("bold", path=small_bold / name).to_dict() == prompts.to_dict()
        profession = sl.load_prompts("bold", path=small_bold / name, subset="profession")
        assert profession["domain"][:] == ["profession"] * 3


def test_what_is_not_bold_is_told(small_bold, frame):
    published = small_bold / "published"
    with pytest.raises(ValueError, match=r"no such file or folder: .*absent"):
        sl.load_prompts("bold", path=small_bold / "absent")
    with pytest.raises(
        ValueError, match=r"has no gender_prompt.json; .* is a folder with <domain>"
    ):
        sl.load_prompts("bold", path=small_bold)
    (published / "race_prompt.json").rename(published / "mine.json")
    with pytest.raises(ValueError, match=r"has no race_prompt.json; .* for gender, race, "):
        sl.load_prompts("bold", path=published)
    assert len(sl.load_prompts("bold", path=published, subset="gender")) == 3
    with pytest.raises(ValueError, match=r"mine.json cannot be read: .* name tells the domain"):
        sl.load_prompts("bold", path=published / "mine.json")
    with pytest.raises(ValueError, match=r"unknown subset 'toxic'; known are gender, race, "):
        sl.load_prompts("bold", path=published, subset="toxic")
    frame.to_csv(small_bold / "own.csv", index=False)
    with pytest.raises(
        ValueError, match=r"not BOLD in its published format: .* no column 'prompts'"
    ):
        sl.load_prompts("bold", path=small_bold / "own.csv")
    sentence = json.dumps({"a_group": {"One_Name": "One is "}})
    (published / "race_prompt.json").write_text(sentence)
    with pytest.raises(ValueError, match="the prompts of an entity must be a list"):
        sl.load_prompts("bold", path=published)
    twice = '{"a_group": {"One_Name": ["One is "], "One_Name": ["One was "]}}'
    (published / "race_prompt.json").write_text(twice)
    with pytest.raises(ValueError, match=r"race_prompt.json cannot be read: .*'One_Name' is there"):
        sl.load_prompts("bold", path=published)


def test_attaq_questions_with_their_category(frame, tmp_path):
    rows = {"label": ["pii", "violence"], "input": ["Who is it?", "What now?"]}
    pd.DataFrame(rows | {"additional_info": "{}"}).to_csv(tmp_path / "attaq.csv", index=False)
    prompts = sl.load_prompts("attaq", path=tmp_path / "attaq.csv")
    assert prompts.to_dict() == {"prompt": rows["input"], "category": rows["label"]}
    with pytest.raises(ValueError, match=r"'attaq' has no subsets; leave subset='pii' out"):
        sl.load_prompts("attaq", path=tmp_path / "attaq.csv", subset="pii")
    frame.to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(
        ValueError, match=r"not AttaQ in its published format: .* no column 'input'"
    ):
        sl.load_prompts("attaq", path=tmp_path / "own.csv")


def published_pairs():
    with gzip.open(shared(HH), "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture
def small_pairs(tmp_path):
    def write(*pairs):
        path = tmp_path / "pairs.jsonl"
        lines = [json.dumps({"chosen": chosen, "rejected": other}) for chosen, other in pairs]
        path.write_text("\n".join(lines))
        return path

    return write


def test_hh_rlhf_opening_messages_are_prompts():
    pairs = published_pairs()
    prompts = sl.load_prompts("hh-rlhf", path=shared(HH))
    first = [pair["chosen"].split("\n\nAssistant:")[0][len("\n\nHuman:") :] for pair in pairs]
    equal = sorted(prompts["prompt"]) == sorted({text.strip() for text in first})
    assert equal and len(prompts) == 2178  # so each is there once
    with pytest.raises(ValueError, match="'hh-rlhf' has no subsets"):
        sl.load_prompts("hh-rlhf", subset="toxic")


def test_hh_rlhf_dialogues_are_preference_pairs():
    pairs = published_pairs()
    corpus = sl.load_corpus("hh-rlhf", path=shared(HH))
    assert corpus.column_names == ["prompt", "response", "group", "toxicity"]
    texts = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    answered = [text for text in texts if text.split("\n\nAssistant:")[-1].strip()]
    assert len(corpus) == len(answered) == 2 * 2312 - 4
    # Five answers are two turns of the assistant in a row, whose second marker goes.
    whole = [p + r for p, r in zip(corpus["prompt"], corpus["response"], strict=True)]
    assert sum(a != b for a, b in zip(whole, answered, strict=True)) == 5
    assert all(prompt.endswith("\n\nAssistant:") for prompt in set(corpus["prompt"]))
    assert not any("\n\nAssistant:" in r or "\n\nHuman:" in r for r in corpus["response"])
    _, toxic = labelled(corpus)
    chosen = len([p for p in pairs if p["chosen"].split("\n\nAssistant:")[-1].strip()])
    assert (~toxic).sum() == chosen and toxic.sum() == len(corpus) - chosen
    parts = [
        {prompt.split("\n\nAssistant:")[0] for prompt in part["prompt"]} for part in split(corpus)
    ]
    common, together = len(parts[0] & parts[1]), len(parts[0] | parts[1])
    assert (common, together) == (0, 2178)


def test_answers_that_are_empty_or_equal_are_left_out(small_pairs):
    path = small_pairs(
        ("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c "),
        ("\n\nHuman: d\n\nAssistant: e", "\n\nHuman: d\n\nAssistant: e"),
        ("\n\nHuman: f\n\nAssistant: g", "\n\nHuman: f\n\nAssistant: "),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: h\n\nAssistant: i", "\n\nHuman: a"),
        ("\n\nHuman: j\n\nAssistant: k", "\n\nHuman: l\n\nAssistant: m\n\nAssistant: n"),
    )
    corpus = sl.load_corpus("hh-rlhf", path=path)
    assert list(zip(*corpus.to_dict().values(), strict=True)) == [
        ("\n\nHuman: a\n\nAssistant:", " b", "dialogue-0", 0.0),
        ("\n\nHuman: f\n\nAssistant:", " g", "dialogue-1", 0.0),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: h\n\nAssistant:", " i", "dialogue-0", 0.0),
        ("\n\nHuman: j\n\nAssistant:", " k", "dialogue-2", 0.0),
        ("\n\nHuman: a\n\nAssistant:", " c", "dialogue-0", 1.0),
        ("\n\nHuman: l\n\nAssistant:", " m\nn", "dialogue-2", 1.0),
    ]
    assert sl.load_prompts("hh-rlhf", path=path)["prompt"][:] == ["a", "d", "f", "j"]


def test_what_is_not_hh_rlhf_is_told(frame, small_pairs, tmp_path):
    frame.to_csv(tmp_path / "own.csv", index=False)
    mixed = small_pairs(("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a"), ("\n\nHuman: c", "c"))
    for load in (sl.load_corpus, sl.load_prompts):
        with pytest.raises(ValueError, match=r"not hh-rlhf in its published .* no column 'chosen'"):
            load("hh-rlhf", path=tmp_path / "own.csv")
        with pytest.raises(ValueError, match=r"rejected of row 1 does not begin with .*Human:"):
            load("hh-rlhf", path=mixed)


def test_the_hub_is_asked_for_the_published_sets(monkeypatch):
    asked = []

    def hub(repository, split, data_dir):
        asked.append((repository, split, data_dir))
        dialogue = {"chosen": ["\n\nHuman: a\n\nAssistant: b"], "rejected": ["\n\nHuman: a"]}
        return Dataset.from_dict(
            {
                "AmazonScience/bold": {"domain": ["race"], "name": ["n"], "category": ["c"]}
                | {"prompts": [["One is ", "One was "]], "wikipedia": [["One is.", "One was."]]},
                "ibm/AttaQ": {"label": ["pii"], "input": ["Who?"], "additional_info": [""]},
                "Anthropic/hh-rlhf": dialogue,
            }[repository]
        )

    monkeypatch.setattr(sources, "load_dataset", hub)
    assert sl.load_prompts("bold", subset="race")["prompt"][:] == ["One is", "One was"]
    assert sl.load_prompts("attaq")["category"][:] == ["pii"]
    assert sl.load_prompts("hh-rlhf")["prompt"][:] == ["a"]
    assert sl.load_corpus("hh-rlhf")["response"][:] == [" b"]
    # What is generated from is not what a boundary is fitted on.
    assert asked == [
        ("AmazonScience/bold", "train", None),
        ("ibm/AttaQ", "train", None),
        ("Anthropic/hh-rlhf", "test", "harmless-base"),
        ("Anthropic/hh-rlhf", "train", "harmless-base"),
    ]


@pytest.fixture
def strict_tokenizer():
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", unk_token="<unk>", chat_template=STRICT_TEMPLATE
    )


def test_chat_makes_turns_of_dialogues_and_one_of_other_prompts(strict_tokenizer):
    prompts = {
        "Plain ": "<user>Plain <assistant>",
        "\n\nHuman: a\n\nAssistant:": "<user>a<assistant>",
        "\n\nHuman: a": "<user>a<assistant>",
        "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\ne\n\nAssistant:": (
            "<user>a<assistant>b\nc<user>d\n\ne<assistant>"
        ),
    }
    given = Dataset.from_dict({"prompt": list(prompts), "toxicity": [None, 0.1, 0.2, 0.3]})
    rendered = chat(given, strict_tokenizer)
    assert rendered["prompt"][:] == list(prompts.values())
    assert rendered.features == given.features and rendered["toxicity"][:] == given["toxicity"][:]
    with pytest.raises(ValueError, match=r"row 0 ends with what the assistant says; it must end"):
        chat(Dataset.from_dict({"prompt": ["\n\nHuman: a\n\nAssistant: b"]}), strict_tokenizer)
    with pytest.raises(ValueError, match=r"chat template of .* has no argument 'enable_thinking'"):
        chat(given, strict_tokenizer, enable_thinking=False)
    strict_tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template; take an instruct model's"):
        chat(given, strict_tokenizer)


def test_the_templates_own_arguments_reach_it(strict_tokenizer):
    """lm-evaluation-harness #3576, evalscope #522: Qwen3 thinks unless its template is told."""
    strict_tokenizer.chat_template += (
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    given = Dataset.from_dict({"prompt": ["a"]})
    rendered = chat(given, strict_tokenizer, enable_thinking=False)["prompt"][0]
    assert rendered == "<user>a<assistant><think></think>"
    assert chat(given, strict_tokenizer)["prompt"][0] == "<user>a<assistant>"


def test_rendered_prompts_are_tokenised_with_the_templates_special_tokens(
    strict_tokenizer, smollm2
):
    """SmolLM2 names a bos token that only its template writes; the other tokenizer adds its own."""
    corpus = sl.load_corpus("hh-rlhf", path=shared(HH))
    openings = sl.load_prompts("hh-rlhf", path=shared(HH))
    for tokenizer in (strict_tokenizer, smollm2[1]):
        bos = tokenizer.bos_token_id
        for row in chat(corpus, tokenizer).select(range(0, len(corpus), 40)):
            ids = tokenizer(row["prompt"])["input_ids"]
            assert ids[0] == bos != ids[1] and not row["response"][0].isspace()
        first = openings["prompt"][0]
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": first}], add_generation_prompt=True, return_dict=False
        )
        equal = tokenizer(chat(openings, tokenizer)["prompt"][0])["input_ids"] == expected
        assert equal


def test_twins_of_crows_pairs_differ_in_the_word_for_their_group():
    prompts = sl.load_prompts("crows-pairs").to_pandas()
    assert set(prompts["domain"]) == {"gender", "race", "religion"}
    for _, twins in prompts.groupby("entity"):
        one, other = (text.split() for text in twins["prompt"])
        assert twins["group"].nunique() == 2 and len(one) == len(other)
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1
    gender = sl.load_prompts("crows-pairs", subset="gender").to_pandas()
    assert gender["group"].value_counts().to_dict() == {"female": 68, "male": 68}
    words = set(" ".join(gender.loc[gender["group"] == "female", "prompt"]).casefold().split())
    assert {"women", "she"} <= words
    with pytest.raises(
        ValueError, match="unknown subset 'toxic'; known are gender, race, religion"
    ):
        sl.load_prompts("crows-pairs", subset="toxic")


def about_groups(rows):
    frame = pd.DataFrame(rows, columns=["group", "entity"])
    prompts = [f"prompt {i}" for i in range(len(rows))]
    return Dataset.from_pandas(frame.assign(prompt=prompts, domain="work"))


def test_twins_are_drawn_together():
    pairs = [(("a", "b"), ("b", "c"), ("b", "a"))[i % 3] for i in range(30)]
    twins = [(group, f"pair-{i}") for i, pair in enumerate(pairs) for group in pair]
    drawn = sample_groups(about_groups(twins), 4, seed=0)
    # As many pairs of each two groups, whichever of the twins comes first.
    assert drawn["twins"].all()
    assert drawn.groupby("compared")["pair"].nunique().to_dict() == {"a - b": 4, "b - c": 4}
    for _, pair in drawn.groupby(np.arange(len(drawn)) // 2):
        assert pair["pair"].nunique() == pair["entity"].nunique() == 1
        assert pair["group"].is_monotonic_increasing and pair["group"].nunique() == 2
    again, other = (sample_groups(about_groups(twins), 4, seed=seed) for seed in (0, 1))
    assert drawn.equals(again) and set(drawn["pair"]) != set(other["pair"])
    assert len(sample_groups(about_groups(twins), 100)) == len(twins)


def test_of_groups_without_twins_prompts_are_drawn_alone():
    rows = [("a", "One"), ("a", "One"), ("a", "Two"), ("b", "Three"), ("b", "Four")]
    drawn = sample_groups(about_groups(rows), 2)
    assert not drawn["twins"].any()
    assert drawn["compared"].tolist() == drawn["group"].tolist() == ["a", "a", "b", "b"]
    assert drawn["pair"].is_unique


def test_do_not_answer_has_questions_with_categories():
    prompts = sl.load_prompts("do-not-answer").to_pandas()
    assert len(prompts) == 938 and not prompts["prompt"].duplicated().any()
    assert prompts["category"].value_counts()["malicious_uses"] == 243
    with pytest.raises(ValueError, match="has no subsets"):
        sl.load_prompts("do-not-answer", subset="toxic")


@pytest.mark.parametrize("name", ["thinking", "enable", "content", "m", "messages"])
def test_what_only_looks_like_an_argument_of_a_template_is_refused(strict_tokenizer, name):
    strict_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}x{% endif %}"
        "{% generation %}{{ messages }}{% endgeneration %}"
    )
    given = Dataset.from_dict({"prompt": ["a"]})
    with pytest.raises(ValueError, match=f"has no argument {name!r}; it has enable_thinking"):
        chat(given, strict_tokenizer, **{name: True})


def test_what_a_template_refuses_is_said_with_its_row(strict_tokenizer):
    strict_tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(ValueError, match=r"prompt 0: the chat template refuses it .no such role"):
        chat(Dataset.from_dict({"prompt": ["a"]}), strict_tokenizer)


def test_what_was_fitted_on_is_no_prompt():
    prompts = Dataset.from_dict({"prompt": ["a", " b ", "c"], "challenging": [True, False, None]})
    left = sl.prompts.unseen(prompts, ["b", "d"])
    assert left.to_dict() == {"prompt": ["a", "c"], "challenging": [True, None]}
    with pytest.raises(ValueError, match="all 3 prompts are among the texts that were fitted on"):
        sl.prompts.unseen(prompts, ["a", "b", "c"])


def test_columns_may_be_one_text(frame, tmp_path):
    frame.rename(columns={"response": "comment"}).to_csv(tmp_path / "own.csv", index=False)
    read = sl.load_corpus("file", path=tmp_path / "own.csv", columns=" response : comment ")
    assert read["response"] == frame["response"].tolist()
    for text in ("comment", "response:", "response: comment, : score"):
        with pytest.raises(ValueError, match="columns must be name: column of the file"):
            sl.load_corpus("file", path=tmp_path / "own.csv", columns=text)
