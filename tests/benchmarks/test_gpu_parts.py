"""Schedule of the GPU benchmark, and the GEMMs of its floor: nothing here needs a GPU."""

from __future__ import annotations

import sys

import pytest
from benchmarks.support.cublas_floor import layer_gemms
from benchmarks.support.gpu_parts import MAIN_FORMS, MEASURED, PARTS
from benchmarks.support.shapes import QWEN_7B

from benchmarks import gpu
from stepscore.enums import Residency


def scheduled(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[tuple[str, ...]]:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    return list(gpu.parts(gpu.parsed_options()))


def test_schedule_has_every_part_with_known_forms_and_residencies(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = scheduled(monkeypatch)
    assert {part for part, *_ in parts} == set(PARTS)
    pairs = [rest for part, *rest in parts if part == "pair"]
    assert {form for form, _ in pairs} == set(MEASURED)
    assert all(Residency(residency) for _, residency in pairs)


def test_schedule_measures_the_floor_and_the_main_forms_first(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = scheduled(monkeypatch)
    assert [part for part, *_ in parts[:2]] == ["floor", "fidelity"]
    assert [form for _, form, _ in parts[2:4]] == [form for form in MEASURED if form in MAIN_FORMS]


def test_schedule_keeps_to_chosen_parts_and_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = scheduled(monkeypatch, "--only", "pair", "--forms", "fp16")
    assert {(part, form) for part, form, _ in parts} == {("pair", "fp16")}


def test_layer_gemms_have_the_weights_of_a_layer() -> None:
    attention = 3584 * (3584 + 2 * 4 * 128) + 3584 * 3584
    mlp = 3 * 3584 * 18_944
    assert sum(depth * columns for depth, columns in layer_gemms(QWEN_7B).values()) == attention + mlp
