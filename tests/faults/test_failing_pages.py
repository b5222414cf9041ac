"""A page that cannot be made costs no other page."""

import os
import signal

from tests.faults.scene import Scene, gone, until

JOB = """
# %% tags=["parameters"]
name = None
# %%
import os, signal
from pathlib import Path
from wanreport.report import notebook
if Path(name).exists():
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise OSError(28, "No space left on device", name)
notebook.md(f"# {name}\\n\\nAll is well.")
"""
SLOW = """
# %%
import os, subprocess, time
from pathlib import Path
child = subprocess.Popen(["sleep", "600"])
Path("part").write_text(str(child.pid))
os.rename("part", "pid")
time.sleep(600)
"""


def test_a_page_that_fails(tmp_path):
    scene = Scene(tmp_path)
    (scene.root / "notebooks/index.py").write_text("# %% [markdown]\n# # Summary\n")
    (scene.root / "notebooks/job.py").write_text(JOB)
    for name in ("fine", "killed", "odd"):
        scene.job(name, folder="params/baseline")
    for name in ("killed", "odd"):
        (scene.root / name).touch()
    code, _, err = scene.run("wanreport", "report", "--no-measure")
    assert code == 1
    made = {path.stem: path for path in (scene.root / "reports").rglob("*.html")}
    assert {*made} == {"index", "fine", "killed", "odd"}
    for name, what in (("killed", "SIGKILL"), ("odd", "No space left on device")):
        (line,) = [line for line in err.splitlines() if f"/{name}.html" in line]
        assert what in line and what in made[name].read_text("utf-8")
    before = {name: path.stat().st_mtime_ns for name, path in made.items()}
    for name in ("killed", "odd"):
        (scene.root / name).unlink()
    assert scene.run("wanreport", "report", "--no-measure")[0] == 0
    again = {name for name, path in made.items() if path.stat().st_mtime_ns != before[name]}
    assert again == {"killed", "odd"}


def test_a_signal_while_a_page_is_made(tmp_path):
    scene = Scene(tmp_path)
    (scene.root / "notebooks/index.py").write_text(SLOW)
    process = scene.start("wanreport", "report", "--no-measure")
    until((scene.root / "pid").exists)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err
    assert gone([int((scene.root / "pid").read_text())])
    assert not (scene.root / "reports/index.html").exists()
    assert scene.left_over() == []
