"""Real clients against a real server; a client that is not installed skips its tests and says so.

docs/clients.md has the versions that these were run with. Numbers are compared with a scorer of the pair.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from testing.pairs import Checkpoints
from testing.server_process import serving

from stepscore.records import Record, TokenRecord
from stepscore.scorer import Scorer

pytestmark = pytest.mark.slow

PRM = "Qwen/Qwen2.5-Math-PRM-7B"
PROBLEM = "1 + 1?"
STEPS = ("1 + 1 = 2.", "So 2.")
CHAT = [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": "\n\n".join(STEPS)}]
Port = Callable[[], int]


def client(module: str) -> Any:
    """Import a client, or skip."""
    return pytest.importorskip(module, reason=f"{module.partition('.')[0]} is not installed")


@pytest.fixture(scope="module")
def port(tiny_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """Start a server at the first call: not for tests that are skipped."""
    names = ("--served-model-name", "pair", "--served-model-name", PRM)
    with ExitStack() as servers:

        @cache
        def started() -> int:
            folder = tmp_path_factory.mktemp("server")
            served = servers.enter_context(serving(tiny_pair, folder, *names, "--beta", "1"))
            return int(served.address.rpartition(":")[2])

        yield started


@pytest.fixture(scope="module")
def scorer(tiny_pair: Path) -> Iterator[Scorer]:
    with Scorer.load(tiny_pair, beta=1.0) as opened:
        yield opened


@pytest.fixture
def tokenizers(tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which the model ids are folders of their tokenizers, as reward_hub loads them."""
    for name in ("policy", "reference", PRM):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tiny_checkpoints.policy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# reward_hub


@pytest.mark.usefixtures("tokenizers")
def test_reward_hub_reads_a_probability_of_every_step(port: Port, scorer: Scorer) -> None:
    reward = client("reward_hub.openai.reward")
    prm = reward.OpenAIProcessRewardModel(PRM, port())
    (result,) = prm.score([CHAT], return_full_prm_result=True)
    (expected,) = scorer.score([Record(PROBLEM, STEPS)])
    logits = [math.log(p / (1 - p)) for p in result.step_scores]
    assert logits == pytest.approx(expected.cumulative_rewards, abs=1e-5)


@pytest.mark.usefixtures("tokenizers")
def test_drsow_reads_the_log_ratio_of_the_response(port: Port, scorer: Scorer) -> None:
    reward = client("reward_hub.openai.reward")
    drsow = client("reward_hub.drsow")
    config = drsow.DrSowConfig("policy", port(), "reference", port())
    model = reward.OpenAIOutcomeRewardModel("drsow", drsow_config=config)
    (found,) = model.score([CHAT], return_raw_scores=True)
    prompt = scorer.pair.encoder().rendered_ids(_prompt(scorer))
    whole = scorer.pair.encoder().rendered_ids(_render(scorer))
    (expected,) = scorer.score_ids([TokenRecord(tuple(prompt), tuple(whole[len(prompt) :]))])
    assert found["drsow_reward"] == pytest.approx(expected.token_rewards.sum(), abs=1e-4)
    assert len(found["strong_logprobs"]) == len(expected.token_rewards)


# lm-eval


@pytest.mark.parametrize("tokenized", [True, False])
@pytest.mark.parametrize("model", ["policy", "reference"])
def test_lm_eval_reads_log_likelihoods(
    port: Port, scorer: Scorer, tiny_checkpoints: Checkpoints, model: str, tokenized: bool
) -> None:
    completions = client("lm_eval.models.openai_completions")
    instance = client("lm_eval.api.instance").Instance
    lm = completions.LocalCompletionsAPI(
        model=model,
        base_url=f"http://127.0.0.1:{port()}/v1/completions",
        tokenizer=str(tiny_checkpoints.policy),
        tokenizer_backend="huggingface",
        tokenized_requests=tokenized,
        batch_size=2,
        max_length=400,
    )
    pairs = [("The sum is", " two."), ("<|im_start|>user\nHi<|im_end|>", "\nHello."), ("A", "\n\nB")]
    asked = [instance("loglikelihood", {}, arguments, 0) for arguments in pairs]
    encode = scorer.pair.encoder().prompt_ids
    for (value, greedy), (context, continuation) in zip(lm.loglikelihood(asked), pairs, strict=True):
        whole, start = encode(context + continuation), len(encode(context))
        (expected,) = scorer.score_ids([TokenRecord(tuple(whole[:start]), tuple(whole[start:]))])
        values = expected.policy_logprobs if model == "policy" else expected.reference_logprobs
        assert value == pytest.approx(values.sum(), abs=1e-4)
        assert greedy == bool((values > math.log(0.5)).all())


# OpenAI's SDK


def test_the_openai_sdk_reads_log_probs_models_and_errors(port: Port, scorer: Scorer) -> None:
    openai = client("openai")
    sdk = openai.OpenAI(base_url=f"http://127.0.0.1:{port()}/v1", api_key="none", max_retries=0)
    assert [model.id for model in sdk.models.list()] == ["pair", PRM, "policy", "reference"]
    text = _render(scorer)
    ids = scorer.pair.encoder().rendered_ids(text)
    (expected,) = scorer.score_ids([TokenRecord(tuple(ids[:1]), tuple(ids[1:]))])
    done = sdk.completions.create(model="policy", prompt=text, max_tokens=0, echo=True, logprobs=0)
    assert done.choices[0].text == text
    assert done.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        expected.policy_logprobs.tolist(), abs=1e-5
    )
    extra = {"prompt_logprobs": 0, "add_generation_prompt": False}
    chat = sdk.chat.completions.create(
        model="reference", messages=CHAT, max_completion_tokens=1, extra_body=extra
    )
    rows = [next(iter(row.values()))["logprob"] for row in chat.prompt_logprobs if row]
    assert rows == pytest.approx(expected.reference_logprobs.tolist(), abs=1e-5)
    with pytest.raises(openai.NotFoundError, match="policy"):
        sdk.completions.create(model="gpt", prompt=text, max_tokens=0, echo=True, logprobs=0)
    with pytest.raises(openai.BadRequestError, match="generates no text"):
        sdk.chat.completions.create(model="policy", messages=CHAT)


# verl


def test_verl_reads_the_outcome_reward(port: Port, scorer: Scorer, tiny_checkpoints: Checkpoints) -> None:
    reward_loop = client("verl.experimental.reward_loop.reward_loop")
    torch = client("torch")
    tokenizer = client("transformers").AutoTokenizer.from_pretrained(tiny_checkpoints.policy)
    tokenizer.eos_token = "<|im_end|>"
    worker = object.__new__(reward_loop.RewardLoopWorker)
    rollout = SimpleNamespace(name="vllm")
    model = SimpleNamespace(rollout=rollout, model_path="pair", enable=True)
    function = SimpleNamespace(path=None)
    reward = SimpleNamespace(reward_model=model, custom_reward_function=function)
    worker.config = SimpleNamespace(reward=reward)
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer
    worker.reward_router_address = f"127.0.0.1:{port()}"
    ids = tokenizer.encode("\n\n".join(STEPS) + "<|im_end|>")
    raw = np.empty(1, dtype=object)
    raw[0] = CHAT[:1]
    data = client("verl").DataProto.from_dict(
        {
            "responses": torch.tensor([[*ids, 0, 0]]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0, 0]]),
        },
        non_tensors={"raw_prompt": raw},
    )
    found = asyncio.run(worker.compute_score(data))
    (expected,) = scorer.score([Record(PROBLEM, STEPS)])
    assert found["reward_score"] == pytest.approx(expected.outcome_reward, abs=1e-5)


# OpenRLHF


def test_openrlhf_reads_the_reward_of_its_rollout(
    port: Port, scorer: Scorer, tiny_checkpoints: Checkpoints
) -> None:
    agent = client("openrlhf.utils.agent")
    tokenizer = client("transformers").AutoTokenizer.from_pretrained(tiny_checkpoints.policy)
    for end, unfinished in (("<|im_end|>", False), ("", True)):
        ids = tokenizer.encode("\n\n".join(STEPS) + end)
        reply = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)

        async def generate(*_: object, reply: object = reply, **__: object) -> object:
            return SimpleNamespace(outputs=[reply])

        executor = agent.SingleTurnAgentExecutor(f"http://127.0.0.1:{port()}/get_reward")
        found = asyncio.run(
            executor.execute(
                _prompt(scorer),
                "2",
                SimpleNamespace(max_tokens=64, logprobs=None),
                400,
                tokenizer,
                SimpleNamespace(generate=generate),
            )
        )
        (expected,) = scorer.score([Record(PROBLEM, STEPS, unfinished=unfinished)])
        assert found["reward"] == pytest.approx([expected.outcome_reward], abs=1e-5)
        assert found["scores"] == found["reward"]
        assert found["extra_logs"]["num_steps"] == [2.0]


def _prompt(scorer: Scorer) -> str:
    template = scorer.pair.encoder().template
    return template.prefix + PROBLEM + template.between


def _render(scorer: Scorer) -> str:
    return scorer.pair.encoder().template.render(PROBLEM, STEPS)
