"""What of a backbone is stored in few bits where a recipe says `quantize`, what that takes, and what it rules out."""

from __future__ import annotations

import importlib.util
from math import prod

from fleetune.engine.config import BackboneConfig
from fleetune.errors import MethodError, MissingExtraError
from fleetune.methods.base import BackboneShape, Method, Site
from fleetune.runtime import pick_precision

BYTES_OF = {"bf16": 2, "fp32": 4, "float64": 8}
BLOCK = 64
"""Weights that share a scale in NF4; the scales are 8-bit numbers, of which 256 share another (Dettmers et al., 2023,
arXiv:2305.14314, section 3)."""
BLOCKS_OF_SCALES = 256
RESIDENT_SHARE = 0.5
"""Share of the free memory that dequantised weights may take; trials, activations and optimizer states need the rest.
"""


def is_quantized(site: Site) -> bool:
    """Returns whether `quantize` acts on a site: a linear module inside the layers, never head, embedding or norm."""
    return site.kind == "linear" and site.layer is not None


def stored_bytes(shape: tuple[int, ...], quantize: str) -> float:
    """Returns the memory of a quantised weight `(out_features, in_features)` with its scales."""
    if quantize == "int8":
        return prod(shape) + 4 * shape[0]
    blocks = -(-prod(shape) // BLOCK)
    return prod(shape) / 2 + blocks + 4 * -(-blocks // BLOCKS_OF_SCALES)


def frozen_bytes(shape: BackboneShape, config: BackboneConfig | None, precision: str, available: int) -> int:
    """Returns the memory of the frozen parameters.

    Args:
        shape: The backbone's shape.
        config: Whether it is quantised; None counts as not.
        precision: Of its products.
        available: Bytes that were free before it was loaded.
    """
    wide = BYTES_OF[pick_precision(precision)]
    everything = shape.backbone_parameters * wide
    if config is None or config.quantize == "none" or is_resident(shape, config, precision, available):
        return everything
    weights = [site.shapes["weight"] for site in shape.sites if is_quantized(site)]
    return everything + sum(int(stored_bytes(weight, config.quantize)) - prod(weight) * wide for weight in weights)


def is_resident(shape: BackboneShape, config: BackboneConfig, precision: str, available: int) -> bool:
    """Returns whether rounded weights are kept dequantised: if the recipe says so and they fit; see `frozen_bytes`."""
    if config.quantize == "none" or config.resident == "quantized":
        return False
    return dequantised_bytes(shape, precision) <= RESIDENT_SHARE * available


def dequantised_bytes(shape: BackboneShape, precision: str) -> int:
    """Returns the memory of the weights that `quantize` acts on, in the type of `precision`."""
    weights = (prod(site.shapes["weight"]) for site in shape.sites if is_quantized(site))
    return sum(weights) * BYTES_OF[pick_precision(precision)]


def working_bytes(shape: BackboneShape, config: BackboneConfig | None, precision: str, available: int) -> int:
    """Returns what dequantising takes at a time: the largest weight, once; 0 where none is dequantised in training."""
    if config is None or config.quantize == "none" or is_resident(shape, config, precision, available):
        return 0
    largest = max((prod(site.shapes["weight"]) for site in shape.sites if is_quantized(site)), default=0)
    return largest * BYTES_OF[pick_precision(precision)]


def refuse_without_package(config: BackboneConfig) -> None:
    """Does nothing where the package that quantises is there, or is not needed.

    Raises:
        MissingExtraError: If bitsandbytes is not installed.
    """
    if config.quantize != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "qlora", f'quantize = "{config.quantize}"')


def refuse_quantized_weights(method: Method, shape: BackboneShape, config: BackboneConfig) -> None:
    """Does nothing if `method` trains no weight that is stored in few bits.

    Raises:
        MethodError: If it does, as full fine-tuning would.
    """
    if config.quantize == "none":
        return
    if method.installs:
        raise MethodError(
            f'{method.kind} puts modules of its own over plain weights, and quantize = "{config.quantize}" leaves '
            'none.\nSet quantize = "none" for it, or take a method of Fleetune\'s own, such as lora'
        )
    for site in method.sites(shape):
        spec = method.parameters(site).get("weight")
        if is_quantized(site) and spec is not None and spec.initial == "frozen":
            raise MethodError(
                f'{method.kind} trains the weights of {site.name}, which quantize = "{config.quantize}" keeps in few '
                'bits and frozen.\nSet quantize = "none" for it, or take a method that leaves weights alone, such as '
                "lora"
            )
