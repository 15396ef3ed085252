"""A method's own modules in a backbone: put in, given a trial's tensors, run, and taken out without a trace."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fleetune.engine.dropout import FleetDropout, ForwardState, Stream, stream_key
from fleetune.engine.layout import Layout, Pack
from fleetune.engine.parity import probe_parity
from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, InstalledTensor, Method, Site
from fleetune.runtime import device, random_stream

if TYPE_CHECKING:
    from torch import Tensor

    from fleetune.engine.backbone import Backbone

Placed = Mapping[str, Mapping[str, "Tensor"]]
"""Tensors by site and name."""
ROUNDING = 4.0
"""How many times as far as the bare model an adapted one may be: rounded differences are rounded again."""
MOVED = 0.02
"""Least deviation of what a probe adds to fresh tensors, many of which are zero."""


class Installation:
    """What one trial's method put into a model, until `remove`.

    Frozen weights stay as they are: the modules see copies of the parameters that share their memory.

    Args:
        model: The Hugging Face classification model.
        method: The method; it `installs`.
        shape: The model's shape.
        seed: Decides the starting values, whatever ran before.
        state: The forward pass under way; None where nothing is trained.
        checks: Whether to look at the frozen weights, which takes as long as reading them.

    Raises:
        MethodError: If the method does not fit the model, or changes frozen weights.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        shape: BackboneShape,
        seed: int = 0,
        state: ForwardState | None = None,
        checks: bool = True,
    ) -> None:
        self._before = [(module, _contents(module)) for module in model.modules()]
        self._cast: list[tuple[InstalledTensor, Tensor]] = []
        self._mode: bool | None = None
        self.plain_layout: tuple[Layout, str] | None = None
        try:
            frozen = _shielded(model, method.sites(shape), checks)
            with _seeded(int(random_stream("initial", seed, "installed").integers(1 << 62))):
                self.tensors = method.install(model, shape)
            if checks:
                _check_frozen(method, frozen)
            known = {id(module) for module, _ in self._before}
            self._own = [(path, module) for path, module in model.named_modules() if id(module) not in known]
            if state is not None:
                _replace_dropouts(self._own, state)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Makes the model what it was."""
        for module, contents in self._before:
            module.__dict__.clear()
            module.__dict__.update(contents)

    def values(self, dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
        """Returns a copy of the tensors as they start, by site and name.

        Raises:
            MethodError: If one holds indices that `dtype` has no room for.
        """
        return {
            place: {name: _as_values(one.value, dtype, f"{place}.{name}") for name, one in many.items()}
            for place, many in self.tensors.items()
        }

    def put(self, parameters: Placed) -> None:
        """Makes the modules compute with a trial's tensors, so that gradients flow into those."""
        self._cast = []
        for place, many in self.tensors.items():
            for name, one in many.items():
                given = parameters[place][name]
                if given.shape != one.value.shape:
                    raise ValueError(f"{place}.{name} is {tuple(given.shape)}, expected {tuple(one.value.shape)}")
                one.put(given if given.dtype == one.value.dtype else given.detach().to(one.value.dtype))
                if given.dtype != one.value.dtype and one.value.requires_grad:
                    self._cast.append((one, given))

    @contextmanager
    def running(self, streams: Mapping[int, Stream]) -> Iterator[None]:
        """Makes the modules ready for a forward pass: to train where there is a stream, else to evaluate.

        What they draw from torch's generator depends on the trial's seed and step alone, and leaves it as it was.
        """
        self._set_mode(bool(streams))
        for one, given in self._cast:
            one.put(given.to(one.value.dtype))
        if not streams:
            yield
            return
        with _seeded(stream_key(next(iter(streams.values())), "installed") >> 1):
            yield

    def _set_mode(self, trains: bool) -> None:
        if self._mode is not trains:
            for _, module in self._own:
                module.training = trains
            self._mode = trains


class AdapterDropout(FleetDropout):
    """Takes the place of one `nn.Dropout` of an installed module, whose fleet is that one trial."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x` with dropout; what holds no tokens draws from torch's generator, which is seeded each step."""
        pack, streams = self.state.pack, self.state.streams
        if self.p == 0.0 or pack is None or not streams:
            return x
        if _holds_tokens(x, pack):
            return self.state.drop(x, self.p, pack.segments[0].slot, self.place)
        return functional.dropout(x, self.p)


def _holds_tokens(x: Tensor, pack: Pack) -> bool:
    if x.dim() == 2:
        return x.shape[0] == len(pack.lengths)
    if pack.layout == "padded":
        return x.dim() == 3 and x.shape[:2] == pack.input_ids.shape
    return x.dim() == 3 and x.shape[0] == 1 and x.shape[1] in (pack.tokens, len(pack.lengths))


def fresh_tensors(backbone: Backbone, method: Method, seed: int) -> dict[str, dict[str, Tensor]]:
    """Returns the starting values of a trial of `method`, by site and name; the backbone is left as it was."""
    installation = Installation(backbone.model, method, backbone.shape, seed)
    try:
        return installation.values(backbone.master_dtype)
    finally:
        installation.remove()


def install_trial(backbone: Backbone, method: Method, parameters: Placed) -> Installation:
    """Puts a trial's modules with its tensors into the backbone, which takes the layout that they need."""
    layout, reason = backbone.layout_for(method)
    installation = Installation(backbone.model, method, backbone.shape, state=backbone.state, checks=False)
    installation.plain_layout = backbone.layout, backbone.layout_reason
    try:
        installation.put(parameters)
        backbone.layout, backbone.layout_reason = layout, reason
        backbone.use_layout(layout)
    except BaseException:
        remove_trial(backbone, installation)
        raise
    return installation


def remove_trial(backbone: Backbone, installation: Installation) -> None:
    """Makes the backbone what it was."""
    installation.remove()
    if installation.plain_layout is not None:
        backbone.layout, backbone.layout_reason = installation.plain_layout
    backbone.use_layout(backbone.layout)


def layout_with(backbone: Backbone, method: Method) -> tuple[Layout, str]:
    """Returns the layout for a method that installs, and why: the backbone's where texts stay blind to each other.

    It is tried with fresh tensors and with others; the backbone is left as it was.

    Raises:
        MethodError: If in no layout a text gives what it gives alone.
    """
    if not method.is_exact_in(backbone.precision):
        raise MethodError(
            f"{_title(method)} makes something of the weights each time it is loaded, which rounded weights change.\n"
            'Set precision = "fp32"'
        )
    installation = None
    try:
        bare = _difference(backbone, backbone.layout)[0]
        installation = Installation(backbone.model, method, backbone.shape, state=backbone.state)
        own, allowed = _worst(backbone, installation, backbone.layout, bare)
        if own <= allowed:
            return backbone.layout, backbone.layout_reason
        if backbone.layout == "packed" and backbone.config.layout != "packed":
            padded, allowed = _worst(backbone, installation, "padded", bare)
            if padded <= allowed:
                return "padded", f"with {_title(method)} the packed layout differs by {own:.1e} of the largest value"
    finally:
        if installation is not None:
            installation.remove()
        backbone.use_layout(backbone.layout)
    raise MethodError(
        f"with {_title(method)} a text's output depends on the other texts of its batch, by {own:.1e} of the largest "
        "value.\nTake another type or other options"
    )


def _worst(backbone: Backbone, installation: Installation, layout: Layout, bare: float) -> tuple[float, float]:
    """Returns how far a layout is from single texts at worst, and how far it may be; both relative.

    Args:
        backbone: The model.
        installation: What is put into it; it is tried as it starts and moved.
        layout: The layout.
        bare: How far the model is without it, in its own layout: rounding has that size here.
    """
    fresh = installation.values(backbone.master_dtype)
    worst, allowed = 0.0, 0.0
    for tensors in (fresh, _moved(installation, fresh)):
        installation.put(tensors)
        with installation.running({}):
            difference, tolerance = _difference(backbone, layout)
        worst = max(worst, difference if isfinite(difference) else inf)
        allowed = max(tolerance, ROUNDING * bare)
    return worst, allowed


def _difference(backbone: Backbone, layout: Layout) -> tuple[float, float]:
    return probe_parity(backbone.model, backbone.architecture, backbone.state, layout)


def _moved(installation: Installation, tensors: Placed) -> dict[str, dict[str, Tensor]]:
    """Returns the tensors with noise on those that are trained: many methods do nothing at their start."""
    stream = random_stream("parity", "installed")
    moved: dict[str, dict[str, Tensor]] = {}
    for place, many in tensors.items():
        moved[place] = {}
        for name, tensor in many.items():
            trained = installation.tensors[place][name].value.requires_grad
            deviation = max(MOVED, 0.1 * float(tensor.double().pow(2).mean().sqrt())) if trained else 0.0
            noise = torch.from_numpy(stream.normal(0.0, deviation, tuple(tensor.shape)))
            moved[place][name] = tensor + noise.to(tensor)
    return moved


def _title(method: Method) -> str:
    return f"{method.kind} {method.settings.get('type', '')}".strip()


def _contents(module: nn.Module) -> dict[str, Any]:
    """Returns what a module holds: its fields, and copies of its dictionaries of children, parameters and hooks."""
    fields = module.__dict__.items()
    return {name: copy.copy(value) if isinstance(value, dict | set) else value for name, value in fields}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generators for the block, and puts them back."""
    with torch.random.fork_rng([] if device().type == "cpu" else [device()], device_type=device().type):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True)
class _Frozen:
    """A frozen parameter, what stands in its place, and marks of its values."""

    own: nn.Parameter
    shield: nn.Parameter
    marks: tuple[float, ...]


def _shielded(model: nn.Module, sites: list[Site], marks: bool) -> dict[str, _Frozen]:
    """Puts parameters that share memory in the place of frozen ones; returns both by path."""
    found = {}
    for site in sites:
        module = model.get_submodule(site.name)
        for name, own in list(module._parameters.items()):
            # A quantised parameter is of a class of its own, which knows what its bytes mean.
            if type(own) is nn.Parameter:
                module._parameters[name] = shield = nn.Parameter(own.detach(), requires_grad=False)
                found[f"{site.name}.{name}"] = _Frozen(own, shield, _marks(own) if marks else ())
    return found


def _marks(frozen: Tensor) -> tuple[float, ...]:
    values = frozen.detach()
    return float(values.sum(dtype=torch.float64)), float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _check_frozen(method: Method, frozen: Mapping[str, _Frozen]) -> None:
    for path, one in frozen.items():
        is_same = one.shield.data_ptr() == one.own.data_ptr() and not one.shield.requires_grad
        if not is_same or _marks(one.own) != one.marks:
            raise MethodError(
                f"{_title(method)} changes the frozen weights ({path}), which belong to every trial.\n"
                "Leave out the option that does it, such as an initialisation from the weights"
            )


def _replace_dropouts(own: list[tuple[str, nn.Module]], state: ForwardState) -> None:
    for path, module in own:
        for name, child in list(module._modules.items()):
            if type(child) is nn.Dropout:
                module._modules[name] = AdapterDropout(child.p, f"{path}.{name}", state)


def _as_values(tensor: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    values = tensor.detach().clone().to(dtype)
    if not tensor.is_floating_point() and not torch.equal(values.to(tensor.dtype), tensor):
        raise MethodError(f"{where} holds indices too large to be kept exactly; choose smaller modules")
    return values
