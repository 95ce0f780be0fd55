#!/usr/bin/env python3
"""Times flash-linear-attention's chunk_simple_gla forward and backward, in sala-bench's columns.

usage: launch/bench_fla.py [--tokens 4K,8K,32K,128K,1M] [--heads 32] [--head-size 128]
                           [--documents 1] [--repeats 20]

Same work as sala-bench's `lightning`: one slope per head as g_gamma, no final state. Needs a GPU
and `pip install flash-linear-attention` beside torch and triton.
"""
import argparse
import statistics
import sys

from project_python import require

require("torch")
import torch

CACHE_BYTES = 256e6  # inputs smaller than this are made several times and used in turn
COLUMNS = ("ms", "MB", "GB/s", "% copy", "TFLOP/s", "% GEMM", "GiB")


def size(text):
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    value = int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)
    if value < 1:
        raise ValueError(text)
    return value


def sizes(text):
    return [size(word) for word in text.split(",")]


def size_text(value):
    for unit, letter in ((2**30, "G"), (2**20, "M"), (2**10, "K")):
        if value >= unit and value % unit == 0:
            return f"{value // unit}{letter}"
    return str(value)


def slopes(heads):
    """ALiBi's rule, as lightning_slopes in kernels/ops.h."""
    def power_of_two(n):
        return [2 ** (-8 * (h + 1) / n) for h in range(n)]
    whole = 1 << (heads.bit_length() - 1)
    return power_of_two(whole) + power_of_two(2 * whole)[0::2][:heads - whole]


def median_ms(prepare, num_bytes, repeats):
    """Of calls that follow each other; the GPU starts with other work, so the host is ahead."""
    calls = [prepare() for _ in range(min(32, max(1, round(CACHE_BYTES / num_bytes))))]
    kept = [None] * len(calls)
    for i in range(max(3, len(calls))):
        kept[i % len(calls)] = None
        kept[i % len(calls)] = calls[i % len(calls)]()
    busy = torch.empty(int(CACHE_BYTES), dtype=torch.uint8, device="cuda")
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    torch.cuda.synchronize()
    for _ in range(64):
        busy.zero_()
    events[0].record()
    for i in range(repeats):
        kept[i % len(calls)] = None
        kept[i % len(calls)] = calls[i % len(calls)]()
        events[i + 1].record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:]))


def peak_bytes(prepare):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    prepare()()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def copy_rate(repeats):
    def prepare():
        source = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    return 2 * 2**30 / median_ms(prepare, 2 * 2**30, repeats) * 1e3


def gemm_rate(repeats, n=8192):
    def prepare():
        a, b = (torch.randn(n, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        return lambda: a @ b
    return 2 * n**3 / median_ms(prepare, 2 * 2**30, repeats) * 1e3


def attention(chunk_simple_gla, shape, heads, backward):
    def prepare():
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, device="cuda", requires_grad=backward)
                   for _ in range(3))
        decay = -torch.tensor(slopes(heads), dtype=torch.float32, device="cuda")

        def forward():
            return chunk_simple_gla(q, k, v, g_gamma=decay, scale=shape[-1] ** -0.5)[0]
        if not backward:
            return forward
        o = forward()
        d_o = torch.randn_like(o)
        return lambda: torch.autograd.grad(o, (q, k, v), d_o, retain_graph=True)
    return prepare


def print_row(name, direction, shape, columns):
    widths = (9, 11, 8, 8, 10, 8, 9)
    print(f"{name:<21}{direction:<9}{shape:<20}" +
          "".join(f"{c:>{w}}" for c, w in zip(columns, widths)), flush=True)


def measure(chunk_simple_gla, args, tokens, heads, rates):
    values = tokens * heads * args.head_size
    shape = (args.documents, tokens // args.documents, heads, args.head_size)
    name = " x ".join(map(size_text, (tokens, heads, args.head_size)))
    for direction, tensors, products in (("fwd", 4, 2), ("bwd", 7, 5)):
        num_bytes, flops = tensors * values * 2, products * 2 * values * args.head_size
        try:
            prepare = attention(chunk_simple_gla, shape, heads, direction == "bwd")
            peak = peak_bytes(prepare)
            ms = median_ms(prepare, num_bytes, args.repeats)
        except torch.cuda.OutOfMemoryError:
            print_row("chunk_simple_gla", direction, name, ["skipped: does not fit in memory"])
            torch.cuda.empty_cache()
            continue
        byte_rate, flop_rate = num_bytes / ms * 1e3, flops / ms * 1e3
        print_row("chunk_simple_gla", direction, name, (
            f"{ms:.3f}", f"{num_bytes / 1e6:.1f}", f"{byte_rate / 1e9:.1f}",
            f"{100 * byte_rate / rates[0]:.1f}", f"{flop_rate / 1e12:.1f}",
            f"{100 * flop_rate / rates[1]:.1f}", f"{peak / 2**30:.2f}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=sizes, default="4K,8K,32K,128K,1M")
    parser.add_argument("--heads", type=sizes, default="32")
    parser.add_argument("--head-size", type=size, default=128)
    parser.add_argument("--documents", type=size, default=1, help="of equal length")
    parser.add_argument("--repeats", type=size, default=20)
    args = parser.parse_args()
    if any(tokens % args.documents for tokens in args.tokens):
        parser.error(f"--documents {args.documents}: expected sizes that are multiples of it")
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except Exception as error:  # it also fails where triton finds no driver
        print(f"bench_fla: flash-linear-attention cannot be imported ({error}); "
              "pip install flash-linear-attention", file=sys.stderr)
        return 1
    if not torch.cuda.is_available():
        print("bench_fla: no GPU was found", file=sys.stderr)
        return 1
    rates = copy_rate(args.repeats), gemm_rate(args.repeats)
    print(f"{torch.cuda.get_device_name()}, bf16\ncopy  {rates[0] / 1e9:>8.1f} GB/s, read + "
          f"written\nGEMM  {rates[1] / 1e12:>8.1f} TFLOP/s, n = 8192\n")
    print_row("op", "pass", "shape", COLUMNS)
    for heads in args.heads:
        for tokens in args.tokens:
            measure(chunk_simple_gla, args, tokens, heads, rates)
    return 0


if __name__ == "__main__":
    sys.exit(main())
