"""Keep a boundary in a folder with a model card, and share it on the Hugging Face hub."""

from __future__ import annotations

import base64
import tempfile
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from sasa_lib.checks import first_line

if TYPE_CHECKING:
    from sasa_lib.boundary import Boundary

FILE = "boundary.safetensors"
# Under which id the hub knows the models that need no hub.
ON_THE_HUB = {
    "gemma3-270m": "google/gemma-3-270m",
    "smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
CARD = Template("""\
# A boundary in the embeddings of $model

It separates nontoxic from toxic texts in the language model's own hidden states, for
self-disciplined autoregressive sampling (SASA, [Ko et al. 2025](https://arxiv.org/abs/2410.03818))
by the library `sasa_lib`.

| | |
|---|---|
$facts

## Use it

```python
import sasa_lib as sl
model, tokenizer = sl.load_lm("$model")
boundary = sl.Boundary.from_pretrained("$name")
inputs = tokenizer("He looked at me and said", return_tensors="pt").to(model.device)
options = {"do_sample": True, "top_k": 10, "top_p": 0.9, "max_new_tokens": 40}
tokens = model.generate(**inputs, custom_generate=sl.SASA(boundary, beta=1.0), **options)
```
$decoder
## Limits

The boundary imitates the annotators of its training texts and their mistakes, and what lies on its
nontoxic side is not thereby harmless. It says nothing about another model or layer, and little
about languages and kinds of text that it was not fitted on.

## Licence

$licence
""")
DECODER_USE = Template("""
Or, where `sasa_lib` is installed, without importing it:

```python
model.generate(**inputs, custom_generate="$name", trust_remote_code=True, beta=1.0, **options)
```
""")
# transformers copies this file alone to a folder of its own and runs it there, so it has to bring
# the boundary along.
DECODER = Template('''\
"""Self-disciplined autoregressive sampling, away from the boundary of this repository."""

import base64
import tempfile
from pathlib import Path

import sasa_lib

# The content of $file in base 64: transformers copies this file alone.
BOUNDARY = "$content"


def generate(
    model, beta=1.0, form="margin", scaled=True, max_kl=None, max_candidates=50, seed=None, **kwargs
):
    """Continue a prompt; see `sasa_lib.SASA`, and `model.generate` for all other arguments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "$file"
        path.write_bytes(base64.b64decode(BOUNDARY))
        boundary = sasa_lib.Boundary.load(path)
    sasa = sasa_lib.SASA(
        boundary, beta, form=form, scaled=scaled, max_kl=max_kl, max_candidates=max_candidates,
        seed=seed,
    )
    return model.generate(custom_generate=sasa, **kwargs)
''')


def write(
    boundary: Boundary, folder: Path, *, name: str, license: str | None, decoder: bool
) -> None:
    """Write a boundary, its card and, if wanted, its decoder; `name` is how others load it."""
    code = folder / "custom_generate" / "generate.py"
    decoder = decoder or code.is_file()  # one that is there already would keep the old boundary
    boundary.save(folder / FILE)
    (folder / "README.md").write_text(
        str(card(boundary, name=name, license=license, decoder=decoder)), encoding="utf-8"
    )
    if decoder:
        content = base64.b64encode((folder / FILE).read_bytes()).decode()
        code.parent.mkdir(exist_ok=True)
        code.write_text(DECODER.substitute(content=content, file=FILE), encoding="utf-8")


def card(boundary: Boundary, *, name: str, license: str | None, decoder: bool) -> ModelCard:
    """Return the model card of a boundary, written from what its metadata says."""
    facts = {
        "base model": boundary.model,
        "layer": f"{boundary.layer} (0 is the token embeddings)",
        "pooling": boundary.pooling,
        **_told(boundary.metadata),
    }
    base = ON_THE_HUB.get(boundary.model, boundary.model)
    data = ModelCardData(
        base_model=base if _is_repository(base) else None,
        library_name="sasa_lib",
        license=license,
        tags=["sasa", "detoxification", "text-generation"],
    )
    if license:
        licence = f"`{license}`, as the publisher chose."
    else:
        licence = (
            "None is given here: the publisher chooses one that those of the language model and\n"
            "of the training texts allow."
        )
    text = CARD.substitute(
        model=boundary.model,
        name=name,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        decoder=DECODER_USE.substitute(name=name) if decoder else "",
        licence=licence,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)


def push(
    boundary: Boundary,
    repo_id: str,
    *,
    license: str | None,
    decoder: bool,
    private: bool | None,
    token: str | None,
    commit_message: str,
) -> str:
    """Upload what `write` writes; return the address of the commit."""
    try:
        hub = HfApi(token=token)
        hub.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            write(boundary, Path(temporary), name=repo_id, license=license, decoder=decoder)
            commit = hub.upload_folder(
                repo_id=repo_id, folder_path=temporary, commit_message=commit_message
            )
    except (OSError, ValueError, HTTPError) as error:
        reason = first_line(error)
        raise ValueError(f"cannot push the boundary to {repo_id!r} ({reason})") from error
    return commit.commit_url


def locate(name: str | Path, *, revision: str | None, token: str | None) -> Path:
    """Return the file of a boundary in a folder or, downloaded the first time, on the hub."""
    if Path(name).is_dir():
        path = Path(name) / FILE
        if not path.is_file():
            raise ValueError(f"the folder {name} has no {FILE}")
        return path
    try:
        return Path(hf_hub_download(str(name), FILE, revision=revision, token=token))
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise ValueError(f"the repository {str(name)!r} has no {FILE}") from error
        raise ValueError(
            f"cannot load boundary {str(name)!r}: it is neither a folder nor a repository "
            f"reachable on the hub ({first_line(error)})"
        ) from error


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _told(metadata: dict[str, Any]) -> dict[str, str]:
    """Lines of the card from what the metadata of a boundary happens to hold."""
    lines = {
        "covariance": "{covariance}",
        "value": "{attribute} above {threshold}",
        "training texts": "{n_nontoxic} nontoxic, {n_toxic} toxic",
        "AUC on them": "{training_auc:.3f}",
        "AUC on held-out texts": "{held_out_auc:.3f}",
        "fitted by": "sasa_lib {sasa_lib}",
    }
    told = {}
    for what, line in lines.items():
        with suppress(KeyError):
            told[what] = line.format(**metadata)
    for row in metadata.get("tried", []):
        if row["chosen"]:
            told["chosen by cross-validation"] = (
                f"among {len(metadata['tried'])} combinations of layer, pooling and covariance; "
                f"AUC {row['auc']:.3f}, standard error {row['standard_error']:.3f}"
            )
    return told
