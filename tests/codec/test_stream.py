"""The embedded stream: every prefix decodes to what an early stop encodes, at a rate near the theory's."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.codec.blocks import BLOCK
from onnxprune.codec.cursor import Decoded
from onnxprune.codec.decoder import StreamDecoder
from onnxprune.codec.law import Law, Stop
from onnxprune.codec.levels import refine
from onnxprune.codec.stream import Encoded, encode
from onnxprune.errors import CodecError, OptionError

Weights = Callable[..., np.ndarray]


def decode(coded: Encoded, stop: Stop | None = None, *, size: int | None = None, strict: bool = False) -> Decoded:
    decoder = StreamDecoder(coded.shape, coded.size, stop)
    decoder.feed(b"".join(coded.blocks)[:size])
    return decoder.state(strict=strict, last=True)


def same_as_early_stop(weights: np.ndarray, law: Law, found: Decoded, *, masked: bool = False) -> None:
    early = refine(np.abs(weights), Stop(hits=found.hits), law, masked=masked)
    assert early.hits == found.hits
    assert np.array_equal(np.abs(found.values), early.values)
    kept = early.values > 0
    assert np.array_equal(np.signbit(found.values[kept]), np.signbit(weights[kept]))
    assert sorted(found.support.tolist()) == np.flatnonzero(kept).tolist()
    assert found.relative_l1 == early.relative_l1


@pytest.mark.parametrize("law", [Law(), Law(patience=1), Law(alpha=0.05, seed=4), Law(alpha=1e4, decay=0.5)])
@pytest.mark.parametrize("percent", [1, 10, 25, 50, 90, 100])
def test_a_prefix_is_what_an_early_stop_encodes(laplacian: Weights, law: Law, percent: int) -> None:
    weights = laplacian(0, 20_000)
    coded = encode(weights, law, Stop(sparsity=0.4))
    found = decode(coded, size=coded.size * percent // 100)
    same_as_early_stop(weights, law, found)
    assert found.complete == found.verified == (percent == 100)
    assert found.hits <= coded.shape.hits
    again = encode(weights, law, Stop(hits=found.hits))
    same_as_early_stop(weights, law, decode(again))
    # Little of the bytes is lost to the last group and the coder's state.
    assert again.size >= 0.85 * (coded.size * percent // 100) - 24


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 600),
    st.floats(0, 1),
    st.sampled_from([None, 0.02, 1.0, 13.0]),
    st.sampled_from([1, 20]),
    st.booleans(),
)
def test_any_prefix_of_any_weights(
    seed: int, count: int, kept: float, alpha: float | None, patience: int, masked: bool
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.laplace(size=count) * (rng.random(count) < 0.8)
    law = Law(alpha=alpha, patience=patience, seed=seed)
    coded = encode(weights, law, Stop(hits=int(rng.integers(0, 4 * count))), masked=masked)
    same_as_early_stop(weights, law, decode(coded), masked=masked)
    assert decode(coded).hits == coded.shape.hits
    assert decode(coded).support.tolist() == coded.support.tolist()
    same_as_early_stop(weights, law, decode(coded, size=int(kept * coded.size)), masked=masked)


def test_an_early_stop_writes_the_begin_of_the_same_stream(laplacian: Weights) -> None:
    weights = laplacian(1, 5000)
    full = b"".join(encode(weights, Law(), Stop(sparsity=0.2)).blocks)[8:]
    for hits in (5, 50, 500, 1500):
        early = b"".join(encode(weights, Law(), Stop(hits=hits)).blocks)[8:]
        equal = next((i for i, (a, b) in enumerate(zip(early, full, strict=False)) if a != b), len(early))
        assert len(early) - equal <= 16 + 3 * hits / 16


def test_several_blocks_come_piece_by_piece(laplacian: Weights) -> None:
    weights = laplacian(2, 600_000).astype(np.float32)
    law = Law(patience=1, seed=9)
    coded = encode(weights, law, Stop(sparsity=0.5))
    body = b"".join(coded.blocks)
    assert [len(block) for block in coded.blocks[:-1]] == [BLOCK] * (len(coded.blocks) - 1)
    assert len(coded.blocks) > 2
    decoder = StreamDecoder(coded.shape, len(body))
    seen = []
    for begin in range(0, len(body), 30_011):
        assert not decoder.done
        decoder.feed(body[begin : begin + 30_011])
        state = decoder.state()
        seen.append(state.hits)
        if begin in (0, 90_033):
            same_as_early_stop(weights, law, state)
    assert seen == sorted(seen)
    assert decoder.done
    same_as_early_stop(weights, law, decoder.state())
    assert decoder.state().verified
    assert decoder.state(strict=True).hits == coded.shape.hits


@pytest.mark.parametrize(
    "stop",
    [
        Stop(hits=1234),
        Stop(sparsity=0.8),
        Stop(nonzeros=777),
        Stop(relative_l1=0.6),
        Stop(nonzeros=0),
        Stop(hits=0),
        Stop(relative_l1=1.0),
        Stop(sparsity=0.8, hits=2000, relative_l1=0.9),
    ],
)
@pytest.mark.parametrize("law", [Law(), Law(patience=1, alpha=0.3)])
def test_stops_of_the_decoder_are_those_of_the_law(laplacian: Weights, stop: Stop, law: Law) -> None:
    weights = laplacian(3, 10_000)
    coded = encode(weights, law, Stop(hits=20_000))
    found = decode(coded, stop)
    early = refine(np.abs(weights), stop, law)
    assert np.array_equal(np.abs(found.values), early.values)
    assert (found.hits, found.complete) == (early.hits, True)
    direct = encode(weights, law, stop)
    assert np.array_equal(decode(direct).values, found.values)


def test_limits_in_bytes(laplacian: Weights) -> None:
    weights = laplacian(4, 10_000)
    coded = encode(weights, Law(), Stop(sparsity=0.5))
    half = decode(coded, Stop(fraction=0.5))
    assert half.hits == decode(coded, Stop(bytes=coded.size // 2)).hits == decode(coded, size=coded.size // 2).hits
    assert half.hits == decode(coded, Stop(bits=8 * (coded.size // 2) + 7)).hits
    assert decode(coded, Stop(fraction=1.0)).hits == coded.shape.hits
    assert decode(coded, Stop(fraction=0.0)).hits == 0
    # The rest of the block is there: the part in use is verified.
    assert half.verified
    assert not decode(coded, size=coded.size // 2).verified


@pytest.mark.parametrize("size", [0, 7, 19, 100, 1000, 5000, 70_000, 140_000])
def test_an_encoder_stops_at_a_size(laplacian: Weights, size: int) -> None:
    weights = laplacian(5, 100_000)
    for stop in (Stop(bytes=size), Stop(bits=8 * size + 3)):
        coded = encode(weights, Law(), stop)
        assert coded.size <= size
        assert coded.size >= 0.9 * size - 40
        same_as_early_stop(weights, Law(), decode(coded))
        assert decode(coded).hits == coded.shape.hits
        assert coded.relative_l1 == decode(coded).relative_l1


@pytest.mark.parametrize("relative", [0.5, 0.25, 0.1])
def test_the_rate_is_near_the_theorys(laplacian: Weights, relative: float) -> None:
    weights = laplacian(6, 20_000)
    coded = encode(weights, Law(patience=1), Stop(relative_l1=relative))
    assert 8 * coded.size <= 1.6 * len(weights) * math.log2(1 / relative)
    assert decode(coded).relative_l1 <= relative


@pytest.mark.parametrize("sparsity", [0.95, 0.8, 0.5])
def test_bits_per_hit_are_near_the_entropy(laplacian: Weights, sparsity: float) -> None:
    weights = laplacian(7, 50_000)
    coded = encode(weights, Law(), Stop(sparsity=sparsity))
    entropy, before = 0.0, np.zeros(len(weights))
    thresholds = refine(np.abs(weights), Stop(hits=coded.shape.hits), Law()).thresholds
    for threshold in thresholds:
        left = np.abs(weights) - before
        times = np.maximum(np.ceil(left / threshold) - 1, 0)
        size = len(weights)
        for scan in range(1, int(times.max(initial=0)) + 1):
            hits = int((times >= scan).sum())
            share = hits / size
            if share < 1:
                entropy += hits * (-math.log2(share) - (1 - share) / share * math.log2(1 - share))
            size = hits
        before += times * threshold
    hits, signs = coded.shape.hits, len(coded.support)
    # The law's last level is counted whole although the code may end inside it.
    assert (8 * coded.size - signs) / hits <= entropy / hits + 0.3


@pytest.mark.parametrize("power", [-200, -3, 40])
def test_scaling_by_a_power_of_two_leaves_the_stream(laplacian: Weights, power: int) -> None:
    weights = laplacian(8, 3000)
    plain, scaled = (encode(w, Law(), Stop(sparsity=0.5)) for w in (weights, weights * 2.0**power))
    assert plain.blocks == scaled.blocks
    assert np.array_equal(decode(plain).values * 2.0**power, decode(scaled).values)


def test_the_stream_is_the_same_everywhere() -> None:
    # Weights from whole numbers, so that nothing but the format decides about the bytes.
    weights = (np.arange(-40, 41) ** 3 % 101 - 50) / 64.0
    coded = encode(weights, Law(alpha=2.0, patience=1, seed=7), Stop(sparsity=0.3))
    assert b"".join(coded.blocks).hex() == (
        "10ab44923300000000f667664f441eb0e76c0d74ae974f6418ead64be8b024204478fdbbcbb50a3c8e83da91cf42eddc"
    )


@pytest.mark.parametrize("weights", [np.zeros(0), np.zeros(9), np.ones(1), -np.ones(3), np.array([0.0, -0.0, 1e-300])])
def test_edges(weights: np.ndarray) -> None:
    coded = encode(weights, Law())
    found = decode(coded)
    assert np.array_equal(found.values != 0, weights != 0)
    assert (np.sign(found.values) == np.sign(weights)).all()
    assert found.complete


def test_what_cannot_be_coded_is_refused() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(CodecError, match="NaN, infinite"):
            encode(np.array([1.0, bad]), Law())
    with pytest.raises(CodecError, match="2 dimensions"):
        encode(np.ones((2, 2)), Law())
    with pytest.raises(OptionError, match=r"alpha=0\.0001 is too small"):
        encode(np.ones(3), Law(alpha=1e-4))
    with pytest.raises(OptionError, match=r"an encoder cannot stop at fraction=0\.5"):
        encode(np.ones(3), Law(), Stop(fraction=0.5))


def test_a_flipped_bit_in_a_whole_block_is_named(laplacian: Weights) -> None:
    coded = encode(laplacian(9, 300_000), Law(), Stop(sparsity=0.5))
    body = bytearray(b"".join(coded.blocks))
    assert len(body) > 2 * BLOCK
    for place, block in ((0, 0), (BLOCK - 1, 0), (BLOCK + 5, 1), (len(body) - 1, len(coded.blocks) - 1)):
        damaged = bytearray(body)
        damaged[place] ^= 16
        decoder = StreamDecoder(coded.shape, len(body), origin=1000)
        with pytest.raises(CodecError) as caught:
            decoder.feed(bytes(damaged))
        assert str(caught.value) == f"block {block} at byte {1000 + block * BLOCK:,} is corrupt"


def test_a_cut_block_is_unverified_and_refused_when_strict(laplacian: Weights) -> None:
    coded = encode(laplacian(9, 200_000), Law(), Stop(sparsity=0.5))
    size = len(coded.blocks[0]) - 100
    assert not decode(coded, size=size).verified
    with pytest.raises(CodecError, match=r"block 0 at byte 0 is cut off and cannot be verified \(65,436 of 65,536"):
        decode(coded, size=size, strict=True)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_damage_in_a_cut_block_ends_in_a_state_or_a_sentence(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coded = encode(np.random.default_rng(0).laplace(size=3000), Law(patience=1), Stop(sparsity=0.3))
    body = bytearray(b"".join(coded.blocks))[: int(rng.integers(1, coded.size))]
    for place in rng.integers(0, len(body), 3):
        body[place] = rng.integers(0, 256)
    decoder = StreamDecoder(coded.shape, coded.size)
    try:
        decoder.feed(bytes(body))
        state = decoder.state()
    except CodecError as error:
        assert str(error).startswith("block 0 at byte 0 is damaged")
    else:
        assert not state.verified
        assert state.hits <= coded.shape.hits
