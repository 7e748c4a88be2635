"""The self-test fails where codes, weights or graphs are wrong, and such a pair is not sealed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testing.checkpoints import TINY
from testing.forms import INTEGER, INTEGER_PRECISIONS, MERGED
from testing.pairs import Checkpoints, export_unmeasured

from stepscore.enums import Coding, Precision
from stepscore.errors import SelftestFailed
from stepscore_export.backends import onnx as backend
from stepscore_export.families.rope import DefaultRope
from stepscore_export.graphs import builder
from stepscore_export.options import ExportOptions
from stepscore_export.quantization.rounding import Quantized, QuantizedChannels, quantize, quantize_channels
from stepscore_export.weights import difference as coded
from stepscore_export.weights import layout
from stepscore_export.weights import writer as model
from stepscore_export.weights.difference import Role

Codes = Quantized | QuantizedChannels
Quantize = Callable[..., Codes]


def zeros(right: Quantize, weight: np.ndarray, *form: Any, **grid: bool) -> Codes:
    quantized = right(weight, *form, **grid)
    return replace(quantized, scales=np.zeros_like(quantized.scales))


def shuffled(right: Quantize, weight: np.ndarray, *form: Any, **grid: bool) -> Codes:
    return right(weight[::-1], *form, **grid)


def head_only(right: Quantize, weight: np.ndarray, *form: Any, **grid: bool) -> Codes:
    """Spoil only the tables: 320 rows, embedding and head."""
    spoiled = len(weight) == TINY.vocab_size
    return zeros(right, weight, *form, **grid) if spoiled else right(weight, *form, **grid)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        *(ExportOptions(precision, coding=Coding.INDEPENDENT) for precision in INTEGER_PRECISIONS),
        *MERGED.values(),
        INTEGER,
    ],
    ids=["int8", "int4", "int8-merged", "int4-merged", "int8-activations"],
)
@pytest.mark.parametrize("wrong", [zeros, shuffled, head_only])
def test_wrong_codes_are_found(
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: ExportOptions,
    wrong: Callable[..., Codes],
) -> None:
    monkeypatch.setattr(model, "quantize", partial(wrong, quantize))
    monkeypatch.setattr(coded, "quantize", partial(wrong, quantize))
    monkeypatch.setattr(coded, "quantize_channels", partial(wrong, quantize_channels))
    assert_not_sealed(tiny_checkpoints, tmp_path, options)


def swapped_query_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = model.UnitWriter._matrix

    def swapped(
        writer: model.UnitWriter, role: Role, name: str, spread: None, *sources: str
    ) -> layout.Matrix:
        if name.endswith("qkv"):
            sources = (sources[1], sources[0], sources[2])
        return matrix(writer, role, name, spread, *sources)

    monkeypatch.setattr(model.UnitWriter, "_matrix", swapped)


def wrong_rope_theta(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, rope = model.rotary_tables, DefaultRope(500.0)
    monkeypatch.setattr(model, "rotary_tables", lambda config: tables(replace(config, rope=rope)))


def interleaved_rotary(monkeypatch: pytest.MonkeyPatch) -> None:
    add_attribute(monkeypatch, "GroupQueryAttention", rotary_interleaved=1)


def wrong_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    add_attribute(monkeypatch, "SkipSimplifiedLayerNormalization", epsilon=0.1)


def wrong_softmax_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    add_attribute(monkeypatch, "GroupQueryAttention", scale=0.1)


def another_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    add_attribute(monkeypatch, "QuickGelu", alpha=1.702)


def hidden_rows_to_the_wrong_head(monkeypatch: pytest.MonkeyPatch) -> None:
    head = backend.head_graph

    def first_columns_only(tiles: tuple[layout.HeadTile, ...], shape: layout.Shape) -> object:
        matrix = tiles[0].matrix
        assert isinstance(matrix, layout.FloatMatrix)
        return head((layout.HeadTile(0, 8, matrix.part(0, 8)),), shape)

    monkeypatch.setattr(backend, "head_graph", first_columns_only)


def add_attribute(monkeypatch: pytest.MonkeyPatch, kind: str, **wrong: float) -> None:
    for method in ("op", "ops"):
        original = getattr(builder.GraphBuilder, method)

        def changed(
            self: builder.GraphBuilder,
            name: str,
            *args: object,
            original: Callable[..., object] = original,
            **attributes: object,
        ) -> object:
            return original(self, name, *args, **attributes | (wrong if name == kind else {}))

        monkeypatch.setattr(builder.GraphBuilder, method, changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sabotage",
    [
        swapped_query_and_key,
        wrong_rope_theta,
        interleaved_rotary,
        wrong_epsilon,
        wrong_softmax_scale,
        another_activation,
        hidden_rows_to_the_wrong_head,
    ],
)
def test_a_wrong_graph_is_found(
    tiny_checkpoints: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: Callable[[pytest.MonkeyPatch], None],
) -> None:
    sabotage(monkeypatch)
    assert_not_sealed(tiny_checkpoints, tmp_path, ExportOptions(Precision.FP32))


def assert_not_sealed(checkpoints: Checkpoints, place: Path, options: ExportOptions) -> None:
    with pytest.raises(SelftestFailed, match="relative error"):
        export_unmeasured(checkpoints.policy, checkpoints.reference, place / "pair", options)
    assert list(place.iterdir()) == []
