"""The ``.surp`` file: round trips, prefixes of the file, and a sentence for whatever is wrong with it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.codec.blocks import BLOCK
from onnxprune.codec.container import Coded, Header, Model, code, decode, read_header, write
from onnxprune.codec.law import Law, Stop
from onnxprune.errors import CodecError

SKELETON = b"the graph without its weights" * 40


def tensors(seed: int = 0, scale: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv": rng.laplace(size=(8 * scale, 4, 3, 3)).astype(np.float32),
        "gemm": (0.01 * rng.standard_normal((20, 30 * scale))).astype(np.float32),
        "half": rng.laplace(size=(40, 10)).astype(np.float16),
        "brain": rng.laplace(size=(30, 10)).astype(ml_dtypes.bfloat16),
        "wide": 1e5 * rng.laplace(size=(20, 10)),
        "zeros": np.zeros((3, 4), dtype=np.float32),
        "größe": np.zeros((0, 4), dtype=np.float32),
    }


def written(coded: Coded, values: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    header = write(file, coded, SKELETON, values)
    assert header.file_size == len(file.getvalue())
    return file.getvalue()


def read(data: bytes, stop: Stop | None = None, **options: Any) -> Model:
    return decode(io.BytesIO(data), stop, **options)


@pytest.fixture(scope="module")
def plain() -> bytes:
    return written(code(tensors(), Law(), Stop(sparsity=0.4)))


@pytest.fixture(scope="module")
def long() -> bytes:
    """A file of more than two blocks."""
    return written(code(tensors(scale=300), Law(), Stop(sparsity=0.3)))


def test_a_file_comes_back(plain: bytes) -> None:
    found, given = read(plain, strict=True), tensors()
    assert found.skeleton == SKELETON
    assert list(found.tensors) == list(given)
    assert found.state.complete
    assert found.state.verified
    total = sum(array.size for array in given.values())
    assert sum(int(np.count_nonzero(array)) for array in found.tensors.values()) == total - -(-4 * total // 10)
    for name, array in found.tensors.items():
        assert array.shape == given[name].shape
        assert array.dtype == (np.float32 if name == "brain" else given[name].dtype)
        wide, before = array.astype(np.float64), given[name].astype(np.float64)
        # Up by half a threshold; rounding to the element type may lift a value by half a step.
        norm = next(t.norm for t in found.header.tensors if t.name == name)
        assert (np.abs(wide) <= (np.abs(before) + 0.5 * found.state.threshold * norm) * (1 + 2.0**-7)).all()
        assert (np.sign(wide)[wide != 0] == np.sign(before)[wide != 0]).all()
    brain = found.tensors["brain"]
    assert np.array_equal(brain, brain.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_values_are_the_code_times_the_norm_rounded_once(plain: bytes) -> None:
    found = read(plain)
    up = 0.5 * found.state.threshold
    assert up > 0
    start = 0
    for tensor in found.header.tensors:
        code_values = found.state.values[start : start + tensor.size].reshape(tensor.shape)
        code_values = code_values + np.sign(code_values) * up
        start += tensor.size
        kind = ml_dtypes.bfloat16 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype)
        if tensor.dtype != "bfloat16":
            assert np.array_equal(found.tensors[tensor.name], (code_values * tensor.norm).astype(kind))
        else:
            exact = code_values * tensor.norm
            step = np.abs(np.spacing(np.abs(exact).astype(ml_dtypes.bfloat16)).astype(np.float64))
            assert (np.abs(found.tensors[tensor.name] - exact) <= step / 2 * (1 + 1e-12)).all()
    given = tensors()["wide"]
    assert found.header.tensors[4].norm == pytest.approx(np.linalg.norm(given))


def test_the_header_says_what_is_inside(plain: bytes) -> None:
    header = read_header(io.BytesIO(plain))
    assert isinstance(header, Header)
    assert header.version == 1
    assert header.shape.count == sum(array.size for array in tensors().values())
    assert header.nonzeros == header.shape.count - -(-4 * header.shape.count // 10)
    assert [(t.name, t.shape) for t in header.tensors] == [(n, a.shape) for n, a in tensors().items()]
    assert header.skeleton.size == len(SKELETON)
    assert header.file_size == len(plain)
    assert header.tensors[5].norm == 1.0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_a_prefix_of_the_file_is_a_coarser_model(plain: bytes, share: float) -> None:
    header = read_header(io.BytesIO(plain))
    cut = plain[: header.body_begin + int(share * header.body)]
    found, same = read(cut), read(plain, Stop(fraction=share))
    assert not found.state.complete
    assert found.state.hits == same.state.hits
    assert all(np.array_equal(found.tensors[name], same.tensors[name]) for name in found.tensors)
    with pytest.raises(CodecError, match="cut off"):
        read(cut, strict=True)
    assert read(plain, Stop(fraction=share), strict=True).state.hits == same.state.hits


def test_same_input_same_bytes_and_the_norm_can_be_left_out() -> None:
    assert written(code(tensors(), Law(), Stop(sparsity=0.4))) == written(code(tensors(), Law(), Stop(sparsity=0.4)))
    pooled = code(tensors(), Law(), Stop(sparsity=0.9), normalize=False)
    assert {tensor.norm for tensor in pooled.tensors} == {1.0}
    assert set(np.flatnonzero(read(written(pooled)).tensors["gemm"])) == set()  # too small beside the others


def test_the_masked_form_comes_back() -> None:
    holed = {name: np.where(np.arange(a.size).reshape(a.shape) % 3, a, 0) for name, a in tensors().items()}
    coded = code({n: a.astype(tensors()[n].dtype) for n, a in holed.items()}, Law(), Stop(sparsity=0.6), masked=True)
    found = read(written(coded))
    assert found.header.masked
    assert found.header.shape.mean_over < found.header.shape.count
    assert not found.tensors["conv"].ravel()[::3].any()


def test_fitted_values_follow_the_order_of_first_hits() -> None:
    given = tensors()
    coded = code(given, Law(), Stop(sparsity=0.5))
    flat = np.concatenate([array.astype(np.float64).ravel() for array in given.values()])
    flat = np.clip(flat, -60_000, 60_000)
    data = written(coded, flat[coded.stream.support])
    found = read(data)
    assert found.fitted
    start = 0
    for name, array in given.items():
        kept = found.state.values[start : start + array.size].reshape(array.shape) != 0
        wanted = np.where(kept, flat[start : start + array.size].reshape(array.shape).astype(np.float16), 0)
        start += array.size
        assert np.allclose(found.tensors[name].astype(np.float64), wanted.astype(np.float64), rtol=1e-2)
        if name != "brain":
            assert np.array_equal(found.tensors[name], wanted.astype(array.dtype))
    # They were made for the whole support: a prefix keeps the code's own values unless asked otherwise.
    half = read(data, Stop(fraction=0.5))
    assert not half.fitted
    half = read(data, Stop(fraction=0.5), fitted=True)
    live = half.tensors["conv"] != 0
    assert np.array_equal(half.tensors["conv"][live], found.tensors["conv"][live])
    assert not read(data, fitted=False).fitted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros(3), r"values of shape \[3\] cannot be stored; give \[\d+\], one per non-zero"),
        (None, "a value is NaN or too large for float16 and cannot be stored"),
    ],
)
def test_values_that_do_not_fit_are_refused(values: np.ndarray | None, message: str) -> None:
    coded = code(tensors(), Law(), Stop(sparsity=0.5))
    with pytest.raises(CodecError, match=message):
        write(io.BytesIO(), coded, b"", np.full(len(coded.stream.support), 1e6) if values is None else values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_cannot_be_coded_are_named(bad: float) -> None:
    with pytest.raises(CodecError, match="tensor 'w' holds NaN or infinity; mend the model first"):
        code({"w": np.array([1.0, bad])}, Law())
    with pytest.raises(CodecError, match="tensor 'i' has the element type int8; float16, bfloat16"):
        code({"i": np.ones(3, dtype=np.int8)}, Law())


def with_version(data: bytes, version: int) -> bytes:
    return data[:8] + struct.pack("<H", version) + data[10:]


def with_record(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the header's record and its checksum."""
    length = struct.unpack_from("<I", data, 12)[0]
    text = change(data[20 : 20 + length])
    return data[:12] + struct.pack("<II", len(text), zlib.crc32(text)) + text + data[20 + length :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: b"", "not a .surp file: it does not begin as one"),
        (lambda d: b"PK\x03\x04" + d, "not a .surp file: it does not begin as one"),
        (lambda d: d[:15], "the .surp file is cut off in its header"),
        (lambda d: d[:200], r"the .surp file is cut off in its header: 180 of \d+ bytes are there"),
        (lambda d: with_version(d, 2), "the .surp file is of version 2; this program reads versions up to 1"),
        (lambda d: with_version(d, 0), "the .surp file's header is corrupt"),
        (lambda d: d[:30] + b"?" + d[31:], "the .surp file's header is corrupt"),
        (lambda d: with_record(d, lambda t: b"{"), "the .surp file's header is not understood: "),
        (lambda d: with_record(d, lambda t: b"[]"), "the .surp file's header is not understood: "),
        (
            lambda d: with_record(d, lambda t: t.replace(b'"patience":20', b'"patience":0')),
            "the .surp file's header is not understood: patience=0",
        ),
        (
            lambda d: with_record(d, lambda t: t.replace(b"[8,4,3,3]", b"[8,4,3,4]")),
            "the .surp file's header is not understood: its tensors do not add up",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(plain: bytes, damage: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        read(damage(plain))


def test_damage_behind_the_header_has_a_place(long: bytes) -> None:
    header = read_header(io.BytesIO(long))
    assert header.body > 2 * BLOCK
    with pytest.raises(CodecError, match="cut off before its body: the skeleton has 5 of"):
        read(long[: header.begin + 5])
    flipped = bytearray(long)
    flipped[header.begin + 9] ^= 1
    with pytest.raises(CodecError, match="corrupt: the skeleton does not match its checksum"):
        read(bytes(flipped))
    flipped = bytearray(long)
    flipped[header.body_begin + BLOCK + 77] ^= 1
    with pytest.raises(CodecError) as caught:
        read(bytes(flipped))
    assert str(caught.value) == f"block 1 at byte {header.body_begin + BLOCK:,} is corrupt"
    # What lies before the damage can be had.
    assert read(bytes(flipped), Stop(bytes=BLOCK), strict=True).state.verified


@settings(max_examples=250, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_damage_passes_in_silence(plain: bytes, long: bytes, seed: int, several_blocks: bool) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(long if several_blocks else plain)
    header = read_header(io.BytesIO(bytes(data)))
    original = bytes(data)
    if rng.random() < 0.5:
        del data[int(rng.integers(0, len(data))) :]
    for _ in range(int(rng.integers(0, 4))):
        if data:
            # Half of the flips hit the first kilobytes, where everything but the body lies.
            reach = min(len(data), header.body_begin + 8) if rng.random() < 0.5 else len(data)
            data[int(rng.integers(0, reach))] ^= 1 << int(rng.integers(0, 8))
    try:
        found = read(bytes(data))
    except CodecError as error:
        assert str(error)
        assert "\n" not in str(error)
        return
    assert found.skeleton == SKELETON
    if found.state.verified:
        sound = read(original, Stop(hits=found.state.hits))
        assert np.array_equal(found.state.values, sound.state.values)
    if len(data) == len(original):
        assert bytes(data) == original
