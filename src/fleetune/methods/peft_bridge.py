"""PEFT's own methods, by name and options: its modules in the backbone, everything else as for any trial."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from fleetune.errors import MethodError
from fleetune.methods.base import (
    PEFT_PREFIX,
    SHARED,
    BackboneShape,
    InstalledTensor,
    Method,
    MethodConfig,
    ParameterSpec,
    Setting,
    Site,
    SiteCall,
)
from fleetune.methods.patterns import in_full, is_literal
from fleetune.methods.peft_merging import as_linear, merged_by_itself
from fleetune.methods.peft_types import refusal
from fleetune.methods.registry import register
from fleetune.methods.skeleton import skeleton
from fleetune.methods.targets import match_targets, with_roles
from fleetune.runtime import bitsandbytes_alone

if TYPE_CHECKING:
    import peft
    from torch import Tensor, nn

ADAPTER = "default"
SHARED_PREFIX = "base_model."
ONLY_IN_FP32 = ("PSOFT",)
"""Types that take a subspace from the weights each time they are loaded: rounded weights would give another one."""
OWNED = (
    "task_type", "peft_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "modules_to_save", "layer_replication", "target_parameters",
)  # fmt: skip
"""Options that Fleetune sets itself, such as that the head is trained and saved, and those that need other models."""
RESOLVED = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Options that choose modules; they have spoken once the modules are named in full."""
WITHOUT_PROJECTION = ("RANDLORA",)
"""Types that would store random matrices once for every layer; they make them again from a seed."""
NOT_PEFTS_WORDS = {"rank": ("r",), "alpha": ("lora_alpha",), "dropout": ("lora_dropout",)}


@register("peft", source="Mangrulkar et al., 2022, github.com/huggingface/peft")
class Peft(Method):
    """Trains any of PEFT's methods by its type and options: its own modules over the frozen backbone, alone in a fleet.

    The type's paper is named in PEFT's documentation.
    """

    class Config(MethodConfig):
        """Which of PEFT's methods, and how."""

        type: str = "loha"
        """PEFT's type, in any case: `loha`, `lokr`, `oft`, `boft`, `hra`, `road`, `miss`, `randlora`, `vblora` …"""
        options: dict[str, Any] = Field(default_factory=dict)
        """A table of PEFT's own options for this type, such as `{ r = 8, alpha = 16, target_modules = ["query"] }`;
        query and value are the targets where none are named."""

        @field_validator("type")
        @classmethod
        def _is_usable(cls, value: str) -> str:
            if reason := refusal(value.upper()):
                raise ValueError(reason)
            return value.lower()

        @field_validator("options")
        @classmethod
        def _is_ours_to_give(cls, value: dict[str, Any]) -> dict[str, Any]:
            for name in value:
                if name in OWNED:
                    raise ValueError(f"{name} is not for a recipe to set; leave it out (the head is always trained)")
            if value.get("megatron_config"):
                raise ValueError("megatron_config imports a module that it names; leave it out")
            if value.get("bias", "none") not in ("none", False):
                raise ValueError('bias trains the backbone\'s own; leave it out, kind = "lora" or "bitfit" have it')
            return {name: given for name, given in value.items() if given is not None}

    config: Config
    shares_backbone = False
    installs = True
    # Most types do, but fourierft, c3a, vblora and unilora start away from it.
    starts_as_no_op = False

    @property
    def peft_type(self) -> str:
        """PEFT's own name of the type."""
        return self.config.type.upper()

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the targets: those that the options choose, as PEFT chooses them, but never a part of the head."""
        wanted = set(self._known(shape).targets)
        return [site for site in shape.sites if site.name in wanted]

    def specs(self, shape: BackboneShape) -> dict[str, dict[str, ParameterSpec]]:
        """Returns every tensor that PEFT stores for such a backbone, by site and name."""
        return self._known(shape).specs

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns what `site` has if it is the only target; `specs` knows the targets together."""
        return self._known(BackboneShape("", (site,), {}, 0), (site.name,)).specs[site.name]

    def shared(self, shape: BackboneShape) -> dict[str, ParameterSpec]:
        """Returns what PEFT has for all targets together, such as VB-LoRA's vector bank."""
        return self.specs(shape).get(SHARED, {})

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Is never called: PEFT's modules stand in the backbone."""
        raise NotImplementedError(f"{self.kind} acts through modules of its own")

    def install(self, model: nn.Module, shape: BackboneShape) -> dict[str, dict[str, InstalledTensor]]:
        """Puts PEFT's modules into `model`; returns their tensors by site and name."""
        known = self._known(shape)
        with _as_method_errors(self._name(shape)):
            wrapped = self._wrapped(model, known.targets)
            found = _tensors(wrapped, [site.name for site in shape.sites])
        made = {
            place: {name: _spec(one, place, name, shape) for name, one in many.items()} for place, many in found.items()
        }
        if made != {place: many for place, many in known.specs.items() if many}:
            raise MethodError(f"{self._name(shape)}: its tensors are not those that the configuration announces")
        return found

    def is_exact_in(self, precision: str) -> bool:
        """Returns whether what it makes from the frozen weights is the same in `precision` as when it is loaded."""
        return self.peft_type not in ONLY_IN_FP32 or precision != "bf16"

    def merged_module(self, module: nn.Module, site: Site) -> dict[str, Tensor] | None:
        """Returns the parameters of a plain module that computes as PEFT's `module` does; None if there is none.

        A linear module is given the unit vectors: whatever acts as an affine map on each token is merged exactly.
        """
        return as_linear(module, site) if site.kind == "linear" else merged_by_itself(module)

    def stored(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[Method, dict[str, Mapping[str, Tensor]]]:
        """Returns the method with every option spelled out, so that no later default of PEFT changes a bundle."""
        chosen = {
            name: self.config.options[name] for name in ("target_modules", *RESOLVED) if name in self.config.options
        }
        places = [place for place in tensors if place != SHARED]
        if places and not all(is_literal(value) for value in chosen.values()):
            # A bundle's reader matches no patterns of a stranger's.
            chosen = {"target_modules": places}
        config = _plain(self._config(["any"]).to_dict())
        kept = {name: value for name, value in config.items() if name not in OWNED and name not in RESOLVED}
        kept.pop("target_modules", None)
        for name, value in kept.items():
            if name.endswith("_pattern") and isinstance(value, dict) and not all(is_literal(key) for key in value):
                kept[name] = in_full(value, places)
        return type(self)(type=self.config.type, options={**kept, **chosen}), dict(tensors)

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any]:
        """Returns `adapter_config.json` as PEFT's configuration class writes it; modules by full name."""
        document = _plain(self._config([site.name for site in sites]).to_dict())
        return {name: value for name, value in document.items() if name not in OWNED or name == "peft_type"}

    def further_settings(self) -> list[Setting]:
        """Returns the options of this type with PEFT's defaults and PEFT's help."""
        chosen = []
        for one in fields(_config_class(self.peft_type)):
            if one.name not in OWNED:
                default = one.default if one.default is not MISSING else None
                default = one.default_factory() if one.default_factory is not MISSING else default
                value = self.config.options.get(one.name, default)
                words = " ".join(str(one.metadata.get("help", "")).split())
                chosen.append(Setting(f"options.{one.name}", _plain(default), _plain(value), words))
        return chosen

    def _name(self, shape: BackboneShape) -> str:
        return f"{self.kind} {self.config.type} on this {shape.model_type}"

    def _known(self, shape: BackboneShape, targets: tuple[str, ...] | None = None) -> _Known:
        sites = tuple((site.name, tuple(site.shapes.items())) for site in shape.sites)
        options = json.dumps(self.config.options, sort_keys=True, default=str)
        return _known(_Question(self.peft_type, options, shape.model_type, sites, targets, shape, self))

    def _targets(self, shape: BackboneShape) -> tuple[str, ...]:
        """Returns the full names of the targets.

        Raises:
            MethodError: If a target matches nothing.
        """
        options = self.config.options
        wanted = options.get("target_modules")
        names = self._default_targets(shape) if wanted is None else _matching(wanted, shape)
        config = self._config(names, resolved=False)
        from peft.tuners.tuners_utils import check_target_module_exists

        if isinstance(config.target_modules, str) or not any(options.get(key) for key in RESOLVED):
            return tuple(names)
        # Asked by the end of the name: of a full name PEFT does not look at the layer.
        config.target_modules = {name.split(".", 1)[-1] for name in names}
        chosen = tuple(name for name in names if check_target_module_exists(config, name))
        if not chosen:
            raise MethodError(
                f"{self._name(shape)}: {' and '.join(key for key in RESOLVED if options.get(key))} leave no module"
            )
        return chosen

    def _default_targets(self, shape: BackboneShape) -> list[str]:
        if self.peft_type == "LN_TUNING":
            sites = [site for site in shape.sites if site.kind == "norm"]
        elif self.peft_type == "TRAINABLE_TOKENS":
            sites = [site for site in shape.sites if site.kind == "embedding"][:1]
        else:
            sites = with_roles(shape, "query", "value", "query_key_value")
        if not sites:
            raise MethodError(f"{self._name(shape)} has no default targets; name them: options.target_modules = […]")
        return [site.name for site in sites]

    def _config(self, targets: Iterable[str], resolved: bool = True) -> Any:
        """Returns PEFT's configuration with these targets."""
        given = {name: value for name, value in self.config.options.items() if not (resolved and name in RESOLVED)}
        if self.peft_type in WITHOUT_PROJECTION:
            given.setdefault("save_projection", False)
        config_class = _config_class(self.peft_type)
        known = [one.name for one in fields(config_class) if one.name not in OWNED]
        for name in given:
            if name not in known:
                raise MethodError(f"{self.kind} {self.config.type}: unknown option '{name}'; {_hint(name, known)}")
        with _as_method_errors(f"{self.kind} {self.config.type}"):
            return config_class(**{**given, "target_modules": list(targets)})

    def _wrapped(self, model: nn.Module, targets: Iterable[str]) -> peft.PeftModel:
        with bitsandbytes_alone():
            import peft

        return peft.PeftModel(model, self._config(targets), ADAPTER)


@dataclass(frozen=True)
class _Known:
    """What PEFT makes of a backbone's shape: the modules that it changes, and its tensors."""

    targets: tuple[str, ...]
    specs: dict[str, dict[str, ParameterSpec]]


@dataclass(frozen=True)
class _Question:
    """What decides a `_Known`; the last two only carry it."""

    peft_type: str
    options: str
    model_type: str
    sites: tuple[tuple[str, Any], ...]
    targets: tuple[str, ...] | None
    shape: BackboneShape = field(compare=False)
    method: Peft = field(compare=False)


@lru_cache(maxsize=128)
def _known(question: _Question) -> _Known:
    method, shape = question.method, question.shape
    targets = question.targets or method._targets(shape)
    import torch

    with _as_method_errors(method._name(shape)), torch.random.fork_rng([]):
        try:
            wrapped = method._wrapped(skeleton(shape, "meta"), targets)
        except (NotImplementedError, RuntimeError):
            # It looks at values, which a tensor without memory has not.
            wrapped = method._wrapped(skeleton(shape, "cpu"), targets)
        found = _tensors(wrapped, [site.name for site in shape.sites])
    specs: dict[str, dict[str, ParameterSpec]] = {name: {} for name in targets}
    for place, many in found.items():
        specs[place] = {name: _spec(one, place, name, shape) for name, one in many.items()}
    order = [site.name for site in shape.sites if site.name in specs]
    return _Known(tuple(order), {place: specs[place] for place in [*order, *([SHARED] if SHARED in specs else [])]})


def _tensors(wrapped: peft.PeftModel, sites: list[str]) -> dict[str, dict[str, InstalledTensor]]:
    """Returns the tensors that PEFT trains or stores, by site and name; those of no site under `SHARED`.

    What it stores besides and does not hold as a tensor (SHiRA's indices) it makes again from its configuration.
    """
    from peft.utils import get_peft_model_state_dict

    holders: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in wrapped.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                holders.setdefault(id(tensor), []).append((held, key))
    everything = wrapped.state_dict(keep_vars=True)
    stored = get_peft_model_state_dict(wrapped, state_dict=everything, save_embedding_layers=False)
    ours = {name: tensor for name, tensor in stored.items() if id(tensor) in holders}
    known = {id(tensor) for tensor in ours.values()}
    lost = [name for name, one in wrapped.named_parameters() if one.requires_grad and id(one) not in known]
    if lost:
        raise MethodError(f"PEFT does not store {lost[0]} as it is trained; leave out what makes it so")
    if len(known) < len(ours):
        raise MethodError("PEFT stores one tensor under several names; save_projection = false avoids that")
    found: dict[str, dict[str, InstalledTensor]] = {}
    for name, tensor in ours.items():
        place, own = _placed(name, sites)
        if tensor._backward_hooks:
            raise MethodError(f"PEFT changes the gradients of {name} on their way")
        found.setdefault(place, {})[own] = InstalledTensor(tensor, tuple(holders[id(tensor)]))
    return found


def _placed(name: str, sites: list[str]) -> tuple[str, str]:
    """Returns the site and the name there of a tensor in PEFT's checkpoints."""
    if not name.startswith(PEFT_PREFIX):
        return SHARED, name.removeprefix(SHARED_PREFIX)
    path = name.removeprefix(PEFT_PREFIX)
    places = [site for site in sites if path.startswith(site + ".")]
    if not places:
        raise MethodError(f"PEFT puts {path} where Fleetune knows no module of the backbone")
    place = max(places, key=len)
    return place, path.removeprefix(place + ".")


def _spec(one: InstalledTensor, place: str, name: str, shape: BackboneShape) -> ParameterSpec:
    is_norm = any(site.name == place and site.kind == "norm" for site in shape.sites)
    decay = not (is_norm or name.rpartition(".")[2] == "bias")
    return ParameterSpec(tuple(one.value.shape), initial="computed", decay=decay, trained=one.value.requires_grad)


def _matching(wanted: Any, shape: BackboneShape) -> list[str]:
    """Returns the modules of the backbone that PEFT would find by `target_modules`, a list of ends or a pattern."""
    from peft.utils.other import match_target_against_key

    targets = [wanted] if wanted == "all-linear" else wanted
    if isinstance(targets, str):
        chosen = [site.name for site in shape.sites if match_target_against_key(targets, site.name)]
        if not chosen:
            raise MethodError(f"target_modules: the pattern '{targets}' matches no module of this {shape.model_type}")
        return chosen
    if not isinstance(targets, list | tuple) or not all(isinstance(target, str) for target in targets) or not targets:
        raise MethodError(f"target_modules = {wanted!r}: a list of names, a pattern, or all-linear was expected")
    chosen = []
    for target in targets:
        other = [site for site in shape.sites if site.name == target or site.name.endswith(f".{target}")]
        if target == "all-linear" or not other:
            other = match_targets(shape, [target])
        chosen += [site.name for site in other]
    return [site.name for site in shape.sites if site.name in chosen]


def _config_class(peft_type: str) -> type[Any]:
    with bitsandbytes_alone():
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(key.value): known for key, known in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in classes:
        raise MethodError(f"this PEFT has no configuration for {peft_type}; it has: {', '.join(sorted(classes))}")
    return classes[peft_type]


def _hint(name: str, known: list[str]) -> str:
    near = [word for word in NOT_PEFTS_WORDS.get(name, ()) if word in known]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"


@contextmanager
def _as_method_errors(where: str) -> Iterator[None]:
    """Turns what PEFT raises about a configuration into one line, and keeps its warnings to itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MethodError as error:
        raise MethodError(f"{where}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        if "memory" in str(error):
            raise  # not the configuration's fault: the fleet makes room
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MethodError(f"{where}: {first}") from None


def _plain(value: Any) -> Any:
    """Returns `value` as JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, str | int | float) else str(value)
