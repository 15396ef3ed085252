"""What a recipe says about the backbone and about training one trial: every field a single value."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fleetune.errors import RecipeError
from fleetune.metrics import MetricName, check_metric

Positive = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Precision = Literal["auto", "bf16", "fp32", "float64"]
CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints where a recipe says nothing of it."""
OptimizerName = Literal["adamw", "paged_adamw_32bit", "adamw_8bit", "adafactor", "sgd"]


class BackboneConfig(BaseModel):
    """Which pretrained model is frozen under the trials."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "backbone"
    """Name in tables, where a recipe has several backbones."""
    model: str
    """A folder, a hub name, or `embedded:minilm`, `embedded:smollm2`."""
    revision: str | None = None
    """Commit, tag or branch on the hub."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """Storage of the frozen weights inside the layers: `nf4` is QLoRA's 4 bits, `int8` has a scale a row."""
    resident: Literal["quantized", "bf16"] = "quantized"
    """Where `quantize` is set: `bf16` keeps the rounded weights as plain numbers, in the type of `precision`, if they
    fit into memory; same weights, faster."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """How texts lie in memory; `auto` is packed where the parity probe allows it."""

    @model_validator(mode="after")
    def _resident_needs_quantize(self) -> BackboneConfig:
        if self.quantize == "none" and self.resident != "quantized":
            raise ValueError(f'resident = "{self.resident}" is for quantised weights; set quantize = "nf4" or "int8"')
        return self


class TrainingConfig(BaseModel):
    """How one trial is trained. In a recipe any field may be a list, which makes it an axis of the grid."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Positive = 3.0
    """Passes over the training texts; a fraction trains a part of the last pass."""
    max_steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps; where given it takes the place of `epochs`."""
    batch_size: int = Field(default=16, ge=1)
    """Texts in one forward and backward pass."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Passes whose gradients make one optimizer step."""
    optimizer: OptimizerName = "adamw"
    """What makes the steps. `paged_adamw_32bit` keeps AdamW's moments where a GPU can page them out; `adamw_8bit` keeps
    them in 8 bits, `adafactor` as row and column means; both take less memory."""
    learning_rate: Positive = 5e-4
    """Peak learning rate."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Of sgd alone."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Decoupled weight decay (for sgd an L2 penalty); never on biases and norms."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    adam_epsilon: Positive = 1e-8
    """AdamW's term against division by zero."""
    warmup_ratio: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the steps over which the learning rate rises to its peak."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Number of warm-up steps; where given it takes the place of `warmup_ratio`."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warm-up."""
    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Gradients are scaled down to this norm; 0 switches clipping off."""
    head_dropout: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Dropout in the head; as the backbone's configuration says where absent."""
    backbone_dropout: bool = True
    """Whether the backbone's own dropout acts in training."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """`focal` gives texts that are already answered well less weight; multi-label, both are taken label by label."""
    focal_gamma: float = Field(default=2.0, ge=0.0)
    """How much less weight focal loss gives them; at 0 it is the cross entropy."""
    class_weights: Literal["none", "balanced"] | tuple[Weight, ...] = "none"
    """`balanced` weighs each class by the inverse of its frequency in training; or a list of numbers, one a label.
    Multi-label, a label's positives are weighed."""
    thresholds: Literal["tuned"] | Annotated[float, Field(gt=0.0, lt=1.0)] = "tuned"
    """Probability from which a label is given where texts may have several: a number, or `tuned` on validation for
    each label's F1. Validation itself is judged by thresholds tuned on its other texts."""
    evaluate_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = "epoch"
    """Evaluation on validation: at each epoch's end, or every so many steps; and always at the end."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without a better metric."""
    metric: MetricName = "f1_macro"
    """Metric on validation that chooses the best checkpoint."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone and compute the layer again in the backward pass: less memory, more time, and the
    same numbers."""
    precision: Precision = "auto"
    """Of the frozen weights and their products; adapters, head and optimizer stay in fp32 (or float64)."""

    def check_labels(self, num_labels: int, multi_label: bool) -> None:
        """Does nothing if it fits such labels.

        Raises:
            RecipeError: If the metric is not defined for them, or the weights are not one a label.
        """
        check_metric(self.metric, num_labels, multi_label)
        if not isinstance(self.class_weights, str) and len(self.class_weights) != num_labels:
            raise RecipeError(
                f"class_weights has {len(self.class_weights)} numbers, and there are {num_labels} labels.\n"
                "Give one number a label, in the order in which fleetune check lists them"
            )

    @field_validator("class_weights")
    @classmethod
    def _some_weights(cls, value: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not value:
            raise ValueError("one number a label was expected; got an empty list")
        return value

    def steps_per_epoch(self, texts: int) -> int:
        """Returns the optimizer steps of one pass over `texts` training texts; the last may hold fewer."""
        return math.ceil(texts / (self.batch_size * self.gradient_accumulation_steps))

    def total_steps(self, texts: int) -> int:
        """Returns the optimizer steps in all."""
        if self.max_steps is not None:
            return self.max_steps
        return max(1, math.ceil(self.epochs * self.steps_per_epoch(texts)))

    def steps_between_evaluations(self, texts: int) -> int:
        """Returns after how many steps an evaluation follows; one follows the last step besides."""
        return self.steps_per_epoch(texts) if self.evaluate_every == "epoch" else self.evaluate_every
