"""The model provider `sasa` of Inspect AI: `inspect eval TASK --model sasa/NAME -M beta=4`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from inspect_ai.model import (
    ChatMessage,
    Content,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

if TYPE_CHECKING:
    from sasa_lib.harness.steered import Steered

CONTINUE = {"continue": True}  # metadata of a message that is no turn of a chat, but a text
READ = ("text", "reasoning")  # parts of a message that a text model is given
GATHER = 0.05  # seconds in which requests gather to a batch
MAX_TOKENS = 256  # where a task does not say
REFUSED = (
    "logprobs", "num_choices", "frequency_penalty", "presence_penalty", "logit_bias", "best_of",
    "response_schema",
)  # fmt: skip


@dataclass(eq=False)
class Request:
    """A prompt that waits for its batch."""

    prompt: str
    place: int | None  # which continuation of its prompt it is, where a task says so
    done: anyio.Event = field(default_factory=anyio.Event)
    answer: ModelOutput | Exception | None = None


class SteeredAPI(ModelAPI):
    """A local model, steered while it decodes; requests are batched."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  as Inspect has it
        batch_size: int = 32,
        **model_args: Any,
    ) -> None:
        from sasa_lib.harness.steered import load_steered

        super().__init__(model_name, base_url, api_key, [], config)
        if config.seed is not None:
            model_args.setdefault("seed", config.seed)
        self.seed = model_args.get("seed", 0)
        self.steered: Steered = load_steered(model_name, **model_args)
        self.batch_size = batch_size
        self._waiting: dict[str, list[Request]] = {}  # by the options that they share
        self._one_at_a_time = anyio.Lock()

    def max_connections(self) -> int:
        """Requests that Inspect makes at once: a batch and one that gathers behind it."""
        return 2 * self.batch_size

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one request, in a batch with whatever else asks for the same options."""
        if tools:
            raise ValueError("the provider sasa calls no tools")
        if config.seed not in (None, self.seed):
            raise ValueError(f"the provider sasa has the seed {self.seed}: give -M seed=...")
        options = options_of(config)
        request = Request(self.prompt(input), (input[-1].metadata or {}).get("place"))
        waiting = self._waiting.setdefault(repr(options), [])
        waiting.append(request)
        await anyio.sleep(GATHER)
        async with self._one_at_a_time:
            while not request.done.is_set():  # it takes others along, as one may have taken it
                batch = waiting[: self.batch_size]
                del waiting[: len(batch)]
                # The others must have their answers even where this one is given up.
                with anyio.CancelScope(shield=True):
                    await self._answer(batch, options)
        if isinstance(request.answer, Exception):
            raise request.answer
        return request.answer

    def prompt(self, messages: list[ChatMessage]) -> str:
        """Write messages as the model reads them: by its chat template, or as one text to go on."""
        if len(messages) == 1 and (messages[0].metadata or {}).get("continue"):
            return messages[0].text
        if any(part.type not in READ for message in messages for part in parts_of(message)):
            raise ValueError("the provider sasa reads text alone, no images, sounds or documents")
        from sasa_lib.texts.prompts import rendered

        turns = [{"role": message.role, "content": message.text} for message in messages]
        return rendered(turns, self.steered.tokenizer)

    async def _answer(self, batch: list[Request], options: dict[str, Any]) -> None:
        try:
            answers = await anyio.to_thread.run_sync(self._continued, batch, options)
        except Exception as error:  # Inspect says of which samples
            answers = [error] * len(batch)
        for request, answer in zip(batch, answers, strict=True):
            request.answer = answer
            request.done.set()

    def _continued(
        self, batch: list[Request], options: dict[str, Any]
    ) -> list[ModelOutput | ValueError]:
        from sasa_lib.engine.tokens import continuations, left_padded
        from sasa_lib.evaluation.sampling import prompt_tokens

        model, tokenizer = self.steered.model, self.steered.tokenizer
        prompts = [request.prompt for request in batch]
        tokens, faults = prompt_tokens(model, tokenizer, prompts, options["max_new_tokens"])
        answers: list[ModelOutput | ValueError] = [ModelOutput() for _ in batch]
        for row, fault in faults.items():
            answers[row] = ValueError(fault.replace(f"prompt {row}", "the prompt", 1))
        rows = [row for row in range(len(batch)) if row not in faults]
        if not rows:
            return answers
        ids, mask = left_padded(tokenizer, [tokens[prompts[row]] for row in rows])
        ids, mask = ids.to(model.device), mask.to(model.device)
        extra = {"tokenizer": tokenizer} if "stop_strings" in options else {}
        places = [batch[row].place for row in rows]
        sequences = self.steered.generate(ids, places, attention_mask=mask, **options, **extra)
        texts = continuations(tokenizer, ids, sequences)
        new = sequences[:, ids.shape[1] :]
        ends = model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        for row, text, tokens_of in zip(rows, texts, new, strict=True):
            used = int((tokens_of != tokenizer.pad_token_id).sum())
            read = len(tokens[prompts[row]])
            whole = used == options["max_new_tokens"] and int(tokens_of[-1]) not in ends
            answers[row] = ModelOutput.from_content(
                self.model_name, text, stop_reason="max_tokens" if whole else "stop"
            )
            answers[row].usage = ModelUsage(
                input_tokens=read, output_tokens=used, total_tokens=read + used
            )
        return answers


def parts_of(message: ChatMessage) -> list[Content]:
    """What a message is made of."""
    content = message.content
    return [ContentText(text=content)] if isinstance(content, str) else content


def options_of(config: GenerateConfig) -> dict[str, Any]:
    """Options of `generate` that Inspect's settings ask for; refuses those that cannot be had."""
    for name in REFUSED:
        if getattr(config, name):
            raise ValueError(f"the provider sasa does not know {name!r}: leave it out")
    options: dict[str, Any] = {"max_new_tokens": config.max_tokens or MAX_TOKENS}
    options["do_sample"] = config.temperature != 0
    if options["do_sample"]:
        options |= {
            "temperature": 1.0 if config.temperature is None else config.temperature,
            "top_k": config.top_k or 0,
            "top_p": 1.0 if config.top_p is None else config.top_p,
        }
    if config.stop_seqs:
        options["stop_strings"] = config.stop_seqs
    return options


@modelapi(name="sasa")
def sasa() -> type[ModelAPI]:
    """Register the provider."""
    return SteeredAPI
