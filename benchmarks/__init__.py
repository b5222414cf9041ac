"""Side-by-side timings of wanreport's engines and their peers: ``python -m benchmarks --help``."""
