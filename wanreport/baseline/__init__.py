"""The frozen baseline document: its facts as data, and the ledger that judges them."""

from wanreport.baseline.facts import Fact, FactError, Facts, load_facts

__all__ = ["Fact", "FactError", "Facts", "load_facts"]
