"""Counts what a method trains, from the backbone's shape alone."""

from __future__ import annotations

from typing import TypedDict

from fleetune.methods.base import BackboneShape, Method
from fleetune.methods.baseline import Baseline


class ParameterCounts(TypedDict):
    """Numbers of parameters of one trial."""

    adapter: int
    head: int
    trainable: int
    total: int


def count_parameters(method: Method, shape: BackboneShape) -> ParameterCounts:
    """Returns the numbers for `method` on a backbone of this shape; `total` is of the model that is served.

    A baseline has nothing but the model that it reads; what it fits besides is known when it has.

    Raises:
        MethodError: If the method does not fit the backbone.
    """
    if isinstance(method, Baseline):
        return {"adapter": 0, "head": 0, "trainable": 0, "total": shape.backbone_parameters * method.reads_model}
    adapter = method.expected_parameters(shape)
    added = sum(
        spec.size for specs in method.specs(shape).values() for spec in specs.values() if spec.initial != "frozen"
    )
    head = shape.head_parameters
    return {
        "adapter": adapter,
        "head": head,
        "trainable": adapter + head,
        "total": shape.backbone_parameters + head + added,
    }
