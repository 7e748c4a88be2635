"""Exception hierarchy.

    StepscoreError
    ├── ArtifactError        a pair on disk, or the machine it is opened on
    │   ├── NotFound                 not_found
    │   ├── ManifestInvalid          manifest_invalid
    │   ├── VersionUnsupported       version_unsupported
    │   ├── IntegrityMismatch        integrity_mismatch
    │   ├── ModelInvalid             model_invalid
    │   ├── PairIncompatible         pair_incompatible
    │   ├── ProviderUnavailable      provider_unavailable
    │   ├── DoesNotFit               does_not_fit
    │   └── RunFailed                run_failed
    ├── InputError           one record; does not end a run
    │   ├── InvalidJson              invalid_json
    │   ├── InvalidRecord            invalid_record
    │   ├── TooLarge                 too_large
    │   ├── TooLong                  too_long
    │   ├── NoSteps                  no_steps
    │   ├── NoAnswer                 no_answer (voting)
    │   ├── DuplicateId              duplicate_id
    │   └── UnknownModel             unknown_model (a call to the server)
    ├── SourceError          an input file as a whole
    │   ├── NoRecords                no_records
    │   └── IdsRepeat                ids_repeat
    ├── NumericalError
    │   └── NonFinite                non_finite (per record, like InputError)
    ├── ScorerClosed                 scorer_closed (use after `close`)
    ├── SchedulingError      a request that was not computed; it may be sent again
    │   ├── Overloaded               overloaded (it was not accepted)
    │   └── DeadlineExceeded         deadline_exceeded
    ├── InputUnreadable              input_unreadable
    ├── ResumeError
    │   ├── ResumeMismatch           resume_mismatch
    │   └── ShardMismatch            shard_mismatch
    ├── EvaluationError      scored files that cannot be selected from or evaluated
    │   ├── NotScored                not_scored
    │   ├── NotComparable            not_comparable
    │   ├── HeaderInvalid            header_invalid
    │   └── ExtraMissing             extra_missing
    ├── ExportError          a checkpoint or export that is rejected
    │   ├── CheckpointUnsafe         checkpoint_unsafe
    │   ├── CheckpointCorrupt        checkpoint_corrupt
    │   ├── UnsupportedArchitecture  unsupported_architecture
    │   └── SelftestFailed           selftest_failed
    └── OutputError          the path that an export or a job writes to
        ├── OutputExists             output_exists
        └── OutputUnwritable         output_unwritable

The code strings are stable: error lines and scripts may rely on them. `exit_code` is the exit code of the
command line when the error ends a run.
"""

from __future__ import annotations

from typing import ClassVar, Self


class StepscoreError(Exception):
    """Base class: `message` says what was found and expected, `hint` what to do."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def untraced(self) -> Self:
        """Return an equal error without the traceback, which keeps the data of its frames in memory."""
        return type(self)(self.message, hint=self.hint)


class ArtifactError(StepscoreError):
    """A pair on disk, or the machine it is opened on, does not allow scoring."""

    code = "artifact"


class NotFound(ArtifactError):
    """The pair, model or file does not exist."""

    code = "not_found"


class ManifestInvalid(ArtifactError):
    """manifest.json is missing, unreadable or inconsistent."""

    code = "manifest_invalid"


class VersionUnsupported(ArtifactError):
    """The schema version of the pair is not supported by this version of stepscore."""

    code = "version_unsupported"


class IntegrityMismatch(ArtifactError):
    """A file is missing, not a regular file, or differs in size or hash from the manifest."""

    code = "integrity_mismatch"


class ModelInvalid(ArtifactError):
    """A graph, configuration, weight file or tokenizer of the pair is not one that an export writes."""

    code = "model_invalid"


class PairIncompatible(ArtifactError):
    """Policy and reference do not match, or the pair does not support this request."""

    code = "pair_incompatible"


class ProviderUnavailable(ArtifactError):
    """The requested execution provider does not work on this machine."""

    code = "provider_unavailable"


class DoesNotFit(ArtifactError):
    """The memory limit is below the pair's minimum, or a GPU is out of memory."""

    code = "does_not_fit"


class RunFailed(ArtifactError):
    """ONNX Runtime or PyTorch failed while it ran a model."""

    code = "run_failed"


class InputError(StepscoreError):
    """One record cannot be scored; the run continues."""

    code = "input"
    exit_code = 1


class InvalidJson(InputError):
    """The line is not JSON (or not UTF-8)."""

    code = "invalid_json"


class InvalidRecord(InputError):
    """The JSON is not a valid record: a field is missing, of the wrong type, or not valid text."""

    code = "invalid_record"


class TooLarge(InputError):
    """The line exceeds the size limit."""

    code = "too_large"


class TooLong(InputError):
    """The record has more tokens than the model's context; nothing is truncated."""

    code = "too_long"


class NoSteps(InputError):
    """`steps` is empty."""

    code = "no_steps"


class NoAnswer(InputError):
    """No sample of the problem has an answer to vote for."""

    code = "no_answer"


class DuplicateId(InputError):
    """An earlier record of this input has the same id."""

    code = "duplicate_id"


class UnknownModel(InputError):
    """A call names a model that the server does not serve."""

    code = "unknown_model"


class SourceError(StepscoreError):
    """An input file, as a whole, is not what a job reads; nothing is written."""

    code = "source"


class NoRecords(SourceError):
    """The first lines of the input hold no record: another format, or other field names."""

    code = "no_records"


class IdsRepeat(SourceError):
    """The samples of a problem have one `id`, which must be unique in a file."""

    code = "ids_repeat"


class NumericalError(StepscoreError):
    """A computed number is not valid."""

    code = "numerical"
    exit_code = 1


class NonFinite(NumericalError):
    """A log-probability is NaN or infinite."""

    code = "non_finite"


class ScorerClosed(StepscoreError):
    """The scorer was closed before this call, or the call comes from a fork of its process."""

    code = "scorer_closed"


class SchedulingError(StepscoreError):
    """A request was not computed; it may be sent again."""

    code = "scheduling"


class Overloaded(SchedulingError):
    """Too much waits: the call was not accepted. What waits takes about `retry_after` seconds."""

    code = "overloaded"

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after

    def untraced(self) -> Self:
        """Return an equal error without the traceback."""
        return type(self)(self.message, hint=self.hint, retry_after=self.retry_after)


class DeadlineExceeded(SchedulingError):
    """The request was not answered before its deadline."""

    code = "deadline_exceeded"


class InputUnreadable(StepscoreError):
    """An input file cannot be read to its end."""

    code = "input_unreadable"


class ResumeError(StepscoreError):
    """An unfinished output cannot be resumed."""

    code = "resume"
    exit_code = 4


class ResumeMismatch(ResumeError):
    """The output was written with another pair, beta, convention, limit or input."""

    code = "resume_mismatch"


class ShardMismatch(ResumeError):
    """Shards do not make up one run: one is missing, given twice, unfinished, or of another run or input."""

    code = "shard_mismatch"


class EvaluationError(StepscoreError):
    """Scored files cannot be selected from or evaluated."""

    code = "evaluation"


class NotScored(EvaluationError):
    """No record of the file has rewards, or none has the requested field."""

    code = "not_scored"


class NotComparable(EvaluationError):
    """Files were scored with different options, so one threshold does not apply to all."""

    code = "not_comparable"


class HeaderInvalid(EvaluationError):
    """The header of a scored file is damaged, or of a newer version of stepscore."""

    code = "header_invalid"


class ExtraMissing(EvaluationError):
    """An optional dependency is needed but not installed."""

    code = "extra_missing"


class ExportError(StepscoreError):
    """A checkpoint, or the pair exported from it, is rejected."""

    code = "export"


class CheckpointUnsafe(ExportError):
    """Loading would run code or leave the folder: pickle only, `auto_map`, a path outside."""

    code = "checkpoint_unsafe"


class CheckpointCorrupt(ExportError):
    """A file or tensor is missing, truncated, of the wrong shape or dtype, or not finite."""

    code = "checkpoint_corrupt"


class UnsupportedArchitecture(ExportError):
    """Not a supported causal language model, or a chat template that cannot be rendered to literals."""

    code = "unsupported_architecture"


class SelftestFailed(ExportError):
    """The staged pair, run by the runtime, deviates from the reference computation."""

    code = "selftest_failed"


class OutputError(StepscoreError):
    """A pair or an output file cannot be written."""

    code = "output"


class OutputExists(OutputError):
    """The output path exists and was not written by stepscore, or must not be overwritten."""

    code = "output_exists"


class OutputUnwritable(OutputError):
    """No space, no permission, or another process has locked the output."""

    code = "output_unwritable"
