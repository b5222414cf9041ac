"""Ulysses sequence parallelism on torch.distributed.

Each rank holds a slice of the token sequence. Around self-attention two all-to-alls change the
layout: before it every rank gives its tokens of all heads and gets all tokens of its heads; after
it the way back. A final all-gather puts the sequence together again (Jacobs et al.,
arXiv:2309.14509). Tokens and heads are split as evenly as they go and need not divide the number
of ranks: 40 heads over 6 ranks are 7, 7, 7, 7, 6, 6.

With CFG parallelism there are two such groups, one for each branch of guidance, which meet in pairs
once a step: rank r of N runs the cond branch for r < N/2 and the uncond branch else, as in SGLang.

    cond     0 ⇄ 1    all-to-alls within a row
    uncond   2 ⇄ 3    0 and 2 exchange predictions, and so do 1 and 3
"""

import torch
import torch.distributed as dist
from torch import Tensor


def split_sizes(total: int, parts: int) -> list[int]:
    """Sizes of ``parts`` slices of ``total`` items, the first ones one larger where needed."""
    base, extra = divmod(total, parts)
    return [base + (i < extra) for i in range(parts)]


def cfg_groups() -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Split all ranks for CFG parallelism; every rank must call it, or gets ValueError if odd.

    Returns the group that shares this rank's branch, and the pair of this rank and its like of the
    other branch, cond's first.
    """
    size, rank = dist.get_world_size(), dist.get_rank()
    half, odd = divmod(size, 2)
    if odd:
        raise ValueError(f"CFG parallelism needs an even number of ranks, not {size}")
    rows = [dist.new_group(list(range(first, first + half))) for first in (0, half)]
    pairs = [dist.new_group([one, one + half]) for one in range(half)]
    return rows[rank // half], pairs[rank % half]


class SequenceParallel:
    """The layout changes of a group of ranks that share a sequence; the identity for one rank."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = dist.get_world_size(group) if group is not None else 1
        self.rank = dist.get_rank(group) if group is not None else 0

    def shard(self, x: Tensor, dim: int) -> Tensor:
        """This rank's slice of ``x`` along ``dim``, contiguous."""
        return x.tensor_split(self.size, dim)[self.rank].contiguous()

    def _exchange(self, send: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """An all-to-all of flat messages, so many elements to and from each rank."""
        recv = send.new_empty(sum(received))
        dist.all_to_all_single(recv, send, received, sent, group=self.group)
        return recv

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor, tokens: int) -> tuple[Tensor, ...]:
        """From all heads of this rank's tokens to this rank's heads of all ``tokens``.

        q, k and v are ``[batch, tokens of this rank, heads, head_dim]``, and come back as
        ``[batch, tokens, heads of this rank, head_dim]``.
        """
        if self.size == 1:
            return q, k, v
        batch, local, heads, dim = q.shape
        head_sizes, token_sizes = split_sizes(heads, self.size), split_sizes(tokens, self.size)
        mine, row = head_sizes[self.rank], batch * 3 * dim
        # Tokens lead in each message, so what arrives is in sequence order without a copy.
        packed = torch.stack((q, k, v), dim=2).transpose(0, 1)  # [local, batch, 3, heads, dim]
        send = torch.cat([part.reshape(-1) for part in packed.split(head_sizes, dim=3)])
        recv = self._exchange(
            send, [local * n * row for n in head_sizes], [n * mine * row for n in token_sizes]
        )
        return recv.view(tokens, batch, 3, mine, dim).transpose(0, 1).unbind(2)

    def to_tokens(self, out: Tensor, heads: int) -> Tensor:
        """From this rank's heads of all tokens back to all ``heads`` of this rank's tokens.

        ``[batch, tokens, heads of this rank, head_dim]`` becomes ``[batch, tokens of this rank,
        heads, head_dim]``.
        """
        if self.size == 1:
            return out
        batch, tokens, mine, dim = out.shape
        head_sizes, token_sizes = split_sizes(heads, self.size), split_sizes(tokens, self.size)
        local, row = token_sizes[self.rank], batch * dim
        send = out.transpose(0, 1).reshape(-1)  # sequence order is message order
        sizes = [local * n * row for n in head_sizes]
        recv = self._exchange(send, [n * mine * row for n in token_sizes], sizes)
        rows = zip(recv.split(sizes), head_sizes, strict=True)
        parts = [part.view(local, batch, n, dim) for part, n in rows]
        return torch.cat(parts, dim=2).transpose(0, 1)

    def gather(self, x: Tensor, dim: int, total: int) -> Tensor:
        """The whole of what `shard` cut along ``dim``, ``total`` long, on every rank."""
        if self.size == 1:
            return x
        sizes = split_sizes(total, self.size)
        x = x.transpose(0, dim)
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = padded.new_empty(self.size * max(sizes), *x.shape[1:])
        # Padding to equal parts: neither NCCL nor gloo gathers unequal ones in one call.
        dist.all_gather_into_tensor(parts, padded, group=self.group)
        rows = parts.split(max(sizes))
        whole = torch.cat([part[:n] for part, n in zip(rows, sizes, strict=True)])
        return whole.transpose(0, dim).contiguous()
