"""LoRA: a low-rank update beside a frozen linear layer, and what has become of it since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from fleetune.errors import MethodError
from fleetune.methods.base import BackboneShape, Method, MethodConfig, ParameterSpec, Role, Site, SiteCall
from fleetune.methods.bitfit import shifted
from fleetune.methods.registry import register
from fleetune.methods.targets import check_layers, in_layers, is_target, match_targets, with_roles

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

DEFAULT_ROLES: tuple[Role, ...] = ("query", "value", "query_key_value")
A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
STARTED_A, STARTED_B = "started_A", "started_B"
"""What is taken off the frozen weight because A and B start with it."""


@register("lora", source="Hu et al., 2021, arXiv:2106.09685")
class LoRA(Method):
    """Adds (alpha / rank) · B · A to a frozen weight, A and B of the given rank (Hu et al., 2021, section 4.1)."""

    class Config(MethodConfig):
        """LoRA's settings."""

        rank: int = Field(default=8, ge=1)
        """Inner dimension of the update."""
        alpha: float = Field(default=16.0, gt=0.0)
        """The update is scaled by alpha / rank."""
        dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
        """Dropout on the update's input."""
        target_modules: tuple[str, ...] | None = None
        """Linear modules by the end of their name, or `all-linear`; query and value where absent."""
        layers: tuple[int, ...] | None = None
        """Layers whose modules are targets; negative ones count from the top. All where absent."""
        bias: Literal["none", "all", "lora_only"] = "none"
        """Biases trained besides: of the whole backbone, or of the targets."""
        rslora: bool = False
        """Scale by alpha / sqrt(rank) (rsLoRA: Kalajdzievski, 2023, arXiv:2312.03732)."""
        dora: bool = False
        """Train the length of each row of the weight apart from its direction (DoRA: Liu et al., 2024,
        arXiv:2402.09353)."""
        loraplus_lr_ratio: float = Field(default=1.0, gt=0.0)
        """B's learning rate over A's; 16 is usual (LoRA+: Hayou et al., 2024, arXiv:2402.12354)."""
        start: Literal["zero", "pissa", "olora", "orthogonal"] = "zero"
        """B at zero; the weight's principal part (PiSSA: Meng et al., 2024, arXiv:2404.02948); its QR factors (OLoRA:
        Büyükakyüz, 2024, arXiv:2406.01775); random A and B orthogonal to each other. All leave the output as it is."""

    config: Config

    def sites(self, shape: BackboneShape) -> list[Site]:
        """Returns the targets, query and value (or the fused query-key-value) by default; with biases their sites."""
        targets = self._targets(shape)
        if self.config.bias != "all":
            return targets
        names = {site.name for site in targets}
        return [site for site in shape.sites if site.name in names or "bias" in site.shapes]

    def _targets(self, shape: BackboneShape) -> list[Site]:
        targets = targets_of(shape, self.config.target_modules, self.config.layers, self.kind)
        with_bias = targets if self.config.bias == "lora_only" else shape.sites
        if self.config.bias != "none" and not any("bias" in site.shapes for site in with_bias):
            raise MethodError(f'bias = "{self.config.bias}": there is no bias to train in this {shape.model_type}')
        for site in targets:
            self._check_rank(site)
        return targets

    def _check_rank(self, site: Site) -> None:
        largest = min(site.in_features, site.out_features)
        if self._takes_from_weight and self.config.rank > largest:
            raise MethodError(
                f'start = "{self.config.start}" divides a weight, and {site.name} has rank {largest} at most; '
                f"rank = {self.config.rank} is too large"
            )
        if self.config.start == "orthogonal" and self.config.rank % 2:
            raise MethodError(f'start = "orthogonal" needs an even rank; got {self.config.rank}')

    def _is_target(self, site: Site) -> bool:
        """Returns what `targets_of` says of one site."""
        wanted = self.config.target_modules
        fits = site.kind == "linear" and site.role in DEFAULT_ROLES if wanted is None else is_target(site, wanted)
        return fits and in_layers(site, self.config.layers)

    def parameters(self, site: Site) -> dict[str, ParameterSpec]:
        """Returns A and B of a target, with what DoRA, a start from the weight and the biases add."""
        specs: dict[str, ParameterSpec] = {}
        if self._is_target(site):
            down, up = (self.config.rank, site.in_features), (site.out_features, self.config.rank)
            zero, ratio = self.config.start == "zero", self.config.loraplus_lr_ratio
            specs[A] = ParameterSpec(down, initial="kaiming_uniform" if zero else "computed")
            specs[B] = ParameterSpec(up, initial="zeros" if zero else "computed", rate=ratio)
            if self._takes_from_weight:
                specs[STARTED_A] = ParameterSpec(down, initial="computed", trained=False)
                specs[STARTED_B] = ParameterSpec(up, initial="computed", trained=False)
            if self.config.dora:
                specs[MAGNITUDE] = ParameterSpec((site.out_features,), initial="computed")
        if "bias" in site.shapes and self.config.bias != "none":
            specs["bias"] = ParameterSpec(site.shapes["bias"], initial="frozen", decay=False)
        return specs

    @property
    def _takes_from_weight(self) -> bool:
        return self.config.start in ("pissa", "olora")

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.config.alpha / (sqrt(self.config.rank) if self.config.rslora else self.config.rank)

    def starts(self, site: Site, frozen: Callable[[str], Tensor], random: np.random.Generator) -> dict[str, Tensor]:
        """Returns A and B that are parts of the weight or orthogonal, and the lengths of the weight's rows."""
        found: dict[str, Tensor] = {}
        if self.config.start != "zero":
            found[A], found[B] = self._factors(site, frozen("weight"), random)
            found |= {STARTED_A: found[A], STARTED_B: found[B]}
        if self.config.dora:
            found[MAGNITUDE] = frozen("weight").norm(dim=1)
        return found

    def _factors(self, site: Site, weight: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        import torch

        rank = self.config.rank
        if self.config.start == "olora":
            left, right = torch.linalg.qr(weight)
            # PEFT leaves the scale out of the factors and takes the scaled product off the weight; so do we.
            # Copies: the whole factors are as large as the weight.
            return right[:rank].clone(), left[:, :rank].clone()
        if self.config.start == "pissa":
            left, lengths, right = torch.linalg.svd(weight, full_matrices=False)
            root = (lengths[:rank] / self.scale).sqrt()
            return root[:, None] * right[:rank], left[:, :rank] * root
        basis = torch.linalg.qr(_normal(random, rank, rank))[0]
        down = _normal(random, site.in_features, rank // 2) @ basis[0::2]
        up = _normal(random, site.out_features, rank // 2) @ basis[1::2]
        return down.T / 10.0, up / 10.0

    def forward(
        self, x: Tensor, output: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns W·x + b + scale · B·A·dropout(x), with the trial's bias, and the rows' lengths if DoRA."""
        if A in parameters:
            update = self._update(x, parameters, call)
            output = self._rescaled(output, update, parameters, site, call) if self.config.dora else output + update
        return shifted(output, parameters["bias"] - call.frozen("bias"), site) if "bias" in parameters else output

    def _update(self, x: Tensor, parameters: Mapping[str, Tensor], call: SiteCall) -> Tensor:
        down = call.dropout(x, self.config.dropout) @ parameters[A].T
        update = (down * self.scale) @ parameters[B].T
        if not self._takes_from_weight:
            return update
        return update - (x @ parameters[STARTED_A].T * self.scale) @ parameters[STARTED_B].T

    def _rescaled(
        self, output: Tensor, update: Tensor, parameters: Mapping[str, Tensor], site: Site, call: SiteCall
    ) -> Tensor:
        """Returns m / ‖V‖ · V·x + b with V = W + scale · B·A; ‖V‖ counts as constant (DoRA, section 4.3)."""
        import torch

        direction = self._direction(parameters, call.frozen("weight")).detach()
        lengths: Tensor = direction.norm(dim=1, dtype=torch.promote_types(direction.dtype, torch.float32))
        ratio = parameters[MAGNITUDE] / lengths.to(output.dtype)
        bias = call.frozen("bias") if "bias" in site.shapes else 0.0
        return (output - bias + update) * ratio + bias

    def _direction(self, parameters: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        """Returns V = W + scale · B·A, without what A and B started with."""
        update = parameters[B] @ parameters[A]
        if self._takes_from_weight:
            update = update - parameters[STARTED_B] @ parameters[STARTED_A]
        return weight + self.scale * update

    def merged(self, parameters: Mapping[str, Tensor], site: Site, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns W + scale · B·A, its rows with the trained lengths if DoRA, and the bias."""
        found = {"bias": parameters["bias"]} if "bias" in parameters else {}
        if A in parameters:
            weight = self._direction(parameters, frozen["weight"])
            if self.config.dora:
                weight = weight * (parameters[MAGNITUDE] / weight.norm(dim=1))[:, None]
            found["weight"] = weight
        return found

    def stored(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[Method, dict[str, Mapping[str, Tensor]]]:
        """Returns LoRA of twice the rank where A and B took from the weight: B·A − B₀·A₀ = [B B₀]·[A −A₀]."""
        if not self._takes_from_weight:
            return self, dict(tensors)
        twice = sqrt(2.0) if self.config.rslora else 2.0
        plain = self.settings | {
            "rank": 2 * self.config.rank,
            "alpha": twice * self.config.alpha,
            "start": "zero",
        }
        return LoRA(**plain), {place: _doubled(own) for place, own in tensors.items()}

    def to_peft(self, sites: Iterable[Site]) -> dict[str, Any] | None:
        """Returns the fields of PEFT's `LoraConfig`; modules by full name, so that no other matches by suffix."""
        return {
            "peft_type": "LORA",
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": self.config.dropout,
            "target_modules": [site.name for site in sites if self._is_target(site)],
            "bias": self.config.bias,
            "use_rslora": self.config.rslora,
            "use_dora": self.config.dora,
        }

    def peft_name(self, site: Site | None, parameter: str) -> str:
        """Returns `….lora_A.weight` and the like; a target's bias lies in the module that PEFT puts around it."""
        assert site is not None
        if parameter == "bias" and self._is_target(site):
            return super().peft_name(site, "base_layer.bias")
        name = super().peft_name(site, parameter)
        return f"{name}.weight" if parameter in (A, B) else name


def targets_of(
    shape: BackboneShape, targets: Sequence[str] | None, layers: Sequence[int] | None, kind: str
) -> list[Site]:
    """Returns the linear sites that `targets` name, query and value (or the fused query-key-value) where absent.

    Raises:
        MethodError: If a target or a layer does not exist, or none is left.
    """
    check_layers(shape, layers)
    found = with_roles(shape, *DEFAULT_ROLES) if targets is None else match_targets(shape, targets)
    if not found:
        raise MethodError(f"{kind} has no default targets for {shape.model_type}; name them: target_modules = […]")
    chosen = [site for site in found if in_layers(site, layers)]
    if not chosen:
        raise MethodError(f"{kind}: none of target_modules lies in one of layers = {list(layers or ())}")
    return chosen


def _normal(random: np.random.Generator, *shape: int) -> Tensor:
    import torch

    return torch.from_numpy(random.normal(size=shape))


def _doubled(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    rest = {name: tensor for name, tensor in own.items() if name not in (A, B, STARTED_A, STARTED_B)}
    if A not in own:
        return rest
    down, up = torch.cat([own[A], -own[STARTED_A]]), torch.cat([own[B], own[STARTED_B]], dim=1)
    return {A: down, B: up} | rest
