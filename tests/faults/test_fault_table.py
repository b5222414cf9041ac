"""docs/faults.md is whole: the faults, what is promised, and which test sees to it."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
ROW = re.compile(r"\| `make (test|faults)`(, on a GPU)?: \[(.+)\]\(\.\./tests/(.+)\) \|$", re.M)


def test_every_row_names_a_test_and_how_to_run_it_and_every_test_has_a_row():
    page = (ROOT / "docs/faults.md").read_text("utf-8")
    rows = ROW.findall(page)
    assert len(rows) == sum(line[:2] == "| " for line in page.splitlines()) - page.count("## ")
    here, ours = dict[str, tuple[str, str, str]](), Path(__file__).name
    for file in Path(__file__).parent.glob("test_*.py"):
        tree = ast.parse(file.read_text("utf-8")).body
        whole = [ast.unparse(node) for node in tree if isinstance(node, ast.Assign)]
        for node in tree:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = " ".join([*map(ast.unparse, node.decorator_list), *whole])
                when = "faults" if "mark.faults" in marks else "test"
                gpu = ", on a GPU" if "mark.gpu" in marks else ""
                here[node.name] = when, gpu, f"faults/{file.name}"
    named = {name: (*when, file) for *when, name, file in rows if name != file}
    assert {name: here.get(name) for name in named} == named
    assert {name for name, (*_, file) in here.items() if ours not in file} <= {*named}
    assert all((TESTS / file).is_file() for *_, name, file in rows if name == file)


def test_every_read_and_write_names_its_encoding():
    """A locale that is not UTF-8 would change what is read, or end in a traceback."""
    bare = []
    for folder in ("wanreport", "benchmarks", "tools", "slurm", "notebooks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8")))
                     if isinstance(node, ast.Call)]  # fmt: skip
            bare += [f"{file}:{call.lineno}" for call in calls if not _says(call)]
    assert bare == []


def _says(call):
    """Whether a call is none of those that open a text, or names the encoding."""
    if ast.unparse(call.func) == "os.open":
        return True
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    words = [ast.unparse(each) for each in call.args]
    if "encoding" in {key.arg for key in call.keywords}:
        return True
    if name in ("read_text", "write_text"):
        return len(words) > (name == "write_text")
    if name == "open":
        return any("b" in word for word in words if word[0] in "'\"")
    return not {"text", "universal_newlines"} & {str(key.arg) for key in call.keywords}
