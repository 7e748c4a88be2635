"""Compute a causal language model in plain numpy, to validate a staged pair before it is sealed.

Deliberately slow and simple, and independent of what it validates. It shares no formula with the graphs or
the runtime, reads the source checkpoint instead of the weight file, and computes in float64. Matrices are
read one row block at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from stepscore_export.checkpoint.weight_source import WeightSource
from stepscore_export.families.base import DecoderConfig
from stepscore_export.families.rope import DefaultRope, Llama3Rope, Rope, YarnRope
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
    query, key, value = (_projected(checkpoint, f"{layer}.self_attn", kind, normed) for kind in "qkv")
    if config.qk_norm:
        query = _norm(checkpoint, f"{layer}.self_attn.q_norm", query)
        key = _norm(checkpoint, f"{layer}.self_attn.k_norm", key)
    query, key = _rotate(config, query), _rotate(config, key)
    groups = config.num_attention_heads // config.num_key_value_heads
    key, value = np.repeat(key, groups, axis=1), np.repeat(value, groups, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(config.head_dim)
    scores[:, ~np.tri(length, dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended = np.einsum("hqk,khd->qhd", weights, value).reshape(length, -1)
    return _linear(checkpoint, f"{layer}.self_attn.o_proj", attended)


def _projected(checkpoint: WeightSource, attention: str, kind: str, normed: Rows) -> Rows:
    """Return queries, keys or values by head: [L, heads, head_dim]."""
    rows = _linear(checkpoint, f"{attention}.{kind}_proj", normed)
    if checkpoint.config.attention_bias:
        rows = rows + checkpoint.rows(f"{attention}.{kind}_proj.bias")
    return rows.reshape(len(rows), -1, checkpoint.config.head_dim)


def _rotate(config: DecoderConfig, heads: Rows) -> Rows:
    # A pair of numbers (i, i + D/2) of a head is a complex one, turned by position / slowness.
    slowness = [_slowness(config.rope, pair, config.head_dim) for pair in range(config.head_dim // 2)]
    turns = np.exp(1j * np.arange(len(heads))[:, None, None] / np.array(slowness))
    if isinstance(config.rope, YarnRope):
        turns *= config.rope.attention_factor
    first, second = np.split(heads, 2, axis=-1)
    turned = (first + 1j * second) * turns
    return np.concatenate([turned.real, turned.imag], axis=-1)


def _slowness(rope: Rope, pair: int, head_dim: int) -> float:
    """Return the positions in which a pair of a head turns by one radian."""
    plain = math.pow(rope.theta, 2 * pair / head_dim)
    match rope:
        case DefaultRope():
            return plain
        case Llama3Rope():
            length, wavelength = rope.original_max_position_embeddings, 2 * math.pi * plain
            if wavelength < length / rope.high_freq_factor:
                return plain
            if wavelength > length / rope.low_freq_factor:
                return plain * rope.factor
            kept = length / wavelength - rope.low_freq_factor
            kept /= rope.high_freq_factor - rope.low_freq_factor
        case YarnRope():
            fast, slow = (_pair_of_turns(rope, beta, head_dim) for beta in (rope.beta_fast, rope.beta_slow))
            first = max(math.floor(fast) if rope.truncate else fast, 0)
            last = min(math.ceil(slow) if rope.truncate else slow, head_dim - 1)
            last += 0.001 if last == first else 0
            kept = 1 - min(max((pair - first) / (last - first), 0), 1)
    return 1 / (kept / plain + (1 - kept) / (plain * rope.factor))


def _pair_of_turns(rope: YarnRope, turns: float, head_dim: int) -> float:
    """Return the pair, whole or not, that turns so often within the original length."""
    return head_dim / 2 * math.log(rope.original_max_position_embeddings / (2 * math.pi * turns), rope.theta)


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
