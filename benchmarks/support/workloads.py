"""Workloads: token ids of one solution, of best-of-8 samples, of other real solutions.

Real text comes from ../shared/data, encoded with the pair's own tokenizer and template. Without that folder
one solution has random ids, the bundled samples stand in for the best-of-8 ones, and results say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.peers.contender import Tokens
from numpy.typing import NDArray
from testing.shared_data import SHARED_DATA

from stepscore.batching.batch import pack
from stepscore.enums import Convention
from stepscore.prompt.encoder import PromptEncoder
from stepscore.records import record_from

BEST_OF_8 = "math_best_of_8"
BUNDLED_SAMPLES = Path(__file__).parents[2] / "examples" / "samples.jsonl"
PADDED_BATCH = 8
LONGEST_PADDED = 1200
"""Tokens: the logits of eight such sequences over a vocabulary of 151,936 are 5.8 GB."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Token ids in the order of their file, and a description of the sample."""

    name: str
    sample: str
    sequences: Sequence[Tokens]

    @property
    def num_tokens(self) -> int:
        """Return the number of input tokens: a shared prefix counts in every sequence."""
        return sum(map(len, self.sequences))

    def facts(self) -> dict[str, Any]:
        """Return sample, lengths and padding; `distinct_tokens` counts distinct prefixes."""
        lengths = [len(each) for each in self.sequences]
        return {
            "workload": self.name,
            "sample": self.sample,
            "sequences": len(lengths),
            "tokens": sum(lengths),
            "longest": max(lengths),
            "distinct_tokens": len(pack(self.sequences, [0] * len(lengths)).input_ids),
            f"padded_tokens_batches_of_{PADDED_BATCH}": padded_tokens(lengths, PADDED_BATCH),
        }


def padded_tokens(lengths: Sequence[int], batch_size: int) -> int:
    """Return the number of positions of consecutive batches padded to their longest sequence.

    >>> padded_tokens([5, 3, 2], 2)
    12
    """
    batches = (lengths[first : first + batch_size] for first in range(0, len(lengths), batch_size))
    return sum(len(batch) * max(batch) for batch in batches)


def solution(encode: PromptEncoder, vocab_size: int, num_tokens: int) -> Workload:
    """Return the first `num_tokens` tokens of the first solution that is long enough, or random ids."""
    name = f"one solution of {num_tokens} tokens"
    if SHARED_DATA is None:
        ids = np.random.default_rng(0).integers(0, vocab_size, num_tokens)
        return Workload(name, "random token ids: the shared data is not here", [ids])
    for record in records(BEST_OF_8):
        ids = token_ids(encode, record)
        if len(ids) >= num_tokens:
            return Workload(name, f"{record['id']} of {BEST_OF_8}, cut", [ids[:num_tokens]])
    raise ValueError(f"no solution of {BEST_OF_8} has {num_tokens} tokens")


def best_of_8(encode: PromptEncoder, num_problems: int) -> Workload:
    """Return all solutions of a few problems, evenly spread over the file and representative of it.

    Of the samples that begin at different problems, it is the one whose padding and prefix sharing are
    nearest to the file's: a random few may have half or twice as much of either, and both decide which engine
    is faster. Samples are skipped whose padded batch needs more memory for logits than common machines have.
    """
    problems = [
        [token_ids(encode, record) for record in group]
        for _, group in groupby(records(BEST_OF_8), key=lambda each: each["problem_id"])
    ]
    whole = shares_of([ids for problem in problems for ids in problem])
    count = min(num_problems, len(problems))
    samples = {
        first: [ids for index in range(count) for ids in problems[first + index * len(problems) // count]]
        for first in range(len(problems) // count)
    }
    held = {first: ids for first, ids in samples.items() if max(map(len, ids)) <= LONGEST_PADDED}
    near = {first: np.abs(np.log(shares_of(ids) / whole)).sum() for first, ids in (held or samples).items()}
    chosen = min(near, key=near.__getitem__)
    of_sample, of_file = (
        ", ".join(f"{share:.2f}" for share in each) for each in (shares_of(samples[chosen]), whole)
    )
    file = text_of(BEST_OF_8)
    sample = (
        f"{count} of {len(problems)} problems of {file}, evenly spread from the one at {chosen}; padded "
        f"positions and distinct prefixes per token {of_sample}, in the whole file {of_file}"
    )
    return Workload("best of 8", sample, samples[chosen])


def shares_of(sequences: Sequence[Tokens]) -> NDArray[np.float64]:
    """Return positions of padded batches, and distinct prefixes, both per input token.

    >>> shares_of([np.array([1, 2, 3, 4]), np.array([1, 2])]).round(2).tolist()
    [1.33, 0.67]
    """
    lengths = [len(each) for each in sequences]
    distinct = len(pack(sequences, [0] * len(lengths)).input_ids)
    return np.array([padded_tokens(lengths, PADDED_BATCH), distinct]) / sum(lengths)


def opening(encode: PromptEncoder, name: str, max_tokens: int) -> Workload:
    """Return the first records of a file, up to `max_tokens` tokens."""
    chosen: list[Tokens] = []
    total = 0
    for record in records(name):
        ids = token_ids(encode, record)
        total += len(ids)
        if chosen and total > max_tokens:
            break
        chosen.append(ids)
    return Workload(text_of(name), f"the first {len(chosen)} records", chosen)


def text_of(name: str) -> str:
    """Return the file that `records` reads, as a result names it."""
    return (
        name if SHARED_DATA is not None else f"the bundled samples, as the shared data ({name}) is not here"
    )


def records(name: str) -> Iterator[dict[str, Any]]:
    """Read a file of the shared data; without it, the bundled samples in place of BEST_OF_8."""
    if SHARED_DATA is None and name != BEST_OF_8:
        raise SystemExit(f"{name} is in the shared data only: set STEPSCORE_SHARED_DATA to its folder")
    path = BUNDLED_SAMPLES if SHARED_DATA is None else SHARED_DATA / f"{name}.jsonl"
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def token_ids(encode: PromptEncoder, fields: dict[str, Any]) -> Tokens:
    """Encode one record."""
    names = [name for name in ("problem", "steps") if name in fields]
    record = record_from({name: fields[name] for name in names})
    return encode.encode(record.problem, record.steps, Convention.CARD).token_ids
