"""A tiny checkpoint, saved once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "Wan-AI" / "Wan2.2-T2V-A14B-Diffusers"
    save_checkpoint(folder)
    return folder
