"""Starts ranks, times them and describes the machine."""
