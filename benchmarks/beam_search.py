"""Measure a beam search without and with prefix sharing and kept prefixes, each round one call.

    make bench-beam-search                    Qwen2.5-1.5B shape, 4 layers, 5 minutes on two cores
    make bench-beam-search FLAGS=--quick      a tiny model

The trace has the shape of search-and-learn's beam search: N beams per problem, of which N / WIDTH survive a
round and are continued in WIDTH ways; every call scores the whole text of every beam. The steps are those of
solutions of the problem (math_best_of_8), or of the bundled samples if the shared data is not here. A
seed draws the survivors, and a beam may mix steps of several solutions, since the time depends only on
lengths and shared prefixes. Three engines score the same calls and alternate: without sharing, with sharing
within a call, and with prefixes kept from call to call, in a cache that is empty before each repeat. A child
process runs the calls once with a cache of just the size that they fill, and measures its memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.support.forms import DEFAULT, FORMS
from benchmarks.support.machine import status_mb
from benchmarks.support.options import benchmark_parser
from benchmarks.support.rates import rounded
from benchmarks.support.results import measured_in_child, write_result
from benchmarks.support.shapes import ModelShape, shape_facts, write_models
from benchmarks.support.workloads import BEST_OF_8, records, text_of

from stepscore.artifact.pair import Pair
from stepscore.batching.batch import pack
from stepscore.batching.kept_prefixes import KeptCounts
from stepscore.batching.trie import Int64
from stepscore.bench import rate
from stepscore.enums import Convention, Provider
from stepscore.integrations.reward_model import RewardModel
from stepscore.memory.estimate import estimate
from stepscore.memory.fit import fit_settings
from stepscore.memory.kept import bytes_per_kept_token
from stepscore.prompt.template import SEPARATOR, split_steps
from stepscore.scorer import Scorer
from stepscore_export.pipeline.export import export_pair

BEAMS, WIDTH = 8, 4
THREADS = 2
CACHE = "1GB"
WARM_UP = "Nothing of this is part of the search."
SEED = 0


@dataclass(frozen=True, slots=True)
class Round:
    """Hold one call of a search: a list of texts for each of its problems."""

    questions: list[str]
    outputs: list[list[str]]

    @property
    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield every text with its question."""
        for question, texts in zip(self.questions, self.outputs, strict=True):
            yield from ((question, text) for text in texts)


def main() -> None:
    """Measure; write results/beam_search.json."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--problems", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("PAIR", "ROUNDS", "BYTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured_memory(*options.child)))
        return
    shape, repeats = (ModelShape.QUICK, 1) if options.quick else (ModelShape.QWEN_1_5B, options.repeats)
    config = shape.with_layers(options.layers)
    problems = sampled(options.problems)
    rounds = trace(problems, 3 if options.quick else options.rounds)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models = write_models(Path(folder), config)
        form = FORMS[Provider.CPU][DEFAULT]
        pair = export_pair(models.policy, models.reference, Path(folder) / "pair", form)
        measured = measure(pair, rounds, repeats)
        calls = Path(folder) / "rounds.json"
        calls.write_bytes(msgspec.json.encode(rounds))
        fills = measured["distinct_in_trace"] * bytes_per_kept_token(pair.manifest, element_bytes=4)
        measured["memory"] = measured_in_child("benchmarks.beam_search", pair.path, calls, fills)
    result = {
        "quick": options.quick,
        "form": DEFAULT,
        "threads": THREADS,
        **shape_facts(shape, config),
        "trace": f"beam search of {len(problems)} problems at once, {BEAMS} beams each, {BEAMS // WIDTH} of "
        f"them continued in {WIDTH} ways, steps of {text_of(BEST_OF_8)}",
        **measured,
    }
    print(write_result("beam_search", result, quick=options.quick))


def sampled(count: int) -> list[tuple[str, list[list[str]]]]:
    """Return problems, evenly spread over their file, each with the steps of BEAMS solutions."""
    groups = [list(group) for _, group in groupby(records(BEST_OF_8), key=lambda each: each["problem_id"])]
    chosen = [groups[index * len(groups) // count] for index in range(count)]
    return [(group[0]["problem"], [list(each["steps"]) for each in group]) for group in chosen]


def trace(problems: Sequence[tuple[str, list[list[str]]]], max_rounds: int) -> list[Round]:
    """Return the rounds of a search on every problem; a round holds the problems that still have a beam.

    >>> steps = [["a", "b"], ["c", "d"]] * 4
    >>> rounds = trace([("p", steps)], 3)
    >>> [len(each.outputs[0]) for each in rounds], rounds[0].outputs[0][:2]
    ([8, 8], ['a\\n\\n', 'c\\n\\n'])
    >>> sorted({text[-1] for text in rounds[1].outputs[0]})
    ['b', 'd']
    """
    growing = [list(_grown(solutions, max_rounds)) for _, solutions in problems]
    rounds = []
    for depth in range(max(map(len, growing))):
        active = [index for index, each in enumerate(growing) if depth < len(each)]
        rounds.append(
            Round([problems[index][0] for index in active], [growing[index][depth] for index in active])
        )
    return rounds


def _grown(solutions: Sequence[Sequence[str]], max_rounds: int) -> Iterator[list[str]]:
    """Yield the beams of one problem, round by round, until none is unfinished."""
    rng = np.random.default_rng(SEED)
    survivors = [""] * (BEAMS // WIDTH)
    for depth in range(max_rounds):
        beams = []
        for index, solution in enumerate(solutions):
            if depth < len(solution) and survivors:
                end = "" if depth + 1 == len(solution) else SEPARATOR
                beams.append(survivors[index // WIDTH % len(survivors)] + solution[depth] + end)
        if not beams:
            return
        yield beams
        unfinished = [text for text in beams if text.endswith(SEPARATOR)]
        kept = rng.permutation(len(unfinished))[: BEAMS // WIDTH]
        survivors = [unfinished[index] for index in sorted(kept)]


def measure(pair: Pair, rounds: Sequence[Round], repeats: int) -> dict[str, Any]:
    """Score every round in each of three ways; a round's seconds are those of its call."""
    shared, alone = _reward_model(pair), _reward_model(pair, share=False)
    seconds = np.zeros((repeats, len(rounds), 3))
    computed = 0
    for repeat in range(repeats):
        kept = _reward_model(pair, prefix_cache=CACHE)
        for model in (shared, alone, kept):
            model.score([WARM_UP], [[WARM_UP]])
        for at, each in enumerate(rounds):
            for which, model in enumerate((shared, alone, kept)):
                started = time.perf_counter()
                model.score(each.questions, each.outputs)
                seconds[repeat, at, which] = time.perf_counter() - started
            print(f"repeat {repeat + 1}, round {at + 1}: {seconds[repeat, at]}", file=sys.stderr, flush=True)
        computed = counts_of(kept).computed
        kept.scorer.close()
    encoded = [_encoded(pair, each) for each in rounds]
    rows = [
        {"round": at + 1, **_row(sequences, _distinct(sequences), seconds[:, at])}
        for at, sequences in enumerate(encoded)
    ]
    everything = [sequence for sequences in encoded for sequence in sequences]
    distinct = sum(row["distinct_tokens"] for row in rows)
    return {
        "rounds": rows,
        "total": _row(everything, distinct, seconds.sum(axis=1)),
        "distinct_in_trace": _distinct(everything),
        "computed_with_kept": computed,
        "prefix_cache": CACHE,
    }


def measured_memory(folder: str, calls: str, num_bytes: str) -> dict[str, Any]:
    """Run the calls once with a cache of this size; return its peak resident set and the estimate."""
    pair = Pair.open(folder)
    model = _reward_model(pair, prefix_cache=int(num_bytes))
    for each in msgspec.json.decode(Path(calls).read_bytes(), type=list[Round]):
        model.score(each.questions, each.outputs)
    settings = fit_settings(pair.manifest, prefix_cache=int(num_bytes))
    counts = counts_of(model)
    return {
        "prefix_cache": int(num_bytes),
        "kept_tokens": counts.kept,
        "peak_mb": status_mb("VmHWM"),
        "estimated_mb": round(estimate(pair.manifest, settings).total / 1e6),
    }


def counts_of(model: RewardModel) -> KeptCounts:
    """Return what a model with a cache has kept."""
    counts = model.scorer.kept_prefixes
    assert counts is not None
    return counts


def _reward_model(pair: Pair, *, share: bool = True, prefix_cache: int | str | None = None) -> RewardModel:
    return RewardModel(
        Scorer.load(
            pair.path,
            convention=Convention.EXACT,
            threads=THREADS,
            share=share,
            prefix_cache=prefix_cache,
        )
    )


def _encoded(pair: Pair, called: Round) -> list[Int64]:
    """Return the token ids of every text of a call."""
    encoder = pair.encoder()
    sequences = []
    for question, text in called.texts:
        steps, unfinished = split_steps(text)
        prompt = encoder.encode(question, steps, Convention.EXACT, unfinished=unfinished)
        sequences.append(prompt.token_ids)
    return sequences


def _distinct(sequences: Sequence[Int64]) -> int:
    """Return the number of distinct prefixes."""
    return len(pack(sequences, [0] * len(sequences)).input_ids)


def _row(sequences: Sequence[Int64], distinct: int, seconds: np.ndarray) -> dict[str, Any]:
    tokens = sum(map(len, sequences))
    shared, alone, kept = (rate(tokens, seconds[:, which].tolist()) for which in (0, 1, 2))
    return {
        "texts": len(sequences),
        "tokens": tokens,
        "distinct_tokens": distinct,
        "shared": rounded(shared),
        "not_shared": rounded(alone),
        "kept": rounded(kept),
        "factor": round(shared.median / alone.median, 3),
        "kept_factor": round(kept.median / shared.median, 3),
    }


if __name__ == "__main__":
    main()
