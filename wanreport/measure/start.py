"""Starts a rank: ``python -m wanreport.measure.start MODULE OUT`` in torchrun, or in a fork.

Python looks for no garbage while it imports: there is none, and looking took a quarter of the time.
"""

import gc
import importlib
import os
import sys

gc.disable()


def start(module: str, out: str, rank: int, world_size: int) -> None:
    """Import a rank's module, unless the process that was forked had, and run it."""
    imported = importlib.import_module(module)
    gc.freeze()  # what a fork shares stays shared if nobody counts it
    gc.enable()
    imported.main(out, rank, world_size)


if __name__ == "__main__":
    module, out = sys.argv[1:]
    start(module, out, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
