"""The JSON object that each command prints with --json, as msgspec structs.

`command` says which object it is, `schema_version` counts its versions. The objects of select, evaluate,
bench and parity are beside their figures, with the same two fields (jobs/provenance.py).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from stepscore.artifact.manifest import Manifest
from stepscore.enums import Convention, Provider, Residency
from stepscore.errors import StepscoreError
from stepscore.jobs.provenance import RESULT_VERSION, Provenance, document_schema
from stepscore.jobs.schema import ScoredLine

Count = Annotated[int, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0, description="bytes")]
Seconds = Annotated[float, Meta(ge=0, description="seconds")]
Version = Annotated[int, Meta(description=f"version of this object: {RESULT_VERSION}")]


class CommandResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """Result of a command that ended without an error."""

    schema_version: Version = RESULT_VERSION


class Fault(msgspec.Struct, frozen=True):
    """An error: what was found and what to do."""

    code: Annotated[str, Meta(description="a code of docs/errors.md, `usage` or `interrupted`")]
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: StepscoreError) -> Fault:
        """Return the fault of an error."""
        return cls(error.code, error.message, error.hint)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Error that ended a command: the last line of stderr."""

    command: Annotated[str | None, Meta(description="command that failed, such as `evaluate processbench`")]
    schema_version: Version = RESULT_VERSION
    error: Fault


class ScoreResult(CommandResult, frozen=True, kw_only=True, tag="score"):
    """A finished job."""

    stepscore: Annotated[Provenance, Meta(description="provenance of the rewards")]
    input: Annotated[str, Meta(description="`-` is standard input")]
    output: Annotated[str, Meta(description="`-` is standard output")]
    records: Annotated[Count, Meta(description="lines of the output, its header left out")]
    scored: Count
    resumed: Annotated[Count, Meta(description="of the records: those of an earlier run")]
    errors: Annotated[dict[str, int], Meta(description="records with errors, by code")]
    tokens: Annotated[Count, Meta(description="tokens scored by this run")]
    seconds: Annotated[Seconds, Meta(description="wall-clock time after loading")]


class SolutionResult(CommandResult, frozen=True, kw_only=True, tag="score --problem"):
    """Rewards of one solution."""

    stepscore: Annotated[Provenance, Meta(description="provenance of the rewards")]
    problem: str
    steps: list[str]
    threshold: Annotated[float | None, Meta(description="reward below which a step is marked")]
    marked_step: Annotated[
        int,
        Meta(description="0-based: first step below the threshold, else the lowest negative one; -1: none"),
    ]
    scored: Annotated[ScoredLine, Meta(description="fields that a scored line adds; its id is 0")]


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings that a run would choose."""

    residency: Residency
    resident_stages: Annotated[Count, Meta(description="with `partial`: stages that stay on the device")]
    max_batch_tokens: Count
    window_tokens: Count
    head_rows: Annotated[Count, Meta(description="tokens per chunk of the head")]


class MemoryNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated peak memory: of the process on the CPU, of the GPU for pairs for CUDA."""

    on_gpu: bool
    total: Bytes
    process: Bytes
    weights: Bytes
    batch: Bytes
    window: Bytes
    kept: Annotated[Bytes, Meta(description="prefixes of earlier calls: the limit of --prefix-cache")] = 0


class TimeNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated time of a run, from a short measurement."""

    seconds: Annotated[Seconds, Meta(description="estimated time, loading included")]
    load_seconds: Annotated[Seconds, Meta(description="measured: loading and a first record")]
    tokens_per_second: Annotated[float, Meta(description="tokens of the input per second after loading")]
    measured_records: Count
    measured_tokens: Count


class DryRunResult(CommandResult, frozen=True, kw_only=True, tag="score --dry-run"):
    """Tokens, batches, memory and time of a run that has not been made."""

    pair: Annotated[str, Meta(description="fingerprint of the pair")]
    records: Count
    errors: Annotated[dict[str, int], Meta(description="records with errors, by code")]
    tokens: Count
    longest: Annotated[Count, Meta(description="tokens of the longest record")]
    computed: Annotated[Count, Meta(description="tokens computed: a shared prefix once per batch")]
    batches: Count
    windows: Count
    settings: RunSettings
    memory: MemoryNeed
    time: Annotated[TimeNeed | None, Meta(description="null: not measured")]
    not_measured: Annotated[str | None, Meta(description="why there is no time")]


class PairFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A pair on disk."""

    path: str
    fingerprint: str
    num_files: Count
    num_bytes: Bytes


class ResidencyNeed(msgspec.Struct, frozen=True, kw_only=True):
    """Estimated peak memory of full batches."""

    residency: Residency
    max_batch_tokens: Count
    on_gpu: bool
    total: Bytes


class InspectResult(CommandResult, frozen=True, kw_only=True, tag="inspect"):
    """A pair, its memory use and its manifest."""

    pair: PairFacts
    memory: list[ResidencyNeed]
    manifest: Annotated[Manifest, Meta(description="manifest.json")]


class VerifyResult(CommandResult, frozen=True, kw_only=True, tag="verify"):
    """A pair whose files all have the size and hash of its manifest."""

    pair: PairFacts


class ExportResult(CommandResult, frozen=True, kw_only=True, tag="export"):
    """An exported pair."""

    pair: PairFacts
    seconds: Seconds
    manifest: Annotated[Manifest, Meta(description="manifest.json")]


class ExportPlanResult(CommandResult, frozen=True, kw_only=True, tag="export --dry-run"):
    """What an export would need and write."""

    output: str
    description: Annotated[str, Meta(description="precision, coding and format, in words")]
    parameters: Annotated[Count, Meta(description="of both checkpoints")]
    source_bytes: Bytes
    distance: Annotated[float, Meta(description="|policy - reference| as a fraction of |reference|")]
    calibration: Annotated[str | None, Meta(description="name of the calibration data")]
    calibration_tokens: Count
    disk_bytes: Bytes
    weight_bytes: Annotated[dict[str, int], Meta(description="by folder of the pair")]
    memory_bytes: Annotated[int, Meta(description="estimated peak")]
    seconds: Annotated[Seconds, Meta(description="estimated time on two cores")]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check of `doctor`."""

    name: str
    works: bool
    value: Annotated[str, Meta(description="what was found, in words")]
    error: Fault | None


class DoctorResult(CommandResult, frozen=True, kw_only=True, tag="doctor"):
    """Whether scoring works on this machine; the exit code is 3 where it does not."""

    works: bool
    python: str
    platform: str
    packages: Annotated[dict[str, str], Meta(description="installed versions")]
    cores: Annotated[Count, Meta(description="usable CPU cores")]
    cpu_features: list[str]
    available_bytes: Annotated[int | None, Meta(description="free memory, a container's limit included")]
    total_bytes: int | None
    checks: Annotated[list[Check], Meta(description="execution providers, and the pair if one is given")]


class MergeResult(CommandResult, frozen=True, kw_only=True, tag="merge"):
    """Merged shards."""

    output: str
    shards: Count
    records: Count
    errors: Annotated[Count, Meta(description="records with errors")]


class PlotResult(CommandResult, frozen=True, kw_only=True, tag="plot"):
    """Figures and numbers that were written."""

    kind: Annotated[str, Meta(description="command behind `plot`, such as `accuracy`")]
    outputs: list[str]
    errors: Annotated[Count, Meta(description="records with errors")]


class ReportResult(CommandResult, frozen=True, kw_only=True, tag="report"):
    """A page that was written."""

    output: Annotated[str, Meta(description="`-` is standard output")]
    records: Count
    errors: Annotated[Count, Meta(description="records with errors")]
    threshold: Annotated[float | None, Meta(description="reward below which a step is highlighted")]


class ServeResult(CommandResult, frozen=True, kw_only=True, tag="serve"):
    """The line that `serve` prints when it accepts calls."""

    address: str
    pair: Annotated[str, Meta(description="fingerprint of the pair")]
    models: Annotated[list[str], Meta(description="names that calls may use")]
    provider: Provider
    convention: Convention
    beta: float
    needs_key: bool


class VersionResult(CommandResult, frozen=True, kw_only=True, tag="version"):
    """Versions of stepscore, Python and the installed libraries."""

    version: str
    python: str
    packages: Annotated[dict[str, str], Meta(description="installed versions")]


class HelpResult(CommandResult, frozen=True, kw_only=True, tag="help"):
    """Help text of a command."""

    path: Annotated[str, Meta(description="such as `stepscore score`")]
    text: str
    commands: Annotated[dict[str, str], Meta(description="subcommands with a short help text")]


class CompletionResult(CommandResult, frozen=True, kw_only=True, tag="completion"):
    """Completion script of a shell."""

    shell: str
    script: str


AnyResult = (
    ScoreResult
    | SolutionResult
    | DryRunResult
    | InspectResult
    | VerifyResult
    | ExportResult
    | ExportPlanResult
    | DoctorResult
    | MergeResult
    | PlotResult
    | ReportResult
    | ServeResult
    | VersionResult
    | HelpResult
    | CompletionResult
)


def result_schemas() -> dict[str, dict[str, Any]]:
    """Return JSON Schema (2020-12) of what --json prints: `result` of a command, `failure` for an error.

    >>> sorted(result_schemas())
    ['failure', 'result']
    """
    from stepscore.bench import BenchReport
    from stepscore.cli.accuracy_table import SelectionReport
    from stepscore.evaluation.processbench import ProcessBenchReport

    results: Any = AnyResult
    for report in (SelectionReport, ProcessBenchReport, BenchReport):
        results |= document_schema(report)
    return {"result": msgspec.json.schema(results), "failure": msgspec.json.schema(Failure)}
