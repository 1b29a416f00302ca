"""Quantised forms of a linear weight, in numpy, as checkpoints on the Hub store them: tensors of the stored form, and the values they
stand for. Written from what the formats say (not from their libraries, which make_quantized_checkpoints.py --verify compares with).

Every form is a function of (name, weight float32 [n, k], generator) that returns ({tensor name: array}, values float32 [n, k]).
bfloat16 and float8 arrays are wrapped as torch tensors, which numpy does not have.
"""

import hashlib
import re

import numpy as np
import torch

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word is output AWQ_ORDER[i] of its eight


def stored(scale, dtype):
    """A scale as the checkpoint rounds it: the stored tensor, and its float32 values."""
    tensor = torch.from_numpy(np.ascontiguousarray(scale, dtype=np.float32)).to(getattr(torch, dtype))
    return tensor, tensor.float().numpy()


def group_index(k, group, shuffled, generator):
    plain = np.arange(k) // (k if group == -1 else group)
    return generator.permutation(plain) if shuffled else plain


def affine(weight, index, bits, symmetric, dtype):
    """codes 0 .. 2^bits - 1 [n, k]; scales and zeros [n, groups]."""
    n, groups, top = weight.shape[0], int(index.max()) + 1, 2**bits - 1
    scales, zeros = np.zeros((n, groups), np.float32), np.zeros((n, groups), np.int64)
    for g in range(groups):
        part = weight[:, index == g]
        if symmetric:
            scales[:, g] = np.maximum(np.abs(part).max(1), 1e-6) / (2 ** (bits - 1) - 0.5)
            zeros[:, g] = 2 ** (bits - 1)
        else:
            low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
            scales[:, g] = np.maximum(high - low, 1e-6) / top
            zeros[:, g] = np.clip(np.round(-low / scales[:, g]), 1, top)  # a zero of 0 has no place in GPTQ's first format
    tensor, scales = stored(scales, dtype)
    codes = np.clip(np.round(weight / scales[:, index]) + zeros[:, index], 0, top).astype(np.int64)
    return codes, tensor, zeros, scales[:, index] * (codes - zeros[:, index]).astype(np.float32)


def words(numbers, bits, axis):
    """int32 words along an axis, the first number in the lowest bits, the last word filled with zeros."""
    numbers = np.moveaxis(numbers, axis, -1)
    per_word = 32 // bits
    padded = np.zeros(numbers.shape[:-1] + (-(-numbers.shape[-1] // per_word) * per_word,), np.uint64)
    padded[..., : numbers.shape[-1]] = numbers
    parts = padded.reshape(padded.shape[:-1] + (-1, per_word))
    packed = (parts << (np.arange(per_word, dtype=np.uint64) * np.uint64(bits))).sum(-1, dtype=np.uint64)
    return np.ascontiguousarray(np.moveaxis(packed.astype(np.uint32).view(np.int32), -1, axis))


def gptq(bits, group, symmetric=True, shuffled=False, version=1, with_index=True, dtype="float16"):
    def form(name, weight, generator):
        if shuffled:  # projections of one input have one order, as they have one Hessian
            source = re.sub("q_proj|k_proj|v_proj|gate_proj|up_proj", "in", name)
            generator = np.random.default_rng(int(hashlib.sha256(source.encode()).hexdigest()[:8], 16))
        index = group_index(weight.shape[1], group, shuffled, generator)
        codes, scales, zeros, values = affine(weight, index, bits, symmetric, dtype)
        tensors = {"qweight": words(codes.T, bits, 0), "qzeros": words(zeros.T - (1 if version == 1 else 0), bits, 1),
                   "scales": scales.T.contiguous()}
        if with_index:
            tensors["g_idx"] = index.astype(np.int32)
        return {f"{name}.{key}": value for key, value in tensors.items()}, values

    return form


def awq(group):
    def form(name, weight, generator):
        index = group_index(weight.shape[1], group, False, generator)
        codes, scales, zeros, values = affine(weight, index, 4, False, "float16")

        def interleaved(numbers):
            return words(numbers.reshape(numbers.shape[0], -1, 8)[:, :, AWQ_ORDER].reshape(numbers.shape), 4, 1)

        return {f"{name}.qweight": interleaved(codes.T), f"{name}.qzeros": interleaved(zeros.T),
                f"{name}.scales": scales.T.contiguous()}, values

    return form


def packed(bits, group, symmetric=True, shuffled=False):
    """pack-quantized of compressed-tensors."""

    def form(name, weight, generator):
        index = group_index(weight.shape[1], group, shuffled, generator)
        codes, scales, zeros, values = affine(weight, index, bits, symmetric, "bfloat16")
        tensors = {"weight_packed": words(codes, bits, 1), "weight_scale": scales, "weight_shape": np.array(weight.shape, np.int64)}
        if not symmetric:
            tensors["weight_zero_point"] = words(zeros, bits, 0)
        if shuffled:
            tensors["weight_g_idx"] = index.astype(np.int32)
        return {f"{name}.{key}": value for key, value in tensors.items()}, values

    return form


def int8(symmetric=True, whole=False):
    """int-quantized and naive-quantized of compressed-tensors: a scale per output, or one for all."""

    def form(name, weight, generator):
        flat = weight.reshape(1, -1) if whole else weight
        codes, scales, zeros, values = affine(flat, np.zeros(flat.shape[1], np.int64), 8, symmetric, "bfloat16")
        tensors = {"weight": (codes.reshape(weight.shape) - 128).astype(np.int8), "weight_scale": scales[0] if whole else scales}
        if not symmetric:
            tensors["weight_zero_point"] = ((zeros[0] if whole else zeros) - 128).astype(np.int8)
        return {f"{name}.{key}": value for key, value in tensors.items()}, values.reshape(weight.shape)

    return form


def fp8(rows, cols, dtype="float32", scale_name="weight_scale", shape=None, extras=()):
    """float8 e4m3 with a scale for blocks of rows x cols (-1 = all); `shape` is what the scales' tensor is called to be."""

    def form(name, weight, generator):
        n, k = weight.shape
        block_rows, block_cols = n if rows == -1 else rows, k if cols == -1 else cols
        scales = np.zeros((-(-n // block_rows), -(-k // block_cols)), np.float32)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                block = weight[i * block_rows:(i + 1) * block_rows, j * block_cols:(j + 1) * block_cols]
                scales[i, j] = np.abs(block).max() / 448
        tensor, scales = stored(scales, dtype)
        wide = scales.repeat(block_rows, 0)[:n].repeat(block_cols, 1)[:, :k]
        codes = torch.from_numpy(weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors = {"weight": codes, scale_name: tensor.reshape(shape) if shape is not None else tensor}
        tensors |= {extra: torch.tensor(0.02) for extra in extras}
        return {f"{name}.{key}": value for key, value in tensors.items()}, codes.float().numpy() * wide

    return form
