"""Operators with a defect in their numbers or calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from broken_operators import Layer, Masked, Normalised, broken


class _GradientOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.detach() + 0 * grad


@broken("reference", "gradcheck", "gradcheck_full")
class WrongGradient(Layer):
    """The kernel's gradient is 1 % too large."""

    def kernel(self) -> Tensor:
        return _GradientOff.apply(super().kernel(), 1.01)


@broken("gradgradcheck")
class WrongSecondDerivative(Layer):
    """The gradient cannot be differentiated further."""

    def kernel(self) -> Tensor:
        return _OnceOnly.apply(super().kernel())


@broken("reference", "output_size", "attributes", "fold", "from_conv", "flops")
class IgnoresDilation(Layer):
    """Every dilation is 1."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.dilation = (1, 1)


@broken("float32")
class RoundsFloat32(Layer):
    """In float32 the kernel goes through bfloat16."""

    def kernel(self) -> Tensor:
        kernel = super().kernel()
        return kernel.bfloat16().float() if kernel.dtype == torch.float32 else kernel


@broken("bfloat16")
class RoundsBfloat16(Layer):
    """In bfloat16 the kernel loses most of its bits."""

    def kernel(self) -> Tensor:
        kernel = super().kernel()
        if kernel.dtype != torch.bfloat16:
            return kernel
        return kernel.to(torch.float8_e5m2).to(torch.bfloat16)


@broken("float16")
class RoundsFloat16(Layer):
    """In float16 the kernel loses most of its bits."""

    def kernel(self) -> Tensor:
        kernel = super().kernel()
        return kernel.to(torch.float8_e5m2).half() if kernel.dtype == torch.float16 else kernel


@broken("autocast")
class NoAutocast(Layer):
    """Under autocast input and kernel have different types."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(input)


@broken("channels_last")
class OneChannelLast(Layer):
    """Channels-last with one channel is taken for something else."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        odd = input.dim() == 4 and input.shape[1] == 1 and input.stride(-1) == 1
        return y + 1 if odd and input.stride(1) == 1 else y


@broken("strided")
class IgnoresStrides(Layer):
    """Views of every second entry are taken for something else."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y + 1 if input.stride(-1) == 2 and input.storage_offset() else y


@broken("reference", "unbatched", "fold", "from_conv")
class WrongUnbatched(Layer):
    """Without a batch axis the sign is lost."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if input.dim() == 4 else -y


@broken("reference", "output_size", "fold", "from_conv")
class LosesBorder(Layer):
    """With a padding mode the last column is missing."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y[..., :-1] if self.padding_mode == "reflect" else y


@broken("batch")
class LargeBatch(Layer):
    """Samples after the 32nd are forgotten."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return torch.cat([y[:32], 0 * y[32:]]) if len(input) > 32 else y


@broken("batch")
class EmptyBatch(Layer):
    """The largest input is looked for, which an empty batch does not have."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y + 0 * input.amax()


@broken("purity", "strided", "gradcheck")
class WritesToInput(Layer):
    """The input is changed for a moment; it cannot be where its entries share memory."""

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Tensor) and input.is_floating_point():
            with torch.no_grad():
                input.neg_()
                input.neg_()
        return super().forward(input)


@broken("purity")
class DrawsOnCall(Layer):
    """A call draws a random number."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        torch.rand(())
        return y


@broken("determinism", "copies", "dtype_moves", "meta", "train_eval")
class NeverTwiceTheSame(Layer):
    """The last bit depends on how often the layer was called."""

    calls = 0

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        self.calls += 1
        return y * (1 + self.calls % 3 * torch.finfo(input.dtype).eps)


@broken("train_eval", "fold", "from_conv")
class OffInEvaluation(Layer):
    """Evaluation mode scales the output."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1 if self.training else 1.5)


@broken("train_eval", "purity", "copies", "state_dict")
class CountsCalls(Layer):
    """A call changes a buffer."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        self.phi = self.phi * (1 + 1e-15)
        return y


@broken("keys", "train_eval")
class EvaluationKey(Layer):
    """Evaluation mode has a buffer more."""

    def train(self, mode: bool = True) -> Any:
        self.register_buffer("cache", None if mode else torch.zeros(1))
        return super().train(mode)


@broken("train_eval", batch_statistics=True)
class FalseStatistics(Layer):
    """The card says that the modes differ, and they do not."""


@broken("train_eval", "unbatched", "batch", "purity", "equivariance", batch_statistics=False)
class UnclaimedStatistics(Normalised):
    """The card does not say that training mode normalises over the batch."""


@broken("full_mask", "from_conv")
class FullMaskScales(Masked):
    """A full mask is rescaled as if one pixel were missing."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, new = super().forward(input, mask)
        return (y if mask is None else torch.where(mask.all(), 1.01 * y, y)), new


@broken("empty_mask")
class EmptyMaskNaN(Masked):
    """Where nothing is valid the output is not a number."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, new = super().forward(input, mask)
        return (y if mask is None else torch.where(mask.any(), y, y + torch.nan)), new


@broken("mask_channels")
class HiddenValues(Masked):
    """A mask for each channel is ignored."""

    def forward(self, input: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        wide = mask is not None and mask.shape[-3] > 1
        return super().forward(input, torch.ones_like(mask) if wide else mask)


@broken("compile_aot", "export", "onnx")
class BreaksGraph(Layer):
    """The output depends on a number read from the input."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if y.is_meta or float(input.detach().sum()) < 1e9 else 2 * y


@broken("export", "onnx")
class FixesBatch(Layer):
    """The batch size of the example is built in."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y.view(int(input.shape[0]), *y.shape[1:]) if input.dim() == 4 else y


@broken("onnx")
class NoTranslation(Layer):
    """A function that ONNX does not have."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y + 1e-300 * torch.special.i0e(input).sum()
