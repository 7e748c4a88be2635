"""Two checkpoints are a pair when their shapes fit and every text has the same ids in both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from testing.checkpoints import TINY, tied, write_checkpoint

from stepscore.errors import (
    PairIncompatible,
)
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.pair import check_pair
from stepscore_export.families.base import DecoderConfig


def pair_of(tmp_path: Path, reference: DecoderConfig = TINY) -> tuple[Path, Path]:
    policy = write_checkpoint(tmp_path / "policy", perturb=0.01)
    return policy, write_checkpoint(tmp_path / "reference", reference)


def check(policy: Path, reference: Path) -> None:
    with Checkpoint.open(policy) as ours, Checkpoint.open(reference) as theirs:
        check_pair(ours, theirs)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 128},
        {"intermediate_size": 128},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 8},
        {"num_key_value_heads": 4},
        {"head_dim": 8},
    ],
)
def test_check_pair_rejects_models_of_different_shapes(tmp_path: Path, change: dict[str, int]) -> None:
    policy, reference = pair_of(tmp_path, replace(TINY, **change))
    with pytest.raises(PairIncompatible, match=next(iter(change))):
        check(policy, reference)


def test_every_shape_is_compared() -> None:
    assert {field.name for field in fields(DecoderConfig) if field.type == "int"} == {
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"),
    }


def test_constants_and_head_may_differ_in_a_pair(tmp_path: Path) -> None:
    own = replace(tied(), rope_theta=1e6, rms_norm_eps=1e-5, max_position_embeddings=1024)
    check(*pair_of(tmp_path, own))


def respell(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    tokenizer["model"]["vocab"] = dict(reversed(tokenizer["model"]["vocab"].items()))
    tokenizer["added_tokens"][0]["special"] = False
    tokenizer["post_processor"] = None
    del tokenizer["truncation"]


def test_equivalent_tokenizers_are_a_pair(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path)
    respelled = json.loads((reference / "tokenizer.json").read_text())
    respell(respelled)
    (reference / "tokenizer.json").write_text(json.dumps(respelled))
    check(policy, reference)


def _swap_two_tokens(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_swap_two_tokens, "vocabulary"),
        (lambda tokenizer: tokenizer["model"]["merges"].reverse(), "merges"),
        (lambda tokenizer: tokenizer["model"].update(ignore_merges=True), "model"),
        (lambda tokenizer: tokenizer["added_tokens"][0].update(lstrip=True), "added tokens"),
        (lambda tokenizer: tokenizer.update(normalizer=None), "normalizer"),
        (lambda tokenizer: tokenizer["pre_tokenizer"]["pretokenizers"].pop(0), "pre-tokenizer"),
    ],
    ids=["vocabulary", "merges", "model", "added tokens", "normalizer", "pre-tokenizer"],
)
def test_check_pair_rejects_tokenizers_with_different_rules(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], part: str
) -> None:
    policy, reference = pair_of(tmp_path)
    tokenizer = json.loads((reference / "tokenizer.json").read_text())
    change(tokenizer)
    (reference / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(PairIncompatible, match=f"differ in their {part}"):
        check(policy, reference)
