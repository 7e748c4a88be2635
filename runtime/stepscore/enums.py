"""Enums of options and stored choices; their values are the words on the command line."""

from __future__ import annotations

import enum

DEFAULT_BETA = 0.001
"""Scale of the rewards: the model card's `coef`."""


class Convention(enum.StrEnum):
    """Reward convention: the first log-ratio summed, and the token at which a step ends."""

    CARD = "card"
    """Model card: sum from token 1, prompt included, to the card's index of each step."""
    RESPONSE = "response"
    """Sum from the first response token to the card's index of each step."""
    EXACT = "exact"
    """Sum from the first response token to the end of the separator: independent of later steps."""


class Series(enum.StrEnum):
    """Series of rewards of a solution."""

    CUMULATIVE = "cumulative"
    """`cumulative_rewards`."""
    STEP = "step"
    """`step_rewards`: first differences of the cumulative rewards."""
    MEAN = "mean"
    """Cumulative rewards over the number of tokens summed: length-normalized."""
    MEAN_DIFFERENCE = "mean-difference"
    """First differences of `mean`."""

    @property
    def is_normalized(self) -> bool:
        """Return whether the reading needs the number of tokens up to each step."""
        return self in (Series.MEAN, Series.MEAN_DIFFERENCE)


class Reducer(enum.StrEnum):
    """Reduction of step rewards to one score of a solution."""

    LAST = "last"
    MIN = "min"
    MEAN = "mean"
    SUM = "sum"
    MAX = "max"

    @classmethod
    def _missing_(cls, value: object) -> None:
        if value == "prod":
            raise ValueError(PROD_UNSUPPORTED)


PROD_UNSUPPORTED = (
    "prod is not supported: rewards are signed, and the product of two negative ones would be a good score"
)


class Method(enum.StrEnum):
    """Method of selecting one of several samples."""

    BEST_OF_N = "best-of-n"
    """The highest score."""
    WEIGHTED = "weighted"
    """The answer with the largest sum of sigmoid(score / temperature)."""
    MAJORITY = "majority"
    """The most common answer."""


class Equality(enum.StrEnum):
    """Equality of two answers."""

    MATH = "math"
    """Mathematical, by math-verify: 0.5 equals \\frac{1}{2}."""
    EXACT = "exact"
    """Equal text."""


class Provider(enum.StrEnum):
    """Execution provider of ONNX Runtime; `auto` is the one that the pair was exported for."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Residency(enum.StrEnum):
    """Weights kept in memory; `auto` is the fastest that fits."""

    AUTO = "auto"
    RESIDENT = "resident"
    """All weights."""
    ALTERNATE = "alternate"
    """One model at a time per window; for difference-coded pairs, where both share weights, `resident`."""
    PARTIAL = "partial"
    """As many layers as the memory limit allows, the others one at a time; for pairs for CUDA."""
    STREAM = "stream"
    """One layer at a time per window, while the next layer is prefetched."""


class Precision(enum.StrEnum):
    """Precision of stored weights, in the words of ONNX Runtime and Hugging Face."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    NF4 = "nf4"
    """4-bit NormalFloat of bitsandbytes: quantiles of a normal distribution."""
    FP4 = "fp4"
    """4-bit float of bitsandbytes: one sign, two exponent and one mantissa bit."""


class Format(enum.StrEnum):
    """Format of the stored models, which decides the library that runs them."""

    ONNX = "onnx"
    """ONNX graphs over a weight file, run by ONNX Runtime."""
    BITSANDBYTES = "bitsandbytes"
    """One transformers folder per model with 8-bit or 4-bit weights, run by PyTorch."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions that the format supports."""
        if self is Format.BITSANDBYTES:
            return Precision.INT8, Precision.NF4, Precision.FP4
        return Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.INT4


class Exporter(enum.StrEnum):
    """Exporter that wrote the graphs of a pair."""

    STEPSCORE = "stepscore"
    """Graphs built by stepscore_export: packed tokens, one file per layer, every precision."""
    OPTIMUM = "optimum"
    """transformers' modelling code traced by optimum-onnx: padded batches, standard ONNX operators only."""


class Target(enum.StrEnum):
    """Execution provider that graphs are built for: the CPU computes in fp32, CUDA in 16 bits."""

    CPU = "cpu"
    CUDA = "cuda"


class Coding(enum.StrEnum):
    """How the two models share weights; `auto` is decided by their distance."""

    AUTO = "auto"
    DIFFERENCE = "difference"
    """Delta compression: the reference, and the policy as the reference plus a quantized difference."""
    INDEPENDENT = "independent"
    """Each model quantized independently."""


class DifferencePrecision(enum.StrEnum):
    """Precision of the stored difference of the two models."""

    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"
    LOSSLESS = "lossless"
    """The difference of 16-bit patterns: the policy's weights bit for bit."""


class Activations(enum.StrEnum):
    """Activation precision."""

    EXACT = "exact"
    """Weight-only: weights are dequantized, activations are not quantized."""
    INT8 = "int8"
    """W8A8: activations quantized to 8 bits, one scale per token, the policy's as a difference."""


class Products(enum.StrEnum):
    """How base and difference of a weight are combined in a matmul with unquantized activations."""

    SEPARATE = "separate"
    """Two GEMMs, with base and difference, and the sum of their outputs."""
    MERGED = "merged"
    """Base and difference are merged into one weight first, then one GEMM."""
