"""Measure tokens/s through both models: stepscore's forms, transformers, llama.cpp and optimum.

    make bench-throughput                         two shapes, one after the other
    make bench-throughput FLAGS=--quick           a tiny model, to see that it works
    python -m benchmarks.throughput --shape 1.5b --layers 8 --problems 4
    python -m benchmarks.throughput --shape 1.5b --provider cuda
    python -m benchmarks.throughput --pair-checkpoints POLICY REFERENCE --scratch FOLDER --workloads solution

Engines score the same token ids, each in a separate process with the same number of threads, and alternate:
one pass each, then again (support/lineup.py has the rounds). Ratios are taken within a round. Log-probs of
all tokens are computed, from the first on. Every speed has the relative RMS error of its log-ratio against
transformers fp32. Tokens are input tokens: a shared prefix counts in every sequence that has it, so sharing
shows up as speed. Ratios are compared with aims and printed; they do not change the exit status. A pair of
the real size on a GPU: benchmarks/gpu.py.

Checkpoints are random (support/shapes.py), made in a temporary folder and removed. With --pair-checkpoints
they are any two Hugging Face folders: stepscore runs in its default form, what the engines make of the
checkpoints is kept in --scratch for the next run, and the file is results/throughput_real_UNIT.json. With
--workloads the other parts of that file stay as they are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.integer_gemm import measure
from benchmarks.peers.contender import Checkpoints, Contender, SequenceLogprobs
from benchmarks.support.amx import restart_without_amx
from benchmarks.support.forms import FORMS, default_form
from benchmarks.support.lineup import Lineup
from benchmarks.support.machine import cpu_features, gpu_used_mb, integer_unit, provider_facts
from benchmarks.support.options import (
    add_provider,
    add_shape,
    benchmark_parser,
    chosen_shape,
    measured_provider,
)
from benchmarks.support.rates import ratio_error, rounded, verdict
from benchmarks.support.results import RESULTS, logged, read_results, write_result
from benchmarks.support.shapes import ModelShape, real_facts, shape_facts, write_models
from benchmarks.support.worker import Skipped, Turns, take_turns
from benchmarks.support.workloads import BEST_OF_8, Workload, best_of_8, opening, solution
from testing.shared_data import SHARED_DATA

from stepscore.artifact.pair import Pair
from stepscore.bench import Rate, rate
from stepscore.enums import Provider
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.validation.texts import NO_TEXTS

SHARING = (BEST_OF_8, "gsm8k_solutions", "processbench_gsm8k")
SOLUTION_TOKENS = 512


@dataclass(frozen=True, slots=True)
class RunSize:
    """How much a run measures: problems, tokens and repeats."""

    problems: int
    sharing_tokens: int
    solution_repeats: int
    text_repeats: int


class Part(StrEnum):
    """A part of the benchmark."""

    SOLUTION = "solution"
    BEST_OF_8 = "best-of-8"
    SHARING = "sharing"


FULL = RunSize(problems=4, sharing_tokens=16_384, solution_repeats=5, text_repeats=2)
QUICK = RunSize(problems=1, sharing_tokens=2048, solution_repeats=2, text_repeats=1)


def main() -> None:
    """Measure one shape; write results/throughput_SHAPE_UNIT.json: cuda, or the CPU's integer GEMM unit."""
    options = _options()
    provider = measured_provider(options)
    if options.without_amx:
        restart_without_amx()
    size = _size(options)
    real = options.pair_checkpoints is not None
    kept = options.scratch if real and options.scratch else None
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        models, facts = _models(options, Path(folder))
        forms = FORMS[provider]
        if real:
            forms = {default_form(provider): forms[default_form(provider)]}
        pairs = {name: _exported(models, name, form) for name, form in forms.items()}
        lineup = Lineup(
            provider,
            pairs,
            options.threads,
            peers=not options.without_peers,
            half=not options.without_half,
        )
        bench = _Bench(models, lineup)
        pair = pairs[default_form(provider)]
        encode = Pair.open(pair).encoder()
        workload = solution(encode, facts["shape"]["vocab_size"], SOLUTION_TOKENS)
        measured: list[dict[str, Any]] = []
        profile: dict[str, Any] = {}
        sharing: list[dict[str, Any]] = []
        if Part.SOLUTION in options.workloads:
            measured.append(bench.compared(workload, size.solution_repeats))
            if provider is Provider.CPU:
                profile = measure(pair, workload.sequences[0], options.threads, size.solution_repeats)
        if Part.BEST_OF_8 in options.workloads:
            measured.append(bench.compared(best_of_8(encode, size.problems), size.text_repeats))
        if Part.SHARING in options.workloads:
            names = SHARING if SHARED_DATA is not None else (BEST_OF_8,)
            texts = [opening(encode, name, size.sharing_tokens) for name in names]
            sharing = [bench.shared(text, size.text_repeats) for text in texts]
    unit = integer_unit(cpu_features(), amx=not options.without_amx)
    of_models = "real" if real else str(chosen_shape(options))
    name = f"throughput_{of_models}_{provider if provider is Provider.CUDA else unit.lower()}"
    result = {
        "quick": options.quick,
        **provider_facts(provider),
        "amx": not options.without_amx,
        "threads": options.threads,
        **facts,
        "workloads": measured,
        "sharing": sharing,
        **({"profile": profile} if profile else {}),
    }
    if len(options.workloads) < len(Part) and not options.quick:
        result = with_other_parts(result, read_results(RESULTS).get(name))
    print(write_result(name, result, quick=options.quick))


def with_other_parts(result: dict[str, Any], known: dict[str, Any] | None) -> dict[str, Any]:
    """Return the result with the workloads, sharing and profile of a known one that it lacks itself.

    >>> known = {"workloads": [{"workload": "a"}, {"workload": "b"}], "sharing": [1], "profile": {"x": 1}}
    >>> with_other_parts({"workloads": [{"workload": "b", "new": 1}], "sharing": []}, known)
    {'workloads': [{'workload': 'a'}, {'workload': 'b', 'new': 1}], 'sharing': [1], 'profile': {'x': 1}}
    """
    if known is None:
        return result
    workloads = {each["workload"]: each for each in [*known["workloads"], *result["workloads"]]}
    profile = result.get("profile", known.get("profile"))
    return {
        **result,
        "workloads": list(workloads.values()),
        "sharing": result["sharing"] or known["sharing"],
        **({"profile": profile} if profile else {}),
    }


def _size(options: argparse.Namespace) -> RunSize:
    size = QUICK if options.quick else FULL
    return replace(
        size,
        problems=options.problems or size.problems,
        sharing_tokens=options.sharing_tokens or size.sharing_tokens,
        solution_repeats=options.repeats or size.solution_repeats,
        text_repeats=options.repeats or size.text_repeats,
    )


def _models(options: argparse.Namespace, folder: Path) -> tuple[Checkpoints, dict[str, Any]]:
    """Return the checkpoints to measure, and the facts of their shape."""
    if options.pair_checkpoints is None:
        shape = chosen_shape(options)
        config = shape.with_layers(options.layers)
        return write_models(folder, config), shape_facts(shape, config)
    policy, reference = options.pair_checkpoints
    with Checkpoint.open(str(policy)) as opened:
        return Checkpoints(policy, reference, folder), real_facts(opened.config)


def _options() -> argparse.Namespace:
    parser = benchmark_parser(__doc__)
    add_shape(parser, ModelShape.QWEN_0_5B, layers=None)
    parser.add_argument("--problems", type=int, help="score the best-of-8 samples of N problems")
    parser.add_argument(
        "--sharing-tokens", type=int, help="score N tokens of each file with and without sharing"
    )
    parser.add_argument("--threads", type=int, default=2)
    add_provider(parser)
    parser.add_argument(
        "--without-peers", action="store_true", help="measure stepscore alone, without errors"
    )
    parser.add_argument("--without-half", action="store_true", help="leave out PyTorch fp16 and bf16")
    parser.add_argument("--without-amx", action="store_true", help="measure as on a CPU with VNNI only")
    parser.add_argument(
        "--pair-checkpoints",
        type=Path,
        nargs=2,
        metavar=("POLICY", "REFERENCE"),
        help="measure two Hugging Face folders instead of a shape",
    )
    parser.add_argument("--workloads", type=Part, nargs="+", choices=list(Part), default=list(Part))
    parser.add_argument("--repeats", type=int, help="run each engine N times (default: 5 and 2)")
    return parser.parse_args()


def _exported(models: Checkpoints, name: str, form: ExportOptions) -> Path:
    folder = models.scratch / f"pair-{name.replace(' ', '-').replace(',', '')}"
    if folder.is_dir():
        print(f"using the pair in {folder}: remove it after a change of the exporter", file=sys.stderr)
        return folder
    print(f"exporting {name}", file=sys.stderr, flush=True)
    return export_pair(models.policy, models.reference, folder, form, calibration=NO_TEXTS).path


@dataclass(frozen=True, slots=True)
class _Bench:
    """The checkpoints, and the engines that score them."""

    models: Checkpoints
    lineup: Lineup

    def compared(self, workload: Workload, repeats: int) -> dict[str, Any]:
        """Score a workload with the engines of every round."""
        truth: list[SequenceLogprobs] | None = None
        rows: list[dict[str, Any]] = []
        rates: list[dict[str, Rate]] = []
        for number, contenders in enumerate(self.lineup.rounds(workload), start=1):
            turns = self._turns(contenders, workload, repeats)
            if self.lineup.peers and number == 1 and isinstance(turns[0], Turns):
                truth = turns[0].logprobs
            of_round = [{"round": number, **_row(each, workload, truth)} for each in turns]
            rows += map(logged, of_round)
            done = (each for each in turns if isinstance(each, Turns))
            rates.append({each.name: rate(workload.num_tokens, each.seconds) for each in done})
        verdicts = [logged(each) for each in self._verdicts(workload, rates)]
        return {**workload.facts(), "repeats": repeats, "rows": rows, "verdicts": verdicts}

    def shared(self, workload: Workload, repeats: int) -> dict[str, Any]:
        """Score a text with prefixes shared and not shared."""
        default = self.lineup.default
        turns = self._turns([default, replace(default, share=False)], workload, repeats)
        shared, alone = (each for each in turns if isinstance(each, Turns))
        rates = [rate(workload.num_tokens, each.seconds) for each in (shared, alone)]
        return logged(
            {
                **workload.facts(),
                "shared": rounded(rates[0]),
                "not_shared": rounded(rates[1]),
                "factor": round(rates[0].median / rates[1].median, 3),
                "log_ratio_difference": ratio_error(shared.logprobs, alone.logprobs),
            }
        )

    def _turns(
        self, contenders: Sequence[Contender], workload: Workload, repeats: int
    ) -> list[Turns | Skipped]:
        gauge = gpu_used_mb if self.lineup.provider is Provider.CUDA else None
        return take_turns(
            contenders, self.models, workload.sequences, self.lineup.threads, repeats, gauge=gauge
        )

    def _verdicts(self, workload: Workload, rounds: Sequence[dict[str, Rate]]) -> Iterator[dict[str, Any]]:
        default = self.lineup.default.name
        for aim, peer in self.lineup.aims(workload):
            for rates in rounds:
                if default in rates and peer.name in rates:
                    yield verdict(aim, rates[default], rates[peer.name])
                    break


def _row(turns: Turns | Skipped, workload: Workload, truth: list[SequenceLogprobs] | None) -> dict[str, Any]:
    if isinstance(turns, Skipped):
        return {"peer": turns.name, "skipped": turns.reason}
    return {
        "peer": turns.name,
        "seconds": [round(each, 4) for each in turns.seconds],
        "pair_tokens_per_second": rounded(rate(workload.num_tokens, turns.seconds)),
        "log_ratio_error": None if truth is None else ratio_error(turns.logprobs, truth),
        "load_seconds": round(turns.load_seconds, 2),
        "peak_mb": turns.peak_mb,
    }


if __name__ == "__main__":
    main()
