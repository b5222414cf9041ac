"""The table of faults is whole, and the page in docs/ is what it gives."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.table import FAULTS, PAGE, TESTS, page

ROOT = TESTS.parent


def test_the_page_is_what_the_table_gives() -> None:
    assert PAGE.read_text("utf-8") == page(), "python -m tests.faults.table writes it"


def test_every_test_has_a_row_and_every_row_a_test() -> None:
    rows = [fault.test for faults in FAULTS.values() for fault in faults]
    here = {
        f"{file.name}::{node.name}"
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(file.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    ours = {f"{Path(__file__).name}::{name}" for name in globals() if name.startswith("test_")}
    named = {row for row in rows if "::" in row}
    assert named <= here and here - ours <= named
    assert all((TESTS / row).is_file() for row in rows if "::" not in row)


def test_every_read_and_write_names_its_encoding() -> None:
    """A locale that is not UTF-8 would change what is read, or end in a traceback."""
    bare = []
    for folder in ("wanreport", "benchmarks", "tools", "slurm", "notebooks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8")))
                     if isinstance(node, ast.Call)]  # fmt: skip
            bare += [f"{file}:{call.lineno}" for call in calls if not _says(call)]
    assert bare == []


def _says(call: ast.Call) -> bool:
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
