"""The list of packages matches the tree, rooms keep their size and the fixed top level stays."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {
    "compress": "onnxprune",
    "passes": "onnxprune.passes",
    "exporters": "onnxprune.exporters",
    "models": "onnxprune.models",
}
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_package_is_listed() -> None:
    found = set()
    for folder, name in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((name, *parts)))
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_pass_is_in_the_table_and_in_the_contract() -> None:
    from onnxprune.recipe import PASSES, pass_class

    files = {path.stem for path in (ROOT / "passes").glob("*.py") if path.stem != "__init__"}
    # A pass that trains lives where training does.
    assert files == {name for name, place in PASSES.items() if place.startswith("onnxprune.passes.")}
    assert set(PASSES) - files == {"distill"}
    independent = next(c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "independence")
    assert {name.rpartition(".")[2] for name in independent["modules"]} == files
    for name in PASSES:
        item = pass_class(name)
        assert item.name == name
        assert item.summary
        assert item.__doc__


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_stay_small_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert text.startswith('"""')
    assert path.stem not in {"utils", "helpers", "common", "base"}


def test_nothing_names_this_workplace() -> None:
    # Written in pieces, so that this file does not hold what it forbids.
    words = ["/wo" + "rk/", "/tm" + "p/w", "farm-" + "bench", "/ro" + "ot/"]
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*"), *SOURCES]:
        if path.is_file():
            content = path.read_bytes()  # pictures too
            assert not [word for word in words if word.encode() in content], path


def test_version_is_in_the_changelog() -> None:
    from onnxprune import __version__

    assert re.search(rf"^## .*{re.escape(__version__)}", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


def test_public_names_are_importable() -> None:
    import onnxprune

    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = onnxprune.nothing
