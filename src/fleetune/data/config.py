"""What a recipe says about data."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fleetune.data.cutting import Cutting

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
LabelName = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)]
LONGEST_NAME, LONGEST_PATH = 255, 4_000
BOUND = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")


class SplitConfig(BaseModel):
    """How one file becomes training, validation and test texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: Share = 0.1
    """Share of the texts that choose the best checkpoint; ignored where a validation file is given."""
    test: Share = 0.1
    """Share of the texts kept for the final figures; ignored where a test file is given."""
    seed: int = 0
    """Seed of the split. It is apart from the trials' seeds: every trial sees the same split."""
    stratify: bool = True
    """Whether each split keeps the shares of the labels (multi-label too)."""

    @model_validator(mode="after")
    def _leave_texts_to_train_on(self) -> SplitConfig:
        if self.validation + self.test >= 1.0:
            raise ValueError("validation and test together leave no texts to train on; their sum must be below 1")
        return self


class DataConfig(Cutting):
    """Where labelled texts come from, and how strictly they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "data"
    """Name in tables, where a recipe has several data sets."""
    path: Path | None = None
    """One CSV, TSV, JSONL or Parquet file, a folder saved by `datasets`, `embedded:tweets` or `embedded:bbc`."""
    train: Path | None = None
    """Training file, where the splits come apart."""
    validation: Path | None = None
    """Validation file, where the splits come apart."""
    test: Path | None = None
    """Test file, where the splits come apart."""
    hf: str | None = None
    """Hugging Face data set: `name`, `name/configuration` or `user/name/configuration`, such as `glue/sst2`."""
    revision: str | None = None
    """Commit, tag or branch of the Hugging Face data set."""
    text: str | list[str] = "text"
    """Column of the text; two columns make pairs."""
    label: str | list[str] = "label"
    """Column of the label; several 0/1 columns make it multi-label."""
    label_separator: str | None = None
    """Separator between the labels of one column, which makes it multi-label."""
    labels: list[LabelName] | None = None
    """The labels in their order; a label not listed is an unknown label."""
    format: Literal["auto", "csv", "jsonl", "parquet"] = "auto"
    """File format; `auto` goes by the file's name. TSV and other dialects are `csv`."""
    delimiter: str | None = None
    """CSV field separator; found out where absent."""
    quote: str = '"'
    """CSV quotation mark; empty where the file has none and a quotation mark is a letter like any other."""
    escape: str | None = None
    """CSV escape character inside quotes, where quotation marks are not doubled."""
    encoding: str = "auto"
    """Text encoding; `auto` knows UTF-8 and UTF-16, with or without byte-order mark."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """`replace` puts U+FFFD for undecodable bytes; `strict` reports them with their lines."""
    where: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """Rows to keep: `{column = value}` for equality or `{column = ">= 0.9"}` for a numeric bound; empty is out."""
    sample: float | int | None = None
    """A share (0 to 1) or a number of texts to keep; stratified and seeded by `split.seed`."""
    leaks: Literal["error", "drop", "allow"] = "error"
    """What to do when a text of validation or test also stands in training."""
    max_bad_rows: int = Field(default=0, ge=0)
    """How many quarantined records are accepted before the run stops."""
    max_field_characters: int = Field(default=1_000_000, ge=1)
    """A field longer than this is quarantined."""
    max_tokens: int = Field(default=128, ge=2)
    """Longest sequence of tokens, special tokens included; `long_texts` says what becomes of longer texts."""
    split: SplitConfig = SplitConfig()
    """How one file becomes three."""
    metric: str | None = None
    """Metric of the trials on this data, where it is not that of [training], such as `matthews` for CoLA."""
    slices: list[str] | None = None
    """Columns by whose values scores are shown apart, such as a source or a language; they train nothing."""
    curve: list[float] | None = None
    """Shares of the training texts, such as `[0.1, 0.3, 1.0]`: each configuration is trained on each, to see whether
    more labels would help. All of them are always among the shares."""

    @field_validator("path", "train", "validation", "test")
    @classmethod
    def _possible_path(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        try:
            value.expanduser()
        except RuntimeError:
            raise ValueError(f"nobody here has the home of {str(value)[:80]!r}") from None
        longest = max((len(part.encode("utf-8", "replace")) for part in value.parts), default=0)
        if "\0" in str(value) or longest > LONGEST_NAME or len(str(value)) > LONGEST_PATH:
            raise ValueError(f"{str(value)[:80]!r} can be no name of a file: it has a NUL byte, or is too long")
        return value

    @field_validator("delimiter", "quote", "escape")
    @classmethod
    def _one_character(cls, value: str | None) -> str | None:
        if value in ("\\t", "tab"):
            return "\t"
        if value and (len(value) > 1 or value in "\r\n\0"):
            raise ValueError(f"takes one character; got {value!r}")
        return value

    @field_validator("delimiter")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value == "":
            raise ValueError("takes one character; leave it out to have it found")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        if value != "auto":
            try:
                "".encode(value)
                codecs.lookup(value)
            except (LookupError, ValueError):
                raise ValueError(
                    f"no encoding is called {value!r}; common ones are utf-8, utf-16, cp1252, latin-1"
                ) from None
        return value

    @field_validator("where")
    @classmethod
    def _numeric_bounds(cls, value: dict[str, str | bool | int | float]) -> dict[str, str | bool | int | float]:
        for column, wanted in value.items():
            bound = BOUND.fullmatch(wanted) if isinstance(wanted, str) else None
            if bound is None or bound[1] in ("==", "!="):
                continue
            try:
                float(bound[2])
            except ValueError:
                raise ValueError(f"{column}: {wanted!r} needs a number after {bound[1]}") from None
        return value

    @field_validator("sample")
    @classmethod
    def _share_or_number(cls, value: float | int | None) -> float | int | None:
        if isinstance(value, float) and not 0.0 < value <= 1.0:
            raise ValueError(
                f"a share lies between 0 and 1, and a number of texts is written without point; got {value}"
            )
        if isinstance(value, int) and value < 1:
            raise ValueError(f"a number of texts is at least 1; got {value}")
        return value

    @field_validator("labels")
    @classmethod
    def _distinct_labels(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"a label is listed twice in {value}")
        return value

    @field_validator("slices")
    @classmethod
    def _distinct_columns(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError(f"a column is listed twice in {value}")
        return value

    @field_validator("curve")
    @classmethod
    def _shares_up_to_all(cls, value: list[float] | None) -> list[float] | None:
        if value is None:
            return None
        for share in value:
            if not 0.0 < share <= 1.0:
                raise ValueError(f"a share of the training texts lies above 0 and up to 1; got {share}")
        shares = sorted({*value, 1.0})
        if len(shares) < 2:
            raise ValueError(f"a curve has at least two shares, such as [0.1, 0.3, 1.0]; got {value}")
        return shares

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        sources = [name for name in ("path", "train", "hf") if getattr(self, name) is not None]
        if len(sources) != 1:
            got = " and ".join(sources) if sources else "none of them"
            raise ValueError(f"give exactly one of path, train or hf; got {got}")
        if self.train is None and (self.validation is not None or self.test is not None):
            raise ValueError("validation and test files go with train = …, not with path or hf")
        if isinstance(self.text, list) and len(self.text) != 2:
            raise ValueError(f"text takes one column or a pair of columns; got {len(self.text)}")
        if isinstance(self.label, list) and not self.label:
            raise ValueError("label takes one column or a list of 0/1 columns; got an empty list")
        if self.label_separator == "":
            raise ValueError("label_separator takes at least one character")
        if self.revision is not None and self.hf is None:
            raise ValueError("revision goes with hf")
        if isinstance(self.label, list) and self.label_separator is not None:
            raise ValueError("label is a list of 0/1 columns or one column with label_separator, not both")
        if isinstance(self.text, list) and self.long_texts == "windows":
            raise ValueError(
                'long_texts = "windows" takes single texts, and text names a pair of columns; '
                'type long_texts = "head_tail", which keeps both ends of the longer text'
            )
        return self

    @property
    def cutting(self) -> Cutting:
        """What becomes of long texts, apart from the rest."""
        return Cutting.model_validate({name: getattr(self, name) for name in Cutting.model_fields})

    @property
    def text_columns(self) -> list[str]:
        """Names of the one or two columns of text."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    @property
    def label_columns(self) -> list[str]:
        """Names of the one or more columns of labels."""
        return [self.label] if isinstance(self.label, str) else list(self.label)

    @property
    def train_shares(self) -> list[float]:
        """Shares of the training texts to train on, the last of them all."""
        return self.curve or [1.0]

    @property
    def columns(self) -> list[str]:
        """Every column the recipe names, each once."""
        return list(dict.fromkeys([*self.text_columns, *self.label_columns, *self.where, *(self.slices or ())]))
