"""Times the offload engines beside their peers, on the same blocks and shapes.

Each engine has processes of its own, one a rank, and with them all its memory goes. `resident` runs
first and last, which shows how far the machine drifted. With --turns all engines are in one process
and take turns there and back (A B B A), for gaps of a few per cent. Rows are written as they end.
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
from .rank import KNOWN, make_engine

DEFAULTS = {"cuda": ("3120,7800,14040,32760", 20), "cpu": ("27,40", 6)}  # tokens, blocks
DEPTHS = {"layerwise": (1, 3), "sglang": (1, 2)}  # 2 is SGLang's own choice for A14B
ENGINES_AND_PEERS = [
    label
    for name in KNOWN
    for label in ([f"{name}:prefetch={p}" for p in DEPTHS.get(name, ())] or [name])
]
LEAST = {"passes": 6, "warmup": 2, "ranks": 1, "blocks": 1, "turns": 0}
"""Fewer passes have no interval."""


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
    add("--compile", action="store_true", help="torch.compile on the segments")
    add("--passes", type=int, default=7, help="timed steps (default 7); on a GPU for 2 s or more")
    add("--warmup", type=int, default=2, help="steps before (default 2); on a GPU 2 s more")
    add("--turns", type=int, default=0, help="of each engine, all in one process; best even")
    add("--budget-minutes", type=float, default=math.inf, help="what is left then is not run")
    add("--json", type=Path, help="where the rows go, with raw samples; if it exists, the call goes"
        " on with it. Pages show what lies in results/MACHINE/benchmarks/")  # fmt: skip
    arguments = parser.parse_args(argv)
    tokens, blocks = DEFAULTS[arguments.device]
    arguments.blocks = blocks if arguments.blocks is None else arguments.blocks
    for key, least in LEAST.items():
        if getattr(arguments, key) < least:
            parser.error(f"--{key} {getattr(arguments, key)}: give at least {least}")
    try:
        arguments.tokens = sorted({int(n) for n in (arguments.tokens or tokens).split(",")})
    except ValueError:
        parser.error(f"--tokens {arguments.tokens}: give numbers, as in 3120,7800")
    for n in arguments.tokens:
        if n < 1 or max(grid(n)) > 1024:  # what rotary embeddings reach
            parser.error(f"--tokens {n}: no video has this many; give a multiple of 1560")
    try:
        for label in arguments.engines:
            make_engine(label)
    except ValueError as error:
        parser.error(f"--engines {error}")
    if arguments.device == "cuda" and arguments.ranks > gpus:
        parser.error(f"--ranks {arguments.ranks}: torch sees {gpus} GPUs here")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    campaign = Campaign(arguments)
    try:
        if arguments.json and arguments.json.exists():
            campaign.resume(arguments.json)
    except (FileError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        campaign.run()
    except KeyboardInterrupt:
        print("interrupted; the same call goes on with what --json has", file=sys.stderr)
        return 130
    return 1 if campaign.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
