"""Random graphs through whole recipes: sound everywhere, and free of loss where channels are redundant."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune.graph.kept import read_kept


def drawn(net: Any, seed: int, *, twins: bool) -> onnx.ModelProto:
    """Draw a chain of convolutions, residual blocks, depthwise layers, pools, norms and transposed convolutions."""
    rng = np.random.default_rng(seed)
    build = net(3, 8, 8, seed=seed, twins=twins)
    kinds = ["conv", "point", "residual", "depthwise", "pool", "up"] + ([] if twins else ["norm", "scale"])
    x, width = build.relu(build.conv("x", 3, 8)), 8
    for kind in rng.choice(kinds, size=rng.integers(1, 5)):
        tag = f"{kind}{len(build.nodes)}"
        if kind in ("conv", "point"):
            wider = int(rng.choice([4, 5, 8]))
            x, width = build.relu(build.conv(x, width, wider, 3 if kind == "conv" else 1)), wider
        elif kind == "residual":
            inner = build.relu(build.conv(x, width, 6))
            x = build.relu(build.node("Add", x, build.conv(inner, 6, width)))
        elif kind == "depthwise":
            x = build.relu(build.depthwise(x, width, name=tag))
        elif kind == "pool":
            x = build.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER")
        elif kind == "up":
            x, width = build.relu(build.transposed(x, width, 6, name=tag)), 6
        elif kind == "norm":
            stored = [build.store(f"{tag}.{n}", build.rng.uniform(0.5, 1.5, width)) for n in "sbmv"]
            x = build.node("BatchNormalization", x, *stored)
        else:
            x = build.node("Mul", x, build.store(f"{tag}.s", build.rng.uniform(0.5, 1.5, (width, 1, 1))))
    proto: onnx.ModelProto = build.model(build.head(x, width))
    return proto


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("text", "other"), [("id(keep=0.75,reconstruct=none)", 99), ("id(keep=0.75)", 0)])
def test_redundant_channels_are_free(
    seed: int, text: str, other: int, net: Any, apply: Any, images: Any, run_model: Any
) -> None:
    proto = drawn(net, seed, twins=True)
    result, _ = apply(proto, text, images(64, 3, 8, 8))
    assert read_kept(result)
    # By their outputs, channels that are silent on the calibration images go as readily as twins: judged on these.
    fresh = images(32, 3, 8, 8, seed=other) if other else images(64, 3, 8, 8)
    wanted = run_model(proto, fresh)["head_out"]
    assert np.abs(run_model(result, fresh)["head_out"] - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "text",
    [
        "surp(sparsity=0.5),id(flops=0.6)",
        "fold_bn,id(keep=0.4),cleanup,id(keep=0.7,preserve_zeros=no)",
        "ispasp(keep=0.6,fold=true),ispasp(keep=0.7,prefix=true,importance=energy),ispasp(flops=0.5)",
        "pca(flops=0.7,reconstruct=none)",
        "lrank(flops=0.7,reconstruct=none)",
        "cp(flops=0.7,reconstruct=none)",
        "auto(flops=0.7)",
    ],
)
def test_recipes_give_sound_models(seed: int, text: str, net: Any, apply: Any, images: Any, run_model: Any) -> None:
    check_sound(seed, text, net, apply, images, run_model)


@pytest.mark.parametrize("seed", [1, 3])
def test_pairs_are_parted_and_cut_again(seed: int, net: Any, apply: Any, images: Any, run_model: Any) -> None:
    text = "lrank(flops=0.9,rectify=0),id(flops=0.8),pca(flops=0.7,rectify=0),fold_bn,lrank(flops=0.6,scheme=0)"
    check_sound(seed, text, net, apply, images, run_model)


def check_sound(seed: int, text: str, net: Any, apply: Any, images: Any, run_model: Any) -> None:
    proto = drawn(net, seed, twins=False)
    result, step = apply(proto, text, images(64, 3, 8, 8))
    data = images(8, 3, 8, 8)
    plain, optimised = (run_model(result, data, optimise=each)["head_out"] for each in (False, True))
    assert plain.shape == (8, 4)
    assert np.isfinite(plain).all()
    assert np.allclose(plain, optimised, rtol=1e-3, atol=1e-4 * np.abs(plain).max())
    for wanted, got in step.result.reached.values():
        assert got <= wanted or all(len(kept) == 1 for kept in read_kept(result).values())
