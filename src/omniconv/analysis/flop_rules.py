"""How many floating-point operations one call of a torch operator performs.

Convention: every addition, multiplication, division, maximum and elementary function (``exp``,
``sqrt``, ``erf``, ...) of real numbers is 1, so a multiply-add is 2. Moving, viewing, casting,
comparing, selecting, drawing and allocating are 0, and so is arithmetic whose result is an integer
or a bool (indices, masks). ``n`` is the number of elements of the output, ``i`` of the input (for a
derivative: of the output's gradient), ``k`` of a pooling window, ``N`` the points of a transform.

========================================  ====================================================
operator                                  FLOPs
========================================  ====================================================
mm, bmm, addmm, baddbmm, attention        torch's formulas: 2 per multiply-add
dot, mv, addmv, addr, addbmm              2 per multiply-add
the same, complex                         8 per multiply-add
convolution                               torch's formula: 2 B O I/g prod(out) prod(k), padding
                                          counted; transposed: prod(in) for prod(out); the bias
                                          starts the sum and costs nothing
its derivative                            the same for dx and for dW, each if asked for (torch
                                          counts dW g times over); db: 1 i
pointwise (torch's tag)                   1 n; 1 n more where alpha or value is not 1
addcmul, addcdiv, silu, elu, glu, xlogy   2 n
lerp, hardsigmoid, log_sigmoid, logit     3 n
mish, softplus, hardswish, hypot, polar   4 n
gelu, logaddexp                           5 n
derivatives of these                      relu and other piecewise linear ones 1 n; sigmoid, tanh,
                                          elu, log_sigmoid 3 n; softplus, hardswish 4 n;
                                          glu 5 i; silu 6 n; mish 10 n; gelu 11 n; prelu 2 i
pointwise, complex                        mul 6 n, div 11 n, addcmul 8 n, addcdiv 13 n (each with
                                          a real operand as all others), abs 4 n, others 2 n
sum, mean, prod, amax, amin, max, min,    1 i (complex: 2 i)
cumsum, cumprod
vector norm, aminmax                      2 i
var, std, with or without the mean        3 i
logsumexp                                 4 i
softmax, log_softmax                      5 i; derivative 4 i
batch_norm, group_norm                    5 i: statistics 3, one multiply-add; evaluation 2 i
  derivative                              dx 9 i: normalised input 2, two sums 3, combination 4
                                          (dweight and dbias included); without dx: dweight 4 i,
                                          dbias 1 i; evaluation: dx 1 i besides
layer_norm                                5 i, with weight 7 i
  derivative                              dx 9 i, with weight 10 i; dweight 2 i (alone 4 i);
                                          dbias 1 i
rms_norm                                  3 i, with weight 4 i; dx 5 i, with weight 6 i;
                                          dweight 3 i
pooling                                   k n; derivative: maximum 1 i, mean k i
upsampling                                2 per tap: linear 4 n, bilinear 8 n, trilinear 16 n,
                                          bicubic 32 n, nearest 0; derivative: the same per i,
                                          nearest 1 i
grid_sample                               2 per tap as above; derivative for the input the same,
                                          for the grid twice that (weights of taps not counted)
FFT                                       5 N log2 N per complex transform, half for a real one
im2col (unfold), gather, index, pad       0
col2im (fold), scatter_add, index_add,    1 per element added (columns, source, values, gradient)
index_put(accumulate), scatter_reduce,
derivatives of pads and embeddings
LU (det, slogdet), solve, inverse,        2/3 N^3, 2/3 N^3 + 2 N^2 M, 2 N^3, 1/3 N^3, N^2 M for
Cholesky, triangular solve                M right-hand sides; complex 4 times
dropout; weight_norm; mse; nll            2 n; 3 i, derivative 5 i; 3 i, derivative 2 n; 1 per
                                          target
========================================  ====================================================

Sources: FFTW's benchmark methodology for 5 N log2 N; Golub and Van Loan, Matrix Computations, for
the decompositions; all others count the operations of the usual formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["count", "has_rule"]

Arguments = tuple[Any, ...]
Rule = Callable[[Arguments, Any], int]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FREE = _words(
    """
    _assert_async _assert_tensor_metadata _conj_physical _linalg_check_errors
    _local_scalar_dense _to_copy _unique2 _unsafe_index _unsafe_view _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d all any arange argmax argmin
    as_strided_scatter bincount bucketize cat channel_shuffle clone complex conj_physical
    constant_pad_nd copy copysign count_nonzero cummax cummin diag_embed diagonal_backward
    diagonal_scatter embedding empty empty_like empty_permuted empty_strided equal eye fill flip
    full full_like gather heaviside im2col index index_copy index_fill index_select is_same_size
    isin kthvalue lift lift_fresh_copy linspace logspace masked_fill masked_scatter
    masked_select max_unpool2d max_unpool3d median mode nan_to_num new_empty new_empty_strided
    new_full new_ones new_zeros nonzero nonzero_static ones ones_like pixel_shuffle
    pixel_unshuffle reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave
    replication_pad1d replication_pad2d replication_pad3d resize roll scalar_tensor scatter
    searchsorted select_backward select_scatter set slice_backward slice_scatter sort stack take
    topk tril tril_indices triu triu_indices unique_consecutive unique_dim unsafe_split
    unsafe_split_with_sizes upsample_nearest1d upsample_nearest2d upsample_nearest3d where zero
    zeros zeros_like
    """
)

PER_OUTPUT: dict[str, int] = {
    **dict.fromkeys(("leaky_relu_backward", "hardtanh_backward", "hardsigmoid_backward"), 1),
    **dict.fromkeys(("hardshrink_backward", "softshrink_backward", "_prelu_kernel"), 1),
    **dict.fromkeys(("addcmul", "addcdiv", "silu", "elu", "glu", "xlogy"), 2),
    **dict.fromkeys(("native_dropout_backward", "mse_loss_backward"), 2),
    **dict.fromkeys(("lerp", "hardsigmoid", "logit"), 3),
    **dict.fromkeys(("sigmoid_backward", "tanh_backward", "elu_backward"), 3),
    **dict.fromkeys(("mish", "softplus", "hardswish", "hypot", "polar", "upsample_linear1d"), 4),
    **dict.fromkeys(("softplus_backward", "hardswish_backward"), 4),
    **dict.fromkeys(("gelu", "logaddexp", "logaddexp2"), 5),
    "log_sigmoid_backward": 3,
    "silu_backward": 6,
    "mish_backward": 10,
    "gelu_backward": 11,
    "upsample_bilinear2d": 8,
    "upsample_trilinear3d": 16,
    "upsample_bicubic2d": 32,
}

PER_INPUT: dict[str, int] = {
    **dict.fromkeys(("sum", "nansum", "mean", "prod", "amax", "amin"), 1),
    **dict.fromkeys(("cumsum", "cumprod", "col2im", "unfold_backward"), 1),
    **dict.fromkeys(("embedding_dense_backward", "segment_reduce"), 1),
    **{f"{kind}_pad{d}d_backward": 1 for kind in ("reflection", "replication") for d in (1, 2, 3)},
    **{f"upsample_nearest{d}d_backward": 1 for d in (1, 2, 3)},
    **{f"_upsample_nearest_exact{d}d_backward": 1 for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d_backward": 1 for d in (2, 3)},
    **{f"max_pool{d}d_with_indices_backward": 1 for d in (2, 3)},
    **dict.fromkeys(("linalg_vector_norm", "norm", "aminmax", "native_dropout"), 2),
    "_prelu_kernel_backward": 2,
    **dict.fromkeys(("var", "std", "var_mean", "std_mean", "mse_loss", "log_sigmoid_forward"), 3),
    "_weight_norm_interface": 3,
    **dict.fromkeys(("logsumexp", "_softmax_backward_data", "_log_softmax_backward_data"), 4),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "glu_backward"), 5),
    "_weight_norm_interface_backward": 5,
    "upsample_linear1d_backward": 4,
    "upsample_bilinear2d_backward": 8,
    "upsample_trilinear3d_backward": 16,
    "upsample_bicubic2d_backward": 32,
}

COMPLEX = {"mul": 6, "div": 11, "addcmul": 8, "addcdiv": 13, "abs": 4}
MATRIX_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm"})


def has_rule(name: str) -> bool:
    """Whether an operator is listed here by name (most pointwise ones are known by their tag)."""
    return name.removeprefix("_foreach_") in RULED


def count(
    name: str,
    overload: Any,
    args: Arguments,
    kwargs: Mapping[str, Any],
    out: Any,
    formula: Callable[..., int] | None,
) -> int | None:
    """FLOPs of one call, or None where nothing is known about the operator.

    Args:
        name: The operator's name without namespace, overload and the underscore of in-place forms.
        overload: The ``OpOverload`` that was called; its tags and its aliasing are consulted.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        out: What the call returned.
        formula: The formula registered with ``torch.utils.flop_counter``, if there is one.

    Returns:
        The number of floating-point operations, or None.
    """
    if name == "convolution_backward":
        return _convolution_backward(args)
    if formula is not None:
        factor = 4 if name in MATRIX_PRODUCTS and args[0].is_complex() else 1
        return factor * int(formula(*args, **kwargs, out_val=out))
    name = name.removeprefix("_foreach_")
    if name in FREE or overload.is_view or overload.namespace == "prim":
        return 0
    if name in SPECIAL:
        return SPECIAL[name](args, out)
    if name in PER_INPUT:
        return PER_INPUT[name] * _real_parts(args[0]) if _is_float(out) else 0
    if name in PER_OUTPUT or torch.Tag.pointwise in overload.tags or "_foreach_" in overload.name():
        return _pointwise(name, args, kwargs, args[0] if out is None else out)
    if torch.Tag.nondeterministic_seeded in overload.tags and overload.namespace == "aten":
        return 0
    return None


def _first(value: Any) -> Any:
    """The first tensor of a tensor or a sequence of tensors."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    return value


def _is_float(value: Any) -> bool:
    value = _first(value)
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _is_complex(value: Any) -> bool:
    return isinstance(value, complex) or (isinstance(value, Tensor) and value.is_complex())


def _real_parts(value: Any) -> int:
    """Number of real numbers in a tensor, or in a list of tensors."""
    if isinstance(value, (tuple, list)):
        return sum(_real_parts(v) for v in value)
    return int(value.numel()) * (2 if value.is_complex() else 1)


def _pointwise(name: str, args: Arguments, kwargs: Mapping[str, Any], out: Any) -> int:
    if not _is_float(out):
        return 0
    scaled = any(kwargs.get(factor, 1) != 1 for factor in ("alpha", "value"))
    if name in COMPLEX and all(_is_complex(_first(a)) for a in args):
        points = sum(t.numel() for t in out) if isinstance(out, (tuple, list)) else out.numel()
        return (COMPLEX[name] + 2 * scaled) * int(points)
    return (PER_OUTPUT.get(name, 1) + scaled) * _real_parts(out)


def _convolution_backward(args: Arguments) -> int:
    """dx and dW take as many multiply-adds as the forward pass, each group for itself."""
    grad, x, weight, transposed, mask = args[0], args[1], args[2], args[7], args[10]
    sites = math.prod((x if transposed else grad).shape[2:])
    one = 2 * x.shape[0] * sites * weight.numel()
    return int(one * (bool(mask[0]) + bool(mask[1])) + (grad.numel() if mask[2] else 0))


def _product(multiply_adds: Callable[[Arguments], int]) -> Rule:
    def rule(args: Arguments, out: Any) -> int:
        return (8 if out.is_complex() else 2) * multiply_adds(args)

    return rule


def _extremum(args: Arguments, out: Any) -> int:
    """``max`` and ``min``: of two tensors, or over an axis or all of one."""
    pair = len(args) > 1 and isinstance(args[1], Tensor)
    return _real_parts(out if pair else args[0]) if _is_float(out) else 0


def _each(position: int) -> Rule:
    """1 per element of the tensor at ``position``."""

    def rule(args: Arguments, out: Any) -> int:
        return _real_parts(args[position]) if _is_float(args[position]) else 0

    return rule


def _put(args: Arguments, out: Any) -> int:
    return _each(2)(args, out) if len(args) > 3 and args[3] else 0


def _batch_norm(args: Arguments, out: Any) -> int:
    training = next((a for a in args if isinstance(a, bool)), False)
    return (5 if training else 2) * int(args[0].numel())


def _per_input(operations: int) -> Rule:
    return lambda args, out: operations * int(args[0].numel())


def _group_norm_backward(args: Arguments, out: Any) -> int:
    """Batch and group norm: the sums that dx needs are those of dweight and dbias."""
    training = next((a for a in args if isinstance(a, bool)), True)
    dx, dweight, dbias = args[-1] if isinstance(args[-1], (tuple, list)) else args[-2]
    each = 9 if dx and training else dx + 4 * dweight + dbias
    return each * int(args[0].numel())


def _layer_norm(args: Arguments, out: Any) -> int:
    return (5 if args[2] is None else 7) * int(args[0].numel())


def _layer_norm_backward(args: Arguments, out: Any) -> int:
    dx, dweight, dbias = args[7]
    inside = 9 + (args[5] is not None) if dx else 2 * dweight
    return (inside + 2 * dweight + dbias) * int(args[0].numel())


def _rms_norm(args: Arguments, out: Any) -> int:
    return (3 if args[2] is None else 4) * int(args[0].numel())


def _rms_norm_backward(args: Arguments, out: Any) -> int:
    dx, dweight = args[5]
    return ((5 + (args[4] is not None)) * dx + 3 * dweight) * int(args[0].numel())


def _pool(dims: int, backward: bool = False) -> Rule:
    """One operation per element of the window, for every output or its gradient."""

    def rule(args: Arguments, out: Any) -> int:
        points, window = args[0] if backward else _first(out), tuple(args[1 + backward])
        return int(points.numel()) * math.prod(window * (dims if len(window) == 1 else 1))

    return rule


def _adaptive_pool(dims: int, backward: bool = False) -> Rule:
    """The same for the windows [floor(j i/o), ceil((j+1) i/o)) of i inputs and o outputs."""

    def rule(args: Arguments, out: Any) -> int:
        large, small = (args[1], args[0]) if backward else (args[0], _first(out))
        total = math.prod(small.shape[:-dims])
        for i, o in zip(large.shape[-dims:], small.shape[-dims:], strict=True):
            total *= sum(-(-(j + 1) * i // o) - j * i // o for j in range(o))
        return int(total)

    return rule


def _grid_sample(dims: int) -> Rule:
    def rule(args: Arguments, out: Any) -> int:
        return 2 * (2**dims, 0, 4**dims)[args[2]] * int(out.numel())

    return rule


def _grid_sample_backward(dims: int) -> Rule:
    def rule(args: Arguments, out: Any) -> int:
        (dx, dgrid), taps = args[6], (2**dims, 0, 4**dims)[args[3]]
        return ((2 * taps or 1) * dx + 4 * taps * dgrid) * int(args[0].numel())

    return rule


def _fft(args: Arguments, out: Any) -> int:
    """5 N log2 N per transform of N complex points, half of it for N real ones."""
    points = max(args[0], out, key=Tensor.numel)
    length = math.prod(points.shape[axis] for axis in args[1])
    each = 5.0 if _is_complex(args[0]) and _is_complex(out) else 2.5
    return round(each * points.numel() * math.log2(length))


def _solver(cubes: int, divisor: int, per_column: int = 0, position: int = 0) -> Rule:
    """``cubes / divisor`` N^3 per matrix and ``per_column`` N^2 per right-hand side."""

    def rule(args: Arguments, out: Any) -> int:
        matrix = args[position]
        size = matrix.shape[-1]
        flops = cubes * size * matrix[..., 0].numel() * size // divisor
        flops += per_column * size * int(_first(out).numel())
        return int(flops) * (4 if matrix.is_complex() else 1)

    return rule


SPECIAL: dict[str, Rule] = {
    **dict.fromkeys(("max", "min"), _extremum),
    "dot": _product(lambda a: a[0].numel()),
    "vdot": _product(lambda a: a[0].numel()),
    "mv": _product(lambda a: a[0].numel()),
    "addmv": _product(lambda a: a[1].numel()),
    "addr": _product(lambda a: a[1].numel() * a[2].numel()),
    "addbmm": _product(lambda a: a[1].numel() * a[2].shape[-1]),
    **dict.fromkeys(("scatter_add", "index_add", "index_reduce", "scatter_reduce"), _each(3)),
    **dict.fromkeys(("put", "index_put", "_index_put_impl"), _put),
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), lambda a, out: a[1].numel()),
    **dict.fromkeys(("nll_loss_backward", "nll_loss2d_backward"), lambda a, out: a[2].numel()),
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), _batch_norm),
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_batch_norm_no_update": _batch_norm,
    "_batch_norm_with_update": _per_input(5),
    **dict.fromkeys(("native_batch_norm_backward", "batch_norm_backward"), _group_norm_backward),
    **dict.fromkeys(("cudnn_batch_norm_backward", "miopen_batch_norm_backward"), _per_input(9)),
    "native_group_norm": _per_input(5),
    "native_group_norm_backward": _group_norm_backward,
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "_fused_rms_norm": _rms_norm,
    "_fused_rms_norm_backward": _rms_norm_backward,
    **{f"avg_pool{d}d": _pool(d) for d in (2, 3)},
    **{f"avg_pool{d}d_backward": _pool(d, True) for d in (2, 3)},
    **{f"max_pool{d}d_with_indices": _pool(d) for d in (2, 3)},
    **{f"_adaptive_avg_pool{d}d": _adaptive_pool(d) for d in (2, 3)},
    **{f"_adaptive_avg_pool{d}d_backward": _adaptive_pool(d, True) for d in (2, 3)},
    **{f"adaptive_max_pool{d}d": _adaptive_pool(d) for d in (2, 3)},
    **{f"grid_sampler_{d}d": _grid_sample(d) for d in (2, 3)},
    **{f"grid_sampler_{d}d_backward": _grid_sample_backward(d) for d in (2, 3)},
    **dict.fromkeys(("_fft_c2c", "_fft_r2c", "_fft_c2r"), _fft),
    **dict.fromkeys(("_linalg_det", "_linalg_slogdet", "linalg_lu_factor_ex"), _solver(2, 3)),
    "linalg_inv_ex": _solver(2, 1),
    "linalg_cholesky_ex": _solver(1, 3),
    "_linalg_solve_ex": _solver(2, 3, 2),
    "linalg_lu_solve": _solver(0, 1, 2),
    "cholesky_solve": _solver(0, 1, 2, position=1),
    "linalg_solve_triangular": _solver(0, 1, 1),
}

RULED = FREE | PER_OUTPUT.keys() | PER_INPUT.keys() | SPECIAL.keys() | {"convolution_backward"}
