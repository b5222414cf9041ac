"""Turns records into tidy DataFrames, and DataFrames into answers. Imports no torch and no HTML."""
