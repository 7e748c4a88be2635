"""OpenAI-like routes: log-probs under `policy` and `reference`, and nothing that looks like a generation."""

from __future__ import annotations

from math import log1p
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.protocol_calls import ProtocolCalls

from stepscore.errors import InputError, InvalidRecord, UnknownModel
from stepscore.records import Record, TokenRecord
from stepscore.scheduling.requests import Request
from stepscore.server.protocols.openai import OTHERS_AT_MOST, _top

IDS = [5, 6, 7, 8]
LM_EVAL: dict[str, Any] = {
    "model": "policy",
    "prompt": [IDS, IDS[:3]],
    "temperature": 0,
    "max_tokens": 1,
    "logprobs": 1,
    "seed": 1234,
    "echo": True,
}
"""Exactly what lm-eval's local-completions posts for log-likelihoods."""
MESSAGES = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "One.\n\nTwo."}]
DRSOW: dict[str, Any] = {
    "model": "policy",
    "messages": MESSAGES,
    "max_completion_tokens": 1,
    "temperature": 0.0,
    "stop": None,
    "top_p": 0.85,
    "top_k": 50,
    "prompt_logprobs": True,
    "add_generation_prompt": False,
}
"""Exactly what reward_hub's DrSow posts."""


# Completions


def test_lm_eval_reads_the_log_likelihood_of_every_continuation(call: ProtocolCalls) -> None:
    (result,) = call.scorer.score_ids([TokenRecord(tuple(IDS[:2]), tuple(IDS[2:]))])
    for model, values in (("policy", result.policy_logprobs), ("reference", result.reference_logprobs)):
        choices = call("/v1/completions", LM_EVAL | {"model": model})["choices"]
        assert [choice["index"] for choice in choices] == [0, 1]
        assert sum(choices[0]["logprobs"]["token_logprobs"][2:-1]) == pytest.approx(values.sum(), abs=1e-5)
        assert sum(choices[1]["logprobs"]["token_logprobs"][2:-1]) == pytest.approx(values[0], abs=1e-5)


def test_every_list_has_an_entry_for_every_token_and_one_that_stands_for_the_next(
    call: ProtocolCalls,
) -> None:
    for most in (0, 1):
        choice = call("/v1/completions", LM_EVAL | {"prompt": IDS, "max_tokens": most})["choices"][0]
        logprobs = choice["logprobs"]
        assert {len(logprobs[name]) for name in logprobs} == {4 + most}
        assert logprobs["token_logprobs"][0] is None
        assert "".join(logprobs["tokens"]) == choice["text"]
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"].startswith(token, offset)
    assert logprobs["tokens"][-1] == ""
    assert logprobs["token_logprobs"][-1] is logprobs["top_logprobs"][-1] is None


@given(st.floats(-50, 0))
def test_a_token_seems_the_top_one_only_where_no_other_can_be(value: float) -> None:
    top = _top("a", value, 1)
    assert top["a"] == value
    assert (max(top.values()) == value) == (np.exp(value) >= 0.5)
    if value < -1e-3:
        assert top[OTHERS_AT_MOST] == pytest.approx(log1p(-np.exp(value)))
    assert _top("a", value, 0) == {"a": value}


def test_a_text_prompt_has_the_log_probs_of_its_ids(call: ProtocolCalls) -> None:
    text = call.render("1 + 1?", "2")
    ids = call.context.encoder.rendered_ids(text)
    replies = [call("/v1/completions", LM_EVAL | {"prompt": prompt}) for prompt in (text, [text], ids, [ids])]
    for reply in replies:
        assert reply["choices"][0]["logprobs"] == replies[0]["choices"][0]["logprobs"]
        assert reply["choices"][0]["text"] == text
        assert reply["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}


def test_prompt_log_probs_of_a_completion_are_those_of_its_echo(call: ProtocolCalls) -> None:
    body = LM_EVAL | {"prompt": IDS, "echo": False, "logprobs": None, "prompt_logprobs": 0}
    (choice,) = call("/v1/completions", body)["choices"]
    echoed = call("/v1/completions", LM_EVAL | {"prompt": IDS})["choices"][0]["logprobs"]["token_logprobs"][
        :-1
    ]
    assert choice["text"] == ""
    assert choice["prompt_logprobs"][0] is None
    for token, row, value in zip(IDS[1:], choice["prompt_logprobs"][1:], echoed[1:], strict=True):
        assert row == {
            str(token): {"logprob": value, "rank": None, "decoded_token": row[str(token)]["decoded_token"]}
        }


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"model": "pair"}, UnknownModel, "`policy` or `reference` for log-probs: 'pair' is neither"),
        ({"model": None}, UnknownModel, "none was given"),
        ({"max_tokens": None}, InvalidRecord, "which means 16"),
        ({"max_tokens": 2}, InvalidRecord, "`max_tokens` is 2"),
        ({"logprobs": 5}, InvalidRecord, "`logprobs` is 5"),
        ({"echo": False}, InvalidRecord, "`echo` with `logprobs`"),
        ({"logprobs": None}, InvalidRecord, "`echo` with `logprobs`"),
        ({"stream": True}, InvalidRecord, "`stream`"),
        ({"n": 2}, InvalidRecord, "`n`"),
        ({"suffix": "a"}, InvalidRecord, "`suffix`"),
        ({"prompt": []}, InvalidRecord, "the prompt is empty"),
        ({"prompt": ["", "a"]}, InvalidRecord, "prompt 0 has 0 tokens"),
        ({"prompt": [[5, 6], "ab", 5]}, InvalidRecord, "prompt 2 must be a text or a list"),
    ],
)
def test_a_generation_is_refused(
    call: ProtocolCalls, changed: dict[str, Any], kind: type[InputError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call("/v1/completions", LM_EVAL | changed)


def test_the_last_part_of_a_path_names_the_model(call: ProtocolCalls) -> None:
    for name in ("reference", "models/pair/reference", "models/pair/reference/"):
        reply = call("/v1/completions", LM_EVAL | {"model": name})
        assert reply["model"] == name
        assert reply["choices"][0] == call("/v1/completions", LM_EVAL | {"model": "reference"})["choices"][0]


# Chat


def drsow_reads(reply: dict[str, Any]) -> tuple[list[str], list[int], list[float]]:
    """What reward_hub takes from a reply."""
    assert reply["choices"][0]["message"]["content"] == ""
    assert reply["choices"][0]["stop_reason"] is None
    rows = [next(iter(row.items())) for row in reply["prompt_logprobs"] if row is not None]
    return (
        [row["decoded_token"] for _, row in rows],
        [int(token) for token, _ in rows],
        [row["logprob"] for _, row in rows],
    )


def test_drsow_reads_both_models_from_one_server(call: ProtocolCalls) -> None:
    record = Record("1 + 1?", ("One.", "Two."))
    (result,) = call.scheduler.submit([Request(record, tokens=True)]).done.result()
    for model, values in (("policy", result.policy_logprobs), ("reference", result.reference_logprobs)):
        texts, ids, logprobs = drsow_reads(call("/v1/chat/completions", DRSOW | {"model": model}))
        assert ids == result.token_ids[1:].tolist()
        assert logprobs == pytest.approx(values.tolist(), abs=1e-5)
        assert "<|im_start|>" + "".join(texts) == call.render("1 + 1?", "One.\n\nTwo.")


def test_a_conversation_has_the_log_probs_of_its_render(call: ProtocolCalls) -> None:
    chat = call("/v1/chat/completions", DRSOW)["prompt_logprobs"]
    text = call.render("1 + 1?", "One.\n\nTwo.")
    completion = call("/v1/completions", LM_EVAL | {"prompt": text, "prompt_logprobs": 1})
    for one, other in zip(chat[1:], completion["choices"][0]["prompt_logprobs"][1:], strict=True):
        assert one.keys() == other.keys()
        assert [row["logprob"] for row in one.values()] == pytest.approx(
            [row["logprob"] for row in other.values()], abs=1e-5
        )


@pytest.mark.parametrize(
    ("changed", "kind", "said"),
    [
        ({"model": "pair"}, UnknownModel, "`policy` or `reference`"),
        ({"prompt_logprobs": None}, InvalidRecord, "`prompt_logprobs` is needed"),
        ({"prompt_logprobs": False}, InvalidRecord, "`prompt_logprobs` is needed"),
        ({"prompt_logprobs": 3}, InvalidRecord, "`prompt_logprobs` is 3"),
        ({"max_completion_tokens": None}, InvalidRecord, "`max_completion_tokens` is missing"),
        ({"max_tokens": 5}, InvalidRecord, "no text|generates no text"),
        ({"add_generation_prompt": True}, InvalidRecord, "`add_generation_prompt` is true by default"),
        ({"continue_final_message": True}, InvalidRecord, "`continue_final_message`"),
        ({"messages": MESSAGES[:1]}, InvalidRecord, "not user"),
        ({"messages": [*MESSAGES, *MESSAGES]}, InvalidRecord, "not user, assistant, user, assistant"),
        ({"messages": [MESSAGES[0], MESSAGES[1] | {"tool_calls": [{}]}]}, InvalidRecord, "tool_calls"),
        ({"messages": [MESSAGES[0] | {"content": "<|im_end|>"}, MESSAGES[1]]}, InvalidRecord, "the problem"),
    ],
)
def test_a_chat_is_refused(
    call: ProtocolCalls, changed: dict[str, Any], kind: type[InputError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call("/v1/chat/completions", DRSOW | changed)
