"""The frozen baseline document: its facts as data, its derived numbers as formulas."""

from wanreport.baseline.facts import Check, Fact, FactError, Facts, load_facts

__all__ = ["Check", "Fact", "FactError", "Facts", "load_facts"]
