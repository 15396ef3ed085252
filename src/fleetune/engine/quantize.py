"""Frozen linear layers in 4 or 8 bits (QLoRA: Dettmers et al., 2023, arXiv:2305.14314).

bitsandbytes rounds and restores the weights. The modules are our own: those of bitsandbytes change themselves in
`forward`, and several lanes use one frozen module at the same time. A weight is rounded as soon as it is read from the
checkpoint, always from the checkpoint's own values: so it is the same in every precision, and a backbone never lies
in memory unrounded as a whole.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fleetune.engine.config import BackboneConfig
from fleetune.engine.storage import BLOCK, BLOCKS_OF_SCALES, is_resident, refuse_without_package
from fleetune.errors import BackboneError
from fleetune.methods.base import BackboneShape
from fleetune.runtime import bitsandbytes_alone, device

if TYPE_CHECKING:
    from torch import Tensor

KIND = "fleetune"
"""Under this name transformers knows how to load a backbone so."""
INSIDE_LAYER = re.compile(r"\.\d+\.")
LARGEST_INT8 = 127


@cache
def import_bitsandbytes() -> Any:
    """Returns `bitsandbytes.functional`, imported without what that would do besides; None if it is absent."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    with bitsandbytes_alone():
        import bitsandbytes.functional

        return bitsandbytes.functional


class QuantizedLinear(nn.Module):
    """A frozen linear layer whose weight is stored in few bits and restored at each use.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is one; it stays in full.
        quantize: `nf4` or `int8`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, quantize: str) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.quantize = quantize
        self.dtype = torch.float32
        """Type that the weight is restored in, and so of the product: `nn.functional.linear` takes no other input."""
        # No buffers: transformers would take them for values that a checkpoint does not hold, and make them anew.
        self.scales: dict[str, Tensor] = {}
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter by name, as if the weight were not packed."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        return shapes | ({} if self.bias is None else {"bias": (self.out_features,)})

    def store(self, weight: Tensor) -> Tensor:
        """Returns the codes of `weight` `(out_features, in_features)`, to be the parameter, and keeps their scales."""
        if tuple(weight.shape) != self.shapes["weight"]:
            raise ValueError(f"a weight has shape {tuple(weight.shape)}, expected {self.shapes['weight']}")
        codes, self.scales = quantized(weight, self.quantize)
        return codes

    def restored(self) -> Tensor:
        """Returns the rounded weight `(out_features, in_features)`."""
        return restored(self._parameters["weight"], self.scales, self.shapes["weight"], self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns W·x + b `(…, out_features)`."""
        if "weight" not in self._parameters:  # a method put its own in the place
            return functional.linear(x, self.weight, self.bias)
        result: Tensor = _FrozenProduct.apply(x, self.bias, self)
        return result


class _FrozenProduct(torch.autograd.Function):
    """A product whose weight is restored again in the backward pass, where keeping it would cost what is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, module: QuantizedLinear) -> Tensor:
        ctx.module = module
        return functional.linear(x, module.restored(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        to_x = gradient @ ctx.module.restored() if ctx.needs_input_grad[0] else None
        to_bias = gradient.flatten(end_dim=-2).sum(dim=0) if ctx.needs_input_grad[1] else None
        return to_x, to_bias, None


def quantized(weight: Tensor, quantize: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the codes of a weight and their scales, on the device that trains.

    `nf4`: two 4-bit codes a byte, an 8-bit scale for 64 weights, a 32-bit one for 256 of those. `int8`: a byte a
    weight, a scale a row (Dettmers et al., 2022, arXiv:2208.07339, without the decomposition of the inputs, which
    would make a text's result depend on its neighbours).
    """
    library = import_bitsandbytes()
    if quantize == "int8":
        codes, scale, _ = library.int8_vectorwise_quant(weight.to(device(), torch.float16).contiguous())
        return codes, {"scale": scale}
    full = weight.to(device(), torch.float32).contiguous()
    codes, state = library.quantize_4bit(full, blocksize=BLOCK, compress_statistics=True, quant_type="nf4")
    scales = {
        "scale": state.absmax,
        "mean": state.offset,
        "outer_scale": state.state2.absmax,
        "outer_code": state.state2.code,
    }
    return codes, scales


def restored(codes: Tensor | None, scales: dict[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns the weight of `shape` that codes stand for, rounded once to `dtype`."""
    assert codes is not None
    if dtype == torch.float64:
        return restored(codes, scales, shape, torch.float32).double()
    if set(scales) == {"scale"}:
        return codes.to(dtype).mul_((scales["scale"] / LARGEST_INT8)[:, None])
    library = import_bitsandbytes()
    outer = library.QuantState(
        absmax=scales["outer_scale"], code=scales["outer_code"], blocksize=BLOCKS_OF_SCALES, dtype=torch.float32
    )
    state = library.QuantState(
        absmax=scales["scale"], shape=torch.Size(shape), blocksize=BLOCK, quant_type="nf4", dtype=dtype,
        offset=scales["mean"], state2=outer,
    )  # fmt: skip
    weight: Tensor = library.dequantize_4bit(codes, state)
    return weight


def rounded(weight: Tensor, quantize: str) -> Tensor:
    """Returns a weight as it is after it was stored in few bits, in its own type and place."""
    codes, scales = quantized(weight, quantize)
    return restored(codes, scales, tuple(weight.shape), torch.float32).to(weight.device, weight.dtype)


def round_weights(model: nn.Module, base: str, quantize: str) -> None:
    """Rounds the weights of a plain Hugging Face model that a backbone quantised so keeps in few bits."""
    if quantize == "none":
        return
    with torch.no_grad():
        for _, module in _linear_modules(model, base):
            module.weight.copy_(rounded(module.weight, quantize))


def _linear_modules(model: nn.Module, base: str) -> Iterator[tuple[str, nn.Linear]]:
    """Yields the linear modules inside the layers, by path."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith(base + ".") and INSIDE_LAYER.search(name):
            yield name, module


def frozen_parameter(module: nn.Module, name: str) -> Tensor:
    """Returns a frozen module's parameter; a weight that is stored in few bits is restored."""
    if name == "weight" and isinstance(module, QuantizedLinear):
        return module.restored()
    return module.get_parameter(name).detach()


def set_type(model: nn.Module, dtype: torch.dtype) -> None:
    """Sets the type in which quantised weights are restored and multiplied."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.dtype = dtype


def settle(model: nn.Module, shape: BackboneShape, config: BackboneConfig, precision: str, available: int) -> list[str]:
    """Keeps rounded weights restored where the recipe asks for it and they fit; returns what a report must say.

    Args:
        model: A loaded model, its type set.
        shape: Its shape.
        config: What the recipe says.
        precision: Of the products.
        available: Bytes that were free before it was loaded.
    """
    if config.quantize == "none":
        return []
    what = {"nf4": "NF4 with double quantisation", "int8": "8-bit integers with a scale a row"}[config.quantize]
    note = f"The frozen weights of the layers are rounded to {what} by bitsandbytes {version('bitsandbytes')}"
    if is_resident(shape, config, precision, available):
        for name, module in [(name, one) for name, one in model.named_modules() if isinstance(one, QuantizedLinear)]:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _plain(module))
        return [f"{note}, and kept in {precision}."]
    reason = (
        "" if config.resident == "quantized" else f'; resident = "{config.resident}" was asked for and does not fit'
    )
    return [f"{note}, and restored to {precision} at each use{reason}."]


def _plain(module: QuantizedLinear) -> nn.Linear:
    with torch.device("meta"):
        linear = nn.Linear(module.in_features, module.out_features, bias=False)
    linear.weight = nn.Parameter(module.restored(), requires_grad=False)
    linear.bias = module.bias  # type: ignore[assignment]
    return linear


def loading_options(config: BackboneConfig, base: str) -> dict[str, Any]:
    """Returns what `from_pretrained` needs besides, to round each weight as soon as it is read.

    Raises:
        MissingExtraError: If bitsandbytes is not installed.
    """
    refuse_without_package(config)
    return {} if config.quantize == "none" else {"quantization_config": _Settings(config.quantize, base)}


def finish_loading(model: Any, dtype: torch.dtype) -> None:
    """Makes a model that was loaded with `loading_options` a plain one again to transformers; `dtype` is its type."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    set_type(model, dtype)


def refuse_quantized_checkpoint(config: Any, where: object) -> None:
    """Does nothing if a checkpoint holds plain weights.

    Raises:
        BackboneError: If they were quantised when they were saved.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise BackboneError(
            f"{where} holds quantised weights; the model as it was published was expected.\n"
            'Give the original, and set quantize = "nf4" or "int8" to have it quantised here'
        )


@register_quantization_config(KIND)
class _Settings(QuantizationConfigMixin):
    """What transformers hands to `_Quantizer`."""

    def __init__(self, quantize: str, base: str) -> None:
        self.quant_method = KIND  # type: ignore[assignment]  # of an own name
        self.quantize = quantize
        self.base = base


@register_quantizer(KIND)
class _Quantizer(HfQuantizer):
    """Has transformers put quantised modules in before it reads weights, and hand each weight over as it is read."""

    requires_calibration = False
    quantization_config: _Settings

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        settings = self.quantization_config
        for name, module in _linear_modules(model, settings.base):
            with torch.device("meta"):
                replacement = QuantizedLinear(
                    module.in_features, module.out_features, module.bias is not None, settings.quantize
                )
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, replacement)

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Returns whether a parameter is a weight to be rounded."""
        path, _, name = param_name.rpartition(".")
        return name == "weight" and isinstance(model.get_submodule(path), QuantizedLinear)

    def get_quantize_ops(self) -> ConversionOps:
        """Returns what rounds a weight."""
        return _Store()

    def is_serializable(self) -> bool:
        """Returns False: bundles name the checkpoint, and round its weights again."""
        return False

    @property
    def is_trainable(self) -> bool:
        """True: beside the weights."""
        return True


class _Store(ConversionOps):
    """Hands a weight that was read to its module, and the module's codes to transformers."""

    def convert(self, input_dict: dict[str, Any], *args: Any, model: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Returns the codes by the parameter's name."""
        ((name, value),) = input_dict.items()
        module = model.get_submodule(name.rpartition(".")[0])
        return {name: module.store(value[0] if isinstance(value, list) else value)}
