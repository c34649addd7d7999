"""Folding what is dropped into what stays, against least squares on the activations themselves."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.fit.fold import fold_consumer


def setting(seed: int = 0, channels: int = 10, rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    data = np.maximum(rng.standard_normal((400, channels)) @ rng.standard_normal((channels, channels)), 0)
    return data, rng.standard_normal((rows, channels))


KEPT = np.array([0, 2, 3, 7])


def test_dense_rows_come_closest_to_the_old_output() -> None:
    data, rows = setting()
    folded = fold_consumer(rows, data.T @ data, KEPT, preserve_zeros=True)
    best = np.linalg.lstsq(data[:, KEPT], data @ rows.T, rcond=None)[0].T
    assert np.allclose(folded[:, KEPT], best, rtol=1e-6, atol=1e-8)
    assert not np.delete(folded, KEPT, axis=1).any()


def test_rows_with_zeros_are_solved_on_their_own_support() -> None:
    data, rows = setting()
    rows[1, 2] = rows[1, 7] = rows[4, 0] = 0.0
    rows[3] = 0.0
    folded = fold_consumer(rows, data.T @ data, KEPT, preserve_zeros=True)
    for row in range(6):
        live = KEPT[rows[row, KEPT] != 0]
        best = np.linalg.lstsq(data[:, live], data @ rows[row], rcond=None)[0]
        assert np.allclose(folded[row, live], best, rtol=1e-5, atol=1e-7)
        assert not np.delete(folded[row], live).any()
    filled = fold_consumer(rows, data.T @ data, KEPT, preserve_zeros=False)
    assert filled[1, 2] != 0
    assert not filled[3].any()  # nothing was read, so nothing is lost


def test_zeros_among_the_dropped_weights_do_not_matter() -> None:
    data, rows = setting()
    rows[:, 1] = 0.0
    gram = data.T @ data
    assert np.array_equal(
        fold_consumer(rows, gram, KEPT, preserve_zeros=True), fold_consumer(rows, gram, KEPT, preserve_zeros=False)
    )


@pytest.mark.parametrize("preserve", [True, False])
def test_nothing_dropped_changes_nothing(preserve: bool) -> None:
    data, rows = setting()
    rows[0, 0] = 0.0
    folded = fold_consumer(rows, data.T @ data, np.arange(10), preserve_zeros=preserve)
    assert np.array_equal(folded, rows)
    assert folded is not rows


def test_folding_never_does_worse_than_dropping() -> None:
    for seed in range(5):
        data, rows = setting(seed)
        rows[np.random.default_rng(seed).random(rows.shape) < 0.4] = 0.0
        old = data @ rows.T
        dropped = np.where(np.isin(np.arange(10), KEPT), rows, 0.0)
        folded = fold_consumer(rows, data.T @ data, KEPT, preserve_zeros=True)
        errors = [np.linalg.norm(old - data @ w.T, axis=0) for w in (folded, dropped)]
        assert (errors[0] <= errors[1] * (1 + 1e-6) + 1e-9).all()


def test_dead_activations_leave_the_kept_weights_alone() -> None:
    _, rows = setting()
    rows[0, 0] = 0.0
    folded = fold_consumer(rows, np.zeros((10, 10)), KEPT, preserve_zeros=True)
    assert np.array_equal(folded[:, KEPT], rows[:, KEPT])


def test_inputs_are_not_touched() -> None:
    data, rows = setting()
    gram = data.T @ data
    before = rows.copy(), gram.copy()
    fold_consumer(rows, gram, KEPT, preserve_zeros=True)
    assert np.array_equal(rows, before[0])
    assert np.array_equal(gram, before[1])
