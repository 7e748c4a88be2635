"""Calibrated exports: what is measured of the reference, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from testing.checkpoints import TINY, write_checkpoint
from testing.forms import INTEGER, MERGED, SEPARATE, a_form_of_each_kind
from testing.pairs import Checkpoints
from testing.sequences import ragged

from stepscore.artifact.pair import Pair
from stepscore.cli.main import main
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Coding, Precision
from stepscore.errors import ExportError
from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.graphs.decoder import INTERMEDIATE_OUTPUTS
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline import export as pair_module
from stepscore_export.pipeline import plan as plan_module
from stepscore_export.pipeline.export import export_pair
from stepscore_export.quantization.gptq import Hessian, group_of
from stepscore_export.reference import layerwise_fp32 as exact
from stepscore_export.reference import numpy_forward as oracle
from stepscore_export.reference.calibration import Calibration
from stepscore_export.reference.layerwise_fp32 import ExactModel, Rows
from stepscore_export.validation.texts import NO_TEXTS, Texts, bundled_texts, encode_texts, read_texts

LAYERS = TINY.num_hidden_layers
GOOD = '{"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So 2."]}'


@pytest.fixture(scope="module")
def reference(tiny_checkpoints: Checkpoints) -> Iterator[Checkpoint]:
    with Checkpoint.open(tiny_checkpoints.reference) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Texts:
    """A few of the bundled solutions, as a file of the user's."""
    path = tmp_path_factory.mktemp("texts") / "mine.jsonl"
    lines = (
        json.dumps({"problem": record.problem, "steps": list(record.steps)})
        for record in bundled_texts().records[:4]
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return read_texts(path)


# What enters the matrices


def rows_seen(model: ExactModel) -> list[dict[str, Rows]]:
    """Run every layer; the rows of all parts, by key."""
    layers: list[dict[str, list[Rows]]] = []
    for _ in range(LAYERS):
        parts: dict[str, list[Rows]] = {}

        def on_input(name: str, rows: Rows, parts: dict[str, list[Rows]] = parts) -> None:
            parts.setdefault(name, []).append(rows)

        model.run_next_layer(on_input)
        layers.append(parts)
    return [{name: np.concatenate(rows) for name, rows in parts.items()} for parts in layers]


def rows_of_oracle(
    checkpoint: Checkpoint, tokens: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> dict[str, NDArray[np.float64]]:
    """What enters each matrix of the float64 implementation, by the matrix's name."""
    seen: dict[str, NDArray[np.float64]] = {}
    linear = oracle._linear

    def watched(checkpoint: Checkpoint, name: str, rows: oracle.Rows) -> oracle.Rows:
        seen[name] = rows.copy()
        return linear(checkpoint, name, rows)

    with monkeypatch.context() as patch:
        patch.setattr(oracle, "_linear", watched)
        oracle.hidden_and_logprobs(checkpoint, tokens)
    return seen


MATRICES = {
    "into_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "into_output": ("self_attn.o_proj",),
    "into_mlp": ("mlp.gate_proj", "mlp.up_proj"),
    "into_down": ("mlp.down_proj",),
}


def test_intermediate_outputs_are_the_inputs_of_the_matrices(
    reference: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layer 0 for every token; of the last for every token that enters them: its MLP drops the last."""
    truth = [rows_of_oracle(reference, tokens, monkeypatch) for tokens in ragged()]
    found = rows_seen(ExactModel(reference, ragged()))
    assert [tuple(layer) for layer in found] == [INTERMEDIATE_OUTPUTS] * LAYERS
    for index, layer in enumerate(found):
        for key, rows in layer.items():
            dropped = index == LAYERS - 1 and key != "into_qkv"
            for matrix in MATRICES[key]:
                name = f"model.layers.{index}.{matrix}"
                expected = np.concatenate([each[name][: -1 if dropped else None] for each in truth])
                np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-4)


def test_observing_inputs_changes_no_number(reference: Checkpoint) -> None:
    seen, unseen = (ExactModel(reference, ragged()) for _ in range(2))
    rows_seen(seen)
    for one, other in zip(seen.logprobs(), unseen.logprobs(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_parts_of_a_large_text_add_up_to_the_whole(
    reference: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_seen(ExactModel(reference, ragged()))
    monkeypatch.setattr(exact, "BATCH_ROWS", 64)
    cut = rows_seen(ExactModel(reference, ragged()))
    for one, other in zip(whole, cut, strict=True):
        for key in INTERMEDIATE_OUTPUTS:
            np.testing.assert_allclose(one[key], other[key], rtol=0, atol=1e-5)


def test_the_head_reads_the_hidden_rows(reference: Checkpoint) -> None:
    found = np.concatenate(list(ExactModel(reference, ragged()).hidden()))
    truth = [oracle.hidden_and_logprobs(reference, tokens)[0] for tokens in ragged()]
    np.testing.assert_allclose(found, np.concatenate(truth), rtol=0, atol=1e-4)


def test_calibration_gives_the_error_propagation_of_the_observed_activations(reference: Checkpoint) -> None:
    measured = Calibration(reference, ragged(), block_size=32)
    for seen in rows_seen(ExactModel(reference, ragged(), half=True)):
        layer = measured.layer(0)
        for key, error_propagation in zip(
            INTERMEDIATE_OUTPUTS, (layer.qkv, layer.output, layer.mlp, layer.down), strict=True
        ):
            np.testing.assert_allclose(error_propagation, error_propagation_of(seen[key]), rtol=0, atol=1e-4)
    hidden = np.concatenate(list(ExactModel(reference, ragged(), half=True).hidden()))
    np.testing.assert_allclose(measured.head(), error_propagation_of(hidden), rtol=0, atol=1e-4)


def error_propagation_of(rows: Rows) -> Rows:
    moments = Hessian(rows.shape[1], group_of(rows.shape[1], 32))
    moments.add(rows)
    return moments.error_propagation()


@pytest.mark.parametrize(("block_size", "group"), [(16, 96), (64, 128), (256, 256)])
def test_a_group_is_all_columns_in_whole_blocks(reference: Checkpoint, block_size: int, group: int) -> None:
    layer = Calibration(reference, ragged(), block_size).layer(0)
    assert layer.down is not None
    assert layer.down.shape == (1, group, group)


def test_texts_beyond_the_limit_are_not_run(reference: Checkpoint, texts: Texts) -> None:
    """Whole texts, the one that reaches it among them."""
    _, encoder = prompt_template(reference)
    lengths = [len(prompt.token_ids) for prompt in encode_texts(texts, encoder)]
    for limit, count in ((1, 1), (lengths[0], 1), (lengths[0] + 1, 2), (sum(lengths) + 1, len(lengths))):
        assert len(encode_texts(texts, encoder, limit)) == count


@pytest.mark.slow
def test_an_export_runs_no_more_than_the_limit(
    tiny_checkpoints: Checkpoints, texts: Texts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def counted(reference: Checkpoint, sequences: list[NDArray[np.int64]], *options: Any) -> Calibration:
        given.append(len(sequences))
        return Calibration(reference, sequences, *options)

    monkeypatch.setattr(pair_module, "Calibration", counted)
    monkeypatch.setattr(plan_module, "MAX_CALIBRATION_TOKENS", 1)
    exported(tiny_checkpoints, tmp_path / "pair", MERGED[Precision.INT4], texts, NO_TEXTS)
    assert given == [1]


# The pair


@pytest.mark.slow
def test_a_coded_pair_is_calibrated_on_the_bundled_text_unless_told_not_to(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "CALIBRATION_TOKENS", 100)

    def calibration(options: ExportOptions, texts: Texts | None) -> str | None:
        pair = exported(tiny_checkpoints, tmp_path / "pair", options, texts, NO_TEXTS, force=True)
        difference = pair.manifest.difference
        return None if difference is None else difference.calibration

    assert calibration(ExportOptions(), None) == "bundled"
    assert calibration(ExportOptions(), NO_TEXTS) is None
    assert calibration(ExportOptions(coding=Coding.INDEPENDENT), None) is None


def exported(
    checkpoints: Checkpoints,
    output: Path,
    options: ExportOptions,
    texts: Texts | None,
    measure: Texts,
    *,
    force: bool = False,
) -> Pair:
    models = checkpoints.policy, checkpoints.reference
    return export_pair(*models, output, options, texts=measure, calibration=texts, force=force)


@pytest.mark.slow
def test_a_calibrated_pair_says_so_and_is_measured(
    tiny_checkpoints: Checkpoints, texts: Texts, tmp_path: Path
) -> None:
    form = MERGED[Precision.INT8]
    manifest = exported(tiny_checkpoints, tmp_path / "pair", form, texts, bundled_texts()).manifest
    assert manifest.difference is not None
    assert manifest.difference.calibration == "mine.jsonl"
    assert manifest.fidelity is not None
    assert manifest.fidelity.data == "bundled"
    assert 0 < manifest.fidelity.logprob_rms < 0.2
    assert manifest.selftest is not None
    assert {path.name for path in (tmp_path / "pair").iterdir()} == {
        "both",
        "manifest.json",
        "prefix.npz",
        "tokenizer.json",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [MERGED[Precision.INT4], SEPARATE[Precision.INT4], INTEGER],
    ids=["merged", "separate", "int8-activations"],
)
def test_calibration_lowers_the_error_on_its_text(
    tiny_checkpoints: Checkpoints, texts: Texts, tmp_path: Path, form: ExportOptions
) -> None:
    """Every code may be another; how far the numbers of that text are off falls."""
    nearest = exported(tiny_checkpoints, tmp_path / "nearest", form, NO_TEXTS, texts).manifest
    found = exported(tiny_checkpoints, tmp_path / "found", form, texts, texts).manifest
    assert found.files["both/weights.bin"].sha256 != nearest.files["both/weights.bin"].sha256
    assert found.files["both/weights.bin"].size == nearest.files["both/weights.bin"].size
    assert found.fidelity is not None
    assert nearest.fidelity is not None
    assert found.fidelity.logprob_rms < nearest.fidelity.logprob_rms
    assert nearest.difference is not None
    assert nearest.difference.calibration is None


@pytest.mark.slow
@a_form_of_each_kind
def test_identical_checkpoints_give_exactly_zero(
    tiny_checkpoints: Checkpoints, texts: Texts, tmp_path: Path, form: ExportOptions
) -> None:
    model = tiny_checkpoints.reference
    same = Checkpoints(policy=model, reference=model)
    engine = OrtEngine(exported(same, tmp_path / "pair", form, texts, NO_TEXTS))
    for policy, theirs in engine.logprobs(ragged()):
        np.testing.assert_array_equal(policy, theirs)
    engine.close()


@pytest.mark.slow
def test_columns_that_fill_no_block_and_blocks_wider_than_a_matrix(texts: Texts, tmp_path: Path) -> None:
    shape = replace(TINY, hidden_size=80, intermediate_size=99, num_attention_heads=5, num_key_value_heads=1)
    models = Checkpoints(
        policy=write_checkpoint(tmp_path / "policy", shape, seed=1, perturb=0.01),
        reference=write_checkpoint(tmp_path / "reference", shape, seed=1),
    )
    for block_size in (32, 256):
        options = replace(SEPARATE[Precision.INT4], block_size=block_size)
        found = exported(models, tmp_path / f"found-{block_size}", options, texts, texts).manifest.fidelity
        nearest = exported(
            models, tmp_path / f"nearest-{block_size}", options, NO_TEXTS, texts
        ).manifest.fidelity
        assert found is not None
        assert nearest is not None
        assert found.logprob_rms < nearest.logprob_rms


@pytest.mark.parametrize(
    "options",
    [ExportOptions(Precision.INT8, coding=Coding.INDEPENDENT), ExportOptions(Precision.FP32)],
    ids=["independent", "fp32"],
)
def test_a_pair_without_a_base_has_nothing_to_calibrate(
    tiny_checkpoints: Checkpoints, texts: Texts, tmp_path: Path, options: ExportOptions
) -> None:
    with pytest.raises(ExportError, match="only the base of a coded pair is calibrated") as refused:
        exported(tiny_checkpoints, tmp_path / "place" / "pair", options, texts, texts)
    assert "drop --calibration" in (refused.value.hint or "")
    assert list(tmp_path.iterdir()) == []


# The command


def export(checkpoints: Checkpoints, output: Path, *arguments: object) -> Result:
    models = ["--policy", checkpoints.policy, "--reference", checkpoints.reference]
    command = ["export", *models, "--output", output, *arguments]
    return CliRunner().invoke(main, [str(each) for each in command])


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_inspect_names_the_text_of_the_calibration(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    data, output = write(tmp_path / "mine.jsonl", GOOD), tmp_path / "pair"
    done = export(tiny_checkpoints, output, "--precision", "int4", "--calibration", data)
    assert done.exit_code == 0, done.stderr
    shown = CliRunner().invoke(main, ["inspect", str(output)]).stdout
    assert "calibrated on mine.jsonl" in " ".join(shown.split())


@pytest.mark.slow
def test_the_same_calibration_gives_the_same_bytes(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    data = write(tmp_path / "mine.jsonl", GOOD)
    for name in ("once", "again"):
        export(tiny_checkpoints, tmp_path / name, "--precision", "int4", "--calibration", data, "--quiet")
    assert Pair.open(tmp_path / "once").manifest == Pair.open(tmp_path / "again").manifest


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["export", "dry-run"])
@pytest.mark.parametrize(
    "choice", [["--coding", "independent"], ["--precision", "fp32"]], ids=["independent", "fp32"]
)
def test_calibration_is_rejected_without_a_base(
    tiny_checkpoints: Checkpoints, tmp_path: Path, choice: list[str], more: list[str]
) -> None:
    data = write(tmp_path / "mine.jsonl", GOOD)
    done = export(tiny_checkpoints, tmp_path / "place" / "pair", "--calibration", data, *choice, *more)
    assert (done.exit_code, done.stdout) == (3, "")
    assert "only the base of a coded pair is calibrated" in done.stderr
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["export", "dry-run"])
@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], "mine.jsonl is empty"),
        ([GOOD, "{"], "mine.jsonl, line 2: "),
        ([GOOD, '{"problem": "1 + 1?", "steps": [" "]}'], "mine.jsonl, record 2: steps[0] is white space"),
        ([GOOD.replace("1 + 1?", "1 + 1? " * 300)], "all solutions of mine.jsonl are longer than the 512"),
    ],
    ids=["empty", "no-json", "nothing-to-score", "too-long"],
)
def test_a_bad_file_is_refused_before_anything_is_written(
    tiny_checkpoints: Checkpoints, tmp_path: Path, lines: list[str], error: str, more: list[str]
) -> None:
    data = write(tmp_path / "mine.jsonl", *lines)
    done = export(tiny_checkpoints, tmp_path / "place" / "pair", "--calibration", data, *more)
    assert (done.exit_code, done.stdout) == (3, "")
    assert error in done.stderr
    assert list(tmp_path.iterdir()) == [data]
