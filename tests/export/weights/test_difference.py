"""Pairs stored as a reference and a difference: the laws that every form of them keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from testing.checkpoints import ODD, TINY, DType, tied, weights, write_checkpoint
from testing.forms import (
    CPU_RESIDENCIES,
    INTEGER,
    MERGED,
    SEPARATE,
    a_form_of_each_kind,
    every_form,
)
from testing.graphs import load
from testing.pairs import ONE_TEXT, Checkpoints, PairOf, export_unmeasured

from stepscore.artifact.manifest import ModelName
from stepscore.artifact.pair import Pair
from stepscore.engine.base import EngineOptions
from stepscore.engine.ort.engine import OrtEngine
from stepscore.enums import Precision, Residency, Target
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.families.base import DecoderConfig
from stepscore_export.families.rope import DefaultRope
from stepscore_export.options import ExportOptions
from stepscore_export.reference.numpy_forward import hidden_and_logprobs

Logprobs = NDArray[np.float32]
ExportOf = Callable[[Path, Path, ExportOptions], Path]

ENDS = (Residency.RESIDENT, Residency.STREAM)

RANDOM = np.random.default_rng(3)
SEQUENCES = [RANDOM.integers(0, TINY.vocab_size, length) for length in (2, 17, 60, 5, 133)]
LONG_ENOUGH_TO_CUT = SEQUENCES[1:3]


def logprobs(
    pair: Path,
    residency: Residency = Residency.RESIDENT,
    sequences: list[NDArray[np.int64]] = SEQUENCES,
) -> Logprobs:
    """Policy and reference [2, t], all sequences in one batch."""
    engine = OrtEngine(Pair.open(pair), EngineOptions(residency=residency))
    scores = engine.logprobs(sequences)
    engine.close()
    return np.concatenate([np.stack(each) for each in scores], axis=1)


def rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def ratio(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    return scores[0] - scores[1]


@pytest.fixture
def export_of(tmp_path: Path) -> ExportOf:
    """An export of any two folders."""

    def export(policy: Path, reference: Path, options: ExportOptions) -> Path:
        output = tmp_path / f"pair-{len(list(tmp_path.iterdir()))}"
        return export_unmeasured(policy, reference, output, options).path

    return export


# Identical checkpoints


@pytest.mark.slow
@every_form
def test_identical_checkpoints_have_rewards_of_exactly_zero(
    identical_pair_of: PairOf, form: ExportOptions
) -> None:
    for residency in CPU_RESIDENCIES:
        policy, reference = logprobs(identical_pair_of.form(form), residency)
        assert np.array_equal(policy, reference)  # bit by bit


def test_identical_checkpoints_have_a_fidelity_of_exactly_zero(identical_pair_of: PairOf) -> None:
    measured = replace(identical_pair_of, texts=ONE_TEXT)
    fidelity = Pair.open(measured.form(INTEGER)).manifest.fidelity
    assert fidelity is not None
    assert (fidelity.ratio_rms, fidelity.ratio_error, fidelity.step_error) == (0, 0, 0)


@pytest.mark.slow
@a_form_of_each_kind
def test_odd_shapes_agree_across_residencies_and_give_zero_for_equal_models(
    tmp_path: Path, export_of: ExportOf, form: ExportOptions
) -> None:
    """Rows that fill no block, one key head, a vocabulary that fills nothing."""
    policy = write_checkpoint(tmp_path / "policy", ODD, seed=1, perturb=0.01)
    reference = write_checkpoint(tmp_path / "reference", ODD, seed=1)
    pair = export_of(policy, reference, form)
    resident, streamed = (logprobs(pair, residency) for residency in ENDS)
    assert rms(ratio(resident) - ratio(streamed)) < 0.05 * rms(ratio(resident))
    same = logprobs(export_of(reference, reference, form))
    assert np.array_equal(same[0], same[1])


# The same numbers whichever way they are computed


def test_int8_activations_streamed_stay_within_the_pairs_error(pair_of: PairOf) -> None:
    """A row that is an ulp apart may round to the next code."""
    fidelity = Pair.open(pair_of.measured.form(INTEGER)).manifest.fidelity
    assert fidelity is not None
    assert fidelity.ratio_error is not None
    resident, streamed = (ratio(logprobs(pair_of.form(INTEGER), residency)) for residency in ENDS)
    assert rms(resident - streamed) < fidelity.ratio_error * rms(resident)


@pytest.mark.slow
@every_form
def test_a_batch_equals_each_sequence_alone(pair_of: PairOf, form: ExportOptions) -> None:
    together = logprobs(pair_of.form(form))
    alone = [logprobs(pair_of.form(form), sequences=[sequence]) for sequence in SEQUENCES]
    assert np.abs(together - np.concatenate(alone, axis=1)).max() < 1e-5


@every_form
def test_a_token_does_not_see_what_follows(pair_of: PairOf, form: ExportOptions) -> None:
    whole = logprobs(pair_of.form(form), sequences=LONG_ENOUGH_TO_CUT)
    cut = logprobs(pair_of.form(form), sequences=[sequence[:9] for sequence in LONG_ENOUGH_TO_CUT])
    first, second = cut[:, :8], cut[:, 8:]
    start = len(LONG_ENOUGH_TO_CUT[0]) - 1
    assert np.abs(whole[:, :8] - first).max() < 1e-5
    assert np.abs(whole[:, start : start + 8] - second).max() < 1e-5


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_merged_equals_separate_within_rounding(pair_of: PairOf, precision: Precision) -> None:
    """The same codes: the sum is taken before the product, or after it."""
    merged, separate = (logprobs(pair_of.form(form[precision])) for form in (MERGED, SEPARATE))
    assert np.abs(merged - separate).max() < 2e-5


@pytest.mark.slow
@a_form_of_each_kind
def test_swapped_roles_turn_the_sign(
    tiny_checkpoints: Checkpoints, pair_of: PairOf, export_of: ExportOf, form: ExportOptions
) -> None:
    there = pair_of.measured.form(form)
    back = export_of(tiny_checkpoints.reference, tiny_checkpoints.policy, form)
    fidelity = Pair.open(there).manifest.fidelity
    assert fidelity is not None
    assert fidelity.ratio_error is not None
    forwards, backwards = ratio(logprobs(there)), ratio(logprobs(back))
    # each is off by its own error, and they are measured on other text than this
    assert rms(forwards + backwards) < 3 * fidelity.ratio_error * rms(forwards)
    assert np.corrcoef(forwards, backwards)[0, 1] < -0.9


# What is exact


@pytest.mark.slow
@a_form_of_each_kind
def test_norms_and_biases_of_both_models_are_exact(pair_of: PairOf, form: ExportOptions) -> None:
    unrotated = replace(form, rotation=False)
    body = onnx.load(pair_of.form(unrotated) / "both" / "body.onnx").graph.initializer
    stored = {each.name: numpy_helper.to_array(each) for each in body if each.data_type == each.FLOAT}
    for name, source in both_models():
        for index in range(TINY.num_hidden_layers):
            ours, theirs = f"layers.{index}", f"model.layers.{index}"
            biases = [source[f"{theirs}.self_attn.{each}_proj.bias"] for each in "qkv"]
            exact = {
                f"{ours}.input_norm": source[f"{theirs}.input_layernorm.weight"],
                f"{ours}.post_norm": source[f"{theirs}.post_attention_layernorm.weight"],
                f"{ours}.qkv_bias": np.concatenate(biases),
                "norm": source["model.norm.weight"],
            }
            for each, values in exact.items():
                assert np.array_equal(stored[f"{each}.{name}"], values)


def test_a_16_bit_embedding_is_stored_as_it_is(tmp_path: Path, export_of: ExportOf) -> None:
    dtypes: dict[ModelName, DType] = {"policy": "bfloat16", "reference": "float16"}
    stored = {"policy": ml_dtypes.bfloat16, "reference": np.float16}
    folders = [
        write_checkpoint(tmp_path / name, seed=1, perturb=0.01 * (name == "policy"), dtype=dtype)
        for name, dtype in dtypes.items()
    ]
    pair = export_of(folders[0], folders[1], MERGED[Precision.INT8])
    looked_up = embedded(pair)
    assert [tensor.data_type for tensor in load(pair, "embed.onnx", "both").graph.initializer] == [
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    ]
    for name, source in both_models():
        table = source["model.embed_tokens.weight"].astype(stored[name])
        assert np.array_equal(looked_up[name], table.astype(np.float32))


@a_form_of_each_kind
def test_the_embeddings_of_both_models_are_those_of_the_checkpoints(
    pair_of: PairOf, form: ExportOptions
) -> None:
    looked_up = embedded(pair_of.form(replace(form, rotation=False)))
    for name, source in both_models():
        assert np.array_equal(looked_up[name], source["model.embed_tokens.weight"])


def both_models() -> list[tuple[ModelName, dict[str, np.ndarray]]]:
    return [("policy", weights(TINY, seed=1, perturb=0.01)), ("reference", weights(TINY, seed=1))]


def embedded(pair: Path) -> dict[str, NDArray[np.float32]]:
    """The rows of every token, by model."""
    session = ort.InferenceSession(str(pair / "both" / "embed.onnx"), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    rows = session.run(None, {"input_ids": np.arange(TINY.vocab_size)})
    return {name.removeprefix("rows_"): each for name, each in zip(names, rows, strict=True)}


# Models that differ in more than their weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy_shape", "reference_shape"),
    [(tied(), tied()), (tied(), TINY), (TINY, tied())],
    ids=["tied", "policy-tied", "reference-tied"],
)
def test_each_model_has_its_own_head(
    tmp_path: Path, export_of: ExportOf, policy_shape: DecoderConfig, reference_shape: DecoderConfig
) -> None:
    policy = write_checkpoint(tmp_path / "policy", policy_shape, seed=1, perturb=0.01)
    reference = write_checkpoint(tmp_path / "reference", reference_shape, seed=1)
    assert_like_its_checkpoints(export_of(policy, reference, MERGED[Precision.INT8]), policy, reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        replace(TINY, rope=DefaultRope(100.0)),
        replace(TINY, rms_norm_eps=0.3),
        replace(TINY, max_position_embeddings=140),
    ],
    ids=["rope-theta", "epsilon", "positions"],
)
@pytest.mark.parametrize("policy_has_it", [True, False], ids=["policy", "reference"])
def test_each_model_has_its_own_constants(
    tmp_path: Path, export_of: ExportOf, shape: DecoderConfig, *, policy_has_it: bool
) -> None:
    shapes = (shape, TINY) if policy_has_it else (TINY, shape)
    policy = write_checkpoint(tmp_path / "policy", shapes[0], seed=1, perturb=0.01)
    reference = write_checkpoint(tmp_path / "reference", shapes[1], seed=1)
    assert_like_its_checkpoints(export_of(policy, reference, MERGED[Precision.INT8]), policy, reference)


def assert_like_its_checkpoints(pair: Path, policy: Path, reference: Path) -> None:
    """A head or a constant of the other model is off by more than 0.1 nats here; rounding is not."""
    scores = logprobs(pair)
    for model, folder in enumerate((policy, reference)):
        with Checkpoint.open(folder) as checkpoint:
            truth = np.concatenate([hidden_and_logprobs(checkpoint, each)[1] for each in SEQUENCES])
        assert rms(scores[model] - truth) < 0.05


# For CUDA, checked on the CPU


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT4])
def test_a_pair_for_cuda_tests_itself_as_its_twin_for_the_cpu(pair_of: PairOf, precision: Precision) -> None:
    """Its scales are fp16 and nothing else is: the weights move by 1/2048 of themselves at most."""
    forms = (replace(MERGED[precision], target=target) for target in (Target.CUDA, Target.CPU))
    cuda, cpu = (Pair.open(pair_of.form(form)).manifest.selftest for form in forms)
    assert cuda is not None
    assert cpu is not None
    assert cuda.num_tokens == cpu.num_tokens
    assert cuda.hidden_error == pytest.approx(cpu.hidden_error, rel=0.1)
    assert cuda.logprob_error == pytest.approx(cpu.logprob_error, rel=0.1)
