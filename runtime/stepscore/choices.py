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
    """What is in memory at once; `auto` is the fastest that fits."""

    AUTO = "auto"
    RESIDENT = "resident"
    """Everything."""
    ALTERNATE = "alternate"
    """One model at a time over a window; a coded pair holds both at once, so there it is `resident`."""
    STREAM = "stream"
    """One layer at a time over a window, the next one being loaded meanwhile."""


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


class Coding(enum.StrEnum):
    """How the two models share weights; `auto` is decided by how far apart they are."""

    AUTO = "auto"
    DIFFERENCE = "difference"
    """The reference once, and the policy as the reference plus a difference with scales of its own."""
    INDEPENDENT = "independent"
    """Each model on its own."""


class DifferencePrecision(enum.StrEnum):
    """How the difference of the two models is stored."""

    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"


class Activations(enum.StrEnum):
    """What a matrix is multiplied with."""

    EXACT = "exact"
    """Rows as they are: weights are turned into floating point."""
    INT8 = "int8"
    """Rows rounded to 8 bits, one scale a token, the policy's as a difference: an integer product."""


class Products(enum.StrEnum):
    """How a coded matrix meets exact rows of the policy."""

    SEPARATE = "separate"
    """One product with the base, one with the difference, then their sum."""
    MERGED = "merged"
    """Base and difference are added up first, then one product."""


class Series(enum.StrEnum):
    """Which rewards of a solution are looked at."""

    CUMULATIVE = "cumulative"
    """`cumulative_rewards`."""
    STEP = "step"
    """`step_rewards`."""
