"""Model dimensions and target properties from which the graphs are built."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from stepscore.artifact.graph_contract import stream_names
from stepscore.artifact.manifest import ModelName
from stepscore_export.checkpoint.weight_source import Members
from stepscore_export.options import ExportOptions


@dataclass(frozen=True, slots=True)
class Shape:
    """Model dimensions and target properties that tensor shapes do not give."""

    models: tuple[ModelName, ...]
    """The models of the unit, one stream each."""
    rms_norm_eps: tuple[float, ...]
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    compute: ir.DataType
    on_cpu: bool
    """Build for ONNX Runtime's CPU provider: two attention kernels, weights dequantized tile by tile."""
    attention_bias: bool = True
    qk_norm: bool = False
    unsigned: bool = False
    """Read the weights of integer GEMMs as uint8 (value + 128) instead of int8."""

    def named(self, name: str) -> tuple[str, ...]:
        """Return the name of an input or output for each stream; a single stream has no suffix."""
        return stream_names(name, self.models)


def graph_shape(members: Members, options: ExportOptions) -> Shape:
    """Return the shape that these models and options give."""
    configs = [checkpoint.config for checkpoint in members.values()]
    config = configs[0]
    return Shape(
        models=tuple(members),
        rms_norm_eps=tuple(each.rms_norm_eps for each in configs),
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        attention_bias=config.attention_bias,
        qk_norm=config.qk_norm,
        compute=options.compute,
        on_cpu=options.compute == ir.DataType.FLOAT,
    )
