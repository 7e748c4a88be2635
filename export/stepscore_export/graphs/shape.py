"""What the graphs need to know of a model beside its weights."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from stepscore.artifact.graph_contract import stream_names
from stepscore.artifact.manifest import ModelName
from stepscore_export.checkpoint.checkpoint import Members
from stepscore_export.options import ExportOptions


@dataclass(frozen=True, slots=True)
class Shape:
    """What the graphs need to know beside the tensors' own shapes."""

    models: tuple[ModelName, ...]
    """Whose log-probs the unit gives: one stream each."""
    rms_norm_eps: tuple[float, ...]
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    compute: ir.DataType
    on_cpu: bool
    """Use what only ONNX Runtime's CPU provider has or needs: one kernel for SiLU, two for attention."""
    unsigned: bool = False
    """Read the weights of integer products as unsigned numbers, 128 more than they are."""

    def named(self, name: str) -> tuple[str, ...]:
        """Return the name of a graph's input or output for every stream: bare where there is but one."""
        return stream_names(name, self.models)


def graph_shape(members: Members, options: ExportOptions) -> Shape:
    """Return what the graphs need to know of the models."""
    configs = [checkpoint.config for checkpoint in members.values()]
    config = configs[0]
    return Shape(
        models=tuple(members),
        rms_norm_eps=tuple(each.rms_norm_eps for each in configs),
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        compute=options.compute,
        on_cpu=options.compute == ir.DataType.FLOAT,
    )
