"""OpenRLHF's /get_reward and slime's /remote_rm: the boundary of the response, its end, one number."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
from testing.protocol_calls import ProtocolCalls

from stepscore import RewardModel
from stepscore.errors import InputError, InvalidRecord, NoSteps
from stepscore.records import Record
from stepscore.results import Result

PROBLEM = "1 + 1?"
RESPONSE = "1 + 1 = 2.\n\nSo 2."
STEPS = ("1 + 1 = 2.", "So 2.")


def scored(call: ProtocolCalls, **options: bool) -> Result:
    (result,) = call.scorer.score([Record(PROBLEM, STEPS, **options)])
    return result


# OpenRLHF


def openrlhf(call: ProtocolCalls, query: str, prompt: str | None) -> float:
    body: dict[str, Any] = {"query": [query], "prompts": [prompt], "labels": ["2"]}
    answer = call("/get_reward", body if prompt is not None else {"query": [query]})
    assert answer["scores"] == answer["rewards"] == answer["extra_logs"]["outcome_reward"]
    (reward,) = answer["rewards"]
    assert isinstance(reward, float)
    return reward


@pytest.mark.parametrize("end", ["<|im_end|>\n", "<|im_end|>"])
def test_a_query_is_scored_as_its_problem_and_steps(call: ProtocolCalls, end: str) -> None:
    expected = pytest.approx(scored(call).outcome_reward)
    prompt = call.prompt(PROBLEM)
    assert openrlhf(call, prompt + RESPONSE + end, prompt) == expected
    assert openrlhf(call, prompt + RESPONSE + end, None) == expected
    assert openrlhf(call, PROBLEM + RESPONSE + end, PROBLEM) == expected  # no chat template at all


def test_a_query_that_was_cut_off_has_no_reward_for_an_end_of_turn(call: ProtocolCalls) -> None:
    prompt = call.prompt(PROBLEM)
    cut = openrlhf(call, prompt + RESPONSE, prompt)
    assert cut == pytest.approx(scored(call, unfinished=True).outcome_reward)
    assert cut != pytest.approx(scored(call).outcome_reward)


def test_a_blank_line_before_the_end_of_turn_is_kept(call: ProtocolCalls) -> None:
    prompt = call.prompt(PROBLEM)
    (result,) = call.scorer.score([Record(PROBLEM, (STEPS[0], STEPS[1] + "\n\n"))])
    assert openrlhf(call, prompt + RESPONSE + "\n\n<|im_end|>", prompt) == pytest.approx(
        result.outcome_reward
    )


def test_the_path_chooses_the_number(call: ProtocolCalls) -> None:
    result = scored(call)
    steps, num_summed = result.step_rewards, result.step_ends[-1] - result.first_summed + 1
    prompt = call.prompt(PROBLEM)
    query = prompt + RESPONSE + "<|im_end|>"
    for path, value in (
        ("", sum(steps)),
        ("/step-min", min(steps)),
        ("/step-mean", fmean(steps)),
        ("/mean-last", sum(steps) / num_summed),
    ):
        answer = call("/get_reward" + path, {"query": [query], "prompts": [prompt]})
        assert answer["rewards"] == pytest.approx([value])
        assert answer["extra_logs"]["num_steps"] == [2.0]
        body = {"prompt": prompt, "response": RESPONSE, "label": None}
        assert call("/remote_rm" + path, body) == pytest.approx(value)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        ({"query": []}, InvalidRecord, "`query` is empty"),
        ({"query": ["a", "b"], "prompts": ["a"]}, InvalidRecord, "2 queries, but 1 prompts"),
        ({"query": ["a b"], "prompts": ["b"]}, InvalidRecord, "does not begin with its prompt"),
        ({"query": ["a b"]}, InvalidRecord, "not a render of the pair's chat template"),
        ({"query": ["a<|im_end|>"], "prompts": ["a"]}, NoSteps, "empty"),
        ({"query": ["a b<|im_start|>user\nc"], "prompts": ["a"]}, InvalidRecord, "the response holds"),
        (
            {"query": ["<|im_start|>user\na<|im_end|>\nb"], "prompts": ["<|im_start|>user\na<|im_end|>\n"]},
            InvalidRecord,
            "not the pair's chat template with one user message",
        ),
        ({"query": ["<|eot_id|>b"], "prompts": ["<|eot_id|>"]}, InvalidRecord, "control token <.eot_id"),
        ({"query": ["<｜User｜>a b"], "prompts": ["<｜User｜>a"]}, InvalidRecord, "control token <｜User"),
    ],
)
def test_a_text_of_another_template_is_refused(
    call: ProtocolCalls, body: dict[str, Any], kind: type[InputError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call("/get_reward", body)


def test_a_prompt_of_several_turns_is_refused(call: ProtocolCalls) -> None:
    prompt = call.prompt(f"{PROBLEM}<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\nAgain?")
    with pytest.raises(InvalidRecord, match="with one user message"):
        call("/get_reward", {"query": [prompt + RESPONSE], "prompts": [prompt]})


# slime


def test_a_response_is_scored_for_every_kind_of_prompt(call: ProtocolCalls) -> None:
    expected = pytest.approx(scored(call).outcome_reward)
    for prompt in (PROBLEM, call.prompt(PROBLEM), [{"role": "user", "content": PROBLEM}]):
        reward = call("/remote_rm", {"prompt": prompt, "response": RESPONSE, "label": "2"})
        assert isinstance(reward, float)
        assert reward == expected


def test_a_response_is_finished_unless_it_ends_in_a_blank_line(call: ProtocolCalls) -> None:
    prm = RewardModel(call.scorer)
    for response in (RESPONSE, RESPONSE + "\n\n"):
        (values,) = prm.score([PROBLEM], [[response]])[0]
        reward = call("/remote_rm", {"prompt": PROBLEM, "response": response})
        assert reward == pytest.approx(values[-1])
    ended = call("/remote_rm", {"prompt": PROBLEM, "response": RESPONSE + "\n\n<|im_end|>"})
    (result,) = call.scorer.score([Record(PROBLEM, (STEPS[0], STEPS[1] + "\n\n"))])
    assert ended == pytest.approx(result.outcome_reward)
