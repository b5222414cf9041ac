"""The baseline's facts and their ledger, without any record and with the committed ones."""

from pathlib import Path

import pytest

from wanreport.analysis.frames import Frames, cached
from wanreport.baseline import Facts, load_facts
from wanreport.baseline.ledger import Ledger, load_ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def facts() -> Facts:
    return load_facts()


@pytest.fixture(scope="session")
def ledger(facts: Facts) -> Ledger:
    return load_ledger(facts)


@pytest.fixture(scope="session")
def committed_runs() -> Frames:
    return cached(("results",), ROOT)


@pytest.fixture(scope="session")
def measured(facts: Facts, committed_runs: Frames) -> Ledger:
    return load_ledger(facts, committed_runs)
