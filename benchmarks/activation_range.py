"""Measure the largest activations of a real checkpoint, of the prefix's tokens and of all others, for fp16.

    python -m benchmarks.activation_range CHECKPOINT

It writes results/activation_range_NAME.json. A value beyond 65,504 is infinite in fp16. With the given prefix
its tokens are not computed at run time, so that only the other tokens can overflow.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.support.results import write_result
from transformers import Qwen2ForCausalLM

from stepscore_export.checkpoint.chat_template import prompt_template
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.validation.texts import calibration_texts, encode_texts

TOKENS = 4_000
PLACES = {
    "residual stream": "",
    "queries, keys": ".self_attn.q_proj .self_attn.k_proj",
    "attention output": ".self_attn.o_proj",
    "gate, up": ".mlp.gate_proj .mlp.up_proj",
    "input of down": ".mlp.down_proj",
    "output of down": ".mlp.down_proj",
}
"""What is measured: the outputs of these modules of each layer, of the last place but one the input."""


def main() -> None:
    """Run bundled solutions through the checkpoint in fp32; write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    folder: Path = parser.parse_args().checkpoint
    print(write_result(f"activation_range_{folder.name}", measure(folder), quick=False))


def measure(folder: Path) -> dict[str, Any]:
    """Return the largest absolute value over layers at each place, by kind of token."""
    with Checkpoint.open(folder, "reference") as checkpoint:
        _, encoder = prompt_template(checkpoint)
    prefix = len(encoder.prefix_ids())
    prompts = encode_texts(calibration_texts(), encoder, max_tokens=TOKENS)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    largest = {place: {"prefix": 0.0, "others": 0.0} for place in PLACES}

    def seen(place: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, inputs: Any, output: Any) -> None:
            value = inputs[0] if place == "input of down" else output
            rows = (value[0] if isinstance(value, tuple) else value)[0].abs().amax(dim=-1)
            of = largest[place]
            of["prefix"] = max(of["prefix"], float(rows[:prefix].max()))
            of["others"] = max(of["others"], float(rows[prefix:].max()))

        return hook

    for layer in model.model.layers:
        for place, names in PLACES.items():
            for name in names.split() or [""]:
                layer.get_submodule(name.removeprefix(".")).register_forward_hook(seen(place))
    with torch.inference_mode():
        for prompt in prompts:
            model(input_ids=torch.from_numpy(prompt.token_ids)[None], use_cache=False)
    tokens = sum(len(prompt.token_ids) for prompt in prompts)
    return {"tokens": tokens, "prefix_tokens": prefix, "largest": largest}


if __name__ == "__main__":
    main()
