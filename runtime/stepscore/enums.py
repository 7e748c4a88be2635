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


class Series(enum.StrEnum):
    """Which rewards of a solution are looked at."""

    CUMULATIVE = "cumulative"
    """`cumulative_rewards`."""
    STEP = "step"
    """`step_rewards`."""


class Reducer(enum.StrEnum):
    """How the rewards of the steps become one score of a solution."""

    LAST = "last"
    MIN = "min"
    MEAN = "mean"
    SUM = "sum"
    MAX = "max"

    @classmethod
    def _missing_(cls, value: object) -> None:
        if value == "prod":
            raise ValueError(PROD_REFUSED)


PROD_REFUSED = (
    "prod is refused: rewards are signed, and the product of two negative ones would be a good score"
)


class Method(enum.StrEnum):
    """How one of several samples is chosen."""

    BEST_OF_N = "best-of-n"
    """The highest score."""
    WEIGHTED = "weighted"
    """The answer with the largest sum of sigmoid(score / temperature)."""
    MAJORITY = "majority"
    """The most common answer."""


class Equality(enum.StrEnum):
    """When two answers are the same."""

    MATH = "math"
    """As math-verify says: 0.5 is \\frac{1}{2}."""
    EXACT = "exact"
    """The same characters."""


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
    NF4 = "nf4"
    """bitsandbytes' four bits: quantiles of a normal distribution."""
    FP4 = "fp4"
    """bitsandbytes' four bits: a sign, two bits of exponent, one of mantissa."""


class Format(enum.StrEnum):
    """What the models of a pair are stored as, and with it the library that runs them."""

    ONNX = "onnx"
    """Graphs over a weight file: ONNX Runtime."""
    BITSANDBYTES = "bitsandbytes"
    """A folder of transformers a model, 8-bit or 4-bit weights: PyTorch."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What weights can be stored at."""
        if self is Format.BITSANDBYTES:
            return Precision.INT8, Precision.NF4, Precision.FP4
        return Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.INT4


class Exporter(enum.StrEnum):
    """What wrote the graphs of a pair."""

    STEPSCORE = "stepscore"
    """Our own graphs: packed rows, one file a layer, every precision."""
    OPTIMUM = "optimum"
    """transformers' modelling code, traced by optimum-onnx: padded batches, standard ONNX operators only."""


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
