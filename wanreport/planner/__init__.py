"""Chooses the settings of the `stream` engine: cost model, search, probe."""
