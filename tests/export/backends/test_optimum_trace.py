"""What tracing needs is looked for first, and what is missing is said; that needs nothing installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from stepscore.errors import ProviderUnavailable
from stepscore_export.backends import optimum_trace as trace
from stepscore_export.backends.optimum_trace import require_optimum


@pytest.mark.parametrize(
    ("installed", "message", "hint"),
    [
        (
            {"torch": "2.13.0", "transformers": "4.57.6"},
            "optimum-onnx is not installed",
            "stepscore[optimum]",
        ),
        (
            {"optimum-onnx": "0.1.0", "torch": "2.13.0", "transformers": "5.2.0"},
            "transformers 5.2.0 is installed; optimum-onnx needs a version before 4.58",
            "transformers<4.58",
        ),
    ],
)
def test_require_optimum_names_missing_packages_and_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], message: str, hint: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(trace, "version", version)
    with pytest.raises(ProviderUnavailable) as refused:
        require_optimum()
    assert refused.value.message == message
    assert hint in str(refused.value.hint)
