"""``onnxprune explain``: what a model's own file tells of how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from onnxprune.api.explaining import explain
from onnxprune.errors import ModelError


def made(cli, recipe: str, source: Path, out: Path, data: Path) -> Path:
    done = cli("apply", recipe, "--in", source, "--out", out, "--data", data, "--threads", 1)
    assert done.exit_code == 0, done.stderr
    return out


def edited(path: Path, **metadata: str) -> Path:
    model = onnx.load(path)
    for key, value in metadata.items():
        found = next((each for each in model.metadata_props if each.key == f"onnxprune.{key}"), None)
        found = found if found is not None else model.metadata_props.add(key=f"onnxprune.{key}")
        found.value = value
    onnx.save(model, path)
    return path


@pytest.fixture
def cut(cli, conv_net_path: Path, examples_path: Path, tmp_path: Path) -> Path:
    return made(cli, "surp(sparsity=0.5),id(flops=0.6)", conv_net_path, tmp_path / "cut.onnx", examples_path)


def test_a_cut_model(cli, cut: Path, conv_net_path: Path) -> None:
    done = cli("explain", cut)
    assert done.exit_code == 0, done.stderr
    first = explain(cut)
    assert f"sha256 {first.model.sha256}" in done.stdout
    assert "recipe: surp(sparsity=0.5),id(flops=0.6)" in done.stdout
    assert "calibration: 50 examples, sha256 " in done.stdout
    assert "made with: seed 0, onnxprune 0.1.0" in done.stdout
    assert "zeros: " in done.stdout
    assert first.kept
    assert first.kept == explain(cut, conv_net_path).kept
    assert 0 < first.sparse_share < 1
    known = {each.node: each for each in first.kept}
    stored = json.loads(next(p.value for p in onnx.load(cut).metadata_props if p.key == "onnxprune.kept"))
    widths = {"conv1": 8, "conv2": 12, "fc1": 20}
    assert {name: (list(each.indices), each.of) for name, each in known.items()} == {
        name: (indices, widths[name]) for name, indices in stored.items()
    }
    shown = cli("explain", cut, "--kept").stdout
    for name, indices in stored.items():
        assert f"  {name}: {len(indices)} of {widths[name]}\n    {' '.join(map(str, indices))}\n" in shown


def test_json(cli, cut: Path, conv_net_path: Path) -> None:
    done = cli("explain", cut, "--in", conv_net_path, "--json")
    found = json.loads(done.stdout)
    assert list(found) == ["model", "made", "history", "kept", "sparse", "layers", "pairs", "quantised"]
    assert found["made"]["recipe"] == "surp(sparsity=0.5),id(flops=0.6)"
    assert all(each["kept"] == len(each["indices"]) <= each["of"] for each in found["kept"])
    assert found["sparse"]["share"] == 1 - found["sparse"]["nonzero"] / found["sparse"]["params"]


def test_earlier_runs_and_their_first_source(
    cli, cut: Path, conv_net_path: Path, examples_path: Path, tmp_path: Path
) -> None:
    again = made(cli, "cleanup", cut, tmp_path / "again.onnx", examples_path)
    shown = cli("explain", again, "--in", conv_net_path)
    assert shown.exit_code == 0, shown.stderr
    assert "recipe: cleanup\n" in shown.stdout
    assert "earlier run 1:\n  recipe: surp(sparsity=0.5),id(flops=0.6)\n" in shown.stdout
    with pytest.raises(ModelError, match=r"is not the source of '.*again\.onnx', which began with the one that has "):
        explain(again, cut)


def test_pairs_and_eight_bits(cli, conv_net_path: Path, examples_path: Path, tmp_path: Path) -> None:
    out = made(cli, "lrank(keep=0.4),int8", conv_net_path, tmp_path / "q.onnx", examples_path)
    found = explain(out)
    assert found.pairs
    assert all(each.rank is not None and each.rank > 0 for each in found.pairs)
    assert found.quantised["DequantizeLinear"] > 0
    shown = cli("explain", out).stdout
    assert f"  {found.pairs[0].node}: rank {found.pairs[0].rank}\n" in shown
    assert "8-bit: " in shown


@pytest.mark.parametrize("option", [[], ["--kept"]])
def test_a_model_without_our_metadata_gets_one_sentence(cli, conv_net_path: Path, option: list[str]) -> None:
    done = cli("explain", conv_net_path, *option)
    assert done.exit_code == 0
    assert done.stdout == (
        f"'{conv_net_path}' does not say how it was made: its metadata has nothing of onnxprune's recipes.\n"
    )
    assert json.loads(cli("explain", conv_net_path, "--json").stdout)["made"] is None


def test_what_is_no_model_is_status_3(cli, tmp_path: Path, examples_path: Path) -> None:
    for path in (examples_path, tmp_path / "none.onnx"):
        done = cli("explain", path)
        assert done.exit_code == 3
        assert done.stderr.startswith("onnxprune: '")
        assert done.stderr.count("\n") == 1


def test_metadata_of_another_hand(cli, cut: Path, conv_net_path: Path) -> None:
    odd = edited(cut, recipe="\x1b[31mid\nx", history='["?", {"recipe": 7}, 3]', seed="many")
    done = cli("explain", odd)
    assert done.exit_code == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "recipe: \\x1b[31mid\\x0ax" in done.stdout
    assert "earlier run 2:\n  recipe: 7\n" in done.stdout
    assert "which names no source" in cli("explain", odd, "--in", conv_net_path).stderr
    # Before widths were written, only a source told of how many channels some were kept.
    early = edited(cut, widths="{}")
    assert " of at least " in cli("explain", early).stdout
    assert cli("explain", edited(cut, widths='{"conv1": "all"}')).exit_code == 3
    assert cli("explain", edited(cut, kept='{"conv1": "all"}')).exit_code == 3


def test_three_layers_in_place_of_one(cli, conv_net_path: Path, examples_path: Path, tmp_path: Path) -> None:
    out = made(cli, "cp(flops=0.8,rectify=0)", conv_net_path, tmp_path / "cp.onnx", examples_path)
    found = explain(out)
    assert found.pairs and all(each.layers == 3 for each in found.pairs)
    assert f"  {found.pairs[0].node}: rank {found.pairs[0].rank}, 3 layers\n" in cli("explain", out).stdout
