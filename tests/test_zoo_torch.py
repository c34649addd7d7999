"""Graphs of the zoo in torch, as ``benchmarks.zoo.torch`` runs all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

FAST = ("autoencoder-script", "gpt-folded", "transformer_encoder-folded", "lstm-script", "gru-script", "unet-folded")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torchvision")
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("name", FAST)
def test_small_graphs(zoo: Any, cache: Path, name: str) -> None:
    row = zoo("torch").check(name, zoo("build").build(name, cache))
    assert row.failures == [] and row.idle == 0 and row.batch < 1e-4


@pytest.mark.slow
def test_all_graphs(zoo: Any) -> None:
    build, rows = zoo("build"), []
    for name in build.names():
        try:
            path = build.build(name, build.default_cache())
        except build.ExportError:
            continue
        rows.append(zoo("torch").check(name, path))
    assert [(row.name, row.failures) for row in rows if row.failures] == []


def test_a_distance_is_a_failure_that_tells_of_double_precision(
    zoo: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, path = zoo("torch"), zoo("build").build("lstm-script", cache)
    monkeypatch.setattr(torch, "_error", lambda *_: 1.5e-4)
    monkeypatch.setattr(torch, "_rounding", lambda *_: (8e-5, 7e-5))
    row = torch.check("lstm-script", path)
    assert row.failures == [
        "relative error 0.00015, 0.00015: below 0.0001 is accepted",
        "ONNX Runtime is 8.0e-05, torch 7.0e-05 from double precision",
    ]
    assert "FAILED" in torch.line(row)


def test_distances_from_double_precision(zoo: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, path = zoo("torch"), zoo("build").build("lstm-script", cache)
    model = torch.io.load(path)
    words = (torch.to_torch(model).eval(), model, [torch.feeds_of(model, 0)])
    assert max(torch._rounding(*words)) < 1e-5
    real = torch.run
    monkeypatch.setattr(torch, "run", lambda *given: {name: out * 1.001 for name, out in real(*given).items()})
    runtime, own = torch._rounding(*words)
    assert runtime > 5e-4 and own < 1e-5


def test_a_failure_is_a_row(zoo: Any, tmp_path: Path) -> None:
    torch = zoo("torch")
    row = torch.check("nothing", tmp_path / "nothing.onnx")
    assert row.failures[0].startswith("ModelError: ") and "FAILED" in torch.line(row)
