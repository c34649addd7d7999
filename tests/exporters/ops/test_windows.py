"""Convolutions, pools and resizing: attributes drawn at random against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Check = Callable[..., Any]
MODES = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
DRAWN = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@st.composite
def windows(draw: st.DrawFn, *, pads: int = 2, modes: tuple[str, ...] = MODES) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    each = st.lists(st.integers(1, 3), min_size=rank, max_size=rank)
    found: dict[str, Any] = {"rank": rank, "kernel": draw(each), "strides": draw(each), "dilations": draw(each)}
    found["sizes"] = draw(st.lists(st.integers(7, 9), min_size=rank, max_size=rank))
    mode = draw(st.sampled_from(modes))
    if mode == "NOTSET":
        found["where"] = {"pads": draw(st.lists(st.integers(0, pads), min_size=2 * rank, max_size=2 * rank))}
    else:
        found["where"] = {"auto_pad": mode}
    return found


def covering(window: dict[str, Any]) -> list[int]:
    """Return strides that leave nothing out; elsewhere ONNX Runtime's pools refuse, or shift what they read."""
    return [min(pair) for pair in zip(window["kernel"], window["strides"], strict=True)]


@DRAWN
@given(windows(), st.integers(1, 2), st.booleans())
def test_conv(same_as_runtime: Check, window: dict[str, Any], group: int, biased: bool) -> None:
    if window["where"].get("auto_pad", "").startswith("SAME"):
        window["dilations"] = [1] * window["rank"]  # ONNX Runtime pads for the undilated kernel
    inputs = [noise(2, 2 * group, *window["sizes"]), noise(4, 2, *window["kernel"])]
    same_as_runtime(
        "Conv",
        [*inputs, noise(4)] if biased else inputs,
        stored=[1, 2],
        tolerance=1e-4,
        group=group,
        strides=window["strides"],
        dilations=window["dilations"],
        **window["where"],
    )


@DRAWN
@given(windows(pads=1, modes=("NOTSET",)), st.integers(1, 2), st.data())
def test_conv_transpose(same_as_runtime: Check, window: dict[str, Any], group: int, data: st.DataObject) -> None:
    limits = [stride - 1 for stride in window["strides"]]
    same_as_runtime(
        "ConvTranspose",
        [noise(2, 2 * group, *window["sizes"]), noise(2 * group, 3, *window["kernel"]), noise(3 * group)],
        stored=[1],
        tolerance=1e-4,
        group=group,
        strides=window["strides"],
        dilations=window["dilations"],
        output_padding=[data.draw(st.integers(0, limit)) for limit in limits],
        **window["where"],
    )


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "NOTSET"])
def test_conv_transpose_to_a_shape(same_as_runtime: Check, auto: str) -> None:
    inputs = [noise(1, 2, 5, 4), noise(2, 3, 3, 3)]
    same_as_runtime("ConvTranspose", inputs, strides=[2, 2], auto_pad=auto, output_shape=[10, 8])
    if auto != "NOTSET":
        same_as_runtime("ConvTranspose", inputs, strides=[2, 2], auto_pad=auto)


@DRAWN
@given(windows(pads=0), st.booleans(), st.data())
def test_max_pool(same_as_runtime: Check, window: dict[str, Any], ceil: bool, data: st.DataObject) -> None:
    where = window["where"]
    if "pads" in where:
        where = {"pads": [data.draw(st.integers(0, k - 1)) for k in window["kernel"] * 2], "ceil_mode": int(ceil)}
    elif where["auto_pad"] != "VALID":
        window |= {"dilations": [1] * window["rank"], "strides": covering(window)}
    same_as_runtime(
        "MaxPool",
        [noise(2, 3, *window["sizes"])],
        kernel_shape=window["kernel"],
        strides=window["strides"],
        dilations=window["dilations"],
        **where,
    )


@DRAWN
@given(windows(pads=0), st.booleans(), st.booleans(), st.data())
def test_average_pool(
    same_as_runtime: Check, window: dict[str, Any], ceil: bool, include: bool, data: st.DataObject
) -> None:
    where = window["where"]
    if "pads" in where:
        where = {"pads": [data.draw(st.integers(0, k - 1)) for k in window["kernel"] * 2], "ceil_mode": int(ceil)}
    elif where["auto_pad"] != "VALID":
        window["strides"] = covering(window)
    same_as_runtime(
        "AveragePool",
        [noise(2, 3, *window["sizes"])],
        kernel_shape=window["kernel"],
        strides=window["strides"],
        count_include_pad=int(include),
        **where,
    )


def test_dilated_average_pool(same_as_runtime: Check) -> None:
    same_as_runtime("AveragePool", [noise(2, 3, 9, 8)], kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 0, 2, 1])


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 0, 0, 1]])
def test_positions_of_maxima(same_as_runtime: Check, pads: list[int]) -> None:
    same_as_runtime("MaxPool", [noise(2, 3, 7, 6)], outputs=2, kernel_shape=[3, 2], strides=[2, 1], pads=pads)


def test_max_pool_of_bytes(same_as_runtime: Check) -> None:
    given = np.random.default_rng(0).integers(-128, 128, (1, 2, 5, 5)).astype(np.int8)
    same_as_runtime("MaxPool", [given], kernel_shape=[2, 2])


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_pools(same_as_runtime: Check, op: str) -> None:
    same_as_runtime(op, [noise(2, 3, 5, 4)])
    same_as_runtime(op, [noise(2, 3, 7)])


def test_lp_pool(same_as_runtime: Check) -> None:
    same_as_runtime("LpPool", [noise(2, 3, 6, 7)], p=3, kernel_shape=[2, 3], strides=[1, 2], pads=[1, 0, 1, 2])


SCALES = np.array([1, 1, 2, 1.5], np.float32)
SIZES = np.array([1, 2, 3, 9])


@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize(same_as_runtime: Check, coordinates: str, mode: str, by: str) -> None:
    inputs = [noise(1, 2, 5, 6), None, SCALES] if by == "scales" else [noise(1, 2, 5, 6), None, None, SIZES]
    same_as_runtime("Resize", inputs, stored=[3], mode=mode, coordinate_transformation_mode=coordinates, tolerance=1e-4)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resize_to_the_nearest(same_as_runtime: Check, rounding: str) -> None:
    same_as_runtime("Resize", [noise(1, 2, 5, 6), None, SCALES], nearest_mode=rounding)
    same_as_runtime(
        "Resize",
        [noise(1, 2, 5, 6), None, SCALES],
        13,
        nearest_mode=rounding,
        coordinate_transformation_mode="asymmetric",
    )


def test_resize_of_some_axes(same_as_runtime: Check) -> None:
    given = [noise(1, 2, 5, 6), None, None, np.array([7, 9])]
    same_as_runtime("Resize", given, stored=[3], mode="linear", axes=[2, 3])
    same_as_runtime("Resize", given, stored=[3], mode="linear", axes=[2, 3], keep_aspect_ratio_policy="not_larger")


def test_resize_without_what_lies_outside(same_as_runtime: Check) -> None:
    given = [noise(1, 2, 5, 6), None, SCALES]
    same_as_runtime("Resize", given, mode="cubic", exclude_outside=1, cubic_coeff_a=-0.5, tolerance=1e-4)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_older_resizing(same_as_runtime: Check, mode: str) -> None:
    whole = np.array([1, 1, 2, 3], np.float32)
    same_as_runtime("Resize", [noise(1, 2, 4, 5), whole], 10, mode=mode)
    same_as_runtime("Upsample", [noise(1, 2, 4, 5), whole], 9, mode=mode)
    same_as_runtime("Upsample", [noise(1, 2, 4, 5)], 7, mode=mode, scales=[1.0, 1.0, 2.0, 3.0])


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_strides_beyond_the_window(same_as_runtime: Check, auto: str) -> None:
    same_as_runtime("Conv", [noise(1, 2, 9, 9), noise(3, 2, 1, 1)], strides=[3, 4], auto_pad=auto)
