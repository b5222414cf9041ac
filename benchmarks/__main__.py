"""Times the offload engines beside their peers, on the same blocks and shapes.

Each engine has processes of its own, one a rank. `resident` runs first and last, to show how far
the machine drifted. With --turns all engines are in one process and take turns there and back
(A B B A), for gaps of a few per cent. Rows are written as they end.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from wanreport.records.files import FileError

from .campaign import Campaign, grid
from .rank import make_engine

DEFAULTS = {"cuda": ("3120,7800,14040,32760", 20), "cpu": ("27,40", 6)}  # tokens, blocks
ENGINES_AND_PEERS = [
    "resident", "swap", "fsdp", "layerwise:prefetch=1", "layerwise:prefetch=3", "stream", "planned",
    "diffusers", "sglang:prefetch=1", "sglang:prefetch=2",
]  # fmt: skip
"""2 is SGLang's own choice for A14B."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--device", choices=tuple(DEFAULTS), default="cuda" if gpus else "cpu",
        help="cpu: small widths, bits only, no times")  # fmt: skip
    add("--ranks", type=int, default=1, help="Ulysses ranks, one GPU each (default 1)")
    add("--tokens", metavar="N,N,…", help="lengths of the sequence")
    add("--blocks", type=int, help="blocks of the expert; A14B has 40 (default 20)")
    add("--branches", type=int, choices=(1, 2), default=1, help="2: a step with guidance")
    add("--engines", nargs="+", metavar="NAME[:KEY=VALUE,…]", default=ENGINES_AND_PEERS,
        help="default: " + " ".join(ENGINES_AND_PEERS))  # fmt: skip
    add("--sglang", metavar="DIR", help="folder of its package, if it is not installed")
    add("--turns", type=int, default=0, help="of each engine, all in one process; best even")
    add("--budget-minutes", type=float, default=math.inf, help="what is left then is not run")
    add("--json", type=Path, help="where the rows go; a call goes on with what is there")
    given = parser.parse_args(argv)
    tokens, blocks = DEFAULTS[given.device]
    given.blocks = blocks if given.blocks is None else given.blocks
    try:
        for key, least in (("ranks", 1), ("blocks", 1), ("turns", 0)):
            if getattr(given, key) < least:
                raise ValueError(f"--{key} {getattr(given, key)}: give at least {least}")
        if given.device == "cuda" and given.ranks > gpus:
            raise ValueError(f"--ranks {given.ranks}: torch sees {gpus} GPUs here")
        given.tokens = sorted({int(n) for n in (given.tokens or tokens).split(",")})
        for n in given.tokens:
            if n < 1 or max(grid(n)) > 1024:  # what rotary embeddings reach
                raise ValueError(f"--tokens {n}: no video has this many; give a multiple of 1560")
        for label in given.engines:
            if make_engine(label).transfer == "fp8" and not given.turns:
                raise ValueError(f"{label} is not exact; give --turns, to see by how much")
    except ValueError as error:
        parser.error(str(error))
    return given


def main(argv: Sequence[str] | None = None) -> int:
    given = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return Campaign(given).run()
    except (FileError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same call goes on from --json", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
