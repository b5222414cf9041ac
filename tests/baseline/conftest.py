"""The baseline's facts and their ledger, without any record and with the committed ones."""

from pathlib import Path

import pytest

from wanreport.analysis.frames import cached
from wanreport.baseline import load_facts
from wanreport.baseline.ledger import load_ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def facts():
    return load_facts()


@pytest.fixture(scope="session")
def ledger(facts):
    return load_ledger(facts)


@pytest.fixture(scope="session")
def committed_runs():
    return cached(("results",), ROOT)


@pytest.fixture(scope="session")
def measured(facts, committed_runs):
    return load_ledger(facts, committed_runs)
