"""From samples to token ids and log-probs, rendered with the tokenizer's own chat template."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from problems import Sample, make_drill

SEPARATOR = "\n\n"
HEADER_TOKENS = 3  # <|im_start|> assistant \n
BATCHES_PER_POOL = 16
DRILL_LINES = 6


def token_logprobs(model: Qwen2ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """log p(ids[:, j+1] | ids[:, :j+1]) over all vocabulary columns, [B, L-1].

    No attention mask: attention is causal and padding is at the end, so no valid token sees it.
    """
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return -losses.view(ids.shape[0], -1)


@dataclass(frozen=True)
class Batch:
    """Right-padded ids [B, L]; masks of the predictions [B, L-1]; 1.0 where the final answer is correct [B].

    `prompt` marks what comes before the response, `response` its tokens and the <|im_end|> that closes it.
    """

    ids: torch.Tensor
    prompt: torch.Tensor
    response: torch.Tensor
    correct: torch.Tensor


class Encoder:
    """Samples to ids, one at a time or as batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.padding = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.turn_start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        self.turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def render(self, problem: str, response: str) -> str:
        """The conversation as text; Qwen2.5-Math's template adds the system turn."""
        turns = [{"role": "user", "content": problem}, {"role": "assistant", "content": response}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False))

    def encode_texts(self, texts: list[str]) -> list[Encoding]:
        """Rendered texts to ids and offsets."""
        encodings: list[Encoding] = self.tokenizer.backend_tokenizer.encode_batch(texts)
        return encodings

    def encode(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Ids of the rendered samples."""
        texts = [self.render(sample.problem, SEPARATOR.join(sample.steps)) for sample in samples]
        return [encoding.ids for encoding in self.encode_texts(texts)]

    def response_start(self, ids: list[int]) -> int:
        """Index of the first response token."""
        return len(ids) - 1 - ids[::-1].index(self.turn_start) + HEADER_TOKENS

    def batches(self, groups: Iterator[tuple[Sample, ...]], size: int, rng: random.Random) -> Iterator[Batch]:
        """Batches of `size` groups of similar lengths: each pool is sorted by length before it is cut."""
        while True:
            pool = [(self.encode(group), group) for group in islice(groups, size * BATCHES_PER_POOL)]
            pool.sort(key=lambda pair: max(map(len, pair[0])))
            chunks = [pool[start : start + size] for start in range(0, len(pool), size)]
            rng.shuffle(chunks)
            yield from (self._batch(chunk) for chunk in chunks)

    def drill_batches(self, rng: random.Random, size: int) -> Iterator[Batch]:
        """Bare calculations; only what follows an equals sign counts as response, the rest is chance."""
        equals, stop = self.tokenizer.convert_tokens_to_ids(["Ġ=", ".ĊĊ"])
        while True:
            drills = [make_drill(rng, DRILL_LINES) for _ in range(size)]
            ids = self._pad([encoding.ids for encoding in self.encode_texts(drills)])
            answer = (ids == equals).cumsum(1) > (ids == stop).cumsum(1)
            nothing = torch.zeros_like(answer)[:, :-1]
            yield Batch(ids, nothing, answer[:, :-1], torch.ones(size))

    def _pad(self, sequences: list[list[int]]) -> torch.Tensor:
        rows = [torch.tensor(sequence) for sequence in sequences]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)

    def _batch(self, chunk: list[tuple[list[list[int]], tuple[Sample, ...]]]) -> Batch:
        sequences = [sequence for group, _ in chunk for sequence in group]
        samples = [sample for _, group in chunk for sample in group]
        ids = self._pad(sequences)
        prompt = torch.zeros_like(ids, dtype=torch.bool)[:, :-1]
        response = torch.zeros_like(prompt)
        for row, sequence in enumerate(sequences):
            start = self.response_start(sequence)
            prompt[row, : start - 1] = True
            response[row, start - 1 : len(sequence) - 2] = True
        correct = torch.tensor([float(sample.final_answer_correct) for sample in samples])
        return Batch(ids, prompt, response, correct)
