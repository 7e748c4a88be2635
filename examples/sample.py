"""Sample solutions of test problems from the bundled reference: what best-of-N chooses from.

    python examples/sample.py > examples/samples.jsonl        # torch, transformers; half a minute

The reference learned right and wrong solutions alike, so its samples differ. `final_answer` is the true
answer: that of the test problem's own solution, which is right.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM

from pair_text import SEPARATOR

EXAMPLES = Path(__file__).parent
NUM_PROBLEMS, NUM_SAMPLES, MAX_TOKENS, SEED = 24, 8, 256, 6


def main() -> None:
    """Write one line a sample, the samples of a problem one after the other."""
    folder = EXAMPLES / "pair" / "reference"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.manual_seed(SEED)
    records = map(json.loads, (EXAMPLES / "problems.jsonl").read_text(encoding="utf-8").splitlines())
    right = [record for record in records if record["label"] == -1][:NUM_PROBLEMS]
    for record in right:
        for number, steps in enumerate(_sample(model, tokenizer, record["problem"])):
            line = {
                "id": f"{record['id']}-{number}",
                "problem_id": record["id"],
                "problem": record["problem"],
                "steps": steps,
                "final_answer": record["final_answer"],
            }
            sys.stdout.write(json.dumps(line) + "\n")


def _sample(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problem: str) -> list[list[str]]:
    turns = [{"role": "user", "content": problem}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        ids = model.generate(
            **prompt,
            do_sample=True,
            top_k=0,
            num_return_sequences=NUM_SAMPLES,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
            pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        )
    responses = tokenizer.batch_decode(ids[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return [response.strip().split(SEPARATOR) for response in responses]


if __name__ == "__main__":
    main()
