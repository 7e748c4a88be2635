"""What the engine runs on: a GPU, or the CPU in its place."""

from __future__ import annotations

from dataclasses import dataclass

from stepscore.artifact.manifest import Manifest
from stepscore.engine.cuda.copies import Copies, HostCopies
from stepscore.engine.cuda.cudart import AMPERE, MAJOR_CAPABILITY, CudaCopies, CudaRuntime, GpuDevice
from stepscore.engine.cuda.device import Device, HostDevice
from stepscore.engine.cuda.gpu_decoder import GpuDecoder
from stepscore.engine.cuda.lossless_decoder import HostDecoder, LosslessDecoder
from stepscore.engine.element_types import BFLOAT16, FLOAT, FLOAT16
from stepscore.enums import Precision, Provider


@dataclass(frozen=True, slots=True)
class Hardware:
    """A device, the copies to it, and how it computes."""

    device: Device
    copies: Copies
    lossless: LosslessDecoder
    compute: int
    """ONNX's number of the type of activations."""
    fp32_logits: bool
    """Whether logits are computed in fp32 from 16-bit hidden states: in TF32, which holds both exactly."""


def hardware_of(provider: Provider, manifest: Manifest) -> Hardware:
    """Return the hardware of a provider, cpu or cuda; ProviderUnavailable where its library is missing."""
    if provider is Provider.CPU:
        return host_hardware(FLOAT)
    runtime = CudaRuntime.load()
    has_tf32 = runtime.attribute(MAJOR_CAPABILITY) >= AMPERE
    return Hardware(
        GpuDevice(runtime), CudaCopies(runtime), GpuDecoder(), compute_type(manifest), fp32_logits=has_tf32
    )


def host_hardware(compute: int, *, fp32_logits: bool = False) -> Hardware:
    """Return the CPU in the place of a GPU; in 16 bits it runs the graphs of the GPU, for tests."""
    return Hardware(HostDevice(), HostCopies(), HostDecoder(), compute, fp32_logits)


def compute_type(manifest: Manifest) -> int:
    """Return the type in which a pair for CUDA computes on a GPU."""
    return BFLOAT16 if manifest.precision is Precision.BF16 else FLOAT16
