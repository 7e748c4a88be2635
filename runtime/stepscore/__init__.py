"""Step rewards of an implicit process reward model, at low precision, without PyTorch.

    from stepscore import Scorer

    with Scorer.load("pair") as scorer:
        result, = scorer.score([{"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So 2."]}])

The public names below are loaded when they are first used: `stepscore --help` needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepscore.enums import Convention, Provider
    from stepscore.errors import StepscoreError
    from stepscore.evaluation.first_error import choose_threshold, first_error, processbench_f1
    from stepscore.integrations.reward_model import RewardModel
    from stepscore.records import Record, Result
    from stepscore.scorer import Scorer
    from stepscore.selection.rules import aggregate, best_of_n, majority, weighted_best_of_n

__all__ = [
    "Convention",
    "Provider",
    "Record",
    "Result",
    "RewardModel",
    "Scorer",
    "StepscoreError",
    "aggregate",
    "best_of_n",
    "choose_threshold",
    "first_error",
    "majority",
    "processbench_f1",
    "weighted_best_of_n",
]

_HOMES = {
    "Convention": "enums",
    "Provider": "enums",
    "Record": "records",
    "Result": "scorer",
    "RewardModel": "integrations.reward_model",
    "Scorer": "scorer",
    "StepscoreError": "errors",
    "aggregate": "selection.rules",
    "best_of_n": "selection.rules",
    "choose_threshold": "selection.rules",
    "first_error": "selection.rules",
    "majority": "selection.rules",
    "processbench_f1": "selection.rules",
    "weighted_best_of_n": "selection.rules",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
