"""The verbs on good input: what they print, write and return."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest


@pytest.fixture
def apply(cli, conv_net_path: Path, examples_path: Path, tmp_path: Path):
    """Run ``apply`` on the small network; returns the outcome and the report."""

    def run(recipe: str, *words: object, out: str = "out.onnx"):
        report = tmp_path / "report.json"
        done = cli(
            "apply", recipe, "--in", conv_net_path, "--out", tmp_path / out, "--data", examples_path,
            "--report", report, "--report", tmp_path / "report.md", *words,
        )  # fmt: skip
        return done, json.loads(report.read_text(encoding="utf-8")) if report.exists() else None

    return run


def test_apply_writes_model_and_reports(apply, tmp_path: Path, examples_path: Path) -> None:
    done, report = apply("surp,id")
    assert done.exit_code == 0, done.stderr
    assert "decisions kept" in done.stdout
    assert [step["pass"] for step in report["steps"]] == ["surp", "id"]
    assert all(step["numbers"]["search"] for step in report["steps"])  # sizes were searched for
    sparsity, flops = report["steps"][0]["options"]["sparsity"], report["steps"][1]["options"]["flops"]
    assert report["recipe"] == f"surp(sparsity={sparsity}),id(flops={flops})"
    assert report["steps"][0]["cost"]["nonzero"] < report["cost"]["nonzero"]["before"]
    assert report["data"]["calib"] == {
        "source": str(examples_path),
        "examples": 50,
        "sha256": report["data"]["calib"]["sha256"],
    }
    assert report["data"]["choosing"]["examples"] == 37
    assert report["data"]["eval"]["examples"] == 113
    assert report["cost"]["macs"]["ratio"] <= flops
    assert report["accuracy"]["original"] is not None
    assert report["latency"]["ratio"] > 0
    assert report["met"] is True
    assert report["result"]["bytes"] == (tmp_path / "out.onnx").stat().st_size
    assert "# onnxprune report" in (tmp_path / "report.md").read_text(encoding="utf-8")
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


def test_report_fits_its_schema(apply) -> None:
    import importlib.resources

    import jsonschema

    _, report = apply("surp(sparsity=0.6),id(keep=0.5)", "--min-agreement", "0.1", "--max-accuracy-drop", "0.9")
    schema = json.loads(importlib.resources.files("onnxprune.report").joinpath("schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(report)


def test_zeros_of_surp_survive_id(apply, tmp_path: Path) -> None:
    apply("surp(sparsity=0.6)", out="sparse.onnx")
    apply("surp(sparsity=0.6),id(keep=0.6)")
    sparse, both = (_weights(tmp_path / name) for name in ("sparse.onnx", "out.onnx"))
    kept = json.loads(_metadata(tmp_path / "out.onnx")["onnxprune.kept"])
    expected = sparse["c2.w"][np.ix_(kept["conv2"], kept["conv1"])] == 0
    assert expected.any()
    assert (both["c2.w"][expected] == 0).all()
    columns = (np.array(kept["conv2"])[:, None] * 16 + np.arange(16)).ravel()
    expected = sparse["g1.w"][np.ix_(kept["fc1"], columns)] == 0
    assert (both["g1.w"][expected] == 0).all()


def test_failed_gate_writes_the_report_but_no_model(apply, tmp_path: Path) -> None:
    done, report = apply("id(keep=0.1)", "--min-agreement", "0.999")
    assert done.exit_code == 1
    assert not (tmp_path / "out.onnx").exists()
    assert report["met"] is False
    assert report["result"] is None
    gate = report["gates"][0]
    assert gate["name"] == "min_agreement"
    assert gate["got"] < 0.999
    assert "cannot prove it even for an identical model; at least 2995 examples would" in gate["message"]
    assert "nothing was written" in done.stderr


def test_keep_failed_writes_the_model_all_the_same(apply, tmp_path: Path) -> None:
    done, report = apply("id(keep=0.1)", "--min-agreement", "0.999", "--keep-failed")
    assert done.exit_code == 1
    assert (tmp_path / "out.onnx").exists()
    assert report["result"]["path"] == str(tmp_path / "out.onnx")


def test_a_size_that_cannot_be_reached_is_status_1(apply) -> None:
    done, report = apply("id(flops=0.0001)")
    assert done.exit_code == 1
    assert [gate["name"] for gate in report["gates"]] == ["flops"]


def test_accuracy_gate_without_labels_is_not_met(cli, conv_net_path: Path, tmp_path: Path) -> None:
    data = tmp_path / "unlabelled.npy"
    np.save(data, np.random.default_rng(0).standard_normal((60, 1, 12, 12)).astype(np.float32))
    words = ["apply", "id(keep=1.0)", "--in", conv_net_path, "--out", tmp_path / "o.onnx", "--data", data]
    done = cli(*words, "--max-accuracy-drop", "0.5")
    assert done.exit_code == 1
    assert "no labels to judge it by" in done.stdout


def test_force_overwrites_and_json_goes_to_stdout(apply, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"older")
    done, _ = apply("id(keep=1.0)", "--force", "--json")
    assert done.exit_code == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["agreement"]["top1"]["rate"] == 1.0
    assert printed["output_error"]["max_abs"] == 0.0


def test_targets_fill_the_pass_that_takes_them(apply) -> None:
    done, report = apply("surp,id", "--target", "flops=0.6", "--target", "sparsity=0.3")
    assert done.exit_code == 0, done.stderr
    assert report["recipe"] == "surp(sparsity=0.3),id(flops=0.6)"
    assert {gate["name"]: gate["met"] for gate in report["gates"]} == {"sparsity": True, "flops": True}


def test_a_bare_pass_searches_and_the_gate_judges(cli, digits_net, digits, tmp_path: Path) -> None:
    onnx.save(digits_net(), tmp_path / "m.onnx")
    for name, arrays in digits.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    words = [
        "--in", tmp_path / "m.onnx", "--calib", tmp_path / "calib.npz", "--eval", tmp_path / "eval.npz",
        "--report", tmp_path / "r.json", "--threads", 1,
    ]  # fmt: skip
    done = cli("apply", "filters", *words, "--out", tmp_path / "o.onnx", "--min-agreement", 0.97)
    assert done.exit_code == 0, done.stdout
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    (step,) = report["steps"]
    size = step["options"]["flops"]
    assert size <= 0.5
    assert report["recipe"] == f"filters(flops={size})"
    assert report["data"]["choosing"]["examples"] == 437
    (gate,) = report["gates"]
    assert gate["got"] >= 0.97
    plain = " ".join(done.stdout.split())
    assert "filters searched for 97 % agreement: 0.5 100 % (99.3 %) yes, 0.25 " in plain
    assert f"taken: flops={size} (each: size, kept, lower bound, holds)." in plain

    for more in ([], ["--keep-failed"]):
        done = cli("apply", "filters", *words, "--out", tmp_path / "p.onnx", "--min-agreement", 0.9999, *more)
        assert done.exit_code == 1
        report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
        message = report["gates"][0]["message"]
        assert "360 examples cannot prove it even for an identical model; at least 29956 examples would" in message
        assert " ".join(message.split()) in " ".join(done.stdout.split())
        assert any("437 choosing examples cannot prove an agreement of 0.9999" in text for text in report["warnings"])
        assert (tmp_path / "p.onnx").exists() is bool(more)
        assert (report["result"] is not None) is bool(more)


def test_same_seed_same_bytes(apply, tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        apply("surp,id(flops=0.6)", "--threads", 1, out=name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_kept_sets_do_not_depend_on_threads(apply, tmp_path: Path) -> None:
    for threads in (1, 2):
        apply("id(flops=0.5)", "--threads", threads, out=f"{threads}.onnx")
    assert _metadata(tmp_path / "1.onnx")["onnxprune.kept"] == _metadata(tmp_path / "2.onnx")["onnxprune.kept"]


def test_no_data_at_all_is_loud(cli, conv_net_path: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    done = cli("apply", "surp,id", "--in", conv_net_path, "--out", tmp_path / "o.onnx", "--report", report)
    assert done.exit_code == 0, done.stderr
    assert json.loads(report.read_text(encoding="utf-8"))["data"]["synthetic"] is True
    assert "random" in done.stdout


def test_interface_is_unchanged(apply, conv_net_path: Path, tmp_path: Path) -> None:
    apply("cleanup,fold_bn,surp,id(flops=0.5)")
    before, after = onnx.load(conv_net_path), onnx.load(tmp_path / "out.onnx")
    assert before.ir_version == after.ir_version
    assert list(before.opset_import) == list(after.opset_import)
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    assert _metadata(conv_net_path).items() <= _metadata(tmp_path / "out.onnx").items()


def test_compare_in_both_directions(apply, cli, conv_net_path: Path, examples_path: Path, tmp_path: Path) -> None:
    apply("id(keep=0.5)")
    same = cli("compare", conv_net_path, conv_net_path, "--data", examples_path, "--min-agreement", "0.98")
    assert same.exit_code == 0
    assert "200 of 200 decisions kept" in same.stdout
    other = cli("compare", conv_net_path, tmp_path / "out.onnx", "--data", examples_path, "--min-agreement", "0.98")
    assert other.exit_code == 1


def test_compare_refuses_another_interface(cli, conv_net_path: Path, examples_path: Path, tmp_path: Path) -> None:
    proto = onnx.load(conv_net_path)
    proto.graph.node[-1].output[0] = "scores"
    proto.graph.output[0].name = "scores"
    other = tmp_path / "other.onnx"
    onnx.save(proto, other)
    done = cli("compare", conv_net_path, other, "--data", examples_path)
    assert done.exit_code == 3
    assert "different outputs: logits against scores" in done.stderr


def test_evaluate_inspect_passes_doctor(cli, conv_net_path: Path, examples_path: Path) -> None:
    shown = json.loads(cli("evaluate", conv_net_path, "--data", examples_path, "--json").stdout)
    assert shown["examples"] == 200
    assert len(shown["per_class"]) == 5
    assert shown["cost"]["params"] > 0
    assert "accuracy" in cli("evaluate", conv_net_path, "--data", examples_path).stdout
    inspected = json.loads(cli("inspect", conv_net_path, "--json").stdout)
    assert [space["name"] for space in inspected["spaces"]] == ["conv1", "conv2", "fc1", "fc2"]
    assert inspected["spaces"][-1]["frozen"] == "graph output 'logits'"
    assert "can be cut" in cli("inspect", conv_net_path).stdout
    assert "interpolative decomposition" in cli("passes").stdout
    assert "fraction of channels kept" in " ".join(cli("passes", "id").stdout.split())
    assert cli("passes", "idd").exit_code == 2
    assert json.loads(cli("passes", "surp", "--json").stdout)[0]["options"][0]["accepted"] == "a number in [0, 1)"
    assert "CPUExecutionProvider" in cli("doctor").stdout
    assert json.loads(cli("doctor", "--json").stdout)["versions"]["onnxprune"]


def test_explicit_cuda_without_a_device_is_noticed(apply, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.runtime import providers

    monkeypatch.setattr(providers, "cuda_devices", lambda: 0)
    done, report = apply("id(keep=1.0)", "--providers", "cuda,cpu")
    assert done.exit_code == 0
    assert any("cuda is not available" in warning for warning in report["warnings"])
    assert report["providers"] == ["CPUExecutionProvider"]


def _weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def _metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_plan_says_what_would_be_cut_and_writes_nothing(cli, conv_net_path: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = cli("plan", "cleanup,surp,id(flops=0.5)", "--in", conv_net_path, "--json")
    assert done.exit_code == 0, done.stderr
    cleanup, surp, cut = json.loads(done.stdout)
    assert cleanup["rows"] == []
    assert [row["tensor"] for row in surp["rows"]] == ["c1.w", "c2.w", "g1.w", "g2.w"]
    assert [row["space"] for row in cut["rows"]] == ["conv1", "conv2", "fc1"]
    assert all(1 <= row["planned"] < row["width"] for row in cut["rows"])
    assert cut["skipped"] == {"fc2": "graph output 'logits'"}
    assert "reachable: " in cli("plan", "filters", "--in", conv_net_path, "--target", "flops=0.7").stdout
    assert sorted(tmp_path.iterdir()) == before
    assert surp["notes"][-1].startswith("no size is given: apply searches for one")
    assert surp["notes"][-1].endswith("planned with sparsity=0.5")
    assert not any("no size is given" in note for note in cut["notes"])


def test_a_plan_is_what_apply_does(apply, cli, conv_net_path: Path) -> None:
    planned = json.loads(cli("plan", "filters(flops=0.6)", "--in", conv_net_path, "--json").stdout)[0]["rows"]
    _, report = apply("filters(flops=0.6)")
    done = {row["space"]: row["kept"] for row in report["steps"][0]["numbers"]["layers"]}
    assert {row["space"]: row["planned"] for row in planned} == done
