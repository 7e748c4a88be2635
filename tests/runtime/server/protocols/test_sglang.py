"""SGLang's /generate: log-probs of prompts under one model, in the shape that teachers are read in."""

from __future__ import annotations

from typing import Any

import pytest
from testing.protocol_calls import ProtocolCalls

from stepscore.errors import InvalidRecord, TooLong
from stepscore.records import TokenRecord

IDS = [5, 6, 7, 8, 9]
BODY: dict[str, Any] = {
    "input_ids": IDS,
    "sampling_params": {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False},
    "return_logprob": True,
    "logprob_start_len": 0,
}
"""Exactly what slime's on-policy distillation posts."""


def test_slime_reads_the_teacher_log_probs_of_a_response(call: ProtocolCalls) -> None:
    answer = call("/generate", BODY)
    read = [item[0] for item in answer["meta_info"]["input_token_logprobs"][1:]][-2:]
    (result,) = call.scorer.score_ids([TokenRecord(tuple(IDS[:3]), tuple(IDS[3:]))])
    assert read == pytest.approx(result.policy_logprobs.tolist(), abs=1e-5)


def test_the_path_names_the_model(call: ProtocolCalls) -> None:
    (result,) = call.scorer.score_ids([TokenRecord((IDS[0],), tuple(IDS[1:]))])
    for path, model, values in (
        ("/generate", "policy", result.policy_logprobs),
        ("/policy/generate", "policy", result.policy_logprobs),
        ("/reference/generate", "reference", result.reference_logprobs),
    ):
        meta = call(path, BODY)["meta_info"]
        assert meta["model"] == model
        assert [row[0] for row in meta["input_token_logprobs"][1:]] == pytest.approx(
            values.tolist(), abs=1e-5
        )
        assert [row[1] for row in meta["input_token_logprobs"]] == IDS
        assert [row[2] for row in meta["input_token_logprobs"]] == [None] * 5
        assert meta["prompt_tokens"] == 5


def test_a_start_leaves_out_what_is_before_it_and_the_first_is_null(call: ProtocolCalls) -> None:
    whole = call("/generate", BODY)["meta_info"]["input_token_logprobs"]
    rows = call("/generate", BODY | {"logprob_start_len": 2})["meta_info"]["input_token_logprobs"]
    assert rows[0] == [None, IDS[2], None]
    assert rows[1:] == whole[3:]


def test_texts_are_read_with_their_control_tokens(call: ProtocolCalls) -> None:
    text = call.render("1 + 1?", "2")
    body = {key: value for key, value in BODY.items() if key != "input_ids"} | {"text": [text]}
    (reply,) = call("/generate", body | {"return_text_in_logprobs": True})
    rows = reply["meta_info"]["input_token_logprobs"]
    assert "".join(row[2] for row in rows) == text
    assert [row[1] for row in rows] == call.context.encoder.rendered_ids(text)
    assert rows[0][2] == "<|im_start|>"


def test_a_list_is_answered_by_a_list_and_one_prompt_by_one_reply(call: ProtocolCalls) -> None:
    replies = call("/generate", BODY | {"input_ids": [IDS, IDS[:3]]})
    assert [reply["meta_info"]["prompt_tokens"] for reply in replies] == [5, 3]
    assert isinstance(call("/generate", BODY | {"input_ids": [IDS]}), list)
    assert isinstance(call("/generate", BODY), dict)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"return_logprob": False}, "`return_logprob` and a `logprob_start_len`"),
        ({"logprob_start_len": None}, "`logprob_start_len` of 0 or more"),
        ({"logprob_start_len": -1}, "`logprob_start_len` of 0 or more"),
        ({"logprob_start_len": 5}, "is 5, but prompt 0 has 5 tokens"),
        ({"sampling_params": {}}, "max_new_tokens` is missing, which means 128"),
        ({"sampling_params": {"max_new_tokens": 2}}, "max_new_tokens` is 2"),
        ({"sampling_params": {"max_new_tokens": 0, "n": 2}}, "`sampling_params.n` is not supported"),
        ({"stream": True}, "`stream` is not supported"),
        ({"top_logprobs_num": 1}, "`top_logprobs_num` is not supported"),
        ({"image_data": ["a"]}, "`image_data` is not supported"),
        ({"lora_path": "a"}, "`lora_path` is not supported"),
        ({"text": "a"}, "`text` or `input_ids`, and not both"),
        ({"input_ids": None}, "`text` or `input_ids`, and not both"),
        ({"input_ids": []}, "the prompt is empty"),
        ({"input_ids": [[5, 6], [-1, 6]]}, "token 0 of prompt 1 is -1"),
    ],
)
def test_what_is_not_scored_is_refused(call: ProtocolCalls, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRecord, match=said):
        call("/generate", BODY | changed)


def test_a_prompt_beyond_the_context_is_not_cut(call: ProtocolCalls) -> None:
    with pytest.raises(TooLong):
        call("/generate", BODY | {"input_ids": [5] * 513})
