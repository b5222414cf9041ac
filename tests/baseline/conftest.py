"""The ledger without any record, and with the committed ones."""

import pytest
import synthetic

from wanreport.baseline.ledger import load_ledger


@pytest.fixture(scope="session")
def ledger():
    return load_ledger()


@pytest.fixture(scope="session")
def measured():
    return load_ledger(frames=synthetic.committed())
