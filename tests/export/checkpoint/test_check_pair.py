"""Two checkpoints are a pair when their shapes fit and every text has the same ids in both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from testing.checkpoints import (
    CHAT_TEMPLATE,
    TINY,
    edit_json,
    tied,
    tiny_tokenizer,
    weights,
    write_checkpoint,
)
from testing.hypothesis_profiles import examples

from stepscore.enums import Convention, Precision
from stepscore.errors import CheckpointCorrupt, PairIncompatible, UnsupportedArchitecture
from stepscore.prompt.encoder import PromptEncoder
from stepscore.prompt.template import Template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.checkpoint.pair import check_pair, cut_padding
from stepscore_export.families.base import EMBEDDING, HEAD, DecoderConfig
from stepscore_export.families.rope import DefaultRope
from stepscore_export.options import ExportOptions
from stepscore_export.pipeline.export import export_pair
from stepscore_export.pipeline.plan import open_plan


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
    own = replace(tied(), rope=DefaultRope(1e6), rms_norm_eps=1e-5, max_position_embeddings=1024)
    check(*pair_of(tmp_path, own))


# The rows of the vocabulary


@pytest.mark.parametrize("cut", ["policy", "reference"])
def test_rows_without_a_token_are_cut_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: str
) -> None:
    rows = {"policy": 320, "reference": 320, cut: 384}
    folders = {name: write_checkpoint(tmp_path / name, replace(TINY, vocab_size=rows[name])) for name in rows}
    with (
        Checkpoint.open(folders["policy"], "policy") as policy,
        Checkpoint.open(folders["reference"], "reference") as reference,
    ):
        check_pair(policy, reference)
        cut_padding(policy, reference)
        for model in (policy, reference):
            assert model.config.vocab_size == 320
            for name in (EMBEDDING, HEAD):
                assert model.shape(name) == model.rows(name).shape == (320, TINY.hidden_size)
                np.testing.assert_array_equal(model.rows(name, 300, 400), model.rows(name)[300:])
        with pytest.raises(UnsupportedArchitecture, match="more rows of its vocabulary"):
            {"policy": policy, "reference": reference}[cut].require_plain("parity")
    (message,) = caplog.messages
    assert message.startswith(
        f"{cut} (--{cut} {folders[cut]}): vocab_size is 384, the other model's 320; the last 64"
    )


def test_nothing_is_cut_from_equal_vocabularies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy, reference = pair_of(tmp_path)
    with Checkpoint.open(policy) as ours, Checkpoint.open(reference) as theirs:
        cut_padding(ours, theirs)
        assert ours.config == theirs.config == TINY
    assert not caplog.messages


def test_rows_of_a_token_are_never_cut(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path, replace(TINY, vocab_size=276))
    edit_tokenizer(policy, lambda tokenizer: add_token(tokenizer, "[PAD]", special=True))
    with pytest.raises(PairIncompatible, match="too few for token 276"):
        check(policy, reference)


@pytest.mark.slow
def test_cut_pair_scores_as_the_pair_without_these_rows(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path, replace(TINY, vocab_size=384))
    with Checkpoint.open(reference) as whole:
        short = {
            name: whole.rows(name)[:320] if name in (EMBEDDING, HEAD) else whole.rows(name)
            for name in weights(TINY)
        }
    other = write_checkpoint(tmp_path / "short")
    save_file(short, other / "model.safetensors")
    options = ExportOptions(Precision.FP32)
    pairs = [
        export_pair(policy, each, tmp_path / name, options) for name, each in (("a", reference), ("b", other))
    ]
    assert pairs[0].manifest.files == pairs[1].manifest.files


# The tokenizers


def edit_tokenizer(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def add_token(tokenizer: dict[str, Any], content: str, *, special: bool, **flags: bool) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    index = 1 + max(token["id"] for token in tokenizer["added_tokens"])
    tokenizer["added_tokens"].append({"id": index, "content": content, "special": special, **plain, **flags})


def respell(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"] = [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    tokenizer["model"]["vocab"] = dict(reversed(tokenizer["model"]["vocab"].items()))
    tokenizer["added_tokens"][0]["special"] = False
    tokenizer["post_processor"] = None
    del tokenizer["truncation"]


def test_equivalent_tokenizers_are_a_pair(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path)
    edit_tokenizer(reference, respell)
    check(policy, reference)


def _sequences(tokenizer: dict[str, Any]) -> None:
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [tokenizer["normalizer"]]}
    nested = {"type": "Sequence", "pretokenizers": tokenizer["pre_tokenizer"]["pretokenizers"]}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [nested]}


def _truncate(tokenizer: dict[str, Any]) -> None:
    tokenizer["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 273,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }


HARMLESS: dict[str, Callable[[dict[str, Any]], object]] = {
    "offsets": lambda each: each["pre_tokenizer"]["pretokenizers"][1].update(trim_offsets=True),
    "empty affixes": lambda each: each["model"].update(continuing_subword_prefix="", end_of_word_suffix=""),
    "ignore_merges": lambda each: each["model"].update(ignore_merges=True),
    "unknown": lambda each: each["model"].update(
        fuse_unk=True, byte_fallback=True, unk_token="<|endoftext|>"
    ),
    "no dropout": lambda each: each["model"].update(dropout=0.0),
    "special token": lambda each: add_token(each, "[PAD]", special=True),
    "truncation": _truncate,
    "sequences": _sequences,
}


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_tokenizer_keys_that_change_no_id_may_differ(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], side: int
) -> None:
    folders = pair_of(tmp_path)
    edit_tokenizer(folders[side], change)
    check(*folders)


@examples(30)
@given(text=st.text(), change=st.sampled_from(sorted(HARMLESS)))
def test_harmless_keys_give_every_text_the_same_ids(text: str, change: str) -> None:
    plain = json.loads(tiny_tokenizer().to_str())
    other = json.loads(tiny_tokenizer().to_str())
    HARMLESS[change](other)
    template = Template("<|im_start|>", "<|im_end|>", "<|im_end|>")
    encoders = [PromptEncoder(json.dumps(each), template, max_tokens=10**6) for each in (plain, other)]
    ids, others = (each.encode(text, ["[PAD]" + "x"], Convention.EXACT).token_ids for each in encoders)
    assert np.array_equal(ids, others)


def test_control_token_of_the_template_must_be_in_both(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path)
    edit_tokenizer(policy, lambda each: add_token(each, "<|turn|>", special=True))
    write_tokenizer_template(policy, CHAT_TEMPLATE.replace("<|im_start|>", "<|turn|>"))
    with (
        pytest.raises(
            PairIncompatible,
            match=rf"other token ids with the tokenizer of the reference \(--ref.* {reference}",
        ),
        open_plan(policy, reference),
    ):
        pass


def write_tokenizer_template(folder: Path, chat_template: str) -> None:
    edit_json(folder / "tokenizer_config.json", chat_template=chat_template)


def test_ignore_merges_is_refused_where_merges_do_not_lead_to_an_entry(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path)
    for folder in (policy, reference):  # the entry of the last merge stays
        edit_tokenizer(folder, lambda each: each["model"]["merges"].pop())
    check(policy, reference)
    edit_tokenizer(reference, lambda each: each["model"].update(ignore_merges=True))
    with pytest.raises(PairIncompatible, match="differ in their model: 'ignore_merges' is False in the one"):
        check(policy, reference)


def test_tokenizer_that_draws_at_random_is_refused(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path)
    edit_tokenizer(policy, lambda each: each["model"].update(dropout=0.1))
    with pytest.raises(UnsupportedArchitecture, match=r"dropout is 0\.1"):
        check(policy, reference)


def test_added_token_whose_id_the_library_changes_is_refused(tmp_path: Path) -> None:
    policy, reference = pair_of(tmp_path)
    edit_tokenizer(policy, lambda each: each["added_tokens"][-1].update(id=319))
    with pytest.raises(CheckpointCorrupt, match="the id 319, its library reads 275"):
        check(policy, reference)


def _swap_two_tokens(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_swap_two_tokens, "vocabulary"),
        (lambda tokenizer: tokenizer["model"]["merges"].reverse(), "merges"),
        (lambda tokenizer: tokenizer["model"].update(end_of_word_suffix="</w>"), "model"),
        (lambda tokenizer: add_token(tokenizer, "step", special=False), "added tokens"),
        (lambda tokenizer: tokenizer["added_tokens"][0].update(lstrip=True), "added tokens"),
        (lambda tokenizer: tokenizer.update(normalizer=None), "normalizer"),
        (lambda tokenizer: tokenizer["pre_tokenizer"]["pretokenizers"].pop(0), "pre-tokenizer"),
    ],
    ids=["vocabulary", "merges", "model", "new token", "added tokens", "normalizer", "pre-tokenizer"],
)
def test_check_pair_rejects_tokenizers_with_different_rules(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], part: str
) -> None:
    policy, reference = pair_of(tmp_path)
    edit_tokenizer(reference, change)
    with pytest.raises(PairIncompatible, match=f"differ in their {part}"):
        check(policy, reference)
