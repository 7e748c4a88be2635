"""The PyTorch side of parity: the head in chunks, one model at a time, and memory that does not suffice."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testing.checkpoints import TINY, edit_json, write_checkpoint
from testing.families import FAMILY_SHAPES, settings_of
from testing.parity_command import POLICY, parity

from stepscore.engine.pytorch.loading import Device, configuration
from stepscore.errors import UnsupportedArchitecture
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.parity import pytorch
from stepscore_export.parity.pytorch import DType

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]


def test_the_head_in_chunks_gives_what_the_whole_model_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    ids = np.arange(1, 60)
    monkeypatch.setattr(pytorch, "HEAD_ROWS", 7)
    with Checkpoint.open(POLICY) as checkpoint:
        (found,) = pytorch.score(checkpoint, [ids], dtype=DType.FP32, device=Device.CPU).logprobs
    model = transformers.Qwen2ForCausalLM.from_pretrained(POLICY, dtype=torch.float32).eval()
    with torch.no_grad():
        whole = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1].log_softmax(-1)
    expected = whole.gather(1, torch.from_numpy(ids)[1:, None])[:, 0].double().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama3", "qwen2-yarn"])
def test_a_config_json_of_transformers_4_and_of_5_gives_the_same(tmp_path: Path, family: str) -> None:
    """Each version looks for the rotary embedding where the other does not write it."""
    found = []
    for layout in (4, 5):
        folder = write_checkpoint(tmp_path / str(layout), FAMILY_SHAPES[family], layout=layout)
        with Checkpoint.open(folder) as checkpoint:
            ids = np.arange(1, 100)
            found += pytorch.score(checkpoint, [ids], dtype=DType.FP32, device=Device.CPU).logprobs
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("place", [(), ("text_config",)])
def test_code_that_config_json_names_is_not_looked_for(tmp_path: Path, place: tuple[str, ...]) -> None:
    """transformers before 5.3 downloads and runs attention of this name (CVE-2026-4372)."""
    folder = write_checkpoint(tmp_path / "checkpoint", TINY)
    named: dict[str, Any] = {"_attn_implementation_internal": "stranger/kernel"}
    for name in place:
        named = {name: named}
    edit_json(folder / "config.json", **named)
    model = pytorch.from_pretrained(folder, settings_of(folder), dtype=torch.float32)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_type_that_transformers_lacks_is_named() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"transformers \d.* rejects a model of type 'qwen9'"):
        configuration({"model_type": "qwen9"})


def test_one_model_is_gone_before_the_next_is_loaded(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load = pytorch.from_pretrained

    def watched(*given: Any, **options: Any) -> Any:
        alive.append(sum(model() is not None for model in models))
        model = load(*given, **options)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(pytorch, "from_pretrained", watched)
    gc.disable()  # nothing but the code under test may free it
    try:
        assert parity(int8).exit_code == 0
    finally:
        gc.enable()
    assert alive == [0, 0]


def test_cuda_without_a_gpu_is_refused(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = parity(int8, "--device", "cuda")
    assert done.exit_code == 3
    assert "finds no CUDA device" in done.stderr


def test_too_little_memory_is_an_error_with_a_way_out(int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_given: Any, **_options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(pytorch, "from_pretrained", load)
    done = parity(int8)
    assert done.exit_code == 3
    assert "CUDA out of memory\nhint: use --dtype bf16" in done.stderr
