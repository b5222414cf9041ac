"""What every test shares: skips that give their reason, and a machine that is not overrun."""

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tests run side by side and start several ranks each; one thread a process keeps that bearable.
# Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

gc.disable()  # until all is imported: that is no garbage, and looking for it takes long

# How long an example takes depends on what else runs: it says nothing about the code.
settings.register_profile("here", deadline=None)
settings.load_profile("here")

CHROMIUM = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
TOGETHER = {name: name for name in ("baseline", "test_notebooks", "test_pictures", "test_render",
                                   "test_sglang_import")}  # fmt: skip
# Their jobs are forked from one server, which takes seconds to start.
TOGETHER |= dict.fromkeys(["test_jobs", "test_launch", "test_checkpoint", "test_benchmarks"],
                          "jobs")  # fmt: skip
"""What shares a dear fixture and so runs on one worker, by folder or file."""
REQUIRE_PAGES = os.environ.get("WANREPORT_REQUIRE_PAGES") == "1"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests go first, so that no worker is left with one while the others have ended.

    Tests that share a dear fixture run on one worker.
    """
    for item in items:
        for name in {item.path.parent.name, item.path.stem} & TOGETHER.keys():
            item.add_marker(pytest.mark.xdist_group(TOGETHER[name]))
    items.sort(key=lambda item: [not item.get_closest_marker(name) for name in ("slurm", "slow")])


def pytest_collection_finish() -> None:
    """Look for garbage again, and not among what was imported, which ranks share after a fork."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip `gpu` and `browser` tests, with a reason, where what they need is not there."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU; torch sees none")
    if item.get_closest_marker("browser") and not REQUIRE_PAGES:  # then the fixture fails instead
        if CHROMIUM is None:
            pytest.skip("needs Chromium; no chromium on the PATH")
        pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, which is the current folder."""
    for folder in ("notebooks", "params/baseline"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """An installed Chromium, headless, driven by playwright."""
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "no chromium on the PATH"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu"])
        yield chromium
        chromium.close()
