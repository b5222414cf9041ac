"""wanreport: what it costs to stream the weights of Wan2.2-T2V-A14B, measured and reported."""

__version__ = "0.1.0"
