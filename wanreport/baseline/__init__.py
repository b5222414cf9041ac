"""The frozen baseline document: its facts as data, and the ledger that judges them."""
