"""Log-probs of a prompt under one model of the pair: what the routes of vLLM, SGLang and OpenAI share.

A prompt is token ids, which stay as they are, or a text that is written out, template and all: control tokens
in it are matched, since clients count its tokens with their own tokenizer. Every token but the first has a
log-prob, in nats, at temperature 1.
"""

from __future__ import annotations

import enum
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stepscore.errors import InvalidRecord, UnknownModel
from stepscore.records import TokenRecord
from stepscore.results import Result, TokenResult
from stepscore.scheduling.requests import Request
from stepscore.server.protocols.floats import shortest
from stepscore.server.protocols.solutions import shown
from stepscore.server.routes import Context, Outcome

Prompt = str | list[str | int | list[int]]
"""One or several prompts: a text, texts, token ids, or lists of token ids."""
NO_GENERATION = "this server scores prompts and generates no text"


class Model(enum.StrEnum):
    """A model of the pair, by the id that log-prob routes know it under."""

    POLICY = "policy"
    REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Scored:
    """A prompt of L tokens: ids, the text that each adds, and log-probs [L], nats; the first is None."""

    ids: list[int]
    texts: list[str]
    logprobs: list[float | None]


def model_named(name: str | None) -> Model:
    """Return the model of an id: `policy` or `reference`, or a path that ends so; raise UnknownModel.

    DrSow loads its tokenizer from the id, so a path to the model's folder must be a valid one.
    """
    last = "" if name is None else name.rstrip("/").rpartition("/")[2]
    try:
        return Model(last)
    except ValueError:
        given = "none was given" if name is None else f"{shown(name)} is neither"
        raise UnknownModel(
            f"the model must be `{Model.POLICY}` or `{Model.REFERENCE}` for log-probs: {given}"
        ) from None


def prompt_ids(prompt: str | Sequence[str | int | list[int]], context: Context) -> list[list[int]]:
    """Return the token ids of every prompt; raise InvalidRecord, TooLong.

    The first token of a prompt has no log-prob, so that a prompt has two or more.
    """
    match prompt:
        case str():
            prompts: Sequence[Any] = [prompt]
        case [int(), *_]:
            prompts = [prompt]
        case _:
            prompts = prompt
    if not prompts:
        raise InvalidRecord("the prompt is empty")
    found = []
    for place, each in enumerate(prompts):
        ids = context.encoder.rendered_ids(each) if isinstance(each, str) else each
        if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
            raise InvalidRecord(f"prompt {place} must be a text or a list of token ids, like the others")
        if len(ids) < 2:
            raise InvalidRecord(
                f"prompt {place} has {len(ids)} tokens; the first has no log-prob, so two are needed"
            )
        outside = [token for token in ids if not 0 <= token < context.vocab_size]
        if outside:
            raise InvalidRecord(
                f"token {ids.index(outside[0])} of prompt {place} is {outside[0]}, outside the vocabulary of "
                f"{context.vocab_size} tokens"
            )
        found.append(ids)
    return found


def request(ids: Sequence[int]) -> Request:
    """Return the request that gives a log-prob for every token but the first."""
    return Request(TokenRecord((ids[0],), tuple(ids[1:]), (len(ids) - 2,)))


def scored(outcome: Outcome, model: Model, context: Context, ids: list[int] | None = None) -> Scored:
    """Return the tokens of a prompt with one model's log-probs; of a prompt of token ids, the `ids` sent."""
    assert isinstance(outcome, Result | TokenResult)
    policy = model is Model.POLICY
    values = outcome.policy_logprobs if policy else outcome.reference_logprobs
    assert values is not None
    if isinstance(outcome, Result):
        assert outcome.token_ids is not None
        ids = outcome.token_ids.tolist()
    assert ids is not None
    return Scored(ids, context.encoder.texts(ids), [None, *shortest(values)])


def prompt_logprobs(prompt: Scored) -> list[dict[str, dict[str, object]] | None]:
    """Return vLLM's `prompt_logprobs`: null, then for each token {id: {logprob, rank, decoded_token}}.

    `rank` is null: the log-probs of other tokens are not computed.
    """
    rows = zip(prompt.ids, prompt.texts, prompt.logprobs, strict=True)
    named: list[dict[str, dict[str, object]] | None] = [
        {str(token): {"logprob": value, "rank": None, "decoded_token": text}}
        for token, text, value in islice(rows, 1, None)
    ]
    return [None, *named]


def check_most(name: str, most: int | None, limit: int = 1) -> None:
    """Raise InvalidRecord for a number of tokens to generate, or of alternatives, above `limit`."""
    if most is not None and not 0 <= most <= limit:
        raise InvalidRecord(f"`{name}` is {most}: {NO_GENERATION}", hint=f"set `{name}` to {limit} or 0")


def envelope(kind: str, prefix: str, model: str) -> dict[str, object]:
    """Return the fields that every reply of an OpenAI-like route begins with."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(num_tokens: int) -> dict[str, int]:
    """Return the usage of a call that generates nothing."""
    return {"prompt_tokens": num_tokens, "completion_tokens": 0, "total_tokens": num_tokens}
