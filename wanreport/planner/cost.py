"""What the settings of the `stream` engine cost: loads, device memory and time.

The time of a pass is made of windows, in which only this rank computes, of collectives, and of what
lies outside the blocks. Loads run beside all that. While one is in flight a window takes ω times as
long and a collective κ times; bytes arrive at a rate r in windows and at r' ≤ r in collectives,
with which they may share the link. With W and C for the seconds of windows and collectives of a
pass without loads, a pass that loads all the time

    takes A = ωW + κC   and brings   M = rωW + r'κC bytes.

A pass that has to bring D bytes takes

    W + C + (A − W − C) · D / M       for D ≤ M: loads are in flight for D / M of the pass
    A + (D − M) / r                   for D > M: compute waits for the rest

and where loads keep to the windows, which hold V = rωW of it,

    W + C + (ω − 1) W · D / V             for D ≤ V: no collective is disturbed
    ωW + C + (κ − 1) C · (D − V)/(M − V)  for V < D ≤ M: the rest goes into collectives
    ωW + C + (D − V) / r                  for V < D, if it is better to wait for the rest

and the same as above beyond M. It is better to wait where a byte that goes into a collective costs
more than 1/r, that is where (κ − 1) r > κr'. A pass never takes less than W + C, nor than D / r.

Of packed blocks D are the packed bytes, and ω was measured while blocks were unpacked too.
"""

from pydantic.dataclasses import dataclass

from wanreport.jobs.settings import RING, StreamSettings


@dataclass(frozen=True, config={"extra": "forbid"})
class Route:
    """A way for blocks to reach the device, as measured with all ranks loading at once."""

    rate: float  # bytes of a block that arrive in a second, with nothing else running, ...
    collective_rate: float  # ... and while a collective is in flight
    window_factor: float = 1.0  # how many times as long a window takes beside a load, ...
    collective_factor: float = 1.0  # ... and a collective

    @property
    def spills(self) -> bool:
        """Whether a byte that fits into no window costs less in a collective than to wait for."""
        factor = self.collective_factor
        return (factor - 1) * self.rate <= factor * self.collective_rate


@dataclass(frozen=True, config={"extra": "forbid"})
class Inputs:
    """What a prediction rests on: sizes, and what was measured at the job's shape."""

    blocks: int  # of one expert
    block_bytes: int
    outer_bytes: int  # of all outside its blocks
    ranks: int  # that share a video
    branches: int  # of a step
    steps: int  # of the schedule
    windows_s: tuple[float, float, float]  # one branch's in one block, (pre, attend, post), …
    collectives_s: float  # … and its two all-to-alls, both without loads
    other_s: float  # of a pass outside its blocks
    link: float  # bytes a second from pinned memory to one device that copies alone
    local: Route  # of whole blocks
    sharded: Route | None = None  # of parts that the ranks gather; None with a single rank
    activation_bytes: int = 0  # device memory at the peak beside the weights
    device_bytes: int | None = None  # the device's; None where that does not bound anything
    transfer: str = "bf16"  # how blocks crossed the link, …
    packed_bytes: int | None = None  # … in how many bytes, where that is not as they are
    unpack_s: float = 0.0  # of unpacking one with nothing else running

    def route(self, settings: StreamSettings) -> Route:
        return self.sharded if settings.shard and self.sharded else self.local

    def sent(self, settings: StreamSettings) -> int:
        """Bytes of a block on the link."""
        return self.packed_bytes if settings.packs and self.packed_bytes else self.block_bytes

    def visits(self, settings: StreamSettings) -> int:
        """Visits of blocks by a branch, in one pass."""
        return self.blocks * min(settings.branches_per_visit, self.branches)


@dataclass(frozen=True)
class Prediction:
    """Seconds of a steady step, of the first and of the switch, and bytes on the device."""

    step_s: float
    first_s: float
    switch_s: float
    limit_s: float  # the longer of computing with all weights there and moving a step's bytes
    weights_bytes: int  # all that the engine holds
    device_bytes: int  # also what the computation needs

    def total(self, steps: int) -> float:
        """Seconds of a whole schedule."""
        return self.first_s + self.switch_s + max(steps - 2, 0) * self.step_s


def predict(inputs: Inputs, settings: StreamSettings) -> Prediction:
    """What a job costs with these settings.

    A steady pass brings the blocks that share a slot. The first one brings all blocks of its
    expert, and so does the switch, less what the pass before had time for: loads go out in order
    of use, so that is nothing unless no block of its own expert has to move any more.
    """
    blocks, sent, packs = inputs.blocks, inputs.sent(settings), settings.packs
    passes = inputs.blocks * inputs.branches // inputs.visits(settings)
    windows, collectives, _, most = _capacity(inputs, settings)
    moving, expert = settings.moving(blocks) * sent, blocks * sent
    steady = pass_seconds(inputs, settings, moving)
    rest = (passes - 1) * steady + passes * inputs.other_s
    first = sent / inputs.route(settings).rate + packs * inputs.unpack_s
    share = inputs.ranks if settings.shard else 1
    weights = 2 * inputs.outer_bytes
    for buffers, nbytes in ((settings.buffers(blocks), inputs.block_bytes), (RING * packs, sent)):
        weights += buffers * -(-nbytes // share) * share
    compute = windows + collectives + inputs.other_s
    return Prediction(
        step_s=steady + rest,
        first_s=pass_seconds(inputs, settings, expert) + first + rest,
        switch_s=pass_seconds(inputs, settings, expert if moving else max(expert - most, 0)) + rest,
        limit_s=passes * max(compute, moving / share / inputs.link),
        weights_bytes=weights, device_bytes=weights + inputs.activation_bytes,
    )  # fmt: skip


def _capacity(inputs: Inputs, settings: StreamSettings) -> tuple[float, float, float, float]:
    """W and C of a pass, in seconds, and V and M, in bytes."""
    route, visits = inputs.route(settings), inputs.visits(settings)
    windows, collectives = visits * sum(inputs.windows_s), visits * inputs.collectives_s
    held = route.rate * route.window_factor * windows
    most = held + route.collective_rate * route.collective_factor * collectives
    return windows, collectives, held, most


def pass_seconds(inputs: Inputs, settings: StreamSettings, nbytes: float) -> float:
    """Seconds of the blocks of a pass that has to bring ``nbytes``: the module's formulas."""
    route = inputs.route(settings)
    windows, collectives, held, most = _capacity(inputs, settings)
    alone, timed = windows + collectives, settings.windows is not None
    slow_windows = (route.window_factor - 1) * windows
    slow_collectives = (route.collective_factor - 1) * collectives
    if timed and nbytes <= held:
        return alone + slow_windows * nbytes / held
    if timed and not route.spills:
        return alone + slow_windows + (nbytes - held) / route.rate
    if nbytes > most:
        return alone + slow_windows + slow_collectives + (nbytes - most) / route.rate
    if timed:
        return alone + slow_windows + slow_collectives * (nbytes - held) / (most - held)
    return alone + (slow_windows + slow_collectives) * nbytes / most
