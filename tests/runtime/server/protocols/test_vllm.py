"""vLLM's /pooling and /classify: rows at step marks, probabilities and rewards, whole solutions only."""

from __future__ import annotations

from math import exp, log
from typing import Any

import numpy as np
import pytest
from testing.protocol_calls import ProtocolCalls

from stepscore import RewardModel
from stepscore.errors import InputError, InvalidRecord, NoSteps, UnknownModel
from stepscore.records import Record, TokenRecord

PROBLEM = "1 + 1?"
STEPS = ("1 + 1 = 2.", "So 2.")
PRM = "Qwen/Qwen2.5-Math-PRM-7B"
SYSTEM = {
    "role": "system",
    "content": "Please reason step by step, and put your final answer within \\boxed{}.",
}


def conversation(answer: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": answer}]


def rewards_of(call: ProtocolCalls, record: Record) -> list[float]:
    (result,) = call.scorer.score([record])
    return result.cumulative_rewards


def raw(call: ProtocolCalls, body: dict[str, Any]) -> list[float]:
    (item,) = call("/pooling", body | {"use_activation": False})["data"]
    assert all(row[0] == 0 for row in item["data"])
    return [row[1] for row in item["data"]]


def sigmoid(value: float) -> float:
    return 1 / (1 + exp(-value))


# What clients send


def test_reward_hub_reads_a_probability_for_each_step_mark(call: ProtocolCalls) -> None:
    messages = [SYSTEM, *conversation("<extra_0>".join(STEPS) + "<extra_0>")]
    answer = call("/pooling", {"model": PRM, "messages": messages})
    read = [row[-1] for row in answer["data"][0]["data"]]
    expected = rewards_of(call, Record(PROBLEM, STEPS))
    assert read == pytest.approx([sigmoid(reward) for reward in expected])
    assert [log(p / (1 - p)) for p in read] == pytest.approx(expected)
    assert answer["model"] == PRM


def test_verl_reads_the_outcome_reward_of_a_rendered_text(call: ProtocolCalls) -> None:
    text = call.render(PROBLEM, "\n\n".join(STEPS))
    answer = call("/classify", {"model": "pair", "input": text, "use_activation": False})
    assert answer["data"][-1]["probs"][-1] == pytest.approx(rewards_of(call, Record(PROBLEM, STEPS))[-1])


def test_token_ids_have_a_row_for_every_token(call: ProtocolCalls) -> None:
    ids = [5, 6, 7, 8]
    (result,) = call.scorer.score_ids([TokenRecord((5,), (6, 7, 8))])
    expected = np.cumsum(result.policy_logprobs.astype(np.float64) - result.reference_logprobs)
    answer = call("/pooling", {"input": [ids, ids[:2]], "use_activation": False})
    rows = [[row[1] for row in item["data"]] for item in answer["data"]]
    assert rows[0] == pytest.approx([0.0, *expected])
    assert rows[1] == pytest.approx([0.0, expected[0]], abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == 6
    assert call("/pooling", {"input": ids})["data"][0]["data"][0] == [0.5, 0.5]


# Steps


def test_a_message_without_marks_is_split_as_a_reward_model_splits_it(call: ProtocolCalls) -> None:
    prm = RewardModel(call.scorer)
    for text in ("One.\n\nTwo.", "One.\n\nTwo.\n\n", "One.\n\n\n\nTwo."):
        assert raw(call, {"messages": conversation(text)}) == pytest.approx(
            prm.score([PROBLEM], [[text]])[0][0]
        )


def test_an_empty_step_has_the_value_before_it_and_ends_a_partial_solution(call: ProtocolCalls) -> None:
    rows = raw(call, {"messages": conversation("<extra_0>One.<extra_0> <extra_0>Two.<extra_0><extra_0>")})
    steps = ("\n\nOne.", " \n\nTwo.")
    one, two = rewards_of(call, Record(PROBLEM, steps, unfinished=True))
    assert rows == pytest.approx([0, one, one, two, two])


def test_words_behind_the_last_mark_have_no_row_and_change_none(call: ProtocolCalls) -> None:
    partial = raw(call, {"messages": conversation("One.<extra_0>Two.")})
    assert partial == pytest.approx(rewards_of(call, Record(PROBLEM, ("One.",), unfinished=True)))
    assert partial == raw(call, {"messages": conversation("One.<extra_0>Three.")})


def test_a_render_without_its_end_is_a_partial_solution(call: ProtocolCalls) -> None:
    text = call.prompt(PROBLEM) + "One.\n\nTwo."
    expected = rewards_of(call, Record(PROBLEM, ("One.", "Two."), unfinished=True))
    assert raw(call, {"input": text}) == pytest.approx(expected)
    assert raw(call, {"input": call.render(PROBLEM, "One.<extra_0>Two.<extra_0>")}) == pytest.approx(
        rewards_of(call, Record(PROBLEM, ("One.", "Two.")))
    )


# Values


@pytest.mark.parametrize("name", ["use_activation", "activation", "softmax"])
def test_every_name_of_the_activation_is_read(call: ProtocolCalls, name: str) -> None:
    body = {"messages": conversation("One.")}
    (row,) = call("/pooling", body | {name: False})["data"][0]["data"]
    (activated,) = call("/pooling", body | {name: True})["data"][0]["data"]
    assert activated == pytest.approx([1 - sigmoid(row[1]), sigmoid(row[1])])
    assert call("/classify", body)["data"][0]["probs"] == pytest.approx([sigmoid(row[1])])


def test_several_texts_are_answered_in_order(call: ProtocolCalls) -> None:
    texts = [call.render(PROBLEM, text) for text in ("One.", "Another one.")]
    found = call("/classify", {"input": texts, "use_activation": False})["data"]
    alone = [call("/classify", {"input": text, "use_activation": False})["data"][0] for text in texts]
    assert [item["index"] for item in found] == [0, 1]
    assert [item["probs"][0] for item in found] == pytest.approx(
        [item["probs"][0] for item in alone], abs=1e-6
    )


# Refused


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ({}, InvalidRecord, "give `input` or `messages`"),
        ({"input": []}, InvalidRecord, "`input` is empty"),
        ({"input": "The capital of France is"}, InvalidRecord, "not a render of the pair's chat template"),
        ({"input": [5]}, InvalidRecord, "the first has no log-prob"),
        ({"input": [5, 320]}, InvalidRecord, "token 1 of prompt 0 is 320, outside the vocabulary of 320"),
        ({"input": ["a", [5, 6]]}, InvalidRecord, "the first has no log-prob|like the others"),
        ({"messages": conversation("One."), "model": "gpt"}, UnknownModel, "'gpt' is not served"),
        ({"messages": conversation(" ")}, NoSteps, "white space"),
        ({"messages": conversation(" <extra_0>")}, NoSteps, "no step stands before"),
        (
            {"messages": conversation("One.")[:1]},
            InvalidRecord,
            "one user and one assistant message, not user",
        ),
        ({"messages": conversation("One.<|im_end|>")}, InvalidRecord, "control token"),
        ({"messages": conversation([{"type": "image_url"}])}, InvalidRecord, "one text part"),
        (
            {"messages": [SYSTEM | {"content": "Be brief."}, *conversation("One.")]},
            InvalidRecord,
            "differs from the pair's",
        ),
        (
            {"messages": conversation("One."), "truncate_prompt_tokens": 5},
            InvalidRecord,
            "`truncate_prompt_tokens` is not",
        ),
    ],
)
def test_what_would_change_a_number_is_refused(
    call: ProtocolCalls, body: dict[str, Any], kind: type[InputError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call("/pooling", body)


def test_a_content_of_one_text_part_is_its_text(call: ProtocolCalls) -> None:
    parts = conversation([{"type": "text", "text": "One."}])
    assert raw(call, {"messages": parts}) == raw(call, {"messages": conversation("One.")})


def test_token_ids_cannot_be_classified(call: ProtocolCalls) -> None:
    with pytest.raises(InvalidRecord, match="no response that is known"):
        call("/classify", {"input": [[5, 6, 7]]})
