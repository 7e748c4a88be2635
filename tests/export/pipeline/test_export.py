"""The main job: two checkpoints in, one pair out. Same input, same bytes; nothing wrong is ever sealed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from testing.checkpoints import ODD, TINY, tied, write_checkpoint, write_tokenizer
from testing.forms import INTEGER, INTEGER_PRECISIONS, MERGED, every_export
from testing.pairs import Checkpoints, PairOf, export_unmeasured

from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.engine.ort import provider_checks
from stepscore.enums import Coding, Precision, Target
from stepscore.errors import ProviderUnavailable, SelftestFailed
from stepscore_export.backends import onnx as backend
from stepscore_export.graphs import builder
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.quantization.rounding import Quantized, QuantizedChannels, quantize, quantize_channels
from stepscore_export.validation.selftest import LIMITS
from stepscore_export.weights import difference as coded
from stepscore_export.weights import layout
from stepscore_export.weights import writer as model
from stepscore_export.weights.difference import Role


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def tensors_and_graphs(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name != "manifest.json"}


# Same input, same bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(Precision.FP32),
        ExportOptions(Precision.INT4),
        INTEGER,
    ],
    ids=["fp32", "int4", "int8-activations"],
)
def test_the_same_command_twice_gives_the_same_folder(
    tiny_checkpoints: Checkpoints, tmp_path: Path, options: ExportOptions
) -> None:
    once, again = (
        export_pair(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / name, options).path
        for name in ("once", "again")
    )
    assert files(once) == files(again)


def test_shards_do_not_change_a_byte(tiny_pair: Path, tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path / "policy", seed=1, perturb=0.01, shards=3)
    reference = write_checkpoint(tmp_path / "reference", seed=1, shards=2)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32))
    assert files(pair.path) == files(tiny_pair)


def test_the_layout_of_transformers_5_does_not_change_a_byte(tiny_pair: Path, tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path / "policy", seed=1, perturb=0.01, layout=5)
    reference = write_checkpoint(tmp_path / "reference", seed=1, layout=5)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32))
    assert files(pair.path) == files(tiny_pair)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", Precision.BF16), ("float16", Precision.FP16)])
def test_export_at_the_source_precision_is_exact(tmp_path: Path, dtype: str, precision: Precision) -> None:
    """A 16-bit source at its own precision and at fp32: the same numbers, bit by bit."""
    folders = [
        write_checkpoint(tmp_path / name, seed=1, perturb=perturb, dtype=dtype)  # type: ignore[arg-type]
        for name, perturb in (("policy", 0.01), ("reference", 0.0))
    ]
    errors = [
        export_unmeasured(*folders, tmp_path / which, ExportOptions(which)).manifest.selftest
        for which in (precision, Precision.FP32)
    ]
    assert errors[0] == errors[1]


def test_sources_of_different_dtypes_make_an_exact_pair(tmp_path: Path) -> None:
    policy = write_checkpoint(tmp_path / "policy", tied(), seed=1, perturb=0.01, dtype="bfloat16")
    reference = write_checkpoint(tmp_path / "reference", seed=1, dtype="float16", shards=2)
    pair = export_unmeasured(policy, reference, tmp_path / "pair", ExportOptions(Precision.FP32))
    assert pair.manifest.selftest is not None
    assert pair.manifest.selftest.hidden_error < 1e-5


# The manifest


@every_export
def test_every_precision_and_target_is_run_before_it_is_sealed(
    pair_of: PairOf, precision: Precision, target: Target
) -> None:
    manifest = Pair.open(pair_of(precision, target)).manifest
    assert (manifest.precision, manifest.target) == (precision, target)
    assert manifest.selftest is not None
    assert manifest.selftest.num_tokens > 100
    assert 0 < manifest.selftest.hidden_error < LIMITS[precision]
    assert 0 < manifest.selftest.logprob_error < 1


def test_less_precision_means_a_larger_error(pair_of: PairOf) -> None:
    order = [Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8, Precision.INT4]
    selftests = [Pair.open(pair_of(precision)).manifest.selftest for precision in order]
    errors = [selftest.hidden_error for selftest in selftests if selftest]
    assert errors == sorted(errors)
    assert errors[0] < 1e-5


def test_the_manifest_says_what_was_exported(tiny_pair: Path) -> None:
    manifest = Pair.open(tiny_pair).manifest
    assert (manifest.policy.name, manifest.reference.name) == ("policy", "reference")
    assert manifest.beta == 0.001
    assert manifest.architecture.vocab_size == TINY.vocab_size
    assert set(manifest.versions) == {"stepscore", "onnx-ir", "onnxruntime"}


# The self-test fails where something is wrong


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
    tables = model.rotary_tables
    monkeypatch.setattr(model, "rotary_tables", lambda config: tables(replace(config, rope_theta=500.0)))


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


# The command


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


@pytest.fixture
def models(tiny_checkpoints: Checkpoints) -> list[str | Path]:
    return ["--policy", tiny_checkpoints.policy, "--reference", tiny_checkpoints.reference]


def test_the_command_seals_a_pair_and_says_so(models: list[str | Path], tmp_path: Path) -> None:
    result = run(*models, "--output", tmp_path / "pair")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "sealed after" in result.stderr
    assert "self-test on cpu" in result.stderr
    Pair.open(tmp_path / "pair").verify()


def test_quiet_prints_nothing(models: list[str | Path], tmp_path: Path) -> None:
    result = run(*models, "--output", tmp_path / "pair", "--precision", "fp32", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_a_dry_run_prints_sizes_and_writes_nothing(models: list[str | Path], tmp_path: Path) -> None:
    result = run(*models, "--output", tmp_path / "place" / "pair", "--dry-run", "--precision", "int8")
    assert result.exit_code == 0
    for word in ("source", "output", "disk", "memory", "time", "MB"):
        assert word in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_refuses_an_output_that_is_taken(models: list[str | Path], tiny_pair: Path) -> None:
    assert run(*models, "--output", tiny_pair, "--dry-run").exit_code == 3


def a_pair_stands_there(tmp_path: Path, pair: Path) -> list[str | Path]:
    return ["--output", shutil.copytree(pair, tmp_path / "taken")]


def no_such_policy(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--policy", tmp_path / "nowhere"]


def a_mismatched_reference(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--reference", write_checkpoint(tmp_path / "other", ODD)]


def a_reference_without_weights(tmp_path: Path, _pair: Path) -> list[str | Path]:
    folder = write_checkpoint(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    return ["--output", tmp_path / "pair", "--reference", folder]


def a_template_that_is_none(tmp_path: Path, _pair: Path) -> list[str | Path]:
    folder = write_checkpoint(tmp_path / "templateless")
    write_tokenizer(folder, chat_template="{{ nothing")
    return ["--output", tmp_path / "pair", "--policy", folder]


def fp32_for_cuda(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--precision", "fp32", "--target", "cuda"]


def an_odd_block_size(tmp_path: Path, _pair: Path) -> list[str | Path]:
    return ["--output", tmp_path / "pair", "--precision", "int8", "--block-size", "33"]


def an_output_below_a_file(tmp_path: Path, _pair: Path) -> list[str | Path]:
    (tmp_path / "file").touch()
    return ["--output", tmp_path / "file" / "pair"]


REFUSED = [
    a_pair_stands_there,
    no_such_policy,
    a_mismatched_reference,
    a_reference_without_weights,
    a_template_that_is_none,
    fp32_for_cuda,
    an_odd_block_size,
    an_output_below_a_file,
]


@pytest.mark.parametrize("refused", REFUSED)
def test_rejected_export_exits_3_with_an_error(
    models: list[str | Path],
    tmp_path: Path,
    tiny_pair: Path,
    refused: Callable[[Path, Path], list[str | Path]],
) -> None:
    result = run(*models, *refused(tmp_path, tiny_pair), "--quiet")
    assert result.exit_code == 3
    assert result.stdout == ""
    first, *rest = result.stderr.splitlines()
    assert first.startswith("error: ")
    assert [line.split(":")[0] for line in rest] in ([], ["hint"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--policy'"),
        (["--policy", "x"], "Missing option '--reference'"),
        (["--precision", "int3"], "'int3' is not one of"),
        (["--beta", "-1"], "Invalid value for '--beta'"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_int8_activations_are_rejected_on_saturating_cpus(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        provider_checks, "largest_products", lambda _depth, **_: np.full((8, 32), 32_767, np.float32)
    )
    with pytest.raises(ProviderUnavailable, match="saturates") as refused:
        export_pair(tiny_checkpoints.policy, tiny_checkpoints.reference, tmp_path / "pair")
    assert "--activations exact" in str(refused.value.hint)
    assert list(tmp_path.iterdir()) == []
