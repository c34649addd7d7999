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


def test_rounding_is_told_from_a_wrong_graph(zoo: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, path = zoo("torch"), zoo("build").build("lstm-script", cache)
    monkeypatch.setattr(torch, "_error", lambda *_: 1.5e-4)
    row = torch.check("lstm-script", path)
    assert row.failures == [] and max(row.rounding) < 1e-5
    assert "rounding: ONNX Runtime" in torch.line(row)
    real = torch.run
    monkeypatch.setattr(torch, "run", lambda *words: {name: out * 1.001 for name, out in real(*words).items()})
    row = torch.check("lstm-script", path)
    assert row.failures == ["relative error 0.00015, 0.00015: below 0.0001 is accepted"]


def test_a_failure_is_a_row(zoo: Any, tmp_path: Path) -> None:
    torch = zoo("torch")
    row = torch.check("nothing", tmp_path / "nothing.onnx")
    assert row.failures[0].startswith("ModelError: ") and "FAILED" in torch.line(row)
