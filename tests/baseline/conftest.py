"""The baseline's facts and their ledger, without any record and with the committed ones."""

import pytest
import synthetic

from wanreport.baseline import load_facts
from wanreport.baseline.ledger import load_ledger


@pytest.fixture(scope="session")
def facts():
    return load_facts()


@pytest.fixture(scope="session")
def ledger(facts):
    return load_ledger(facts)


@pytest.fixture(scope="session")
def committed_runs():
    return synthetic.committed()


@pytest.fixture(scope="session")
def measured(facts, committed_runs):
    return load_ledger(facts, committed_runs)
