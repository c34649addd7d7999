"""The pages of docs/ do what they say: their blocks run one after another in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from onnxprune import recipe
from onnxprune.evaluate.intervals import lower_bound
from onnxprune.passes.replace import Replace

PAGE = Path(__file__).resolve().parents[1] / "docs" / "graphsurgeon.md"


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_on_graphsurgeon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnxprune.cli import main

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for kind, text in blocks():
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), names)
        elif kind == "sh":
            for line in text.splitlines():
                program, *words = shlex.split(line)
                assert program == "onnxprune"
                done = CliRunner().invoke(main, words)
                assert done.exit_code == 0, (line, done.output)
        else:
            assert kind == "yaml"
            (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
            passes = recipe.parse("recipe.yaml")
            assert [item.name for item in passes] == ["extract", "cleanup"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "['conv1', 'conv2']"
    assert printed[1] == "1.0"
    assert "ONNX Runtime has no operator trt.plugins::SiLUPlugin" in printed[3]
    assert printed[4] == "[('SiLUPlugin', {'plugin_version': '1'}), ('SiLUPlugin', {'plugin_version': '1'})]"
    fused, plugin = (onnx.load(tmp_path / name) for name in ("fused.onnx", "plugin.onnx"))
    assert [node.op_type for node in fused.graph.node].count("QuickGelu") == 2
    assert [node.op_type for node in plugin.graph.node].count("SiLUPlugin") == 2


def test_the_patterns_of_the_page_can_be_read() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| `([^|`]+\))` \| `([^|`]+)`[^|]* \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 4
    for pattern, by in rows:
        assert Replace(pattern, by).pattern == pattern


def test_the_table_of_proofs_is_right() -> None:
    text = (PAGE.parent / "contract.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| (changed decisions|\d+) \|", line)
    ]
    rates = [float(cell) for cell in rows[0][1:]]
    assert len(rates) == 7
    assert len(rows) == 8
    for flips, *cells in rows[1:]:
        for rate, cell in zip(rates, cells, strict=True):
            n = int(cell.replace(",", ""))
            assert lower_bound(n - int(flips), n) >= rate
            assert lower_bound(n - 1 - int(flips), n - 1) < rate


def test_the_page_on_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (PAGE.parent / "recipes.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    texts = [text for kind, text in found if kind == "text"]
    for line in texts[0].splitlines():
        assert recipe.parse(line)
    (content,) = [text for kind, text in found if kind == "yaml"]
    (tmp_path / "recipe.yaml").write_text(content, encoding="utf-8")
    passes = recipe.parse(str(tmp_path / "recipe.yaml"))
    assert recipe.canonical(passes) == (
        "surp(sparsity=0.8),id(flops=0.5,only='layer1.*;layer2.*'),cleanup,"
        "extract(recipe=(id(flops=0.5),cleanup),outputs=logits)"
    )
    (code,) = [text for kind, text in found if kind == "python"]
    exec(compile(code, "recipes.md", "exec"), {})
    assert capsys.readouterr().out.strip() == texts[1].strip()


def test_the_page_on_recipes_names_every_key_of_the_metadata() -> None:
    from onnxprune.api import provenance

    page = (PAGE.parent / "recipes.md").read_text(encoding="utf-8")
    keys = [value for name, value in vars(provenance).items() if name.isupper() and str(value).startswith("onnxprune.")]
    assert len(keys) == 9
    assert all(f"| `{key}` |" in page for key in keys)


def test_the_schema_in_the_docs_is_the_one_that_is_installed() -> None:
    text = (PAGE.parents[1] / "compress" / "report" / "schema.json").read_bytes()
    assert PAGE.with_name("report.schema.json").read_bytes() == text
