"""Every way stepscore says no, in one tree.

    StepscoreError
    ├── ArtifactError        the pair on disk, or the machine it is opened on
    │   ├── NotFound                 not_found
    │   ├── ManifestInvalid          manifest_invalid
    │   ├── VersionUnsupported       version_unsupported
    │   ├── IntegrityMismatch        integrity_mismatch
    │   ├── PairIncompatible         pair_incompatible
    │   ├── ProviderUnavailable      provider_unavailable
    │   └── DoesNotFit               does_not_fit
    ├── InputError           one record; never the end of a run
    │   ├── InvalidJson              invalid_json
    │   ├── InvalidRecord            invalid_record
    │   ├── TooLarge                 too_large
    │   ├── TooLong                  too_long
    │   ├── NoSteps                  no_steps
    │   ├── NoAnswer                 no_answer (voting)
    │   └── DuplicateId              duplicate_id
    ├── NumericalError
    │   └── NonFinite                non_finite (per record, like InputError)
    ├── ResumeError
    │   └── ResumeMismatch           resume_mismatch
    ├── JudgeError           scored files that cannot be chosen from or judged
    │   ├── NotScored                not_scored
    │   ├── NotComparable            not_comparable
    │   └── ExtraMissing             extra_missing
    ├── ExportError          a checkpoint that is refused
    │   ├── CheckpointUnsafe         checkpoint_unsafe
    │   ├── CheckpointCorrupt        checkpoint_corrupt
    │   ├── UnsupportedArchitecture  unsupported_architecture
    │   └── SelftestFailed           selftest_failed
    └── OutputError          the place an export or a job writes to
        ├── OutputExists             output_exists
        └── OutputUnwritable         output_unwritable

The code strings are stable: error records and scripts may rely on them. `exit_code` is what the command
line returns when the error ends a run.
"""

from __future__ import annotations

from typing import ClassVar


class StepscoreError(Exception):
    """Base of all: a message that names what is wrong, and a hint that says what to do."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ArtifactError(StepscoreError):
    """The pair on disk, or the machine it is opened on."""

    code = "artifact"


class NotFound(ArtifactError):
    """No such pair, model or file."""

    code = "not_found"


class ManifestInvalid(ArtifactError):
    """manifest.json is missing, unreadable or says something impossible."""

    code = "manifest_invalid"


class VersionUnsupported(ArtifactError):
    """The pair was written by a schema that this version does not read."""

    code = "version_unsupported"


class IntegrityMismatch(ArtifactError):
    """A file is missing, not a regular file, or has another size or hash than the manifest says."""

    code = "integrity_mismatch"


class PairIncompatible(ArtifactError):
    """Policy and reference do not fit each other, or the pair does not fit this request."""

    code = "pair_incompatible"


class ProviderUnavailable(ArtifactError):
    """The execution provider that was asked for does not work here."""

    code = "provider_unavailable"


class DoesNotFit(ArtifactError):
    """The memory limit is under what the pair needs at the least, or a GPU's memory is full."""

    code = "does_not_fit"


class InputError(StepscoreError):
    """One record cannot be scored; the run goes on."""

    code = "input"
    exit_code = 1


class InvalidJson(InputError):
    """The line is not JSON (or not UTF-8)."""

    code = "invalid_json"


class InvalidRecord(InputError):
    """The JSON is not a record: a field is missing, has the wrong type, or cannot be text."""

    code = "invalid_record"


class TooLarge(InputError):
    """The line has more bytes than the limit."""

    code = "too_large"


class TooLong(InputError):
    """The record has more tokens than the model has positions; nothing is ever truncated."""

    code = "too_long"


class NoSteps(InputError):
    """`steps` is empty."""

    code = "no_steps"


class NoAnswer(InputError):
    """No sample of the problem has an answer to vote for."""

    code = "no_answer"


class DuplicateId(InputError):
    """The id was seen before in this input."""

    code = "duplicate_id"


class NumericalError(StepscoreError):
    """A number that must not be returned."""

    code = "numerical"
    exit_code = 1


class NonFinite(NumericalError):
    """A log-probability is NaN or infinite."""

    code = "non_finite"


class ResumeError(StepscoreError):
    """An unfinished output cannot be continued."""

    code = "resume"
    exit_code = 4


class ResumeMismatch(ResumeError):
    """The output was begun with another pair, beta, convention or limit."""

    code = "resume_mismatch"


class JudgeError(StepscoreError):
    """Scored files that cannot be chosen from or judged."""

    code = "judge"


class NotScored(JudgeError):
    """No record of the file has rewards, or none has what is asked for."""

    code = "not_scored"


class NotComparable(JudgeError):
    """Files of different runs, for which one threshold means different things."""

    code = "not_comparable"


class ExtraMissing(JudgeError):
    """An optional dependency is needed and not installed."""

    code = "extra_missing"


class ExportError(StepscoreError):
    """A checkpoint, or what is made of it, is refused."""

    code = "export"


class CheckpointUnsafe(ExportError):
    """Loading it would run code: pickle only, `auto_map`, or a name that leaves the folder."""

    code = "checkpoint_unsafe"


class CheckpointCorrupt(ExportError):
    """A file or tensor is missing, truncated, of the wrong shape or dtype, or not finite."""

    code = "checkpoint_corrupt"


class UnsupportedArchitecture(ExportError):
    """Not a plain Qwen2 causal language model (or a template that cannot become literals)."""

    code = "unsupported_architecture"


class SelftestFailed(ExportError):
    """The staged pair, run by the real runtime, does not give the numbers it should."""

    code = "selftest_failed"


class OutputError(StepscoreError):
    """A pair or an output file cannot be written."""

    code = "output"


class OutputExists(OutputError):
    """Something that is not ours to replace stands at the target."""

    code = "output_exists"


class OutputUnwritable(OutputError):
    """No space, no permission, or another process holds the lock."""

    code = "output_unwritable"
