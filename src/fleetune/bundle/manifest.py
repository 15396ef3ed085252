"""`fleetune.json`: what a bundle says of itself, and the checksums that hold it together."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fleetune.bundle.entries import is_own_file, name_fault, read_table
from fleetune.calibration import HIGHEST, LOWEST, NEUTRAL_TEMPERATURE
from fleetune.data.arrays import LabelType, classes_from
from fleetune.data.cutting import Cutting
from fleetune.data.writing import sha256_of
from fleetune.errors import BundleError

MANIFEST = "fleetune.json"
FORMAT = 1
MAX_MANIFEST_BYTES = 16 << 20
"""Room for some hundred thousand labels, and a bound on what reading one can take."""
MAX_TOKENS = 1 << 24
MAX_FILES = 64

Form = Literal["adapter", "parameters", "delta", "merged"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileFacts(_Part):
    """One file of the bundle."""

    bytes: int = Field(ge=0)
    sha256: Digest


class BackboneFacts(_Part):
    """The frozen model that the bundle belongs to."""

    model: str = Field(min_length=1)
    """Hub name, embedded name, or absolute path of a folder."""
    revision: str | None
    """Commit, tag or branch on the hub."""
    hash: Digest
    """SHA-256 of its configuration and weights."""
    model_type: str
    """Its architecture."""
    layout: Literal["packed", "padded"]
    """How texts lay in memory."""
    precision: Literal["bf16", "fp32", "float64"]
    """Of the frozen weights' products in training."""
    quantize: Literal["none", "nf4", "int8"] = "none"
    """How the frozen weights of the layers were rounded in training; the weights of a merged bundle are so already."""
    resident: Literal["quantized", "bf16"] = "quantized"
    """Whether rounded weights were kept in few bits, or restored."""


class TokenizerFacts(_Part):
    """How texts become tokens."""

    tokenizer_class: str
    sha256: Digest | None
    """Of `tokenizer.json`, where there is one."""
    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]


class MethodFacts(_Part):
    """How it was fine-tuned."""

    kind: str
    settings: dict[str, Any]
    source: str
    trained_as: dict[str, Any] | None = None
    """Kind and settings in training, where what is stored acts the same by simpler means."""


class Manifest(_Part):
    """All of `fleetune.json` but its own checksum."""

    format: Literal[1] = 1
    fleetune_version: str
    form: Form
    labels: list[str] = Field(min_length=1, max_length=1_000_000)
    """In the order of the classifier's outputs."""
    label_type: LabelType = "str"
    """What labels are in Python."""
    multi_label: bool
    thresholds: list[float] | None
    """Calibrated probability from which a label is given, one each; None where a text has exactly one label."""
    positive_threshold: float | None = None
    """Of two labels of which a text has one: calibrated probability from which it has the second; the more probable one
    where absent."""
    temperature: float = Field(default=NEUTRAL_TEMPERATURE, ge=LOWEST, le=HIGHEST, allow_inf_nan=False)
    """What logits are divided by before they become probabilities; 1 in bundles of before it was fitted."""
    pairs: bool
    """Whether a text is a pair of texts."""
    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    """Longest sequence, special tokens included."""
    long_texts: Cutting = Cutting()
    """What becomes of longer texts; where absent they are cut."""
    backbone: BackboneFacts
    tokenizer: TokenizerFacts | None
    """None where the backbone's own tokenizer is to be used."""
    head: list[str] = Field(min_length=1)
    """Names of the head's parameters in the Hugging Face model."""
    method: MethodFacts
    training: dict[str, Any]
    """Summary of the training."""
    files: dict[str, FileFacts] = Field(max_length=MAX_FILES)
    """Every other file of the bundle."""

    @field_validator("labels", "head")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("an entry stands there twice")
        return value

    @field_validator("files")
    @classmethod
    def _plain_names(cls, value: dict[str, FileFacts]) -> dict[str, FileFacts]:
        for name in value:
            fault = "a bundle does not list itself" if name == MANIFEST else name_fault(name)
            if fault:
                raise ValueError(fault)
        if len({name.lower() for name in value}) < len(value):
            raise ValueError("two names differ in their case alone")
        return value

    @field_validator("training")
    @classmethod
    def _lists_evaluations(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("evaluations", []), list):
            raise ValueError("evaluations is no list")
        return value

    @model_validator(mode="after")
    def _labels_fit_their_type(self) -> Manifest:
        try:
            classes = classes_from(self.labels, self.label_type)
        except (ValueError, OverflowError):
            raise ValueError(f"a label is no {self.label_type}") from None
        if len(classes) != len(self.labels) or (self.label_type == "bool" and not {"True", "False"} >= {*self.labels}):
            raise ValueError(f"the labels are not what a label that is a {self.label_type} can be")
        return self

    @model_validator(mode="after")
    def _thresholds_fit(self) -> Manifest:
        if (self.thresholds is not None) != self.multi_label:
            raise ValueError("thresholds belong to a multi-label classifier, and only to one")
        if self.thresholds is not None:
            if len(self.thresholds) != len(self.labels):
                raise ValueError(f"{len(self.thresholds)} thresholds for {len(self.labels)} labels")
            if not all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in self.thresholds):
                raise ValueError("a threshold is not between 0 and 1")
        if self.positive_threshold is not None:
            if self.multi_label or len(self.labels) != 2:
                raise ValueError("a positive threshold belongs to a classifier of two labels, and only to one")
            if not 0.0 <= self.positive_threshold <= 1.0:
                raise ValueError("the positive threshold is not between 0 and 1")
        return self

    def to_bytes(self) -> bytes:
        """Returns the file's content: the fields, and the SHA-256 over them."""
        fields = self.model_dump(mode="json")
        document = {**fields, "sha256": digest_of(fields)}
        return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Returns what `folder` says of itself.

    Raises:
        BundleError: If it is no bundle, or `fleetune.json` is damaged.
    """
    path = folder / MANIFEST
    if not is_own_file(path):
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}.\nType: fleetune export RUN --to {folder}")
    try:
        document = read_table(path, MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise damaged(folder, f"{MANIFEST}: {error}") from None
    if isinstance(document.get("format"), int) and document["format"] > FORMAT:
        raise BundleError(
            f"{folder} has bundle format {document['format']}; this fleetune reads up to {FORMAT}.\n"
            "Type: pip install --upgrade fleetune"
        )
    digest = document.pop("sha256", None)
    if digest != digest_of(document):
        raise damaged(folder, f"{MANIFEST} does not match its own checksum")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise damaged(folder, f"{MANIFEST}: {place}: {fault['msg'].removeprefix('Value error, ')}") from None


def damaged(folder: Path, what: str) -> BundleError:
    """Returns the error for a bundle that cannot be trusted."""
    return BundleError(f"bundle {folder} is damaged: {what}.\nExport it again")


def file_facts(path: Path) -> FileFacts:
    """Returns size and checksum of a file."""
    return FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))


def digest_of(fields: dict[str, Any]) -> str:
    """Returns the SHA-256 over the fields, however they are laid out in the file."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
