"""Sweeps: every point is what apply would have made, and what points share is worked out once."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from onnxprune.api import Options, compress, sweep, sweeping
from onnxprune.budget import parse_targets
from onnxprune.cli import main
from onnxprune.errors import OptionError
from onnxprune.evaluate import streaming
from onnxprune.graph import io
from onnxprune.report.sweep import brief_grid, sweep_markdown
from onnxprune.report.sweep_page import sweep_page
from onnxprune.report.sweep_plots import write_class_plot, write_sweep_plot

OPTIONS = Options(calib_examples=300)


@pytest.fixture(scope="module")
def model(digits_net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "digits.onnx"
    onnx.save(digits_net(), path)
    return path


@pytest.fixture(scope="module")
def feeds(digits: Any) -> dict[str, Any]:
    return {"calib": digits["calib"], "eval": digits["eval"]}


@pytest.mark.parametrize(
    ("recipe", "target"),
    [
        ("id", "flops=1.0,0.7,0.4"),
        ("id", "params=0.7,0.4"),
        ("surp(sparsity=0.5),id", "flops=0.7,0.4"),
        ("surp(values=refit),id(flops=0.8)", "sparsity=0.3,0.6"),
        ("id(mode=iditer)", "flops=0.8,0.5"),
        ("id(mode=iditer,reconstruct=none)", "flops=0.8,0.5,0.65,0.64"),
        ("pca", "flops=0.8,0.6"),
        ("cleanup,filters", "keep=0.8,0.5"),
    ],
)
def test_every_point_is_the_model_that_apply_makes(
    model: Path, feeds: Any, tmp_path: Path, recipe: str, target: str
) -> None:
    targets = parse_targets(target)
    (tmp_path / "all").mkdir()
    found = sweep(model, [recipe], targets, **feeds, folder=tmp_path / "all", options=OPTIONS)
    assert [point.target for point in found.points] == [str(t) for t in targets]
    for place, (point, each) in enumerate(zip(found.points, targets, strict=True)):
        alone = compress(model, recipe, **feeds, targets=[each], options=OPTIONS).save(tmp_path / f"{place}.onnx")
        assert Path(point.path).read_bytes() == (tmp_path / f"{place}.onnx").read_bytes()
        assert point.sha256 == alone.report.result.sha256
        assert point.agreement == alone.report.agreement.top1
        assert point.accuracy == alone.report.accuracy.compressed
        assert point.flops == alone.report.cost.macs.ratio
        assert point.met == alone.met
        assert point.canonical == alone.report.recipe


def test_shared_work_is_done_once(model: Path, feeds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.passes.id import Id
    from onnxprune.passes.surp import Surp

    done: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            done[f"{owner.__name__.rsplit('.', 1)[-1]}.{name}"] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, outer)

    counted(Id, "prepared")
    counted(Surp, "_run")
    counted(sweeping, "open_run")
    sweep(model, ["surp(sparsity=0.5),id", "surp(sparsity=0.5),id(ridge=0.1)"], ["flops=0.8", "flops=0.5"], **feeds)
    assert done == {"Id.prepared": 2, "Surp._run": 1, "sweeping.open_run": 1}


def test_the_original_is_run_once_where_its_outputs_fit(
    model: Path, feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    inner = streaming.open_session

    @contextlib.contextmanager
    def opened(*args: Any, **kwargs: Any) -> Iterator[Any]:
        with inner(*args, **kwargs) as session:
            run = session.run

            def counted(*fed: Any, **rest: Any) -> Any:
                labels.append(kwargs["label"])
                return run(*fed, **rest)

            session.run = counted
            yield session

    monkeypatch.setattr(streaming, "open_session", opened)
    found = sweep(model, ["filters"], ["keep=0.9", "keep=0.5"], **feeds)
    assert 2 * labels.count("the original model") == labels.count("the compressed model")
    labels.clear()
    monkeypatch.setattr(streaming.Recorded, "__init__", lambda self: _limited(self))
    again = sweep(model, ["filters"], ["keep=0.9", "keep=0.5"], **feeds)
    assert labels.count("the original model") == labels.count("the compressed model")
    assert [p.agreement for p in found.points] == [p.agreement for p in again.points]


def _limited(recorded: Any) -> None:
    recorded.limit, recorded.batches, recorded.whole, recorded._bytes = 100, [], False, 0


def test_views(model: Path, feeds: Any, tmp_path: Path) -> None:
    found = sweep(model, ["id", "filters"], ["flops=0.9", "flops=0.6"], **feeds, options=OPTIONS)
    text = sweep_markdown(found)
    assert text.count("\n| ") == len(found.points) + 2
    for name in ("a.svg", "b.svg"):
        write_sweep_plot(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "http" not in (tmp_path / "a.svg").read_text().replace("http://www.w3.org", "")
    page = sweep_page(found)
    assert page == sweep_page(found)
    assert page.count("<svg") == 3 and "http" not in page and "<script" not in page
    assert "circles: id; squares: filters." in page
    plain = json.loads(found.to_json())
    assert plain["schema"] == "onnxprune.sweep/1" and plain["met"] is found.met
    assert [p["recipe"] for p in plain["points"]] == ["id", "id", "filters", "filters"]


def test_the_command(model: Path, digits: Any, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "calib.npz", **digits["calib"])
    np.savez(tmp_path / "eval.npz", **digits["eval"])
    (tmp_path / "models").mkdir()
    fed = ["--calib", str(tmp_path / "calib.npz"), "--eval", str(tmp_path / "eval.npz"), "--calib-examples", "300"]
    given = ["sweep", "id", "--in", str(model), "--target", "flops=0.8,0.5", *fed, "--out", str(tmp_path / "models")]
    given += [
        "--report",
        str(tmp_path / "s.json"),
        "--report",
        str(tmp_path / "s.md"),
        "--plot",
        str(tmp_path / "s.svg"),
    ]
    given += ["--report", str(tmp_path / "s.html"), "--class-plot", str(tmp_path / "c.svg")]
    ran = CliRunner().invoke(main, given)
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "s.html").read_text().startswith("<!DOCTYPE html>")
    assert "flops=0.8" in ran.stdout and "agreement per class" in (tmp_path / "c.svg").read_text()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["id_flops=0.5.onnx", "id_flops=0.8.onnx"]
    for path in (tmp_path / "models").iterdir():
        io.check(io.load(path))
    assert json.loads((tmp_path / "s.json").read_text())["points"][1]["target"] == "flops=0.5"
    again = CliRunner().invoke(main, given)
    assert again.exit_code == 2 and "exists" in again.output
    assert CliRunner().invoke(main, [*given, "--force"]).exit_code == 0


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("flops=0.5,0.5", "twice"),
        ("flops=0.5,", "is not of the form"),
        ("flops=0.5,2", "out of range"),
        ("sparsity=0.5", "sparsity"),
    ],
)
def test_targets_that_make_no_sweep(model: Path, target: str, said: str) -> None:
    ran = CliRunner().invoke(main, ["sweep", "id", "--in", str(model), "--target", target])
    assert ran.exit_code == 2
    assert said in ran.output


def test_nothing_to_try_and_no_folder(model: Path, feeds: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to try"):
        sweep(model, [], ["flops=0.5"], **feeds)
    with pytest.raises(OptionError, match="not a folder"):
        sweep(model, ["id"], ["flops=0.5"], **feeds, folder=tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_size_that_is_not_reached_is_told(model: Path, feeds: Any) -> None:
    found = sweep(model, ["id(only=none)"], ["flops=0.5"], **feeds, options=OPTIONS)
    assert not found.met
    assert "(not reached)" in sweep_markdown(found)


def test_classes_left_out_of_calibration_stand_out(model: Path, digits: Any, tmp_path: Path) -> None:
    import numpy as np

    from onnxprune.data.digits import load

    calib, labels = digits["calib"], load("train")[1]
    options = Options(calib_examples=300, drop_classes=("3",))
    # Labels of the calibration side are read for this alone.
    sides: dict[str, Any] = {"calib": calib | {"y": labels}, "eval": digits["eval"]}
    found = sweep(model, ["id", "filters"], ["flops=0.9", "flops=0.3"], **sides, options=options)
    assert found.dropped == ("3",) and "Calibrated without 3." in sweep_markdown(found)
    for point in found.points:
        assert [row.label for row in point.class_accuracy] == [str(label) for label in range(10)]
        counts = sum(row.count for row in point.class_agreement)
        kept = sum(row.count * row.rate for row in point.class_agreement)
        assert counts == 360 and kept / counts == pytest.approx(point.agreement.rate)
    lowest = found.points[1]
    worst = min(lowest.class_agreement, key=lambda row: row.rate)
    assert worst.label == "3" and worst.rate < lowest.agreement.rate
    write_class_plot(found, tmp_path / "classes.svg")
    text = (tmp_path / "classes.svg").read_text()
    assert "without 3" in text and "mean of the others" in text and "accuracy per class" in text
    assert np.isfinite([row.rate for row in lowest.class_agreement]).all()


def test_a_regression_is_told_by_its_correlation(tmp_path: Path, digits_net: Any, digits: Any) -> None:
    path = tmp_path / "values.onnx"
    onnx.save(digits_net(outputs=1), path)
    targets = digits["eval"]["y"].astype("float32")[:, None]
    judged = {"input": digits["eval"]["input"], "y": targets}
    found = sweep(path, ["id"], ["flops=0.9", "flops=0.3"], calib=digits["calib"], eval=judged, options=OPTIONS)
    first, last = (point.values for point in found.points)
    assert 0.9 < last.pearson < first.pearson <= 1 and last.rmse.compressed > 0
    assert "| Pearson r | RMSE |" in sweep_markdown(found)
    assert brief_grid(found.points).columns[5] == "Pearson r"
    write_sweep_plot(found, tmp_path / "values.svg")
    assert "RMSE to the labels" in (tmp_path / "values.svg").read_text()
    with pytest.raises(OptionError, match="needs class scores"):
        write_class_plot(found, tmp_path / "classes.svg")
    assert not (tmp_path / "classes.svg").exists()
