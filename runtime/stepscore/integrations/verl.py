"""Rewards for verl: `compute_score`, one number a sample, and a reward manager, one number or one per token.

    reward.custom_reward_function.path=pkg://stepscore.integrations.verl
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.pair=/models/pair

Each of verl's reward workers (`reward.num_workers`, 8 by default) opens the pair: one is enough here.
Checked with verl 0.9.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from stepscore.enums import Reducer, Series
from stepscore.errors import InvalidRecord
from stepscore.integrations.answers import Value, scalars, score
from stepscore.integrations.rollouts import Rollout, RolloutReader
from stepscore.results import Result, TokenResult
from stepscore.scheduling.async_scorer import AsyncScorer
from stepscore.scheduling.requests import Answer

_OF_VERL = ("reward_router_address", "reward_model_tokenizer")
_SINGLE_TURN = 2  # messages: a prompt and its response


@cache
def _opened(pair: str, **options: Any) -> tuple[AsyncScorer, RolloutReader]:
    scorer = AsyncScorer.load(pair, **options)
    return scorer, RolloutReader(scorer.scorer.pair, drop_system=True)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Mapping[str, Any] | None = None,
    *,
    pair: str,
    problem_field: str = "question",
    series: Series | str = Series.CUMULATIVE,
    reducer: Reducer | str = Reducer.LAST,
    error_score: float = 0.0,
    **options: Any,
) -> dict[str, float]:
    """Return the reward of a response, its text scored as a finished solution; a custom reward function.

    verl passes no prompt: the problem is `extra_info[problem_field]`. `pair` and what follows are the
    `reward_kwargs` of verl's configuration, `options` those of `Scorer.load`. The score is the series of
    step rewards, reduced: by default the outcome reward, in units of beta times nats. It is `error_score`
    where the response cannot be scored; `scored`, 1 or 0, tells them apart. Samples that one worker waits for
    are scored together.
    """
    for name in _OF_VERL:
        options.pop(name, None)
    fields = extra_info or {}
    problem = fields.get(problem_field)
    if not isinstance(problem, str):
        raise InvalidRecord(
            f"extra_info has no text {problem_field!r}, but {', '.join(fields) or 'nothing'}",
            hint="name the field of the problem by reward_kwargs.problem_field, or use RewardManager, which "
            "reads the prompt's token ids",
        )
    scorer, reader = _opened(pair, **options)
    (answer,) = await score(scorer, [reader.of_text(problem, solution_str)])
    (found,) = scalars([answer], Value(Series(series), Reducer(reducer)))
    return {"score": error_score if found is None else found} | _facts(answer)


class RewardManager:
    """A reward manager of verl that scores the token ids of prompt and response, as they were sampled.

        reward.reward_manager.source=importlib
        reward.reward_manager.module.path=pkg://stepscore.integrations.verl
        reward.reward_manager.name=RewardManager
        +reward.reward_kwargs.pair=/models/pair

    `reward_kwargs`: pair, series, reducer and error_score as in `compute_score`; tokens; options of
    `Scorer.load`. The tokenizer of the trained model must be the pair's: other ids are that sample's error.

    With `tokens` the reward is one number per token of the response, beta times the difference of its
    log-probs. verl keeps these on one path alone, that of a colocated reward model; on its default path it
    puts one number at the last token, and never calls `assemble_rm_scores`. So `tokens` is rejected unless
    reward.reward_model.enable is set, its enable_resource_pool is not, and a
    reward.custom_reward_function.path is given: without one verl asks its own reward model, not this class.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: object = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: object = None,
    ) -> None:
        options = dict(config.reward.get("reward_kwargs") or {})
        if "pair" not in options:
            raise ValueError("reward.reward_kwargs.pair is missing: the folder of the pair")
        self._tokens = bool(options.pop("tokens", False))
        if self._tokens and not _keeps_tokens(config.reward):
            raise ValueError(
                "reward_kwargs.tokens: with this configuration verl would keep one number per sample, at its "
                "last token. Set reward.reward_model.enable=True, "
                "reward.reward_model.enable_resource_pool=False and a reward.custom_reward_function.path, or "
                "leave tokens out"
            )
        series, reducer = options.pop("series", Series.CUMULATIVE), options.pop("reducer", Reducer.LAST)
        self._value = Value(Series(series), Reducer(reducer))
        self._error_score = float(options.pop("error_score", 0.0))
        self._scorer, self._reader = _opened(**options)
        self._tokenizer = tokenizer

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Return the reward of a sample and facts about it, each a number; of several, of the last one."""
        item = data[-1:][0]
        prompt, response = _token_ids(item)
        (answer,) = await score(self._scorer, [self._rollout(item, prompt, response)])
        (found,) = scalars([answer], self._value)
        reward: float | list[float] = self._error_score if found is None else found
        if self._tokens:
            zeros = [0.0] * len(response)
            reward = answer.token_rewards.tolist() if isinstance(answer, TokenResult) else zeros
        return {"reward_score": reward, "reward_extra_info": _facts(answer)}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Sequence[float | Sequence[float]]) -> Any:
        """Return the rewards as a float32 tensor [B, S], S the length of the padded responses.

        A number stands at the last token of its response, rewards of tokens at each of them. A response of no
        token has nowhere to put one.
        """
        start = data.batch["prompts"].shape[1]
        lengths = data.batch["attention_mask"][:, start:].sum(dim=1).tolist()
        rewards = data.batch["responses"].float().zero_()
        for row, length, given in zip(rewards, lengths, scores, strict=True):
            if isinstance(given, int | float):
                row[max(length - 1, 0) : length] = given
            elif len(given) == length:
                row[:length] = row.new_tensor(given)
            else:
                raise ValueError(f"{len(given)} rewards for a response of {length} tokens")
        return rewards

    def _rollout(self, item: Any, prompt: list[int], response: list[int]) -> Rollout:
        turns = item.non_tensor_batch.get("__num_turns__")
        if turns is not None and int(turns) > _SINGLE_TURN:
            return InvalidRecord(
                f"the response has {int(turns)} turns: it holds tokens that the model did not sample"
            )
        return self._reader.of_ids(
            prompt, response, self._tokenizer.decode(response, skip_special_tokens=True)
        )


def _keeps_tokens(reward: Any) -> bool:
    """Return whether verl calls `assemble_rm_scores`: on the path of a colocated reward model."""
    model, function = reward.reward_model, reward.get("custom_reward_function") or {}
    return bool(model.enable and not model.enable_resource_pool and function.get("path"))


def _token_ids(item: Any) -> tuple[list[int], list[int]]:
    """Return the ids of prompt and response without padding.

    verl pads prompts on the left and responses on the right; where it does not, it gives both lengths.
    """
    batch, others = item.batch, item.non_tensor_batch
    prompt, response = batch["prompts"].tolist(), batch["responses"].tolist()
    if "response_len" in others:
        return prompt[: int(others["prompt_len"])], response[: int(others["response_len"])]
    mask = batch["attention_mask"].tolist()
    of_prompt, of_response = mask[: len(prompt)], mask[len(prompt) :]
    unpadded = [token for token, given in zip(prompt, of_prompt, strict=True) if given]
    return unpadded, response[: sum(of_response)]


def _facts(answer: Answer) -> dict[str, float]:
    """Return numbers that are there for every sample: verl makes arrays of them."""
    if isinstance(answer, Result | TokenResult):
        steps = answer.step_rewards
        return {"outcome_reward": answer.outcome_reward, "num_steps": float(len(steps)), "scored": 1.0}
    return {"outcome_reward": 0.0, "num_steps": 0.0, "scored": 0.0}
