"""docs/surp-format.md, word for word: a decoder in plain Python that shares nothing with the package's."""

from __future__ import annotations

import io
import itertools
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import zstandard

from onnxprune.codec.blocks import BLOCK
from onnxprune.codec.container import code, decode, write
from onnxprune.codec.law import Law, Stop

WORD = (1 << 64) - 1


def philox(seed: int, count: int) -> list[int]:
    """Philox-4x64-10 by Salmon and others (2011)."""
    words: list[int] = []
    for counter in itertools.count(1):
        state, key = [counter, 0, 0, 0], [seed, 0]
        for turn in range(10):
            if turn:
                key = [(key[0] + 0x9E3779B97F4A7C15) & WORD, (key[1] + 0xBB67AE8584CAA73B) & WORD]
            left, right = 0xD2E7470EE14C6C93 * state[0], 0xCA5A826395121157 * state[2]
            state = [(right >> 64) ^ state[1] ^ key[0], right & WORD, (left >> 64) ^ state[3] ^ key[1], left & WORD]
        words += state
        if len(words) >= count:
            return words[:count]
    raise AssertionError


class Blocks:
    """Units of a body, symbol by symbol."""

    def __init__(self, body: bytes) -> None:
        self.blocks = [body[i : i + BLOCK] for i in range(0, len(body), BLOCK)]
        self.units = 0

    def unit(self) -> None:
        while not self.units:
            block = self.blocks.pop(0)
            crc, self.units = struct.unpack_from("<II", block)
            assert zlib.crc32(block[4:]) == crc
            payload = block[8:]
            self.words = list(struct.unpack(f">{len(payload) // 4}I", payload)) + [0] * 4
            self.low, self.width, self.at = 0, WORD, 2
            self.point = self.words[0] << 32 | self.words[1]
        self.units -= 1

    def symbol(self, begins: list[int]) -> int:
        scale = self.width >> 24
        place = ((self.point - self.low) & WORD) // scale
        assert place < 1 << 24
        found = max(i for i, begin in enumerate(begins[:-1]) if begin <= place)
        self.low = (self.low + scale * begins[found]) & WORD
        self.width = scale * (begins[found + 1] - begins[found])
        if self.width < 1 << 32:
            self.low, self.width = self.low << 32 & WORD, self.width << 32
            self.point = (self.point << 32 | self.words[self.at]) & WORD
            self.at += 1
        return found

    def raw(self, bits: int) -> int:
        return self.symbol([j << (24 - bits) for j in range((1 << bits) + 1)])

    def count(self) -> int:
        self.unit()
        length = self.raw(5)
        value, left = min(length, 1), max(length - 1, 0)
        while left:
            bits = min(16, left)
            value, left = value << bits | self.raw(bits), left - bits
        return value


def gap_begins(hits: int, among: int) -> list[int]:
    longest = min(4096, max(2, math.ceil(16 * among / hits)))
    miss = max(1.0 - hits / among, 2.0**-20)
    begins, survival = [0], 1.0
    for j in range(1, longest + 1):
        survival *= miss
        begins.append(math.floor(((1 << 24) - (longest + 1)) * (1.0 - survival)) + j)
    return [*begins, 1 << 24]


def values_of(record: dict[str, Any], body: bytes) -> tuple[list[float], float]:
    law, number = record["law"], float.fromhex
    alpha, decay, patience, total = number(law["alpha"]), number(law["decay"]), law["patience"], number(record["total"])
    words = philox(law["seed"], record["count"])
    order = sorted(range(record["count"]), key=lambda i: words[i])
    smallest, bound, consumed = 1e-6 * min(1.0, alpha), math.inf, 0.0
    values, negative, last = [0.0] * record["count"], {}, 0.0
    blocks, hits, levels, refreshes = Blocks(body), 0, 0, 0
    while hits < record["hits"]:
        assert alpha > smallest
        if levels:
            refreshes += 1
            alpha = alpha * decay if refreshes % patience == 0 else alpha
        threshold = alpha * (total - consumed) / record["mean_over"]
        levels += 1
        most = math.inf if math.isinf(bound) else math.ceil(bound / threshold) - 1
        times: dict[int, int] = {}
        candidates, scan = order, 0
        while scan < most and hits < record["hits"] and (due := blocks.count()):
            scan += 1
            begins, found, at = gap_begins(due, len(candidates)), [], 0
            while len(found) < due and hits < record["hits"]:
                limits = [due - len(found), max(1, min(256, hits // 16))]
                limits += [] if record["wanted"] is None else [record["wanted"] - hits]
                blocks.unit()
                new = []
                for _ in range(min(limits)):
                    gap = blocks.symbol(begins)
                    at += gap
                    if gap < len(begins) - 2:
                        new.append(candidates[at])
                        at += 1
                for where in new:
                    if where not in negative:
                        negative[where] = blocks.raw(1)
                found += new
                hits += len(new)
            for where in found:
                times[where] = times.get(where, 0) + 1
            candidates = found
        for where, often in times.items():
            values[where] += often * threshold
        if times:
            consumed += sum(times.values()) * threshold
            bound = last = threshold
        else:
            refreshes += patience - 1 - refreshes % patience
    return [-value if negative.get(where) else value for where, value in enumerate(values)], last


@pytest.mark.parametrize(
    ("law", "stop"),
    [
        (Law(), Stop(sparsity=0.5)),
        (Law(patience=1, seed=2**63 + 5), Stop(nonzeros=123)),
        (Law(alpha=0.05), Stop(hits=2500)),
        (Law(alpha=500.0, patience=3), Stop(relative_l1=0.3)),
        (Law(centroid=0.0), Stop(bytes=200)),
        (Law(alpha=10, centroid=1), Stop(hits=300)),
        (Law(centroid=0.3), Stop(sparsity=0.9)),
        (Law(), None),
    ],
)
def test_a_decoder_written_from_the_page_reads_what_is_written(law: Law, stop: Stop | None) -> None:
    rng = np.random.default_rng(0)
    given = {"a": rng.laplace(size=(20, 30)).astype(np.float32), "b": rng.laplace(size=(101,)).astype(np.float16)}
    file = io.BytesIO()
    write(file, code(given, law, stop), b"graph")
    data = file.getvalue()
    magic, version, zero, length, crc = struct.unpack_from("<8sHHII", data)
    assert (magic, version, zero) == (bytes.fromhex("89535552500d0a1a"), 1, 0)
    text, rest = data[20 : 20 + length], data[20 + length :]
    assert zlib.crc32(text) == crc
    record = json.loads(text)
    stored, size, crc = record["skeleton"]
    assert zlib.crc32(rest[:stored]) == crc
    assert zstandard.ZstdDecompressor().decompress(rest[:stored], max_output_size=size) == b"graph"
    body = rest[stored:]
    assert len(body) == record["body"]
    values, last = values_of(record, body)
    found = decode(io.BytesIO(data))
    assert values == found.state.values.tolist()
    up = float.fromhex(record["law"]["centroid"]) * last
    values = [value + math.copysign(up, value) if value else 0.0 for value in values]
    norms = [float.fromhex(row[3]) for row in record["tensors"]]
    assert np.array_equal((np.array(values[:600]) * norms[0]).astype(np.float32).reshape(20, 30), found.tensors["a"])
    assert np.array_equal((np.array(values[600:]) * norms[1]).astype(np.float16), found.tensors["b"])


def test_a_decoder_written_from_the_page_goes_from_block_to_block() -> None:
    weights = np.random.default_rng(1).laplace(size=30_000)
    file = io.BytesIO()
    header = write(file, code({"w": weights}, Law(alpha=4.0), Stop(hits=120_000)), b"")
    assert header.body > BLOCK
    data = file.getvalue()
    record = json.loads(data[20 : header.begin])
    assert values_of(record, data[header.body_begin :])[0] == decode(io.BytesIO(data)).state.values.tolist()
