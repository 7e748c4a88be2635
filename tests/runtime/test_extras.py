"""A library that is not installed is named with its extra, not shown as a traceback."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.uninstalled import uninstall

from stepscore.cli.main import main
from stepscore.errors import ExtraMissing, ProviderUnavailable
from stepscore.extras import missing_extra, naming_extras
from stepscore.scorer import Scorer

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NOT_FOR_USERS = {"cpu", "cuda", "dev", "peers"}
IMPORTED_AS = {
    "math-verify": "math_verify",
    "onnx-ir": "onnx_ir",
    "opentelemetry-sdk": "opentelemetry",
    "optimum-onnx": "optimum",
    "prometheus-client": "prometheus_client",
}


def libraries(extra: str) -> list[str]:
    names = [re.split(r"[\[<>=,]", requirement)[0] for requirement in EXTRAS[extra]]
    return [IMPORTED_AS.get(name, name) for name in names]


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - NOT_FOR_USERS))
def test_every_library_of_an_extra_is_known_with_an_extra_that_has_it(extra: str) -> None:
    for library in libraries(extra):
        fault = missing_extra(ModuleNotFoundError(name=f"{library}.part"))
        assert isinstance(fault, ExtraMissing)
        named = re.search(r"stepscore\[(\w+)\]", fault.hint or "")
        assert named is not None
        assert library in libraries(named[1])


def test_another_module_is_no_matter_of_extras() -> None:
    assert missing_extra(ModuleNotFoundError(name="no_such_module")) is None
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), naming_extras():
        import no_such_module  # noqa: F401


def test_loading_a_pair_without_onnxruntime_names_the_extra(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninstall(monkeypatch, "onnxruntime", "stepscore.engine.ort")
    with pytest.raises(ProviderUnavailable) as raised:
        Scorer.load(tiny_pair)
    assert "stepscore[cpu]" in (raised.value.hint or "")


COMMANDS = {
    "onnx_ir": ["export", "--policy", "p", "--reference", "r", "--output", "o"],
    "torch": ["parity", "PAIR", "--policy", "p", "--reference", "r", "--data", "-"],
}


@pytest.mark.parametrize(("library", "arguments"), COMMANDS.items(), ids=COMMANDS.keys())
def test_a_command_without_its_extra_says_what_to_install(
    tiny_pair: Path, monkeypatch: pytest.MonkeyPatch, library: str, arguments: list[str]
) -> None:
    uninstall(monkeypatch, library, "stepscore_export")
    done = CliRunner().invoke(main, [str(tiny_pair) if each == "PAIR" else each for each in arguments])
    assert done.exit_code == 3, done.output
    assert re.search(r"hint: .*pip install 'stepscore\[(export|torch)\]'", done.stderr), done.stderr


def test_names_of_the_exporter_without_its_extra_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    uninstall(monkeypatch, "onnx_ir", "stepscore_export")
    import stepscore_export

    with pytest.raises(ExtraMissing) as raised:
        stepscore_export.export_pair  # noqa: B018
    assert raised.value.hint == "pip install 'stepscore[export]'"


def test_the_extras_are_those_of_the_installed_package() -> None:
    assert set(importlib.metadata.metadata("stepscore").get_all("Provides-Extra") or []) == set(EXTRAS)
