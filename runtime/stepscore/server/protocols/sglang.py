"""SGLang's /generate with `return_logprob`: log-probs of prompts under one model, as a teacher gives them.

The body names no model: /generate is the policy, /policy/generate and /reference/generate are either. Nothing
is generated, so `max_new_tokens` is 0 or 1 and the output is empty.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from stepscore.errors import InputError, InvalidRecord
from stepscore.scheduling.requests import Request
from stepscore.server.protocols.logprobs import NO_GENERATION, Model, check_most, prompt_ids, request, scored
from stepscore.server.protocols.solutions import refuse
from stepscore.server.routes import Context, Outcome, Route

NO_ALTERNATIVES = "log-probs of other tokens than the prompt's are not computed"


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling parameters; those that only shape a generation have no effect."""

    max_new_tokens: int | None = None
    n: int = 1


class Generate(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /generate: `text` or `input_ids`, one prompt or several."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: Sampling | list[Sampling] = msgspec.field(default_factory=Sampling)
    return_logprob: bool = False
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    token_ids_logprob: list[Any] | None = None
    return_text_in_logprobs: bool = False
    stream: bool = False
    image_data: Any = None
    input_embeds: Any = None
    lora_path: Any = None

    @property
    def is_batch(self) -> bool:
        """Return whether the answer is a list: several prompts were sent, though it be a list of one."""
        match self.text, self.input_ids:
            case list(), _:
                return True
            case None, [list(), *_]:
                return True
        return False


def _prompts(body: Generate, context: Context) -> list[list[int]]:
    match body.text, body.input_ids:
        case (prompt, None) | (None, prompt) if prompt is not None:
            return prompt_ids(prompt, context)
    raise InvalidRecord("give `text` or `input_ids`, and not both")


def _requests(body: Generate, context: Context) -> list[Request | InputError]:
    refuse({"stream": body.stream}, NO_GENERATION)
    refuse({"image_data": body.image_data, "input_embeds": body.input_embeds}, "only text is scored")
    refuse({"lora_path": body.lora_path}, "the models are those of the pair")
    refuse(
        {"top_logprobs_num": body.top_logprobs_num, "token_ids_logprob": body.token_ids_logprob},
        NO_ALTERNATIVES,
    )
    several = body.sampling_params if isinstance(body.sampling_params, list) else [body.sampling_params]
    for params in several:
        if params.max_new_tokens is None:
            raise InvalidRecord(
                "`sampling_params.max_new_tokens` is missing, which means 128", hint="set it to 0"
            )
        check_most("sampling_params.max_new_tokens", params.max_new_tokens)
        refuse({"sampling_params.n": params.n != 1}, NO_GENERATION)
    if not body.return_logprob or body.logprob_start_len is None or body.logprob_start_len < 0:
        raise InvalidRecord(
            f"`return_logprob` and a `logprob_start_len` of 0 or more are needed: {NO_GENERATION}",
            hint='send "return_logprob": true, "logprob_start_len": 0',
        )
    prompts = _prompts(body, context)
    for place, ids in enumerate(prompts):
        if body.logprob_start_len >= len(ids):
            raise InvalidRecord(
                f"`logprob_start_len` is {body.logprob_start_len}, but prompt {place} has {len(ids)} tokens"
            )
    return [request(ids) for ids in prompts]


def _answer(body: Generate, outcomes: list[Outcome], context: Context, model: Model) -> object:
    prompts = _prompts(body, context)
    replies = [
        _reply(body, outcome, ids, context, model) for ids, outcome in zip(prompts, outcomes, strict=True)
    ]
    return replies if body.is_batch else replies[0]


def _reply(
    body: Generate, outcome: Outcome, ids: list[int], context: Context, model: Model
) -> dict[str, object]:
    """Return one reply: of the tokens from `logprob_start_len` on the first has null, as in SGLang."""
    prompt = scored(outcome, model, context, ids)
    texts = prompt.texts if body.return_text_in_logprobs else [None] * len(ids)
    start = body.logprob_start_len or 0
    rows = list(zip(prompt.logprobs, prompt.ids, texts, strict=True))[start:]
    return {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "id": uuid.uuid4().hex,
            "model": model.value,
            "finish_reason": {"type": "length", "length": 0},
            "prompt_tokens": len(ids),
            "completion_tokens": 0,
            "cached_tokens": 0,
            "input_token_logprobs": [[None, *rows[0][1:]], *map(list, rows[1:])],
            "output_token_logprobs": [],
        },
    }


def _route(path: str, model: Model) -> Route[Generate]:
    def answer(body: Generate, outcomes: list[Outcome], context: Context) -> object:
        return _answer(body, outcomes, context, model)

    return Route(
        path=path,
        body=Generate,
        requests=_requests,
        answer=answer,
        lists=("text", "input_ids"),
        summary=f"SGLang's generate with return_logprob: log-probs of prompts under the {model.value}.",
    )


ROUTES = (
    _route("/generate", Model.POLICY),
    *(_route(f"/{model.value}/generate", model) for model in Model),
)
