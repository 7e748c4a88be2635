"""Plan of the GPU benchmark: its parts in the order in which they run, the most decisive first."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from benchmarks.support.forms import BF16, CODED, FORMS, FP16, LOSSLESS, LOSSLESS_OPTIONS

from stepscore.enums import Precision, Provider, Residency
from stepscore_export.options import ExportOptions

INT4 = "int4 + int4"
TRANSFORMERS = "transformers"
IN_16_BITS, IN_FP32, FP32_GRAPHS = "16-bit logits", "fp32 logits", "fp32 graphs"
"""How logits are computed where fidelity is measured."""
GPU_FORMS: Mapping[str, ExportOptions] = MappingProxyType(
    {
        FP16: FORMS[Provider.CUDA][FP16],
        CODED: FORMS[Provider.CUDA][CODED],
        INT4: replace(FORMS[Provider.CUDA][CODED], precision=Precision.INT4),
        LOSSLESS: LOSSLESS_OPTIONS,
        BF16: FORMS[Provider.CUDA][BF16],
    }
)
"""Forms that are measured; those that come first decide most."""


class PartName(enum.StrEnum):
    """What a part measures."""

    FACTS = "facts"
    """The machine, the card and its limits."""
    FLOOR = "floor"
    """The GEMMs of both models and nothing else, in a precision."""
    ENGINE = "engine"
    """A form in a residency: tokens/s and memory by window."""
    TEXT = "text"
    """Best-of-8 text with a form, or with transformers in fp16."""
    FIDELITY = "fidelity"
    """The bundled pair in a form, or with transformers, against fp64."""
    CUDA_TESTS = "cuda_tests"
    """The tests that need a GPU."""
    PEER = "peer"
    """Best-of-8 text with transformers in another precision, or with bitsandbytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """One measurement, in a process of its own; a form comes first among its arguments."""

    name: PartName
    arguments: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: PartName, *arguments: str) -> Part:
        """Return a part."""
        return cls(name, arguments)

    @property
    def form(self) -> str | None:
        """Return the form of pair that is measured, if it is one."""
        named = self.name in {PartName.ENGINE, PartName.TEXT, PartName.FIDELITY}
        return self.arguments[0] if named and self.arguments[0] in GPU_FORMS else None


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each part runs. The floor is measured at the sizes of all windows but the largest."""

    windows: tuple[int, ...] = (1024, 4096, 16_384, 32_768)
    sequence_tokens: int = 512
    sustained_seconds: float = 2.0
    text_sequences: int = 48
    """Of best-of-8 text: the solutions of an eighth as many problems."""
    fidelity_problems: int = 60
    repeats: int = 3
    part_seconds: float = 240.0
    """After these a part is ended."""


FULL = Sizes()
QUICK_SIZES = Sizes((64, 128, 256, 512), 32, 0.05, text_sequences=3, fidelity_problems=2, repeats=1)


def floor_precision(form: str) -> Precision:
    """Return the precision in which a form computes on a GPU, which is that of its floor.

    >>> floor_precision("int8 + int4").value, floor_precision("bf16, lossless difference").value
    ('fp16', 'bf16')
    """
    return Precision.BF16 if GPU_FORMS[form].precision is Precision.BF16 else Precision.FP16


def plan(only: Collection[PartName], forms: Collection[str]) -> list[Part]:
    """Return the parts of these names and forms in order; the facts of the machine are always first."""
    return [
        part
        for part in _every_part()
        if part.name is PartName.FACTS or (part.name in only and (part.form is None or part.form in forms))
    ]


def _every_part() -> Iterator[Part]:
    resident, partial, stream = Residency.RESIDENT, Residency.PARTIAL, Residency.STREAM
    yield Part(PartName.FACTS)
    yield Part.of(PartName.FLOOR, Precision.FP16)
    yield from _engines((FP16, resident), (CODED, resident), (CODED, stream), (INT4, resident))
    yield from (Part.of(PartName.FIDELITY, form) for form in (FP16, CODED))
    yield from (Part.of(PartName.TEXT, engine) for engine in (FP16, CODED, TRANSFORMERS))
    yield Part.of(PartName.FLOOR, Precision.BF16)
    yield from _engines((LOSSLESS, resident), (BF16, resident))
    yield Part(PartName.CUDA_TESTS)
    yield from _engines((FP16, stream))
    yield from (Part.of(PartName.FIDELITY, engine) for engine in (LOSSLESS, INT4, BF16, TRANSFORMERS))
    yield from _engines((LOSSLESS, stream), (INT4, stream), (BF16, stream))
    yield from _engines(*((form, partial) for form in (CODED, FP16, INT4, LOSSLESS, BF16)))
    yield from (Part.of(PartName.PEER, precision) for precision in ("bf16", "int8", "nf4"))


def _engines(*chosen: tuple[str, Residency]) -> Iterator[Part]:
    return (Part.of(PartName.ENGINE, form, residency) for form, residency in chosen)
