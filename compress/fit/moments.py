"""Second moments of least-squares problems, streamed in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# float64 entries of rows converted at once.
_CHUNK = 1 << 22
# A variance below this share of the energy is rounding.
_NOTHING = 1e-12
# From so many features on the rows are kept beside their sums, as long as there are so many features for each.
_MANY, _PER_ROW = 1024, 2


@dataclass(eq=False)
class Moments:
    """Sums over rows a (with a constant 1 appended) and targets y: a a^T, a y^T, y^2 and y.

    ``gram`` [groups, F + 1, F + 1], ``cross`` [groups, F + 1, O / groups], ``energy`` [O / groups] per group;
    everything float64, so that the order of batches changes nothing beyond rounding. ``held`` are the rows
    themselves of a problem that has few of them for its many features; see :attr:`root`.
    """

    gram: np.ndarray
    cross: np.ndarray
    energy: np.ndarray
    rows: int = 0
    held: list[np.ndarray] | None = field(default=None, repr=False)

    @classmethod
    def empty(cls, groups: int, features: int, outputs: int) -> Moments:
        """Return moments of no rows; ``outputs`` counts those of one group."""
        size = features + 1
        held: list[np.ndarray] | None = [] if groups == 1 and features >= _MANY else None
        sums = np.zeros((groups, size, size)), np.zeros((groups, size, outputs)), np.zeros((groups, outputs))
        return cls(*sums, held=held)

    def update(self, features: np.ndarray, targets: np.ndarray) -> None:
        """Add rows: features [groups, rows, F], targets [rows, O] with the outputs of a group side by side."""
        groups, count, width = features.shape
        step = max(1, _CHUNK // max(1, groups * (width + 1)))
        if _PER_ROW * (self.rows + count) > width:
            self.held = None
        for start in range(0, count, step):
            part = features[:, start : start + step]
            rows = np.empty((groups, part.shape[1], width + 1))
            rows[:, :, :width], rows[:, :, width] = part, 1.0
            wanted = targets[start : start + step].astype(np.float64)
            wanted = wanted.reshape(len(wanted), groups, -1).transpose(1, 0, 2)
            with np.errstate(invalid="ignore", over="ignore"):  # finite() tells of it
                if groups == 1:  # a product of a matrix with itself costs half of any other
                    self.gram[0] += rows[0].T @ rows[0]
                    self.cross[0] += (wanted[0].T @ rows[0]).T
                else:
                    turned = rows.transpose(0, 2, 1)
                    self.gram += turned @ rows
                    self.cross += turned @ wanted
                self.energy += np.square(wanted).sum(axis=1)
            if self.held is not None:
                self.held.append(rows[0])
        self.rows += count

    @property
    def root(self) -> np.ndarray | None:
        """The rows of a problem with one group, many features and few rows, [rows, F + 1]; of others None.

        The Gram matrix is ``root^T root``: a product with two thin matrices costs far less than one with it.
        """
        if not self.held:
            return None
        if len(self.held) > 1:
            self.held[:] = [np.concatenate(self.held)]
        return self.held[0]

    def times(self, matrix: np.ndarray) -> np.ndarray:
        """Return the product of the Gram matrices with matrices [groups, F + 1, n]."""
        root = self.root
        return np.asarray(self.gram @ matrix if root is None else (root.T @ (root @ matrix[0]))[None])

    def finite(self) -> bool:
        """Return whether every number seen so far was finite."""
        diagonals = np.diagonal(self.gram, axis1=1, axis2=2)
        return bool(np.isfinite(diagonals).all() and np.isfinite(self.energy).all())

    def spread(self) -> float:
        """Return the summed variance of the targets times the rows: what a constant alone would leave as error."""
        if not self.rows:
            return 0.0
        energy = float(self.energy.sum())
        found = energy - float(np.square(self.cross[:, -1]).sum()) / self.rows
        return found if found > _NOTHING * energy else 0.0

    def error(self, matrix: np.ndarray) -> float:
        """Return the squared error of a matrix [groups, F + 1, O / groups] (the constant's row last)."""
        root = self.root
        seen = np.sum(matrix * (self.gram @ matrix)) if root is None else np.sum(np.square(root @ matrix[0]))
        value = self.energy.sum() - 2 * np.sum(matrix * self.cross) + seen
        return float(max(value, 0.0))

    def block(self, group: int, index: np.ndarray) -> np.ndarray:
        """Return second moments of some features, [n, n]."""
        return np.asarray(self.gram[group][np.ix_(index, index)])

    def channel_gram(self, taps: int) -> np.ndarray:
        """Return second moments of the channels of one group's features, [C, C], summed over taps (groups 1)."""
        width = self.gram.shape[1] - 1
        channels = width // taps
        blocks = self.gram[0, :width, :width].reshape(taps, channels, taps, channels)
        return np.asarray(np.einsum("tctd->cd", blocks))
