"""Compute Qwen2 in plain numpy, to validate a staged pair before it is sealed.

Deliberately slow and simple, and independent of what it validates. It shares no formula with the graphs or
the runtime, reads the source checkpoint instead of the weight file, and computes in float64. Matrices are
read one row block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.threads import in_order
from stepscore_export.weights.row_blocks import BLOCK_ELEMENTS

Rows = NDArray[np.float64]


def hidden_and_logprobs(
    checkpoint: WeightSource, token_ids: NDArray[np.int64], *, scaled: bool = True
) -> tuple[Rows, Rows]:
    """Return the final hidden states [L-1, hidden_size] and log-probs [L-1] (nats) of one sequence [L].

    They are normalized; without `scaled` they lack the scale of the final norm.
    """
    rows = _body(checkpoint, token_ids)[:-1]
    hidden = _norm(checkpoint, "model.norm", rows)
    logprobs = _log_softmax_at(checkpoint, hidden, token_ids[1:])
    return hidden if scaled else _normalized(checkpoint, rows), logprobs


def _body(checkpoint: WeightSource, token_ids: NDArray[np.int64]) -> Rows:
    config = checkpoint.config
    rows = np.concatenate(
        [checkpoint.rows("model.embed_tokens.weight", token, token + 1) for token in token_ids.tolist()]
    ).astype(np.float64)
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        rows += _attention(checkpoint, layer, _norm(checkpoint, f"{layer}.input_layernorm", rows))
        normed = _norm(checkpoint, f"{layer}.post_attention_layernorm", rows)
        gate = _linear(checkpoint, f"{layer}.mlp.gate_proj", normed)
        up = _linear(checkpoint, f"{layer}.mlp.up_proj", normed)
        rows += _linear(checkpoint, f"{layer}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    return rows


def _norm(checkpoint: WeightSource, name: str, rows: Rows) -> Rows:
    return _normalized(checkpoint, rows) * checkpoint.rows(f"{name}.weight")


def _normalized(checkpoint: WeightSource, rows: Rows) -> Rows:
    normalized: Rows = rows / np.sqrt(
        np.mean(rows**2, axis=-1, keepdims=True) + checkpoint.config.rms_norm_eps
    )
    return normalized


def _linear(checkpoint: WeightSource, name: str, rows: Rows) -> Rows:
    return np.concatenate(list(_products(checkpoint, f"{name}.weight", rows)), axis=-1)


def _products(checkpoint: WeightSource, name: str, rows: Rows) -> Iterator[Rows]:
    """Yield rows @ weight^T in blocks of columns; a block is read while others are multiplied."""
    count, columns = checkpoint.shape(name)
    step = max(1, BLOCK_ELEMENTS // columns)
    blocks = (checkpoint.rows(name, start, min(start + step, count)) for start in range(0, count, step))

    def product(block: NDArray[np.float32]) -> Rows:
        result: Rows = rows @ block.T
        return result

    return in_order(product, blocks)


def _attention(checkpoint: WeightSource, layer: str, normed: Rows) -> Rows:
    config = checkpoint.config
    length = len(normed)
    query, key, value = (
        (
            _linear(checkpoint, f"{layer}.self_attn.{kind}_proj", normed)
            + checkpoint.rows(f"{layer}.self_attn.{kind}_proj.bias")
        ).reshape(length, -1, config.head_dim)
        for kind in "qkv"
    )
    query, key = _rotate(checkpoint, query), _rotate(checkpoint, key)
    groups = config.num_attention_heads // config.num_key_value_heads
    key, value = np.repeat(key, groups, axis=1), np.repeat(value, groups, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(config.head_dim)
    scores[:, ~np.tri(length, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended = np.einsum("hqk,khd->qhd", weights, value).reshape(length, -1)
    return _linear(checkpoint, f"{layer}.self_attn.o_proj", attended)


def _rotate(checkpoint: WeightSource, heads: Rows) -> Rows:
    # A pair of numbers (i, i + D/2) of a head is a complex one, turned by position / theta^(2i / D).
    pairs = np.arange(checkpoint.config.head_dim // 2)
    slowness = checkpoint.config.rope_theta ** (2 * pairs / checkpoint.config.head_dim)
    turns = np.exp(1j * np.arange(len(heads))[:, None, None] / slowness)
    first, second = np.split(heads, 2, axis=-1)
    turned = (first + 1j * second) * turns
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _log_softmax_at(checkpoint: WeightSource, hidden: Rows, targets: NDArray[np.int64]) -> Rows:
    name = "model.embed_tokens" if checkpoint.config.tie_word_embeddings else "lm_head"
    total = np.full(len(hidden), -np.inf)
    chosen = np.empty(len(hidden))
    stop = 0
    for logits in _products(checkpoint, f"{name}.weight", hidden):
        start, stop = stop, stop + logits.shape[-1]
        total = np.logaddexp(total, np.logaddexp.reduce(logits, axis=-1))
        here = (targets >= start) & (targets < stop)
        chosen[here] = logits[here, targets[here] - start]
    logprobs: Rows = chosen - total
    return logprobs
