"""The choices a user has, each an enum whose values are the words on the command line."""

from __future__ import annotations

import enum

DEFAULT_BETA = 0.001
"""Scale of the rewards: the model card's `coef`."""


class Convention(enum.StrEnum):
    """Where the sum starts and where a step ends."""

    CARD = "card"
    """From token 1, to the card's index."""
    RESPONSE = "response"
    """From the first response token, to the card's index."""
    EXACT = "exact"
    """From the first response token, to the end of the separator: no step sees the next."""


class Provider(enum.StrEnum):
    """An execution provider of ONNX Runtime; `auto` is the one that the pair was exported for."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Residency(enum.StrEnum):
    """What stays in memory between batches: all graphs, or one layer at a time."""

    RESIDENT = "resident"
    STREAM = "stream"


class Precision(enum.StrEnum):
    """How weights are stored: ONNX Runtime's and Hugging Face's words."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"


class Target(enum.StrEnum):
    """What a pair's graphs are for: the CPU computes in fp32, CUDA in 16 bits."""

    CPU = "cpu"
    CUDA = "cuda"
