"""Runs `stepscore parity`: scores with the pair, then with PyTorch, one model at a time, and compares."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import click
from tqdm import tqdm

from stepscore.artifact.manifest import Architecture, Source
from stepscore.artifact.pair import Pair
from stepscore.cli.formats import TableFormat, print_table
from stepscore.engine.pytorch import loading
from stepscore.engine.pytorch.loading import Device
from stepscore.enums import Convention, Provider
from stepscore.errors import NonFinite, PairIncompatible, StepscoreError
from stepscore.extras import naming_extras
from stepscore.jobs.jsonl import ParsedLine
from stepscore.jobs.provenance import Provenance
from stepscore.jobs.source import parsed_lines
from stepscore.machine import Machine
from stepscore.records import of_texts
from stepscore.results import Result
from stepscore.scorer import Scorer
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.pair import check_pair, cut_padding
from stepscore_export.checkpoint.tokenizer_difference import tokenizer_difference
from stepscore_export.fidelity import Scores
from stepscore_export.parity import pytorch
from stepscore_export.parity.compare import ScoredSolution, compare, is_finite
from stepscore_export.parity.pytorch import DType
from stepscore_export.parity.report import PairSide, ParityReport, PytorchSide, check_output, write_report

MOST_NAMED = 10
"""All skipped lines are counted, but no more than so many are named."""


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """How the two are compared; `beta` None is that of the pair."""

    dtype: DType
    device: Device
    convention: Convention
    beta: float | None
    limit: int | None


class LeftOut:
    """Lines that are skipped: counted by the code of their error, the first few named on stderr."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, line: int, error: StepscoreError) -> None:
        """Count one line, numbered from 1."""
        self.counts[error.code] += 1
        if self.counts.total() <= MOST_NAMED:
            # Not click.echo: a bar may be on the terminal's last line.
            tqdm.write(f"line {line} is skipped: {error.code}: {error.message}", file=sys.stderr)

    def close(self) -> None:
        """Print how many there were, where not all have been named."""
        if self.counts.total() > MOST_NAMED:
            kinds = ", ".join(f"{code} {count:,}" for code, count in sorted(self.counts.items()))
            click.echo(f"{self.counts.total():,} lines are skipped in all ({kinds})", err=True)


@dataclass(frozen=True, slots=True)
class _Scored:
    """Lines that the pair could score, and how long it took."""

    solutions: list[ScoredSolution]
    provenance: Provenance
    beta: float
    provider: Provider
    seconds: float

    @property
    def num_tokens(self) -> int:
        return sum(len(solution.token_ids) for solution in self.solutions)


def run_parity(
    path: Path,
    policy: str,
    reference: str,
    data: str,
    options: ParityOptions,
    *,
    output: Path | None,
    table_format: TableFormat,
) -> int:
    """Compare, print, write; return the number of skipped lines. `data` is a file, - is standard input."""
    loading.require("torch", "transformers")
    if output is not None:
        with naming_extras():
            import_module("matplotlib")
    device = loading.resolve(options.device)
    if output is not None:
        check_output(output)
    pair = Pair.open(path)
    with (
        Checkpoint.open(policy, "policy") as policy_model,
        Checkpoint.open(reference, "reference") as reference_model,
    ):
        _check_checkpoints(pair, policy_model, reference_model)
    with click.open_file(data, "rb") as source:
        lines = list(parsed_lines(cast(BinaryIO, source), options.limit))

    left_out = LeftOut()
    scored = _score(pair, lines, options, left_out)
    if not scored.solutions:
        raise _nothing_left(data, len(lines))
    models = policy_model, reference_model
    truth, seconds = _score_in_pytorch(models, scored.solutions, options.dtype, device)
    solutions, truth = _finite(scored.solutions, truth, options.dtype, left_out)
    left_out.close()
    comparison = compare(solutions, truth, beta=scored.beta)
    report = ParityReport(
        stepscore=scored.provenance,
        pair=PairSide(
            path=str(path),
            fingerprint=pair.fingerprint,
            precision=pair.manifest.precision,
            coding=pair.manifest.coding,
            provider=scored.provider,
            stepscore=version("stepscore"),
            tokens_per_second=scored.num_tokens / scored.seconds,
        ),
        pytorch=PytorchSide(
            policy=policy_model.source,
            reference=reference_model.source,
            dtype=options.dtype,
            device=device,
            torch=version("torch"),
            transformers=version("transformers"),
            tokens_per_second=scored.num_tokens / seconds,
        ),
        data=data,
        convention=options.convention,
        beta=scored.beta,
        threshold=comparison.threshold,
        num_lines=len(lines),
        left_out=dict(left_out.counts),
        fidelity=comparison.fidelity,
        machine=Machine.of_this(scored.provider),
    )
    if output is not None:
        write_report(output, report, comparison)
    if table_format is TableFormat.JSON:
        click.echo(report.encode(), nl=False)
    else:
        print_table(sys.stdout, report.table(), table_format)
    return left_out.counts.total()


def _check_checkpoints(pair: Pair, policy: Checkpoint, reference: Checkpoint) -> None:
    """Reject checkpoints of another shape or tokenizer than the pair's, and warn of other names."""
    check_pair(policy, reference)
    for model in (policy, reference):
        model.require_plain("parity")
    cut_padding(policy, reference)
    # Each model has its own number of positions; the pair has the lesser one.
    for key in (key for key in Architecture.__struct_fields__ if key != "max_position_embeddings"):
        of_pair, of_policy = getattr(pair.manifest.architecture, key), getattr(policy.config, key)
        if of_pair != of_policy:
            raise PairIncompatible(
                f"{key} is {of_pair} in the pair and {of_policy} in the checkpoints",
                hint="use the checkpoints that the pair was exported from, "
                f"{_spelled(pair.manifest.policy)} and {_spelled(pair.manifest.reference)}",
            )
    difference = tokenizer_difference(pair.tokenizer_json(), policy.tokenizer_json())
    if difference is not None:
        raise PairIncompatible(
            f"the tokenizers of pair and checkpoints differ in their {difference}",
            hint="use the checkpoints that the pair was exported from",
        )
    sources = {
        "policy": (pair.manifest.policy, policy.source),
        "reference": (pair.manifest.reference, reference.source),
    }
    for name, (exported, given) in sources.items():
        if exported != given:
            click.echo(
                f"warning: the pair's {name} was exported from {_spelled(exported)}, "
                f"this one is {_spelled(given)}",
                err=True,
            )


def _score(pair: Pair, lines: Sequence[ParsedLine], options: ParityOptions, left_out: LeftOut) -> _Scored:
    """Score with the pair; as in PyTorch, a first solution is an untimed warm-up."""
    solutions = []
    with (
        Scorer.load(pair.path, convention=options.convention, beta=options.beta, tokens=True) as scorer,
        _bar("stepscore", len(lines)) as bar,
    ):
        for line in lines:
            ((_, outcome),) = scorer.stream([(None, of_texts(line.record))])
            if isinstance(outcome, Result):
                break
        started = time.perf_counter()
        for line, outcome in scorer.stream((line, of_texts(line.record)) for line in lines):
            bar.update()
            if isinstance(outcome, StepscoreError):
                left_out.add(line.number, outcome)
            else:
                solutions.append(ScoredSolution.of(line.number, outcome, outcome.first_summed))
        provenance = Provenance.of_run(scorer.fingerprint())
        return _Scored(solutions, provenance, scorer.beta, scorer.provider, time.perf_counter() - started)


def _score_in_pytorch(
    models: Sequence[Checkpoint], solutions: Sequence[ScoredSolution], dtype: DType, device: Device
) -> tuple[Scores, float]:
    """Score with both checkpoints, one at a time; return log-probs and the seconds of both."""
    sequences = [solution.token_ids for solution in solutions]
    runs = []
    for name, model in zip(("policy", "reference"), models, strict=True):
        with _bar(f"PyTorch, {name}", len(sequences)) as bar:
            runs.append(pytorch.score(model, sequences, dtype=dtype, device=device, progress=bar.update))
    policy, reference = runs
    return list(zip(policy.logprobs, reference.logprobs, strict=True)), policy.seconds + reference.seconds


def _finite(
    solutions: Sequence[ScoredSolution], truth: Scores, dtype: DType, left_out: LeftOut
) -> tuple[list[ScoredSolution], Scores]:
    """Skip solutions to which PyTorch gives NaN or infinity; NonFinite if none is left."""
    kept = []
    for solution, logprobs in zip(solutions, truth, strict=True):
        if is_finite(logprobs):
            kept.append((solution, logprobs))
        else:
            left_out.add(solution.line, _non_finite(dtype))
    if not kept:
        raise _non_finite(dtype)
    return [solution for solution, _ in kept], [logprobs for _, logprobs in kept]


def _non_finite(dtype: DType) -> NonFinite:
    return NonFinite(
        f"PyTorch at {dtype} gives log-probs that are NaN or infinite",
        hint="use --dtype bf16 or fp32: fp16 activations overflow on some models",
    )


def _nothing_left(data: str, num_lines: int) -> StepscoreError:
    if not num_lines:
        return StepscoreError(
            f"{data} is empty", hint="pass solutions in the input format of `stepscore score`"
        )
    return StepscoreError(
        f"none of the {num_lines:,} lines of {data} can be scored",
        hint='write lines such as {"problem": "...", "steps": ["...", "..."]}',
    )


def _bar(what: str, total: int) -> tqdm[NoReturn]:
    """Show progress on a terminal, nothing elsewhere."""
    return tqdm(total=total, unit="solution", desc=what, disable=None, file=sys.stderr)


def _spelled(source: Source) -> str:
    return source.name if source.revision is None else f"{source.name}@{source.revision}"
