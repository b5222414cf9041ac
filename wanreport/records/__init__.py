"""The files that measuring writes and reports read."""
