"""The command line. stdout is data, stderr is logs and progress; the exit code says how it went.

    0 all scored   1 done, some records have errors   2 usage   3 artifact, export or output refused
    4 resume mismatch   130 interrupted

Nothing heavy is imported until a command needs it, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from stepscore.choices import Convention, Provider
from stepscore.errors import ProviderUnavailable, StepscoreError
from stepscore.shell import INTERRUPTED, Commands

if TYPE_CHECKING:
    from stepscore.artifact import Manifest, Pair
    from stepscore.jobs import Tally
    from stepscore.scorer import Scorer


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="stepscore")
def main() -> None:
    """Score every step of a solution with an implicit process reward model, at low precision.

    A PAIR is the folder that `stepscore export` writes: policy and reference model, ready to run.
    """


def _finite(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a finite number")
    return value


def _positive(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter("must be a finite number above 0")
    return value


@main.command()
@click.argument("pair", type=click.Path(path_type=Path))
@click.argument(
    "source",
    metavar="[IN.jsonl|-]",
    required=False,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.option(
    "-o", "--output", metavar="OUT.jsonl|-", help="Where to write; - (the default) is standard output."
)
@click.option("--problem", metavar="TEXT", help="Score this one problem and print a table.")
@click.option(
    "--step", "steps", metavar="TEXT", multiple=True, help="A step of its solution; repeat, in order."
)
@click.option(
    "--threshold", type=float, callback=_finite, help="Mark the first step below this, not the lowest."
)
@click.option(
    "--convention",
    type=click.Choice(Convention, case_sensitive=False),
    default="card",
    show_default=True,
    help="Where a step ends.",
)
@click.option("--beta", type=float, callback=_positive, help="Scale of the rewards.  [default: the pair's]")
@click.option(
    "--provider",
    type=click.Choice(Provider, case_sensitive=False),
    default="auto",
    show_default=True,
    help="What to run on.",
)
@click.option(
    "--max-batch-tokens", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens a batch."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
@click.option("--tokens", is_flag=True, help="Add token_ids, policy_logprobs and reference_logprobs.")
@click.option("--limit", type=click.IntRange(min=0), help="Score the first N lines only.")
@click.option("--quiet", is_flag=True, help="No progress and no summary.")
@click.pass_context
def score(
    ctx: click.Context,
    /,
    *,
    pair: Path,
    source: str | None,
    output: str | None,
    problem: str | None,
    steps: tuple[str, ...],
    threshold: float | None,
    limit: int | None,
    quiet: bool,
    **load: Any,
) -> None:
    """Score a file of solutions, or one solution given as options.

    A line of IN.jsonl is {"problem": "...", "steps": ["...", "..."]}, with an "id" and other fields if you
    like; a line of OUT.jsonl adds the rewards. Run the same command again to continue where an interrupted
    one stopped.

    \b
    Examples:
      stepscore score PAIR solutions.jsonl -o rewards.jsonl
      zcat solutions.jsonl.gz | stepscore score PAIR - | jq -c .step_rewards
      stepscore score PAIR --problem "1+1?" --step "1+1 is 3." --step "So 3."
    """
    if problem is not None or steps:
        if source is not None or output is not None or limit is not None:
            raise click.UsageError("--problem and --step score one problem: no IN.jsonl, --output or --limit")
        if problem is None or not steps:
            raise click.UsageError("--problem and at least one --step belong together")
        with _load(pair, load) as scorer:
            _print_problem(scorer, problem, steps, threshold)
        return
    if source is None:
        raise click.UsageError("give IN.jsonl, - for standard input, or --problem and --step")
    if threshold is not None:
        raise click.UsageError("--threshold belongs to --problem")
    with click.open_file(source, "rb") as lines, _load(pair, load) as scorer:
        ctx.exit(
            _run_job(scorer, cast(BinaryIO, lines), output or "-", limit, quiet=quiet, tokens=load["tokens"])
        )


@main.command()
@click.argument("pair", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print manifest.json itself.")
def inspect(pair: Path, as_json: bool) -> None:
    """Show what a pair is: models, shape, precision, beta, versions.

    \b
    Example:
      stepscore inspect PAIR --json | jq .policy
    """
    from stepscore.artifact import Pair  # noqa: PLC0415
    from stepscore.table import console, print_facts  # noqa: PLC0415

    opened = Pair.open(pair)
    if as_json:
        click.echo(opened.manifest.encode(), nl=False)
    else:
        print_facts(console(sys.stdout), _facts(opened))


@main.command()
@click.argument("pair", type=click.Path(path_type=Path))
def verify(pair: Path) -> None:
    """Check every file of a pair against the sizes and hashes in its manifest.

    \b
    Example:
      stepscore verify PAIR && echo intact
    """
    from stepscore.artifact import Pair  # noqa: PLC0415

    opened = Pair.open(pair)
    opened.verify()
    click.echo(f"{pair}: {len(opened.manifest.files)} files, {_megabytes(opened.num_bytes())}, all intact")


@main.command()
@click.argument("pair", required=False, type=click.Path(path_type=Path))
@click.pass_context
def doctor(ctx: click.Context, pair: Path | None) -> None:
    """Say whether scoring works on this machine (with this PAIR), and what is missing if not.

    \b
    Example:
      stepscore doctor PAIR
    """
    from stepscore.doctor import examine  # noqa: PLC0415
    from stepscore.table import console, print_facts  # noqa: PLC0415

    found, works = examine(pair)
    verdict = "scoring works here" if works else "scoring cannot work here"
    facts = []
    for finding in found:
        facts.append((finding.name, finding.value))
        if finding.fault is not None:
            facts.append(("", finding.fault.message))
            facts += [("", f"hint: {finding.fault.hint}")] if finding.fault.hint else []
    print_facts(console(sys.stdout), [*facts, ("verdict", verdict)])
    ctx.exit(0 if works else ProviderUnavailable.exit_code)


def _load(pair: Path, load: dict[str, Any]) -> Scorer:
    from stepscore.scorer import Scorer  # noqa: PLC0415

    return Scorer.load(pair, **load)


def _print_problem(scorer: Scorer, problem: str, steps: tuple[str, ...], threshold: float | None) -> None:
    from stepscore.records import Record  # noqa: PLC0415
    from stepscore.table import console, print_steps  # noqa: PLC0415

    ((_, outcome),) = scorer.stream([(None, Record(problem, steps))])
    if isinstance(outcome, StepscoreError):
        raise outcome
    basis = f"convention {scorer.convention}, beta {scorer.beta:g}"
    print_steps(console(sys.stdout), steps, outcome, threshold, basis)


def _run_job(
    scorer: Scorer, lines: BinaryIO, output: str, limit: int | None, *, quiet: bool, tokens: bool
) -> int:
    """Run a job and return its exit code."""
    from stepscore.jobs import Tally, run_to_file, run_to_stream  # noqa: PLC0415
    from stepscore.progress import shown  # noqa: PLC0415

    tally = Tally()
    started = time.monotonic()
    resumable = _is_resumable(output)
    try:
        with contextlib.nullcontext() if quiet else shown(tally, _total(lines, limit), sys.stderr):
            if resumable:
                run_to_file(scorer, lines, Path(output), tally, limit=limit, tokens=tokens)
            else:
                with _unbuffered(output) as out:
                    run_to_stream(scorer, lines, out, tally, limit=limit)
    except KeyboardInterrupt:
        again = "; run the same command again to continue" if resumable else ""
        click.echo(f"interrupted after {tally.records} records{again}", err=True)
        return INTERRUPTED
    if not quiet:
        click.echo(_last_words(tally, output, time.monotonic() - started), err=True)
    return 1 if tally.errors else 0


def _unbuffered(output: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """Open a pipe or a device; without a buffer nothing is left to fail again when it is closed."""
    if output != "-":
        return open(output, "wb", buffering=0)
    stdout = sys.stdout.buffer
    return contextlib.nullcontext(
        cast(BinaryIO, stdout.raw) if isinstance(stdout, io.BufferedWriter) else stdout
    )


def _is_resumable(output: str) -> bool:
    """Whether the output is a file, not a pipe or a device."""
    path = Path(output)
    return output != "-" and (path.is_file() or path.is_dir() or not path.exists())


def _total(lines: BinaryIO, limit: int | None) -> int | None:
    """Count the lines of a regular file, as far as the limit goes; of a pipe the limit is all we know."""
    try:
        if not stat.S_ISREG(os.fstat(lines.fileno()).st_mode):
            return limit
    except OSError:  # a stream in memory
        return limit
    start, count, last = lines.tell(), 0, b"\n"
    while block := lines.read(1 << 20):
        count += block.count(b"\n")
        last = block[-1:]
    lines.seek(start)
    count += last != b"\n"
    return count if limit is None else min(count, limit)


def _last_words(tally: Tally, output: str, seconds: float) -> str:
    from stepscore.progress import summary  # noqa: PLC0415

    if tally.resumed and tally.resumed == tally.records:
        errors = f", {tally.errors.total()} of them with errors" if tally.errors else ""
        return f"{output} is complete: {tally.records:,} records{errors}, nothing to do"
    return summary(tally, seconds)


def _facts(pair: Pair) -> Iterator[tuple[str, str]]:
    manifest = pair.manifest
    shape = manifest.architecture
    yield "pair", str(pair.path)
    yield "fingerprint", pair.fingerprint
    for name, source in (("policy", manifest.policy), ("reference", manifest.reference)):
        yield name, source.name if source.revision is None else f"{source.name}@{source.revision}"
    yield (
        "architecture",
        f"Qwen2: {shape.num_hidden_layers} layers, hidden size {shape.hidden_size}, vocabulary "
        f"{shape.vocab_size:,}, at most {shape.max_position_embeddings:,} tokens",
    )
    by_row = manifest.difference is not None and manifest.difference.activations == "int8"
    in_blocks = manifest.precision in {"int8", "int4"} and not by_row
    blocks = f", blocks of {manifest.block_size}" if in_blocks else ""
    yield "precision", f"{manifest.precision}{blocks}, for {manifest.target}"
    yield "coding", _coding(manifest)
    yield "distance", f"|policy - reference| is {100 * manifest.distance.overall:.2f} % of |reference|"
    yield "beta", f"{manifest.beta:g}"
    yield "size", f"{_megabytes(pair.num_bytes())} in {len(manifest.files)} files"
    if manifest.selftest is not None:
        test = manifest.selftest
        error = f"{test.logprob_error:.2g} nats RMS"
        yield "self-test", f"log-prob error {error} over {test.num_tokens} tokens, on {test.provider}"
    if manifest.fidelity is not None:
        yield "fidelity", str(manifest.fidelity)
    yield "written by", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())


def _coding(manifest: Manifest) -> str:
    if manifest.difference is None:
        return manifest.coding
    stored = manifest.difference
    how = f", {stored.products}" if stored.products is not None else ""
    calibrated = f", calibrated on {stored.calibration}" if stored.calibration is not None else ""
    return f"difference at {stored.precision}, {stored.activations} activations{how}{calibrated}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
