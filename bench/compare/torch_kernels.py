"""PyTorch's attention and products on the shapes of `cuda_bench`, on the same GPU: contiguous keys and values, which is the best case
for it. Prints the JSON lines of the benchmarks. Needs a GPU and PyTorch; says so when there is none."""
import argparse
import json
import statistics
import sys
import time


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed")
        return 1
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU")
        return 1

    def seconds(work):
        work()
        torch.cuda.synchronize()
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            for _ in range(10):
                work()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - begin) / 10)
        return statistics.median(times)

    def report(name, case, value, unit):
        result = {"id": name, "case": case, "value": value, "unit": unit, "ceiling": 0, "ratio": 0}
        print(json.dumps(result) if arguments.json else f"{name} {case}: {value:.4g} {unit}", flush=True)

    kv_heads, group, dim = 8, 4, 128
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    attend = lambda q, k, v, causal: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    for batch, context in ((32, 4096), (32, 32768), (256, 4096), (256, 16384), (1, 1024), (1, 4096), (1, 32768)):
        q, k, v = make(batch, kv_heads * group, 1, dim), make(batch, kv_heads, context, dim), make(batch, kv_heads, context, dim)
        taken = seconds(lambda: attend(q, k, v, False))
        report("a6" if batch > 1 else "a7", f"torch SDPA decode, {batch} x {context} tokens, {taken * 1e6:.1f} us",
               2 * k.numel() * 2 / taken / 1e9, "GB/s")
        del q, k, v
    for tokens in (1024, 4096, 16384):
        q, k, v = make(1, kv_heads * group, tokens, dim), make(1, kv_heads, tokens, dim), make(1, kv_heads, tokens, dim)
        taken = seconds(lambda: attend(q, k, v, True))
        report("a9", f"torch SDPA causal, {tokens} tokens", 4 * kv_heads * group * dim * tokens * (tokens + 1) / 2 / taken / 1e12, "TFLOP/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
