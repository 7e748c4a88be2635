"""The peers that benchmarks compare with compute the same thing; one that is not installed is skipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.peers.contender import Checkpoints, SequenceLogprobs
from benchmarks.support.rates import log_ratios
from testing.checkpoints import TINY, tied, write_checkpoint

pytest.importorskip("torch", reason="the truth is PyTorch's")
from benchmarks.peers.gguf_file import gguf_name, write_q8_0
from benchmarks.peers.llama_cpp import LlamaCpp
from benchmarks.peers.optimum_ort import OptimumOrt
from benchmarks.peers.transformers_card import TransformersCard
from benchmarks.support.worker import Skipped, take_turns

from stepscore_export.families.base import tensor_shapes

pytestmark = pytest.mark.torch

SHAPE = replace(tied(TINY), max_position_embeddings=256)
SEQUENCES = [np.random.default_rng(0).integers(0, SHAPE.vocab_size, length) for length in (40, 150, 2)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    folder = tmp_path_factory.mktemp("peers")
    policy = write_checkpoint(folder / "policy", SHAPE, seed=1, dtype="bfloat16", perturb=0.05)
    return Checkpoints(
        policy, write_checkpoint(folder / "reference", SHAPE, seed=1, dtype="bfloat16"), folder
    )


@pytest.fixture(scope="module")
def truth(models: Checkpoints) -> list[SequenceLogprobs]:
    return TransformersCard(threads=1).load(models).logprobs(SEQUENCES)


def test_one_log_prob_a_token_but_the_first(truth: list[SequenceLogprobs]) -> None:
    assert [(len(policy), len(reference)) for policy, reference in truth] == [(39, 39), (149, 149), (1, 1)]
    assert {array.dtype for pair in truth for array in pair} == {np.dtype(np.float32)}


def test_padding_changes_nothing(models: Checkpoints, truth: list[SequenceLogprobs]) -> None:
    padded = TransformersCard(threads=1, batch_size=2).load(models).logprobs(SEQUENCES)
    np.testing.assert_allclose(log_ratios(padded), log_ratios(truth), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_optimum_computes_the_same(models: Checkpoints, truth: list[SequenceLogprobs]) -> None:
    pytest.importorskip("optimum.onnxruntime", reason="optimum-onnx is not installed")
    optimum = OptimumOrt(threads=1)
    optimum.prepare(models)
    scored = optimum.load(models).logprobs(SEQUENCES)
    np.testing.assert_allclose(log_ratios(scored), log_ratios(truth), atol=1e-4)


def test_every_tensor_has_a_name_in_gguf() -> None:
    names = [gguf_name(name) for name in tensor_shapes(replace(TINY, num_hidden_layers=1))]
    assert len(set(names)) == len(names)
    assert {"token_embd.weight", "output_norm.weight", "output.weight", "blk.0.attn_q.bias"} <= set(names)


def test_a_gguf_file_holds_the_weights(models: Checkpoints, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    reader = gguf.GGUFReader(write_q8_0(models.reference, SHAPE, tmp_path / "model.gguf"))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(tensor_shapes(SHAPE))
    codes = tensors["blk.1.ffn_down.weight"]
    from safetensors import safe_open

    with safe_open(models.reference / "model.safetensors", framework="pt") as file:
        weight = file.get_tensor("model.layers.1.mlp.down_proj.weight").float().numpy()
    restored = gguf.quants.dequantize(codes.data, codes.tensor_type)
    assert np.abs(restored - weight).max() <= np.abs(weight).max() / 127


def test_llama_cpp_computes_the_same_within_8_bits(
    models: Checkpoints, truth: list[SequenceLogprobs]
) -> None:
    # In a process of its own: built for another CPU it ends in an illegal instruction.
    (scored,) = take_turns([LlamaCpp(threads=1, max_tokens=256)], models, SEQUENCES, threads=1, repeats=1)
    if isinstance(scored, Skipped):
        pytest.skip(scored.reason)
    errors = [
        found - true
        for pair, of_pair in zip(scored.logprobs, truth, strict=True)
        for found, true in zip(pair, of_pair, strict=True)
    ]
    assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) < 0.1
