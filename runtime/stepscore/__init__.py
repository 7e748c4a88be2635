"""Step rewards of implicit process reward models at low precision, without PyTorch.

    from stepscore import Scorer

    with Scorer.load("pair") as scorer:
        result, = scorer.score([{"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So 2."]}])

Public names are imported on first use, so that `import stepscore` and `stepscore --help` are fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepscore.enums import Convention as Convention
    from stepscore.enums import Provider as Provider
    from stepscore.errors import StepscoreError as StepscoreError
    from stepscore.evaluation.first_error import choose_threshold as choose_threshold
    from stepscore.evaluation.first_error import first_error as first_error
    from stepscore.evaluation.first_error import processbench_f1 as processbench_f1
    from stepscore.integrations.reward_model import RewardModel as RewardModel
    from stepscore.records import Record as Record
    from stepscore.records import TokenRecord as TokenRecord
    from stepscore.results import Result as Result
    from stepscore.results import TokenResult as TokenResult
    from stepscore.rewards import aggregate as aggregate
    from stepscore.rewards import probability as probability
    from stepscore.scheduling.async_scorer import AsyncScorer as AsyncScorer
    from stepscore.scorer import Scorer as Scorer
    from stepscore.selection.rules import best_of_n as best_of_n
    from stepscore.selection.rules import majority as majority
    from stepscore.selection.rules import weighted_best_of_n as weighted_best_of_n

    __version__: str

_HOMES = {
    "AsyncScorer": "scheduling.async_scorer",
    "Convention": "enums",
    "Provider": "enums",
    "Record": "records",
    "Result": "results",
    "RewardModel": "integrations.reward_model",
    "Scorer": "scorer",
    "StepscoreError": "errors",
    "TokenRecord": "records",
    "TokenResult": "results",
    "aggregate": "rewards",
    "best_of_n": "selection.rules",
    "choose_threshold": "evaluation.first_error",
    "first_error": "evaluation.first_error",
    "majority": "selection.rules",
    "probability": "rewards",
    "processbench_f1": "evaluation.first_error",
    "weighted_best_of_n": "selection.rules",
}

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 (names of strings, all of them)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("stepscore")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
