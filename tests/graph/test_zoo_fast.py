"""The small models of the zoo, exported anew: cuts are exact, and as much can be cut as could be once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

# The least share of MACs in nodes with an axis that can be cut.
SHARES = {
    "unet-folded": 0.95,
    "autoencoder-script": 0.95,
    "gpt-folded": 0.85,
    "transformer_encoder-folded": 0.95,
    "lstm-script": 0.95,
    "gru-script": 0.95,
}
LIGHT_SHARES = {"light_squeezenet": 0.95, "light_shufflenet": 0.9}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def passes(zoo: Any, cache: Path, name: str, share: float) -> None:
    row = zoo("check").check(name, zoo("build").build(name, cache))
    assert row.failures == []
    assert row.spaces > 0
    assert row.share >= share
    assert set(row.errors) == {1.0, 0.75, 0.5}


def test_the_list_of_fast_models_is_the_one_tested_here(zoo: Any) -> None:
    assert sorted(zoo("build").FAST) == sorted(SHARES)
    assert zoo("build").names(fast=True) == [name for name in zoo("build").names() if name in SHARES]


@pytest.mark.parametrize("name", SHARES)
def test_exported_networks_are_cut_exactly(zoo: Any, cache: Path, name: str) -> None:
    pytest.importorskip("torchvision")
    passes(zoo, cache, name, SHARES[name])


@pytest.mark.parametrize("name", LIGHT_SHARES)
def test_light_graphs_of_the_onnx_package_are_cut_exactly(zoo: Any, cache: Path, name: str) -> None:
    passes(zoo, cache, name, LIGHT_SHARES[name])


def test_names_follow_patterns(zoo: Any) -> None:
    assert zoo("build").names(["resnet18"]) == ["resnet18-folded", "resnet18-kept", "resnet18-script"]
    assert zoo("build").names(["swin*"]) == ["swin_t-folded", "swin_t-script"]
    assert "light_vgg19" in zoo("build").names(["light_*"])


def test_an_export_that_torch_refused_is_remembered(zoo: Any, tmp_path: Path) -> None:
    (tmp_path / "lstm-script.failed").write_text("RuntimeError: no")
    with pytest.raises(zoo("build").ExportError, match="RuntimeError: no"):
        zoo("build").build("lstm-script", tmp_path)


def test_a_wrong_cut_does_not_pass(zoo: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping other channels than those that the masked model zeroes must show."""
    check = zoo("check")
    right = check.surgery.cut

    def wrong(analysis: Any, kept: Any) -> None:
        first = next(space for space in analysis.prunable if len(kept[space.name]) < space.width)
        others = [i for i in range(first.width) if i not in set(kept[first.name])]
        count = len(kept[first.name])
        right(analysis, {**kept, first.name: sorted([*others, *kept[first.name]][:count])})

    monkeypatch.setattr(check.surgery, "cut", wrong)
    row = check.Row("light_squeezenet")
    source, _ = check.cleanup(check.io.load(zoo("build").build("light_squeezenet", cache)))
    feeds = check.feeds_of(source, 0)
    check._cut(row, source, feeds, check.run(source, feeds), 0.5, 0)
    assert any("relative error" in failure for failure in row.failures)
