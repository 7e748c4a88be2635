"""From a record to rewards as the EurusPRM model card does it: token ids, step ends, sums.

Everything goes the slow and obvious way: transformers' own `apply_chat_template`, one re-tokenised prefix a
step, a Python loop over the steps. Texts that hold a control token's text are not for here (the card lets
them close the turn; stepscore does not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from stepscore.enums import Convention

SEPARATOR = "\n\n"

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids [L], the index h of the first response token, one index into the log-probs for each step."""

    ids: npt.NDArray[np.int64]
    response_start: int
    step_ends: npt.NDArray[np.int64]

    def summed_from(self, convention: Convention) -> int:
        """First index of the log-probs that counts: position j scores token j+1."""
        return 0 if convention is Convention.CARD else self.response_start - 1


def encode(
    tokenizer: PreTrainedTokenizerFast, problem: str, steps: Sequence[str], convention: Convention
) -> Encoded:
    """The card's ids, and the step ends of one convention."""
    text = render(tokenizer, problem, steps)
    ids = np.asarray(_ids(tokenizer, text), np.int64)
    opening = text[: text.rindex(SEPARATOR.join(steps))]
    ends = _exact_ends if convention is Convention.EXACT else card_ends
    return Encoded(ids, len(_ids(tokenizer, opening)), np.asarray(ends(tokenizer, problem, steps), np.int64))


def render(tokenizer: PreTrainedTokenizerFast, problem: str, steps: Sequence[str]) -> str:
    turns = [
        {"role": "user", "content": problem},
        {"role": "assistant", "content": SEPARATOR.join(steps)},
    ]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))


def card_ends(
    tokenizer: PreTrainedTokenizerFast, problem: str, steps: Sequence[str], first: int = 1
) -> list[int]:
    """The card's loop: the stripped render of steps[:k], `\\n\\n` after it for 0 < k < n, `len(ids) - 2`."""
    ends = []
    for count in range(first, len(steps) + 1):
        prefix = render(tokenizer, problem, steps[:count]).strip()
        ends.append(len(_ids(tokenizer, prefix + SEPARATOR * (0 < count < len(steps)))) - 2)
    return ends


def _exact_ends(tokenizer: PreTrainedTokenizerFast, problem: str, steps: Sequence[str]) -> list[int]:
    """The token that holds the last character of the separator after the step, or the last end of turn."""
    text = render(tokenizer, problem, steps)
    position = text.rindex(SEPARATOR.join(steps))
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = []
    for number, step in enumerate(steps, start=1):
        position += len(step)
        last = position + (len(SEPARATOR) - 1 if number < len(steps) else 0)  # <|im_end|> follows the last
        ends.append(next(t for t, (start, stop) in enumerate(spans) if start <= last < stop) - 1)
        position += len(SEPARATOR)
    return ends


def cumulative_rewards(
    policy: npt.NDArray[np.float64],
    reference: npt.NDArray[np.float64],
    encoded: Encoded,
    beta: float,
    start: int,
) -> Floats:
    """`beta * sum(policy - reference)` from `start` to each step's end, both ends included."""
    ratio = policy - reference
    return np.asarray([beta * ratio[start : end + 1].sum() for end in encoded.step_ends])


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
