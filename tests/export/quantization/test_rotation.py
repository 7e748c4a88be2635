"""Rotations: orthogonal, reproducible, the same as their dense matrix, and good at spreading outliers."""

from __future__ import annotations

import numpy as np
import pytest

from stepscore_export.quantization.rotation import Rotation, hadamard

SIZES = [1, 2, 64, 72, 96, 128, 896]


@pytest.mark.parametrize("size", SIZES)
def test_matrix_is_orthogonal(size: int) -> None:
    matrix = Rotation.random(size, 1).matrix().astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_products_are_those_of_the_dense_matrix(size: int) -> None:
    rotation = Rotation.random(size, 2)
    rows = np.random.default_rng(0).standard_normal((5, size)).astype(np.float32)
    np.testing.assert_allclose(rotation.apply(rows), rows @ rotation.matrix(), atol=1e-5)
    np.testing.assert_allclose(rotation.transposed(rows.T), rotation.matrix().T @ rows.T, atol=1e-5)


def test_a_seed_gives_one_matrix() -> None:
    assert np.array_equal(Rotation.random(72, 3).matrix(), Rotation.random(72, 3).matrix())
    assert not np.array_equal(Rotation.random(72, 3).matrix(), Rotation.random(72, 4).matrix())


def test_an_outlier_channel_is_spread_over_all() -> None:
    row = np.zeros(896, np.float32)
    row[17] = 1000
    assert np.abs(Rotation.random(896, 1).apply(row)).max() < 1000 / 10


def test_hadamard_rejects_other_sizes() -> None:
    with pytest.raises(ValueError, match="power of two"):
        hadamard(12)
