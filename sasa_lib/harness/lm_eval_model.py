"""The model `sasa` of lm-evaluation-harness: `python -m sasa_lib lm-eval run --model sasa ...`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Self

import torch
from lm_eval._cli import HarnessCLI
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import setup_logging
from tqdm import tqdm

from sasa_lib.decoding.method import PlainSampling
from sasa_lib.decoding.sasa import SASA
from sasa_lib.decoding.steered_likelihood import steered_likelihood
from sasa_lib.harness.steered import load_steered

TASKS = Path(__file__).with_name("lm_eval_tasks")
CANDIDATES = 20  # judged at each step of a likelihood
AT_ONCE = 16  # texts whose likelihoods are taken together, where nobody says


@register_model("sasa")
class SteeredLM(HFLM):
    """A model that is steered in generative tasks and in those that ask for likelihoods.

    Parameters
    ----------
    pretrained : str
        As for `sasa_lib.load_lm`.
    candidates : int
        Judged at each step of a likelihood; see `steered_likelihood`.
    batch_size : int or "auto"
    max_batch_size, device
        As for the model `hf`.
    **arguments
        As for `sasa_lib.harness.steered.load_steered`: beta, form, accept, ...
    """

    def __init__(
        self,
        pretrained: str,
        candidates: int = CANDIDATES,
        batch_size: int | str = 1,
        max_batch_size: int = 64,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        # The harness says cuda:0 where nobody says anything.
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "auto"
        self.steered = load_steered(pretrained, device=device, **arguments)
        super().__init__(
            self.steered.model,
            tokenizer=self.steered.tokenizer,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
        )
        self.candidates = candidates
        if isinstance(self.steered.method, SASA):  # which reads a text's last token, too
            self._max_length = self.max_length - 1

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> Self:
        """Let an argument of the model win over the harness's own of that name, such as device."""
        others = {k: v for k, v in (additional_config or {}).items() if k not in arg_dict}
        return super().create_from_arg_obj(arg_dict, others)

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any
    ) -> torch.Tensor:
        # A temperature of 0 is the harness's word for greedy decoding.
        options["do_sample"] = bool(
            options.pop("do_sample", False) and options.get("temperature") != 0
        )
        if not options["do_sample"]:
            options.pop("temperature", None)
        return self.steered.generate(
            context,
            max_length=max_length,
            stopping_criteria=stop_sequences_criteria(
                self.tokenizer, stop, context.shape[1], len(context)
            ),
            **options,
        )

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        method = self.steered.method
        if isinstance(method, PlainSampling):
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        if not isinstance(method, SASA):
            raise ValueError(
                f"{type(method).__name__} chooses among whole continuations, so it has no "
                "likelihood of a text: take generative tasks, or leave accept and best_of out"
            )
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        order = sorted(range(len(requests)), key=lambda row: len(requests[row][2]))
        size = AT_ONCE if self.batch_size == "auto" else int(self.batch_size)
        for start in tqdm(range(0, len(order), size), "likelihoods", disable=disable_tqdm):
            rows = order[start : start + size]
            contexts, texts = zip(*(requests[row][1:] for row in rows), strict=True)
            # Every row is read for as many steps as the longest; contexts lose their beginning, as
            # those of the model `hf` do.
            room = self.max_length + 1 - max(map(len, texts))
            if room < 1:
                raise ValueError(f"a text exceeds the model's context of {self.max_length} tokens")
            contexts = [context[-room:] for context in contexts]
            found = steered_likelihood(
                method, self.model, self.tokenizer, contexts, texts, candidates=self.candidates
            )
            for row, *answer in zip(rows, *(part.tolist() for part in found), strict=True):
                answers[row] = tuple(answer)
        return answers


def main(arguments: list[str]) -> None:
    """Run lm-evaluation-harness's own command line with this model and these tasks in it."""
    if arguments[:1] not in (["run"], ["ls"], ["validate"], ["-h"], ["--help"], []):
        arguments = ["run", *arguments]  # as the harness itself does
    given = any(argument.partition("=")[0] == "--include_path" for argument in arguments)
    if arguments[:1] in (["run"], ["ls"], ["validate"]) and not given:
        arguments = [*arguments, "--include_path", str(TASKS)]
    sys.argv = ["lm-eval", *arguments]
    setup_logging()
    parser = HarnessCLI()
    parser.execute(parser.parse_args())
