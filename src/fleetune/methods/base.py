"""What a method is: where it attaches, what it trains there, and how that changes a frozen module's output.

A method is stateless and imports no torch. It says which sites of a backbone it changes (`sites`), which
parameters one trial has at a site (`parameters`) and for all sites together (`shared`), and what they do
(`transform_input`, `forward`). The engine makes the tensors, keeps one set a trial, and calls the method on each
trial's own segment of tokens. Few methods need more: a start that is computed (`starts`), a term of the loss
(`penalty`), something to be done after each step (`after_step`).
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from fleetune.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

SiteKind = Literal["linear", "norm", "embedding", "convolution", "attention"]
Role = Literal[
    "query", "key", "value", "query_key_value", "attention_output",
    "feed_forward_in", "feed_forward_gate", "feed_forward_out", "token_embedding", "other",
]  # fmt: skip
Initial = Literal[
    "zeros", "ones", "frozen", "kaiming_uniform", "he_uniform", "normal", "vocabulary", "computed"
]  # fmt: skip
PEFT_PREFIX = "base_model.model."
"""Before the path of a module in PEFT's checkpoints."""
SHARED = ""
"""Stands for a site's name where tensors belong to all sites together."""


@dataclass(frozen=True)
class Site:
    """One frozen module of the backbone at which methods can attach.

    Attributes:
        name: Path in the plain Hugging Face classification model, such as
            `bert.encoder.layer.0.attention.self.query`.
        kind: `linear`, `norm`, `embedding` or `convolution` (over positions; `(texts, width, longest)`); `attention` is
            a module that holds nothing itself and gives queries, keys and values to the attention function.
        role: What the module does in its layer; the same word in every architecture.
        layer: Index of its layer, None outside the layers.
        shapes: Shape of each frozen parameter by name: `{"weight": (out, in), "bias": (out,)}`. Of an attention site
            `(heads, head_width)` of its keys and values: `{"key": (…), "value": (…)}`.
        num_layers: How many layers the backbone has.
    """

    name: str
    kind: SiteKind
    role: Role
    layer: int | None
    shapes: Mapping[str, tuple[int, ...]]
    num_layers: int = 0

    @property
    def in_features(self) -> int:
        """Width of a linear site's input."""
        return self.shapes["weight"][1]

    @property
    def out_features(self) -> int:
        """Width of a linear site's output."""
        return self.shapes["weight"][0]


@dataclass(frozen=True)
class BackboneShape:
    """What is known of a backbone from its `config.json` alone.

    Attributes:
        model_type: Hugging Face's name of the architecture, such as `bert`.
        sites: Every site that holds parameters, in the order of the forward pass's definition.
        head: Shapes of the head's parameters by their name in the Hugging Face model. These are trained by
            every method.
        backbone_parameters: Number of the backbone's parameters, head excluded.
        attentions: Every attention site, in order.
        causal: Whether a token sees only those before it.
        windowed: Whether in some layers a token sees only those near it.
    """

    model_type: str
    sites: tuple[Site, ...]
    head: Mapping[str, tuple[int, ...]]
    backbone_parameters: int
    attentions: tuple[Site, ...] = ()
    causal: bool = False
    windowed: bool = False

    @property
    def head_parameters(self) -> int:
        """Number of the head's parameters."""
        return sum(prod(shape) for shape in self.head.values())


@dataclass(frozen=True)
class ParameterSpec:
    """One tensor of one trial, at one site or for all.

    Attributes:
        shape: Its shape.
        initial: Its start: `zeros`, `ones`, `frozen` (a copy of the site's parameter of the same name),
            `kaiming_uniform` (bound 1/sqrt(fan_in) on the last dimension), `he_uniform` (bound sqrt(6/fan_in)),
            `normal` (standard deviation 0.02), `vocabulary` (an embedding site's output for random tokens) or
            `computed` (by `Method.starts`, not for shared ones).
        decay: Whether weight decay acts on it.
        rate: Factor of the learning rate.
        trained: Whether the optimizer changes it; else it is only kept, saved and restored with the trial.
    """

    shape: tuple[int, ...]
    initial: Initial
    decay: bool = True
    rate: float = 1.0
    trained: bool = True

    @property
    def size(self) -> int:
        """Number of its elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class InstalledTensor:
    """A tensor of a module that a method put into the backbone.

    Attributes:
        value: As the method made it; it requires gradients if it is trained.
        holders: Where modules hold it: their dictionaries of parameters or buffers, and its name there.
    """

    value: Tensor
    holders: tuple[tuple[dict[str, Tensor | None], str], ...]

    def put(self, tensor: Tensor) -> None:
        """Makes the modules compute with `tensor` in its place."""
        for held, name in self.holders:
            held[name] = tensor


@dataclass(frozen=True)
class Setting:
    """A setting that lies below one of the method's own: `options.r` in `options`."""

    name: str
    default: Any
    value: Any
    help: str


class SiteCall(Protocol):
    """What the engine gives a method when a trial's segment passes a site."""

    def frozen(self, name: str) -> Tensor:
        """Returns the site's frozen parameter `name`."""

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        """Returns `x` with dropout from the trial's own stream; `x` itself in evaluation or at rate 0."""

    def replaced(self, x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Returns the frozen module's output for `x` with some of its parameters replaced."""

    def virtual(self) -> Tensor:
        """Returns which virtual token stands at each place `(1, tokens)` or `(texts, longest)`; -1 for a text's own."""


class MethodConfig(BaseModel):
    """A method's settings; each field's docstring is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Method(ABC):
    """One way to fine-tune. Subclasses are registered by `register` and constructed from settings.

    Raises:
        RecipeError: If a setting is unknown or out of its range.
    """

    class Config(MethodConfig):
        """No settings."""

    kind: ClassVar[str]
    """The word for it in recipes."""
    source: ClassVar[str]
    """Paper and where to find it."""
    shares_backbone: ClassVar[bool] = True
    """Whether trials of it can train side by side; others run as fleets of one."""
    replaces_output: ClassVar[bool] = False
    """Whether `forward` ignores the frozen output, which is then not computed for the segment."""
    changes_input: ClassVar[bool] = False
    """Whether `transform_input` acts before the frozen product."""
    starts_as_no_op: ClassVar[bool] = True
    """Whether a fresh delta leaves the backbone's output as it is."""
    has_penalty: ClassVar[bool] = False
    """Whether `penalty` adds to the loss."""
    installs: ClassVar[bool] = False
    """Whether it puts modules of its own into the backbone, by `install`, and `forward` is never called."""

    config: MethodConfig

    def __init__(self, **settings: Any) -> None:
        try:
            self.config = self.Config(**settings)
        except ValidationError as error:
            raise RecipeError(describe_validation(error, self.Config, where=f"method {self.kind}")) from None

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by name, defaults included."""
        return self.config.model_dump(mode="json")

    @property
    def virtual_tokens(self) -> int:
        """How many tokens of its own it puts into each text; they take positions."""
        return 0

    @property
    def prefix_tokens(self) -> int:
        """How many keys and values it puts before those of each text; the text's positions begin behind them."""
        return 0

    @abstractmethod
    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the sites it changes.

        Raises:
            MethodError: If a target matches nothing, or the backbone has nothing of the kind.
        """

    @abstractmethod
    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns what one trial trains at `site`, by name."""

    def shared(self, shape: BackboneShape) -> dict[str, ParameterSpec]:
        """Returns what one trial has for all sites together; `forward` sees these names with the site's own."""
        return {}

    def starts(self, site: Site, frozen: Callable[[str], Tensor], random: np.random.Generator) -> dict[str, Tensor]:
        """Returns the start of each parameter at `site` whose `initial` is `computed`.

        Args:
            site: The site.
            frozen: Gives the site's frozen parameter by name, in fp32 or better.
            random: The trial's stream for this site.
        """
        return {}

    def transform_input(self, x: Tensor, parameters: Mapping[str, Tensor], site: Site) -> Tensor:
        """Returns the input `(..., in_features)` that the frozen module is to see; only if `changes_input`."""
        return x

    @abstractmethod
    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns the site's output for one trial.

        Args:
            x: The site's input `(..., in_features)`, after `transform_input`.
            output: The frozen module's output `(..., out_features)`; `x` itself if `replaces_output`.
            parameters: The trial's tensors at this site, and the shared ones, in the type they are computed in.
            site: The site.
            call: Frozen parameters, dropout and the module itself.
        """

    def prefix(self, parameters: Mapping[str, Tensor], site: Site) -> tuple[Tensor, Tensor]:
        """Returns keys and values `(prefix_tokens, heads, head_width)` that stand before each text's own.

        Only if `prefix_tokens`; called in the place of `forward` at attention sites. Rotary positions do not act on
        them.
        """
        raise NotImplementedError

    def install(self, model: nn.Module, shape: BackboneShape) -> dict[str, dict[str, InstalledTensor]]:
        """Puts its modules into `model`, and returns their tensors as `specs` names them; only if `installs`.

        The engine keeps what the model was, and makes it so again.

        Args:
            model: The Hugging Face classification model.
            shape: Its shape.

        Raises:
            MethodError: If it does not fit the model.
        """
        raise NotImplementedError

    def is_exact_in(self, precision: str) -> bool:
        """Returns whether what `install` makes of weights in `precision` acts as what it makes of those in fp32."""
        return True

    def merged_module(self, module: nn.Module, site: Site) -> dict[str, Tensor] | None:
        """Returns the site's own parameters of a plain module that computes as `module`; None if there is none.

        Args:
            module: What `install` put at the site, with the trial's tensors.
            site: The site.
        """
        return None

    def penalty(self, parameters: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Returns what is added to the loss of each optimizer step; only if `has_penalty`.

        Args:
            parameters: The trial's tensors by site and name.
        """
        raise NotImplementedError

    def after_step(  # noqa: B027  most methods have nothing to do here
        self, parameters: Mapping[str, Mapping[str, Tensor]], step: int, total_steps: int
    ) -> None:
        """Changes tensors in place after an optimizer step; their `grad` is still that of the step.

        Args:
            parameters: The trial's tensors by site and name, those that are not trained too.
            step: Optimizer steps made, this one counted.
            total_steps: Optimizer steps in all.
        """

    def specs(self, shape: BackboneShape) -> dict[str, dict[str, ParameterSpec]]:
        """Returns every tensor of one trial by site and name; the shared ones under `SHARED`."""
        by_site = {site.name: self.parameters(site) for site in self.sites(shape)}
        shared = self.shared(shape)
        return by_site | ({SHARED: shared} if shared else {})

    def expected_parameters(self, shape: BackboneShape) -> int:
        """Returns the number of trained parameters without the head, from the architecture alone."""
        return sum(spec.size for specs in self.specs(shape).values() for spec in specs.values() if spec.trained)

    def merged(
        self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """Returns the site's own parameters with the delta worked in, only those that change; None if it cannot be.

        Args:
            parameters: The trial's tensors at this site.
            site: The site.
            frozen: The site's frozen parameters by name.
        """
        return None

    def stored(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[Method, dict[str, Mapping[str, Tensor]]]:
        """Returns the method and tensors that a bundle holds: what acts as this does, without what training needed.

        Args:
            tensors: The trial's tensors by site and name.
        """
        return self, dict(tensors)

    def further_settings(self) -> list[Setting]:
        """Returns settings that its configuration holds in a table, where another package defines them."""
        return []

    @property
    def is_plain(self) -> bool:
        """Whether all that it trains are the backbone's own parameters, so that plain Hugging Face can load them."""
        return False

    peft_prefix: ClassVar[str] = PEFT_PREFIX
    """Before the path of a module of the head in PEFT's checkpoints."""

    def fits_peft(self, shape: BackboneShape) -> bool:
        """Returns whether PEFT, if it has the method, computes the same on such a backbone."""
        return True

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any] | None:
        """Returns the fields of PEFT's `adapter_config.json`, or None where PEFT has no such method."""
        return None

    def peft_name(self, site: Site | None, parameter: str) -> str:
        """Returns the name of `parameter` in PEFT's checkpoints; `site` is None for a shared one."""
        return f"{PEFT_PREFIX}{site.name}.{parameter}" if site is not None else f"base_model.{parameter}"

    def peft_shape(self, parameter: str, site: Site) -> tuple[int, ...]:
        """Returns the shape of `parameter` in PEFT's checkpoints, which has as many elements as ours."""
        return self.parameters(site)[parameter].shape


def describe_validation(error: ValidationError, known: type[BaseModel], where: str) -> str:
    """Returns the first fault of `error` in one line, with the nearest known key where one is unknown."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        near = difflib.get_close_matches(name, known.model_fields, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known.model_fields)}"
        return f"{where}: unknown setting '{key}'; {hint}"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {key} = {fault['input']!r}: {message}" if key else f"{where}: {message}"
