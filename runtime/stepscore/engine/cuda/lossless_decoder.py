"""Decode the policy's weights from the reference's and a lossless difference, on the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepscore.engine.cuda.device import Tensor, host_bytes
from stepscore.engine.cuda.lossless import LosslessDifference, decode


@dataclass(frozen=True, slots=True)
class StoredDifference:
    """The reference's matrix [rows, columns] in 16 bits and the fields of a LosslessDifference."""

    reference: Tensor
    flags: Tensor
    codes: Tensor
    starts: Tensor
    escapes: Tensor


class LosslessDecoder(ABC):
    """Writes the policy's 16-bit patterns [rows, columns]."""

    @abstractmethod
    def decode(self, stored: StoredDifference, policy: Tensor) -> None:
        """Decode one matrix; it has been written when the call returns."""


class HostDecoder(LosslessDecoder):
    """Decodes in host memory, by numpy."""

    def decode(self, stored: StoredDifference, policy: Tensor) -> None:
        """Decode one matrix; ModelInvalid where it is damaged."""
        difference = LosslessDifference(
            _host(stored.flags, np.uint8),
            _host(stored.codes, np.uint8),
            _host(stored.starts, np.int32),
            _host(stored.escapes, np.uint16),
        )
        decode(_host(stored.reference, np.uint16), difference, _host(policy, np.uint16))


def _host(tensor: Tensor, dtype: type[np.generic]) -> NDArray[Any]:
    return host_bytes(tensor.address, tensor.num_bytes).view(dtype).reshape(tensor.shape)
