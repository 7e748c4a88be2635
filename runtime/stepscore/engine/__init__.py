"""What runs a pair: an engine takes batches and gives log-probs."""

from __future__ import annotations

from importlib.metadata import entry_points

from stepscore.artifact.pair import Pair
from stepscore.engine.base import Engine, EngineOptions
from stepscore.enums import Format
from stepscore.errors import ProviderUnavailable

ENGINE_GROUP = "stepscore.engines"


def open_engine(pair: Pair, options: EngineOptions | None = None) -> Engine:
    """Open a pair in the engine of its format; ProviderUnavailable where that cannot run here."""
    return engine_of(pair.manifest.format)(pair, options)


def engine_of(of_format: Format) -> type[Engine]:
    """Return the engine of a format; nothing heavy is imported but what it needs itself."""
    if of_format is Format.ONNX:
        from stepscore.engine.ort.engine import OrtEngine  # noqa: PLC0415

        return OrtEngine
    registered = entry_points(group=ENGINE_GROUP, name=of_format.value)
    if not registered:
        raise ProviderUnavailable(
            f"nothing that is installed runs {of_format} pairs", hint="pip install 'stepscore[torch]'"
        )
    engine: type[Engine] = next(iter(registered)).load()
    return engine
