"""A plan does what an export needs to know once; an export does the rest, once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from testing.checkpoints import TINY
from tests.conftest import Checkpoints

from stepscore.artifact.graph_contract import graph_files
from stepscore.cli.main import main
from stepscore.enums import Activations, Coding, Precision
from stepscore.errors import ExportError
from stepscore_export.backends import onnx as backend_module
from stepscore_export.checkpoint.checkpoint import Checkpoint
from stepscore_export.options import BitsandbytesOptions
from stepscore_export.pipeline import plan as plan_module
from stepscore_export.pipeline.export import export_pair, write_pair
from stepscore_export.pipeline.plan import open_plan
from stepscore_export.validation.texts import NO_TEXTS, calibration_texts

GRAPHS = len(graph_files(TINY.num_hidden_layers, TINY.vocab_size))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what an export does to its checkpoints, and the graphs that it builds."""
    counted: Counter[str] = Counter()

    def count(place: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(place, name)

        def counting(*given: Any, **named: Any) -> Any:
            counted[name] += 1
            return original(*given, **named)

        monkeypatch.setattr(place, name, counting)

    count(Checkpoint, "open")
    for name in ("check_pair", "measure_distance", "prompt_template"):
        count(plan_module, name)
    for name in ("embed_graph", "body_graph", "layer_graph", "head_graph"):
        count(backend_module, name)
    return counted


ONCE = {"open": 2, "check_pair": 1, "measure_distance": 1, "prompt_template": 1}


def built(calls: Counter[str]) -> int:
    return sum(count for name, count in calls.items() if name.endswith("_graph"))


@pytest.mark.parametrize("dry_run", [True, False])
def test_command_opens_and_measures_checkpoints_once(
    tiny_checkpoints: Checkpoints, tmp_path: Path, calls: Counter[str], dry_run: bool
) -> None:
    models = ["--policy", str(tiny_checkpoints.policy), "--reference", str(tiny_checkpoints.reference)]
    arguments = ["--precision", "fp32", "--quiet", *(["--dry-run"] if dry_run else [])]
    done = CliRunner().invoke(main, ["export", *models, "--output", str(tmp_path / "pair"), *arguments])
    assert done.exit_code == 0, done.stderr
    assert {name: calls[name] for name in ONCE} == ONCE
    assert built(calls) == (0 if dry_run else 2 * GRAPHS)


def test_plan_holds_open_checkpoints_and_resolved_options(tiny_checkpoints: Checkpoints) -> None:
    with open_plan(tiny_checkpoints.policy, tiny_checkpoints.reference, texts=NO_TEXTS) as plan:
        assert list(plan.checkpoints) == ["policy", "reference"]
        assert [each.name.split()[0] for each in plan.checkpoints.values()] == ["policy", "reference"]
        storage = plan.backend.storage
        assert (storage.precision, storage.coding) == (Precision.INT8, Coding.DIFFERENCE)
        assert storage.difference is not None
        assert storage.difference.activations is Activations.INT8
        assert plan.distance.overall == pytest.approx(0.01, rel=0.05)
        assert plan.needs.parameters == sum(each.parameters() for each in plan.checkpoints.values())


def test_backend_that_reads_with_transformers_refuses_what_that_reads_otherwise(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepscore_export.backends.bitsandbytes.require_packages", lambda: None)
    policy = shutil.copytree(tiny_checkpoints.policy, tmp_path / "policy")
    tensors = load_file(policy / "model.safetensors")
    save_file({f"module.{name}": value for name, value in tensors.items()}, policy / "model.safetensors")
    models = policy, tiny_checkpoints.reference
    with open_plan(*models, texts=NO_TEXTS):
        pass
    with (
        pytest.raises(ExportError, match=r"names of a wrapper .*; --format bitsandbytes works with"),
        open_plan(*models, BitsandbytesOptions(), texts=NO_TEXTS),
    ):
        pass


@pytest.mark.slow
def test_one_plan_can_be_written_more_than_once(tiny_checkpoints: Checkpoints, tmp_path: Path) -> None:
    with open_plan(tiny_checkpoints.policy, tiny_checkpoints.reference, texts=NO_TEXTS) as plan:
        once, again = (write_pair(plan, tmp_path / name) for name in ("once", "again"))
    assert once.fingerprint == again.fingerprint


def test_calibration_is_rejected_by_a_backend_without_one(
    tiny_checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepscore_export.backends.bitsandbytes.require_packages", lambda: None)
    models = tiny_checkpoints.policy, tiny_checkpoints.reference
    with pytest.raises(ExportError, match="--calibration is not supported with --format bitsandbytes"):
        export_pair(*models, tmp_path / "pair", BitsandbytesOptions(), calibration=calibration_texts())
    assert list(tmp_path.iterdir()) == []
