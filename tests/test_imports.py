"""Imports run one way: synth <- label <- train <- ray_jobs. Read from the sources, so that an import inside a
function counts too."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ("synth", "label", "train", "ray_jobs")  # each may import those before it
ENGINES = {"ray", "lance", "lance_ray", "vllm"}
FORBIDDEN = {"synth": ENGINES | {"torch"}, "label": ENGINES | {"torch"}, "train": ENGINES, "ray_jobs": set()}


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            yield node.module or "", node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            told = node.args[0]
            yield told.value if isinstance(told, ast.Constant) else "", node.lineno


@pytest.mark.parametrize("package", HOUSE)
def test_a_package_imports_only_what_stands_before_it(package: str):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    above = set(HOUSE[HOUSE.index(package) + 1 :]) | FORBIDDEN[package]
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in files
        for module, line in imported(file)
        if module.partition(".")[0] in above
    ]
    assert wrong == []


def test_the_policies_are_data_and_import_nothing():
    assert [found for file in (ROOT / "policies").rglob("*.py") for found in imported(file)] == []


def test_an_import_inside_a_function_is_seen(tmp_path: Path):
    file = tmp_path / "lazy.py"
    file.write_text("def work():\n    import ray.data\n    from torch import nn\n")
    assert list(imported(file)) == [("ray.data", 2), ("torch", 3)]


LOADED = "import sys, json; print(json.dumps(sorted({'torch', 'ray', 'lance', 'vllm', 'sklearn'} & set(sys.modules))))"


@pytest.mark.parametrize(
    ("started", "allowed"),
    [
        ("import ray_jobs.cli; ray_jobs.cli.parser()", set()),
        ("import ray_jobs.store", set()),
        (
            "import ray_jobs.cli; assert ray_jobs.cli.main(['data', 'ls', '--root', 'nowhere']) == 0",
            {"lance"},
        ),
    ],
    ids=["the command line", "the store", "guardmill data ls"],
)
def test_what_only_looks_loads_neither_torch_nor_ray(started: str, allowed: set[str], tmp_path: Path):
    told = subprocess.run(
        [sys.executable, "-c", f"{started}\n{LOADED}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert set(json.loads(told.stdout.splitlines()[-1])) <= allowed
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind
