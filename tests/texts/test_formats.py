"""Users' files: one table is the same in every format, or refused in one sentence."""

import bz2
import csv
import gzip
import json
import lzma
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import sasa_lib as sl
from sasa_lib.texts import sources
from sasa_lib.texts.corpora import fingerprint, labelled
from sasa_lib.texts.formats import read_table

# What other readers take for a gap, a number, a comment, a line end or a quote.
WORDS = (
    "NA", "None", "null", "nan", "NaN", "-inf", "true", "1", "0.5", "1e3", "007", "a,b", 'a"b', '"',
    "a\rb", "a\r", "\r\na", "a\nb", "a\n", "\x00a", "\x85", "\u2028a", "\ufeffa", "#a", " a ", "é",
)  # fmt: skip
repeatable = settings(max_examples=60, derandomize=True, deadline=None)
texts = st.one_of(st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=8))
scores = st.one_of(st.none(), st.integers(0, 10).map(lambda i: i / 10), st.floats(0, 1))


@st.composite
def tables(draw):
    """Rows of prompt, response, group, two named attributes and one of the user's own."""
    groups = draw(st.sampled_from([st.integers(0, 3), st.sampled_from(["a", "007", "NA", "x y"])]))
    row = st.tuples(st.none() | texts, texts, st.none() | groups, scores, scores, scores)
    return draw(st.lists(row, min_size=1, max_size=4))


COLUMNS = ("prompt", "response", "group", "toxicity", "insult", "formal")


def write_in_every_format(rows, folder):
    """Yield files, and whether their writer leaves carriage returns without quotes."""
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame.to_csv(folder / "pandas.csv", index=False)
    yield folder / "pandas.csv", True
    with open(folder / "quoted.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *rows])
    yield folder / "quoted.csv", False
    records = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    for ascii_only in (True, False):
        path = folder / f"{ascii_only}.jsonl"
        lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
        path.write_bytes(("\n".join(lines) + "\n").encode())
        yield path, False
    frame.to_parquet(folder / "pandas.parquet")
    yield folder / "pandas.parquet", False
    columns = [pa.array(list(cells)) for cells in zip(*rows, strict=True)]
    pq.write_table(pa.table(columns, names=COLUMNS), folder / "arrow.parquet")
    yield folder / "arrow.parquet", False


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return text not in ("nan", "NaN", "-inf")


@repeatable
@given(tables())
def test_one_table_is_one_corpus_in_every_format(tmp_path_factory, rows):
    """After datasets #8652, pandas #32084, #10647 and #55032."""
    expected = {
        "prompt": [row[0] or "" for row in rows],
        "response": [row[1] for row in rows],
        "group": [f"row-{i}" if row[2] is None else str(row[2]) for i, row in enumerate(rows)],
        "toxicity": [row[3] for row in rows],
        "insult": [row[4] for row in rows],
    }
    if any(row[5] is not None for row in rows):  # a column without a name that all know
        expected["formal"] = [row[5] for row in rows]
    answers = expected["response"]
    is_text = all(text.strip() for text in answers) and not all(map(is_number, answers))
    carriage = any("\r" in cell for row in rows for cell in row[:2] if cell)
    prints, features = set(), set()
    for path, unquoted in write_in_every_format(rows, tmp_path_factory.mktemp("table")):
        try:
            corpus = sl.load_corpus("file", path=path)
        except ValueError as error:
            assert not is_text or (unquoted and carriage), (path.name, error)
            continue
        assert corpus.to_dict() == expected, path.name
        prints.add(fingerprint(corpus))
        features.add(str(corpus.features))
    assert len(prints) == len(features) == is_text


@repeatable
@given(st.lists(texts, min_size=1, max_size=4), st.sampled_from(["\n", "\r\n"]))
def test_one_column_of_a_csv_file_comes_back_or_is_refused(tmp_path_factory, cells, line_end):
    path = tmp_path_factory.mktemp("column") / "own.csv"
    pd.DataFrame({"prompt": cells}).to_csv(path, index=False, lineterminator=line_end)
    try:
        assert read_table(path)["prompt"].tolist() == cells
    except ValueError as error:
        assert any("\r" in cell for cell in cells), error


@repeatable
@given(
    st.one_of(st.binary(max_size=60), st.text('{}[]",:a1\n\r\\ud8', max_size=40).map(str.encode)),
    st.sampled_from(["csv", "jsonl", "parquet", "csv.gz", "jsonl.bz2", "csv.xz", "csv.zst"]),
)
def test_whatever_is_in_a_file_the_complaint_is_one_sentence(tmp_path_factory, content, ending):
    path = tmp_path_factory.mktemp("any") / f"own.{ending}"
    path.write_bytes(content)
    try:
        assert len(read_table(path))
    except ValueError as error:
        assert str(error).startswith(f"{path} cannot be read: ") and "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "response,toxicity\na,0\nb\n", "line 3 has 1 cells, but the header names 2"),
        ("a.csv", 'response,toxicity\n"a\n",0\nb,1,2\n', "line 4 has 3 cells, but .* names 2"),
        ("a.csv", "response,toxicity\na,0\n\nb,1\n", "line 3 has 0 cells"),
        ("a.csv", "response,toxicity,toxicity\na,0,1\n", "the name 'toxicity' is there 2 times"),
        ("a.csv", 'response,toxicity\n"a"b,1\n', "line 2: ',' expected after '\"'"),
        ("a.csv", 'response,toxicity\n"a,1\n', "line 2: unexpected end of data"),
        ("a.csv", "response,toxicity\ra,1\r", "line 1: a carriage return outside of quotes"),
        (
            "a.csv",
            "toxicity,response\n1,a\r\n",
            r"line 2 ends in '\\r\\n', those before it in '\\n'",
        ),
        ("a.csv", "", "it is empty"),
        ("a.csv", "response,toxicity\n", "it has no rows"),
        ("a.jsonl", "", "it has no rows"),
        ("a.jsonl", '{"response": "a"}\n[1]\n', "line 2 is no JSON object but a list"),
        ("a.jsonl", '{"response": "a", "toxi', "line 1 is no JSON object: Unterminated string"),
        ("a.jsonl", '{"toxicity": 0, "toxicity": 1}', "'toxicity' is there 2 times"),
        ("a.jsonl", "[" * 100_000, "line 1 is no JSON object"),
        ("a.parquet", "response", "Parquet"),
    ],
)
def test_what_could_only_be_guessed_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(ValueError, match=rf"{name} cannot be read: .*{message}"):
        sl.load_corpus("file", path=tmp_path / name)


def test_what_is_no_file_of_texts_is_named(tmp_path):
    for mark in (b"", b"\xef\xbb\xbf"):
        content = mark + "response,toxicity\na,0\nbé,1\n".encode("latin-1")
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(ValueError, match=r"line 3 is not UTF-8 \(byte 0xe9\); save the file"):
            read_table(tmp_path / "a.csv")
    (tmp_path / "folder.csv").mkdir()
    for folder in (tmp_path, tmp_path / "folder.csv"):
        with pytest.raises(ValueError, match=r": a folder, not a"):
            read_table(folder)
    # Of a name with two endings the last one counts.
    with pytest.raises(ValueError, match=r"not a \.csv, \.jsonl or \.parquet file"):
        read_table(tmp_path / "a.csv.notes")
    names = pa.table([pa.array(["a"]), pa.array(["b"])], names=["response", "response"])
    pq.write_table(names, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'response' is there 2 times"):
        read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_read_and_cut_ones_refused(tmp_path, ending):
    content = ("response,toxicity\n" + "".join(f"text {i},0.{i}\n" for i in range(2000))).encode()
    packers = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    path = tmp_path / f"own.CSV.{ending}"
    if ending in packers:
        path.write_bytes(packers[ending](content))
    else:
        with pa.output_stream(path, compression="zstd") as file:
            file.write(content)
    assert read_table(path)["response"][1999] == "text 1999"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="cannot be read"):
        read_table(path)


def test_a_long_cell_is_read(tmp_path):
    text = "a" * 200_000
    (tmp_path / "a.csv").write_text(f"response,toxicity\n{text},0\n")
    assert sl.load_corpus("file", path=tmp_path / "a.csv")["response"][0] == text


def test_empty_lines_at_the_end_are_no_rows(tmp_path):
    for end in ("\n", "\r\n"):
        (tmp_path / "a.csv").write_bytes(end.join(["response", "a", "b", "", "", ""]).encode())
        assert read_table(tmp_path / "a.csv")["response"].tolist() == ["a", "b"]
    (tmp_path / "a.jsonl").write_text('\ufeff{"response": "a"}\n\n{"response": "b"}\n\n')
    assert read_table(tmp_path / "a.jsonl")["response"].tolist() == ["a", "b"]


def test_a_path_or_an_index_adds_no_column(tmp_path):
    folder = tmp_path / "toxicity=1"
    folder.mkdir()
    frame = pd.DataFrame({"response": list("abcd"), "insult": [0.0, 1.0, 0.0, 1.0]}).iloc[::3]
    frame.to_parquet(folder / "a.parquet")
    frame.set_axis([0, 1]).to_csv(folder / "a.csv")
    for name in ("a.parquet", "a.csv"):
        corpus = sl.load_corpus("file", path=folder / name)
        assert corpus.column_names == ["prompt", "response", "group", "insult"]


def test_scores_are_on_the_same_side_of_a_threshold_in_every_format(tmp_path):
    """datasets #8652, ultrajson #249: 0.7 of a JSON file was read as 0.7000000000000001."""
    table = pd.DataFrame({"response": [f"text {i}" for i in range(11)], "toxicity": range(11)})
    table["toxicity"] /= 10
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    # As the hub has Civil Comments.
    table.astype({"toxicity": np.float32}).to_parquet(tmp_path / "short.parquet")
    lines = [json.dumps(row) for row in table.to_dict("records")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpora = [sl.load_corpus("file", path=path) for path in tmp_path.iterdir()]
    assert len(corpora) == 4 and len(set(map(fingerprint, corpora))) == 1
    for corpus in corpora:
        for i in (3, 5, 6, 7):
            assert labelled(corpus, threshold=i / 10)[1].sum() == 10 - i


def test_short_floats_of_nested_columns_are_the_decimals_they_stand_for(tmp_path):
    scores = dict.fromkeys(sl.sources.ATTRIBUTES, 0.6)
    rows = [{"text": "a"} | scores, {"text": "b"} | scores]
    kind = pa.struct([("text", pa.string()), *((name, pa.float32()) for name in scores)])
    columns = {"prompt": pa.array(rows, kind), "continuation": pa.array(rows, kind)}
    pq.write_table(pa.table(columns | {"challenging": [True, None]}), tmp_path / "rtp.parquet")
    corpus = sl.load_corpus("rtp", path=tmp_path / "rtp.parquet")
    assert corpus["threat"][:] == [0.6] * 4
    prompts = sl.load_prompts("rtp", path=tmp_path / "rtp.parquet", subset="challenging")
    assert prompts["prompt"][:] == ["a"]


def test_words_for_nothing_are_texts(tmp_path):
    """pandas #32084, #10647, #55032: None, null, NA and nan of a CSV file are text."""
    path = tmp_path / "own.csv"
    path.write_text(
        'prompt,response,toxicity\nNone," of it",0\nnull," void",0.1\nnan,NA,0.9\n,a,\n'
    )
    assert sl.load_corpus("file", path=path).to_dict() == {
        "prompt": ["None", "null", "nan", ""],
        "response": [" of it", " void", "NA", "a"],
        "group": ["row-0", "row-1", "row-2", "row-3"],
        "toxicity": [0, 0.1, 0.9, None],
    }
    assert sl.load_prompts("file", path=path, column="response")["prompt"][2] == "NA"


def as_file(tmp_path, ending, rows):
    path = tmp_path / f"own.{ending}"
    with open(path, "w", newline="", encoding="utf-8") as file:
        if ending == "csv":
            csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
        else:
            file.write("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "score",
    [90, -0.1, "high", "NA", "inf", "0,5", "1_0", "½", "yes", pytest.param(10**400, id="huge")],
)
def test_scores_that_are_none_are_refused(tmp_path, ending, score):
    """real-toxicity-prompts #5: 0 to 100 and words were taken at face value."""
    rows = [{"prompt": "a", "toxicity": 0.5}, {"prompt": "b", "toxicity": score}]
    path = as_file(tmp_path, ending, rows)
    message = r"'file': toxicity must lie in \[0, 1\], .* row 1 has"
    with pytest.raises(ValueError, match=message):
        sl.load_prompts("file", path=path)
    with pytest.raises(ValueError, match=message):
        sl.load_corpus("file", path=path, columns={"response": "prompt"})


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_flags_in_words_numbers_and_gaps(tmp_path, ending):
    """promptsource #451: "no", "False" and a gap were all taken for true."""
    for true, false in (("yes", "NO"), ("True", "false"), (1, 0), ("1", "0.0"), (True, False)):
        rows = [{"prompt": "a", "challenging": true}, {"prompt": "b", "challenging": false}]
        path = as_file(tmp_path, ending, [*rows, {"prompt": "c", "challenging": None}])
        prompts = sl.load_prompts("file", path=path)
        assert prompts["challenging"][:] == [True, False, None]
        chosen = sl.load_prompts("file", path=path, subset="challenging")
        assert chosen.to_dict() == {"prompt": ["a"], "challenging": [True]}
    for word in ("high", 2, 0.5, "t"):
        path = as_file(tmp_path, ending, [*rows, {"prompt": "c", "challenging": word}])
        with pytest.raises(ValueError, match=r"challenging must be true or false, .* row 2 has"):
            sl.load_prompts("file", path=path)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_columns_that_nobody_named_are_values_if_all_numbers_are(tmp_path, ending):
    row = {"response": "a", "own": 0.5, "flag": True, "id": 7, "word": "x", "gap": None}
    other = {"response": "b", "own": "1e-3", "flag": False, "id": 0, "word": 0.5, "gap": None}
    path = as_file(tmp_path, ending, [row, other, dict.fromkeys(row) | {"response": "c"}])
    corpus = sl.load_corpus("file", path=path).to_dict()
    assert list(corpus) == ["prompt", "response", "group", "own", "flag"]
    assert (corpus["own"], corpus["flag"]) == ([0.5, 0.001, None], [1, 0, None])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_groups_are_names(tmp_path, ending):
    cells = [1, 1.0, "1", "007", 1.5, "NA", None, ""]
    rows = [{"response": f"text {i}", "group": g, "toxicity": 0} for i, g in enumerate(cells)]
    groups = sl.load_corpus("file", path=as_file(tmp_path, ending, rows))["group"][:]
    assert groups == ["1", "1", "1", "007", "1.5", "NA", "row-6", "row-7"]


def test_json_cells_that_are_no_text_or_name_are_refused(tmp_path):
    """Half a surrogate pair is no text (transformers #8886, tiktoken #82)."""
    path = tmp_path / "own.jsonl"
    for change, message in (
        ({"response": 5}, "response of row 1 must be a str, got int"),
        ({"response": "a\ud83d"}, "response of row 1 holds half a surrogate pair at character 1"),
        ({"prompt": "\ud83d"}, "prompt of row 1 holds half a surrogate pair"),
        ({"prompt": 0.5}, "prompt of row 1 must be a str, got float"),
        ({"response": None}, "response of row 1 is empty"),
        ({"group": ["a"]}, "group of row 1 must be a name or a number, got list"),
        ({"toxicity": math.inf}, r"toxicity must lie in \[0, 1\], but row 1 has inf"),
        ({"toxicity": {"score": 1}}, "row 1 has {'score': 1}, which is no number"),
    ):
        good = {"prompt": "a", "response": "b", "group": "c", "toxicity": math.nan}
        path.write_text("\n".join(map(json.dumps, (good, good | change))))
        with pytest.raises(ValueError, match=message):
            sl.load_corpus("file", path=path)


def test_of_a_file_of_prompts_its_known_columns_are_kept(tmp_path):
    row = {"text": "a", "id": 1, "domain": "work", "group": 2, "threat": 0.2, "obscene": None}
    path = as_file(tmp_path, "csv", [row])
    assert sl.load_prompts("file", path=path, column="text").to_dict() == {
        "prompt": ["a"], "domain": ["work"], "group": ["2"], "threat": [0.2], "obscene": [None]
    }  # fmt: skip


def test_the_hub_is_read_as_files_are(monkeypatch):
    columns = dict.fromkeys(sl.sources.CIVIL_COMMENTS_ATTRIBUTES, np.array([0.6, 0.1], np.float32))
    hub = Dataset.from_dict({"text": ["a", "b"]} | columns)
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: hub)
    assert sl.load_corpus("civil_comments")["toxicity"][:] == [0.6, 0.1]


def test_what_has_no_meaning_is_refused(tmp_path):
    path = as_file(tmp_path, "csv", [{"response": "a", "toxicity": 0}])
    for load, name in ((sl.load_corpus, "embedded"), (sl.load_prompts, "do-not-answer")):
        with pytest.raises(ValueError, match=f"'{name}' comes with a package; leave path="):
            load(name, path=path)
    with pytest.raises(ValueError, match="columns are for 'file'; corpus 'rtp' has its own"):
        sl.load_corpus("rtp", path=path, columns={"response": "text"})
    with pytest.raises(ValueError, match="max_examples must be a whole number of at least 1"):
        sl.load_corpus("file", path=path, max_examples=0)
    assert len(sl.load_corpus("file", path=path, max_examples=np.int64(1))) == 1


def test_one_column_may_be_read_under_two_names(tmp_path):
    path = as_file(tmp_path, "csv", [{"text": "a", "toxicity": 0}])
    columns = {"prompt": "text", "response": "text"}
    corpus = sl.load_corpus("file", path=path, columns=columns)
    assert (corpus["prompt"][0], corpus["response"][0]) == ("a", "a")
