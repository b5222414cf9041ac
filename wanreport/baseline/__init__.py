"""The frozen baseline document: its facts as data, and the ledger that judges them."""

from wanreport.baseline.facts import Fact, Facts, load_facts
from wanreport.baseline.formulas import FactError

__all__ = ["Fact", "FactError", "Facts", "load_facts"]
