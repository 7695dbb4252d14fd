"""Keep a boundary in a folder with a model card, and share it on the Hugging Face hub."""

from __future__ import annotations

import base64
import json
import tempfile
import warnings
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from string import Template
from typing import Any, Self

import numpy as np
from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sasa_lib.checks import first_line, to_json
from sasa_lib.engine.models import EMBEDDED
from sasa_lib.engine.storage import atomic_file
from sasa_lib.texts.assets import DATA_DIR

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
$made
inputs = tokenizer("He looked at me and said", return_tensors="pt").to(model.device)
options = {"do_sample": True, "top_p": 0.9, "max_new_tokens": 40}
tokens = model.generate(**inputs, custom_generate=sasa, **options)
```
$decoder
## Limits

The boundary imitates the annotators of its training texts and their mistakes, and what lies on its
nontoxic side is not thereby harmless. It says nothing about another model or layer, and little
about languages and kinds of text that it was not fitted on.

## Licence

$licence
""")
MADE = Template('sasa = sl.SASA.from_pretrained("$name"$beta)$settings')
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
    model, beta=1.0, form="margin", scaled=True, max_kl=None, max_candidates=None,
    seed=None, **kwargs
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
    boundary: Shared, folder: Path, *, name: str, license: str | None, decoder: bool,
    settings: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a boundary, its card and, if wanted, its decoder; `name` is how others load it."""
    code = folder / "custom_generate" / "generate.py"
    decoder = decoder or code.is_file()  # one that is there already would keep the old boundary
    boundary.save(folder / FILE)
    (folder / "README.md").write_text(
        str(card(boundary, name=name, license=license, decoder=decoder, settings=settings)),
        encoding="utf-8",
    )
    if decoder:
        content = base64.b64encode((folder / FILE).read_bytes()).decode()
        code.parent.mkdir(exist_ok=True)
        code.write_text(DECODER.substitute(content=content, file=FILE), encoding="utf-8")


def card(
    boundary: Shared, *, name: str, license: str | None, decoder: bool,
    settings: dict[str, Any] | None = None,
) -> ModelCard:  # fmt: skip
    """Return the model card of a boundary, written from what its metadata says.

    `settings` are those of a SASA that are kept beside it.
    """
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
        made=MADE.substitute(
            name=name,
            beta="" if settings else ", beta=1.0",
            settings=f"  # {settings['form']}, beta {settings['beta']:g}" if settings else "",
        ),
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        decoder=DECODER_USE.substitute(name=name) if decoder else "",
        licence=licence,
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}", ignore_metadata_errors=False)


def push(
    boundary: Shared,
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


def locate(
    name: str | Path,
    file: str = FILE,
    *,
    revision: str | None = None,
    token: str | None = None,
    needed: bool = True,
) -> Path | None:
    """Return a boundary's file: in the library, in a folder or, downloaded once, on the hub.

    Where the folder or repository has no such file, it is None unless it is needed.
    """
    folder = DATA_DIR / "boundaries" / name if name in EMBEDDED else Path(name)
    if folder.is_dir():
        if (folder / file).is_file():
            return folder / file
        missing = f"the folder {folder}"
    else:
        try:
            return Path(hf_hub_download(str(name), file, revision=revision, token=token))
        except (OSError, ValueError, HTTPError) as error:
            absent = isinstance(error, EntryNotFoundError)
            if not absent or isinstance(error, LocalEntryNotFoundError):
                raise ValueError(
                    f"cannot load boundary {str(name)!r}: it is neither a folder nor a repository "
                    f"reachable on the hub ({first_line(error)}); with the library come those of "
                    f"{' and '.join(EMBEDDED)}"
                ) from error
            missing = f"the repository {str(name)!r}"
    if needed:
        raise ValueError(f"{missing} has no {file}")
    return None


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _told(metadata: dict[str, Any]) -> dict[str, str]:
    """Lines of the card from what the metadata of a boundary happens to hold."""
    lines = {
        "estimator": "{estimator}",
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
    if metadata.get("covariance", "") is None:  # a logistic regression has none
        del told["covariance"]
    for row in metadata.get("tried", []):
        if row["chosen"]:
            told["chosen by cross-validation"] = (
                f"among {len(metadata['tried'])} combinations of layer, pooling and estimate; "
                f"AUC {row['auc']:.3f}, standard error {row['standard_error']:.3f}"
            )
    return told


class Shared:
    """How a `Boundary` is written and read, here and on the hub."""

    def save(self, path: str | Path) -> None:
        """Write the boundary as safetensors, with all that describes it in the metadata."""
        tensors = {"normal": self.normal, "midpoint": self.midpoint}
        if self.states is not None:
            tensors["states"] = self.states
        names = {one.name for one in fields(self)} - {"normal", "midpoint", "states"}
        facts = {name: getattr(self, name) for name in names}
        with atomic_file(Path(path)) as temporary:
            save_file(tensors, temporary, metadata={"sasa_boundary": to_json(facts)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a boundary that `save` wrote."""
        try:
            with safe_open(path, framework="numpy") as file:
                facts = json.loads((file.metadata() or {})["sasa_boundary"])
                facts |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a saved boundary ({error})") from error
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(facts) - known):
            raise ValueError(
                f"{path} was saved by a later version of sasa_lib, with {unknown[0]!r}: install it"
            )
        try:
            boundary = cls(**facts)
            numbers = [boundary.normal, boundary.midpoint]
            numbers += [boundary.scale, boundary.weight_norm, boundary.slope, boundary.intercept]
            damaged = not all(np.isfinite(number).all() for number in numbers)
        except TypeError as error:
            raise ValueError(f"{path} is not a saved boundary ({error})") from error
        if damaged or boundary.scale <= 0:
            raise ValueError(f"{path} is damaged: it holds numbers that are not finite, or scale 0")
        if boundary.states is None:
            warnings.warn(
                f"{path} knows its model by the name {boundary.model!r} alone, so other weights of "
                "this name go unseen: save boundary.of(model) once",
                stacklevel=2,
            )
        return boundary

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        name: str | None = None,
        license: str | None = None,
        decoder: bool = False,
    ) -> None:
        """Write a folder to share: boundary.safetensors, and a model card as README.md.

        Parameters
        ----------
        folder : str or Path
            Made if absent; files of these names in it are replaced.
        name : str, optional
            How others will load it, for the card: by default the folder.
        license : str, optional
            Identifier such as "apache-2.0" for the card, which names none without it.
        decoder : bool
            Write custom_generate/generate.py too, so that
            ``model.generate(..., custom_generate=folder, trust_remote_code=True, beta=1.0)``
            steers by this boundary wherever `sasa_lib` is installed. If it is there already, it
            is rewritten in any case.
        """
        write(self, Path(folder), name=name or str(folder), license=license, decoder=decoder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        decoder: bool = False,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str = "Upload boundary",
    ) -> str:
        """Upload what `save_pretrained` writes to a model repository of the Hugging Face hub.

        Parameters
        ----------
        repo_id : str
            "owner/name"; made if absent.
        license, decoder
            As in `save_pretrained`.
        private : bool, optional
            Whether a new repository is private; by default as the owner's settings say.
        token : str, optional
            By default the one that the hub's own login keeps.
        commit_message : str

        Returns
        -------
        str
            The address of the commit.
        """
        return push(
            self, repo_id, license=license, decoder=decoder, private=private, token=token,
            commit_message=commit_message,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Read a boundary that comes with the library, from a folder, or from the hub.

        Parameters
        ----------
        name : str or Path
            An embedded model, whose boundary comes with the library, a folder that
            `save_pretrained` wrote, or "owner/name" on the Hugging Face hub.
        revision, token : str, optional
            Branch, tag or commit, and token, for the hub.
        """
        return cls.load(locate(name, revision=revision, token=token))
