"""Every causal family of transformers: decoded as transformers does, or refused in a sentence."""

from pathlib import Path

import pytest
import torch
from families import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    NAMES,
    READ_ANEW,
    READ_WITH_CACHE,
    TOLERANCE,
    UNTESTED,
    build,
    check_embeddings,
    decoded,
    forced,
    layers,
    off,
    sample,
)

from sasa_lib.decoding import PlainSampling
from sasa_lib.engine.identity import model_digest

pytestmark = pytest.mark.filterwarnings("ignore")
TABLE = Path(__file__).resolve().parents[2] / "docs" / "families.md"


def test_every_family_is_tested_or_named_with_its_reason():
    tested = {name for name in NAMES if " " not in name}  # else a variant, or with images
    assert tested | set(UNTESTED) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_decoded_as_transformers_does(name):
    assert decoded(name).ways.keys() | decoded(name).refused.keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_boundary_is_fitted_on_the_states_that_decoding_reads(name):
    for layer in decoded(name).ways:
        check_embeddings(name, layer)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_leaves_nothing_that_a_key_depends_on(name):
    assert decoded(name)
    assert model_digest(build(name)) == model_digest(build.__wrapped__(name))


@pytest.mark.parametrize("name", [*READ_ANEW, *READ_WITH_CACHE])
def test_transformers_itself_differs_with_and_without_its_cache(name):
    tokens = torch.randint(3, 50, (3, 4))
    candidates = torch.randint(3, 50, (3, 4, 2))
    (cached, _), (anew, _) = (
        forced(name, tokens, candidates, layers(build(name))[0], use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert off(cached, anew) > 5 * TOLERANCE


@pytest.mark.parametrize("name", UNTESTED)
def test_what_is_not_tested_cannot_be(name):
    with pytest.raises((AttributeError, ImportError, ValueError)):
        build(name)
        sample(name, PlainSampling(0))


def test_the_docs_name_all_that_is_tested_and_all_that_is_not():
    assert [name for name, _ in rows()] == [*NAMES, *UNTESTED]


@pytest.mark.parametrize("name", NAMES)
def test_the_docs_say_how_candidates_are_computed(name):
    assert dict(rows())[name] == decoded(name).way, "run studies/families.py"


def rows():
    """Names and second columns of the tables."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return [(line.split("`")[1], line.split("|")[2].strip()) for line in lines]
