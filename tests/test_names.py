"""Every public name of release 0.1 still imports, and notebooks and docs use no old one."""

import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import sasa_lib as sl
from sasa_lib import _moved

PROJECT = Path(__file__).resolve().parent.parent
OF_RELEASE = {
    "sasa_lib": "SASA AssetError BestOf Boundary SASALogitsProcessor agreement baselines boundary "
    "budget corpora decoding embeddings fetch load_corpus load_lm load_prompts load_scorer "
    "mask_text metrics places plots runs values",
    "sasa_lib.agreement": "Agreement PerspectiveScale agreement",
    "sasa_lib.assets": "ASSETS AssetError DATA_DIR File cache_dir fetch made_once",
    "sasa_lib.baselines": "RAD RewardModel SelfDebiasing WordFilter fine_tune_reward train_reward "
    "word_list",
    "sasa_lib.best_of": "BestOf",
    "sasa_lib.boundary": "Boundary COVARIANCES learning_curve prefix_auc",
    "sasa_lib.budget": "calibrate relative_perplexity",
    "sasa_lib.cluster": "ENGINES ModelCopy Pool pool",
    "sasa_lib.corpora": "ATTRIBUTES CIVIL_COMMENTS_ATTRIBUTES DOMAINS EMBEDDED attributes chat "
    "fingerprint labelled load_corpus load_prompts sample_groups split",
    "sasa_lib.decoding": "FORMS PlainSampling SASA SASALogitsProcessor divergence",
    "sasa_lib.embeddings": "POOLINGS anisotropy check_layer extract hidden_states token_states",
    "sasa_lib.exercises": "check_anisotropy check_auc check_bootstrap check_distinct check_kl",
    "sasa_lib.explorer": "Exploration Explorer explore",
    "sasa_lib.metrics": "at_matched_perplexity bootstrap_interval cost distinct_n "
    "expected_max_toxicity first_difference gap_change group_toxic_rates judged mean_toxicity "
    "negative_log_likelihoods on_common_prompts paired_difference path_divergence peak_memory "
    "perplexity perplexity_ratio refusals score_matrix summarise toxic_rate toxic_rate_gap "
    "with_interval",
    "sasa_lib.models": "EMBEDDED context_length language_model load_lm",
    "sasa_lib.phrases": "Phrases",
    "sasa_lib.places": "atomic_file place store",
    "sasa_lib.plots": "MARKERS NONTOXIC SERIES TOXIC budgets calibration cost decoding_step "
    "explained fronts geometry groups heat_maps layers learning_curve listed_words "
    "margin_against_value method_cost prefixes roc save set_style strengths subspaces "
    "toxicity_and_refusals trade_off traded",
    "sasa_lib.repeated": "RepeatedPhrases obstacle",
    "sasa_lib.runs": "Sampling generate read",
    "sasa_lib.scorers": "MINILM_HEAD SCORERS Scorer ScorerError hf_scorer load_minilm load_scorer "
    "mask_text minilm_logit minilm_states perspective_scorer sentence_embeddings",
    "sasa_lib.selection": "candidate_layers cross_validate grouped_folds",
    "sasa_lib.sharing": "card locate",
    "sasa_lib.text_map": "TextMap",
    "sasa_lib.values": "correlations cosines fit_values interference measured",
}


@pytest.mark.parametrize("module", OF_RELEASE)
@pytest.mark.filterwarnings("default:.*the old name goes:FutureWarning")
def test_every_public_name_of_the_first_release_imports(module):
    for name in OF_RELEASE[module].split():
        assert getattr(import_module(module), name) is not None
        if module != "sasa_lib" and hasattr(sl, module.partition(".")[2]):
            assert getattr(getattr(sl, module.partition(".")[2]), name) is not None


def test_an_old_name_says_what_it_is_now():
    with pytest.warns(FutureWarning, match=r"metrics\.judged is judging\.judged now"):
        assert sl.metrics.judged is sl.judging.judged
    with pytest.warns(FutureWarning, match=r"sasa_lib\.places is sasa_lib\.engine\.storage now"):
        assert _moved._Moved().exec_module(type(sl)("sasa_lib.places")) is None


def test_every_name_that_is_handed_out_is_there():
    rooms = [getattr(sl, room) for room in sl.ROOMS]
    for module in (sl, *rooms, sl.baselines, sl.scorers, sl.plots):
        for name in module.__all__:
            assert getattr(module, name) is not None


PAGES = [
    *PROJECT.glob("notebooks/*.ipynb"), *PROJECT.glob("notebooks/solutions/*.*"),
    *PROJECT.glob("docs/*.md"), PROJECT / "README.md", PROJECT / "CONTRIBUTING.md",
]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_pages_and_notebooks_name_is_there_under_that_name(page):
    text = page.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        for module, name in re.findall(r"\bsl\.([a-z_]+)\.(\w+)", text):
            getattr(getattr(sl, module), name)
        for name in re.findall(r"\bsl\.(\w+)", text):
            getattr(sl, name)
        for module, name in re.findall(r"from (sasa_lib[\w.]*) import (\w+)", text):
            getattr(import_module(module), name, None) or import_module(f"{module}.{name}")
        for path in re.findall(r"`sasa_lib/([\w/]+\.py)`", text):
            assert (PROJECT / "sasa_lib" / path).is_file(), path


def test_what_notebooks_alone_need_is_named_with_what_installs_it():
    code = """
import sys
sys.modules["matplotlib"] = None
import sasa_lib as sl
sl.SASA, sl.metrics
try:
    sl.plots
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "course.plots needs matplotlib, which is not installed" in done.stdout
    assert "pip install 'sasa-lib[notebooks]'" in done.stdout


def test_importing_the_library_imports_nothing_heavy():
    code = """
import sys
import sasa_lib
print(sorted({"torch", "transformers", "pandas", "numpy", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metrics_and_the_judge_come_without_the_rest():
    code = """
import sys
import sasa_lib as sl
sl.metrics.toxic_rate([[0.2, 0.7]])
print("torch" in sys.modules)
judge = sl.load_scorer("minilm")
assert judge(["have a nice day"])[0] < 0.1
rooms = {name.split(".")[1] for name in sys.modules if name.startswith("sasa_lib.")}
print(sorted({"datasets", "sklearn", "ray", "matplotlib", "peft"} & set(sys.modules)))
print(sorted(rooms & {"subspace", "decoding", "course"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "[]", "[]"]
