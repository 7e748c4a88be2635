"""The commands of the page on pairs from DPO run as they stand, on tiny checkpoints."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file
from testing.checkpoints import TINY, write_checkpoint, write_json

from stepscore.artifact.pair import Pair
from stepscore.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "dpo-pairs.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```\n((?:stepscore|cp) .*?)^```\n", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the checkpoints, the adapter and the solutions that the page names."""
    monkeypatch.chdir(tmp_path)
    shape = replace(TINY, num_hidden_layers=1)
    write_checkpoint(Path("start-model"), shape, seed=1)
    write_checkpoint(Path("dpo-model"), shape, seed=1, perturb=0.01)
    Path("adapter").mkdir()
    write_json(Path("adapter/adapter_config.json"), {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
    random, matrix = np.random.default_rng(0), "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {
        f"{matrix}.lora_A.weight": 0.01 * random.standard_normal((2, 64), np.float32),
        f"{matrix}.lora_B.weight": 0.01 * random.standard_normal((64, 2), np.float32),
    }
    save_file(factors, "adapter/adapter_model.safetensors")
    line = {"problem": "1 + 1?", "steps": ["1 + 1 = 2.", "So 2."]}
    Path("solutions.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    return tmp_path


def test_every_command_of_the_page_on_dpo_runs(folder: Path) -> None:
    commands = [line for block in BLOCK.findall(PAGE) for line in block.splitlines()]
    assert len(commands) == 6
    for command in commands:
        if command.startswith("cp "):
            subprocess.run(shlex.split(command), check=True)
            continue
        done = CliRunner().invoke(main, shlex.split(command)[1:])
        assert done.exit_code == 0, (command, done.stderr)
    assert "adapter_model.safetensors is merged into the weights" in done.stderr
    for name in ("pair", "pair-lora"):
        manifest = Pair.open(folder / name).manifest
        assert (manifest.beta, manifest.reference.name) == (0.1, "start-model")
        assert manifest.fidelity is not None
        assert manifest.fidelity.ratio_rms > 0
