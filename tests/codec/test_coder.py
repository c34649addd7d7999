"""The coder: rates, a plain decoder written from docs/surp-format.md, and the rule for cut blocks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.codec.coder import BlockCoder, CutReader, GapLaw, WholeReader, count_parts, frequencies, raw, read_count
from onnxprune.errors import CodecError


def entropy_per_hit(share: float) -> float:
    return -math.log2(share) - (1 - share) / share * math.log2(1 - share)


def coded(gaps: np.ndarray, law: GapLaw) -> bytes:
    coder = BlockCoder(1 << 30)
    assert coder.add([(law.symbols(gaps), law.model)])
    return coder.payload()


def decoded(payload: bytes, tables: list[np.ndarray]) -> list[int]:
    """Decode one symbol per table of frequencies with whole numbers, as the format's description says."""
    words = [int(word) for word in np.frombuffer(payload, dtype=">u4")] + [0, 0]
    top = 1 << 64
    low, width, point, at = 0, top - 1, (words[0] << 32) | words[1], 2
    symbols = []
    for table in tables:
        starts = np.concatenate(([0], np.cumsum(table)))
        scale = width >> 24
        symbol = int(np.searchsorted(starts, ((point - low) % top) // scale, side="right")) - 1
        symbols.append(symbol)
        low = (low + scale * int(starts[symbol])) % top
        width = scale * int(table[symbol])
        if width < 1 << 32:
            low, width = (low << 32) % top, width << 32
            point = ((point << 32) | (words[at] if at < len(words) else 0)) % top
            at += 1
    return symbols


def test_rates_of_the_methods_golden_case() -> None:
    share = 0.01
    gaps = np.arange(20_000)
    chance = share * (1 - share) ** gaps
    assert entropy_per_hit(share) == pytest.approx(8.0793, abs=1e-4)
    # Golomb with M = 69 (six bits for remainders below 59, else seven), Rice with k = 6.
    golomb = gaps // 69 + 1 + np.where(gaps % 69 < 128 - 69, 6, 7)
    assert (chance * golomb).sum() == pytest.approx(8.105, abs=1e-3)
    assert (chance * (gaps // 64 + 7)).sum() == pytest.approx(8.108, abs=1e-3)


@pytest.mark.parametrize("share", [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9])
def test_gaps_cost_their_entropy(share: float) -> None:
    count = 20_000
    gaps = np.random.default_rng(0).geometric(share, count).astype(np.int64) - 1
    law = GapLaw.of(round(share * 10**7), 10**7)
    bits = 8 * len(coded(gaps, law)) / count
    assert bits <= entropy_per_hit(share) * 1.002 + 0.05
    symbols = WholeReader(coded(gaps, law)).read(law.model, len(law.symbols(gaps)))
    assert np.array_equal(symbols, law.symbols(gaps))
    runs = symbols == law.longest
    assert np.array_equal(np.diff(np.flatnonzero(np.concatenate(([True], ~runs)))) >= 1, np.ones(count, dtype=bool))
    places = np.cumsum(np.where(runs, law.longest, symbols + 1))[~runs]
    assert np.array_equal(np.diff(places, prepend=0) - 1, gaps)


@pytest.mark.parametrize(("hits", "among"), [(1, 1), (1, 2), (5, 7), (1, 10_000_000), (300, 20_000), (9, 10)])
def test_frequencies_are_whole_and_add_up(hits: int, among: int) -> None:
    table = frequencies(hits, among)
    assert table.sum() == 1 << 24
    assert table.min() >= 1
    assert len(table) - 1 == min(4096, max(2, math.ceil(16 * among / hits)))
    assert table[0] / 2**24 == pytest.approx(hits / among, abs=3e-4)


def test_a_plain_decoder_reads_what_the_coder_writes() -> None:
    rng = np.random.default_rng(1)
    plans = [(3, 1000), (1, 1), (400, 1000), (17, 5_000_000)]
    parts, tables, symbols = [], [], []
    for hits, among in plans:
        law, table = GapLaw.of(hits, among), frequencies(hits, among)
        drawn = rng.choice(len(table), size=60, p=table / table.sum()).astype(np.int32)
        signs = rng.integers(0, 2, 20).astype(np.int32)
        parts += [(drawn, law.model), (signs, raw(1)), *count_parts(123_456)]
        tables += [table] * 60 + [np.full(2, 1 << 23)] * 20 + [np.full(32, 1 << 19)] + [np.full(1 << 16, 1 << 8)]
        symbols += [*drawn.tolist(), *signs.tolist(), 17, 123_456 - (1 << 16)]
    coder = BlockCoder(1 << 20)
    assert coder.add(parts)
    payload = coder.payload()
    assert decoded(payload, tables) == symbols
    assert decoded(payload + b"\xff" * 8, tables) == symbols


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20))
def test_counts_come_back(counts: list[int]) -> None:
    coder = BlockCoder(1 << 20)
    for count in counts:
        assert coder.add(count_parts(count))
    reader = WholeReader(coder.payload())
    assert [read_count(reader) for _ in counts] == counts


def test_a_full_block_takes_nothing_of_a_unit() -> None:
    coder = BlockCoder(40)
    taken = 0
    while coder.add([(np.arange(7, dtype=np.int32), raw(9))]):
        taken += 1
    assert taken == 40 * 8 // 63
    payload = coder.payload()
    assert len(payload) <= 40
    assert WholeReader(payload).read(raw(9), 7 * taken).tolist() == list(range(7)) * taken


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.001, 0.9), st.floats(0, 1), st.sampled_from([1, 7, 64]))
def test_a_cut_block_gives_what_is_sure_and_no_more(seed: int, share: float, kept: float, step: int) -> None:
    rng = np.random.default_rng(seed)
    law = GapLaw.of(max(1, int(share * 1000)), 1000)
    gaps = rng.geometric(share, 400).astype(np.int64) - 1
    symbols = law.symbols(gaps)
    payload = coded(gaps, law)
    cut = payload[: int(kept * len(payload))]
    reader = CutReader(cut, len(payload))
    sure: list[int] = []
    while len(sure) < len(symbols):
        got = reader.read(law.model, min(step, len(symbols) - len(sure)))
        if not len(got):
            break
        sure += got.tolist()
    assert sure == symbols[: len(sure)].tolist()
    # The state is never more than a few words behind the bytes.
    table = frequencies(max(1, int(share * 1000)), 1000)
    spent = -np.log2(table[symbols[: len(sure)]] / 2**24).sum()
    assert len(sure) == len(symbols) or spent >= 8 * len(cut) - 64


def test_bytes_that_no_encoder_writes_are_an_error() -> None:
    law = GapLaw.of(50, 1000)
    with pytest.raises(CodecError):
        WholeReader(b"\xff" * 16).read(law.model, 100)
    assert not len(CutReader(b"\xff" * 16, 16).read(law.model, 100))
