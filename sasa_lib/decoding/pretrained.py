"""SASA kept in a folder with its boundary, and read from there, the hub or the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from sasa_lib.engine.storage import atomic_file
from sasa_lib.subspace import sharing
from sasa_lib.subspace.boundary import Boundary

FILE = "sasa.json"
SETTINGS = ("beta", "form", "scaled", "phrase", "decay", "max_kl", "max_candidates")


class Pretrained:
    """How `SASA` is written and read."""

    def save_pretrained(
        self, folder: str | Path, *, name: str | None = None, license: str | None = None
    ) -> None:
        """Write a folder to share: the boundary with its card, and sasa.json with the settings.

        Parameters
        ----------
        folder : str or Path
            Made if absent; files of these names in it are replaced.
        name, license : str, optional
            For the card, see `Boundary.save_pretrained`.
        """
        if len(self.pairs) > 1:
            raise ValueError(
                "a folder holds one boundary: save each of several with its own SASA, and give "
                "SASA the pairs (boundary, beta) again"
            )
        settings = {setting: getattr(self, setting) for setting in SETTINGS}
        folder = Path(folder)
        sharing.write(
            self.pairs[0][0], folder, name=name or str(folder), license=license, decoder=False,
            settings=settings,
        )  # fmt: skip
        with atomic_file(folder / FILE) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        **settings: Any,
    ) -> Self:
        """Read a boundary with its recommended settings.

        Parameters
        ----------
        name : str or Path
            An embedded model, whose boundary comes with the library ("smollm2-135m-instruct",
            "gemma3-270m"), a folder that `save_pretrained` wrote, or "owner/name" on the hub.
        revision, token : str, optional
            Branch, tag or commit, and token, for the hub.
        **settings
            Of `SASA`, in place of those recommended, such as beta or seed.

        Raises
        ------
        ValueError
            There is a boundary without settings, and no beta is given.
        """
        boundary = Boundary.from_pretrained(name, revision=revision, token=token)
        path = sharing.locate(
            name, FILE, revision=revision, token=token, needed="beta" not in settings
        )
        recommended = {} if path is None else _read(path)
        return cls(boundary, **recommended | settings)


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        unknown = sorted(set(settings) - set(SETTINGS))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} does not hold the settings of a SASA ({error})") from error
    if unknown:
        raise ValueError(f"{path} has a setting that this version does not know: {unknown[0]!r}")
    return settings
