"""Synthetic voxel data: made-up molecules and one real number each, the same everywhere from a fixed seed.

A stand-in for the 3-D regressions of drug design (Townshend et al. 2021, ATOM3D), which are too large to embed.
"""

from __future__ import annotations

import numpy as np

from onnxprune.data.examples import Examples, Rows
from onnxprune.data.inputs import Array, InputSpec, check_shape
from onnxprune.errors import DataError

SIDE = 20
COUNTS = {"train": 512, "test": 128}
_SEED = 2021
_ATOMS = (4, 9)  # fewest, and one more than most
_WIDTH = 1.5  # of an atom, in voxels


def open_voxels(split: str | None, want: InputSpec, source: str) -> Examples:
    """Open ``voxels``: density [1,20,20,20] of a few round atoms, and how tightly they lie as the target.

    The target is the sum over pairs of atoms of exp(-(distance / 5)^2), less 3, over 2: about centred.

    Args:
        split: ``train`` (512 examples), ``test`` (128), or None for both.
        want: The model's input.
        source: The spec, for reports and errors.

    Raises:
        DataError: The input does not have that shape.
    """
    parts = list(COUNTS) if split is None else [split]
    seeds = [(list(COUNTS).index(part), row) for part in parts for row in range(COUNTS[part])]
    places = [_atoms(*seed) for seed in seeds]

    def fetch(rows: Rows) -> dict[str, Array]:
        return {want.name: np.stack([_density(places[row]) for row in rows]).astype(want.dtype)}

    if not want.floating:
        raise DataError(f"{source} holds real numbers; input {want.name!r} wants {want.dtype}")
    check_shape(fetch(np.zeros(1, np.int64))[want.name], want, want.name, source)
    targets = np.asarray([_tightness(place) for place in places], np.float32)
    return Examples(source, len(seeds), None, fetch, targets=targets)


def _atoms(part: int, row: int) -> Array:
    rng = np.random.default_rng([_SEED, part, row])
    return rng.uniform(4, SIDE - 5, (int(rng.integers(*_ATOMS)), 3))


def _density(atoms: Array) -> Array:
    axis = np.arange(SIDE)
    along = np.exp(-(((axis - atoms[:, :, None]) / _WIDTH) ** 2))
    density: Array = np.einsum("ai,aj,ak->ijk", along[:, 0], along[:, 1], along[:, 2])[None]
    return density


def _tightness(atoms: Array) -> float:
    apart = np.linalg.norm(atoms[:, None] - atoms[None], axis=2)
    pairs = np.exp(-((apart[np.triu_indices(len(atoms), 1)] / 5) ** 2))
    return (float(pairs.sum()) - 3) / 2
