"""The reference itself: it is Qwen2, it is really float64, and its indices are the card's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity_tests.support import fp64_reference as reference
from parity_tests.support import model_card as card
from parity_tests.support.fp64_reference import Numerics, logprobs, pair_logprobs, rotate
from testing.shared_data import SHARED_DATA
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from stepscore.enums import Convention


class Model(NamedTuple):
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    layers: int
    vocab: int
    tied: bool


MODELS = {
    "tied": Model(64, 4, 4, 160, 2, 301, tied=True),
    "untied, two heads a key": Model(96, 4, 2, 192, 3, 512, tied=False),
    "four heads a key, head size 20, odd everything": Model(80, 4, 1, 77, 2, 515, tied=False),
    "six heads of 10": Model(60, 6, 3, 99, 2, 1001, tied=True),
}


def save_with_transformers(folder: Path, model: Model) -> Path:
    """A checkpoint that transformers itself wrote; its biases and norms, 0 and 1 at first, made to matter."""
    torch.manual_seed(model.hidden)
    config = Qwen2Config(
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        intermediate_size=model.intermediate,
        num_hidden_layers=model.layers,
        vocab_size=model.vocab,
        tie_word_embeddings=model.tied,
        initializer_range=0.15,
    )
    network = Qwen2ForCausalLM(config)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("by_transformers")
    return {
        name: save_with_transformers(root / str(number), model)
        for number, (name, model) in enumerate(MODELS.items())
    }


def tokens(vocab: int, *lengths: int, seed: int = 0) -> list[reference.Tokens]:
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab, length) for length in lengths]


def largest_difference(ours: list[reference.Logprobs], theirs: list[reference.Logprobs]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_own_forward_is_transformers_qwen2(checkpoints: dict[str, Path], name: str) -> None:
    sequences = tokens(MODELS[name].vocab, 2, 17, 200)
    own = logprobs(checkpoints[name], sequences, Numerics.FP32)
    theirs = logprobs(checkpoints[name], sequences, Numerics.PYTORCH_FP32)
    # Measured 2.3e-5 at most: two fp32 evaluations, and transformers takes the RoPE angles in fp32 as well.
    assert largest_difference(own, theirs) < 4e-5


@pytest.mark.parametrize("name", MODELS)
def test_float64_and_float32_differ_by_float32_rounding_only(checkpoints: dict[str, Path], name: str) -> None:
    sequences = tokens(MODELS[name].vocab, 2, 17, 200)
    exact = logprobs(checkpoints[name], sequences, Numerics.FP64)
    assert 1e-8 < largest_difference(logprobs(checkpoints[name], sequences, Numerics.FP32), exact) < 4e-5


def test_probabilities_of_all_next_tokens_sum_to_one_in_float64(checkpoints: dict[str, Path]) -> None:
    model = MODELS["tied"]
    [prefix] = tokens(model.vocab, 5)
    continued = [np.append(prefix, token) for token in range(model.vocab)]
    last = [row[-1] for row in logprobs(checkpoints["tied"], continued, Numerics.FP64)]
    assert abs(np.exp(last).sum() - 1) < 1e-12


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 100), st.integers(0, 2**31))
def test_attention_sees_distances_only_in_float64(i: int, j: int, shift: int, seed: int) -> None:
    """`<rotate(q)[i], rotate(k)[j]>` depends on i - j: true to 1e-12 only with float64 angles."""
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    length = max(i, j) + shift + 1
    q, k = (rotate(row.expand(1, length, 16), theta=10_000.0)[0] for row in (q, k))
    torch.testing.assert_close(q[i] @ k[j], q[i + shift] @ k[j + shift], rtol=0, atol=1e-11)


def test_head_chunk_size_changes_no_log_prob(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "untied, two heads a key"
    sequences = tokens(MODELS[name].vocab, 9)
    whole = logprobs(checkpoints[name], sequences, Numerics.FP64)
    monkeypatch.setattr(reference, "HEAD_ROWS", 100)
    assert largest_difference(logprobs(checkpoints[name], sequences, Numerics.FP64), whole) < 1e-13


@pytest.mark.parametrize(
    ("numerics", "grid"), [(Numerics.PYTORCH_FP16, torch.float16), (Numerics.PYTORCH_BF16, torch.bfloat16)]
)
def test_the_cards_log_softmax_answers_in_the_models_dtype(
    checkpoints: dict[str, Path], numerics: Numerics, grid: torch.dtype
) -> None:
    [row] = logprobs(checkpoints["tied"], tokens(301, 40), numerics)
    [fine] = logprobs(checkpoints["tied"], tokens(301, 40), Numerics[f"{numerics.name}_LOGITS32"])
    assert np.array_equal(row, torch.from_numpy(row).to(grid).double().numpy())
    assert not np.array_equal(fine, torch.from_numpy(fine).to(grid).double().numpy())


def test_both_config_layouts_are_read(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """As transformers 4 writes it, and as 5 does; `folder` is by the one that is installed."""
    folder = checkpoints["tied"]
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters", None) or {"rope_theta": config.pop("rope_theta")}
    for layout in (rope, {"rope_parameters": {**rope, "rope_type": "default"}}):
        (tmp_path / "config.json").write_text(json.dumps(config | layout))
        assert reference.Shape.read(tmp_path) == reference.Shape.read(folder)


def test_one_token_scores_nothing(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["tied"]
    [(policy, other)] = pair_logprobs(folder, folder, tokens(301, 1), Numerics.FP64)
    assert policy.shape == other.shape == (0,)


# The card's indices

needs_shared_data = pytest.mark.skipif(SHARED_DATA is None, reason="no shared data folder")


@pytest.fixture(scope="module")
def qwen_tokenizer() -> PreTrainedTokenizerFast:
    assert SHARED_DATA is not None
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(SHARED_DATA / "qwen2.5-math-tokenizer")
    return tokenizer


@pytest.mark.shared_data
@needs_shared_data
def test_the_golden_record_of_the_card(qwen_tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = card.encode(qwen_tokenizer, "111", ["111", "222"], Convention.CARD)
    assert (len(encoded.ids), encoded.response_start) == (40, 31)
    assert card.card_ends(qwen_tokenizer, "111", ["111", "222"], first=0) == [30, 34, 37]
    assert encoded.step_ends.tolist() == [34, 37]


@pytest.mark.shared_data
@needs_shared_data
def test_an_exact_end_is_the_separator_and_no_token_of_the_next_step(
    qwen_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = card.encode(qwen_tokenizer, "1+1?", ["It is 2.", "So (2)", "Done."], Convention.EXACT)
    scored = [qwen_tokenizer.decode(encoded.ids[end + 1]) for end in encoded.step_ends]
    assert scored == [".\n\n", ")\n\n", "<|im_end|>"]


def test_rewards_are_beta_times_the_sum_up_to_and_including_the_step_end() -> None:
    encoded = card.Encoded(np.arange(5), response_start=2, step_ends=np.asarray([1, 3]))
    policy, other = np.asarray([1.0, 2.0, 4.0, 8.0]), np.zeros(4)
    assert card.cumulative_rewards(policy, other, encoded, beta=0.5, start=0).tolist() == [1.5, 7.5]
    assert card.cumulative_rewards(policy, other, encoded, beta=0.5, start=1).tolist() == [1.0, 7.0]
