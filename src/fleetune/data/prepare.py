"""From a recipe's [data] to texts in splits: read, gate, sample, split, audit. Reads from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetune.data.audit import Audit, class_counts, unlabelled
from fleetune.data.config import DataConfig
from fleetune.data.curve import check_curve
from fleetune.data.dataset import SPLITS, Dataset, SplitName
from fleetune.data.duplicates import find_near_duplicates, group_duplicates, normalised_texts
from fleetune.data.examples import Examples, examples_of
from fleetune.data.gate import open_gate, quarantine_csv, reasons
from fleetune.data.labels import LabelSet, encode_labels, find_labels
from fleetune.data.slices import check_slices, joined_slices
from fleetune.data.sources import read_sources
from fleetune.data.split import Labels, draw, split_texts
from fleetune.data.table import Quarantine
from fleetune.data.unlabelled import take_unlabelled, unlabelled_warning, with_unlabelled
from fleetune.data.writing import make_folder, runs, write_json, write_row_groups, write_text
from fleetune.errors import DataError

Indices = NDArray[np.int64]

SHOWN_CHARACTERS = 60
FEW_VALUES = 100


@dataclass(frozen=True)
class Prepared:
    """A data set that is ready for a tokenizer.

    Attributes:
        dataset: Accepted texts in splits.
        audit: What was counted on the way.
        quarantine: Records that could not be used, in order of file and line; past a number of them, how many more.
    """

    dataset: Dataset
    audit: Audit
    quarantine: Quarantine

    def write(self, folder: Path, audit: Audit | None = None) -> None:
        """Writes `audit.json`, `quarantine.csv` and `splits.parquet` into `folder`, each whole or not at all.

        Args:
            folder: Is made if absent, with up to two above it.
            audit: Written in place of this one's, such as one `with_tokens`.
        """
        make_folder(folder)
        write_json(folder / "audit.json", (audit or self.audit).to_json())
        write_text(folder / "quarantine.csv", quarantine_csv(self.quarantine))
        write_row_groups(folder / "splits.parquet", _splits_schema(), _splits_rows(self.dataset))


def _splits_schema() -> Any:
    import pyarrow

    words = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    return pyarrow.schema([("split", words), ("index", pyarrow.int64()), ("source", words), ("line", pyarrow.int64())])


def _splits_rows(dataset: Dataset) -> Iterator[list[Any]]:
    import pyarrow

    for split in SPLITS:
        for rows in runs(dataset.splits[split]):
            yield [
                pyarrow.DictionaryArray.from_arrays(np.zeros(len(rows), dtype=np.int32), [split]),
                pyarrow.array(rows),
                pyarrow.DictionaryArray.from_arrays(dataset.files[rows].astype(np.int32), dataset.sources),
                pyarrow.array(dataset.lines[rows]),
            ]


def prepare(config: DataConfig, base: Path = Path()) -> Prepared:
    """Returns the data set that `config` describes, split and audited.

    Args:
        config: What the recipe says.
        base: Folder that relative paths start from: the recipe's.

    Raises:
        TooManyBadRowsError: If more records are bad than `max_bad_rows`; it has their list.
        DataError: If the data cannot be read, has one class only, leaks, or leaves a label without training text.
        MissingExtraError: If an optional package is needed and absent.
    """
    tables = read_sources(config, base)
    notes = [note for group in tables.values() for table in group for note in table.notes]
    apart = [examples_of(table, config) for table in take_unlabelled(tables, config)]
    origins: list[SplitName] = [split for split, group in tables.items() for _ in group]
    sources = [examples_of(table, config) for group in tables.values() for table in group]
    del tables
    labels = find_labels(sources, config)
    encoded = [encode_labels(source, labels) for source in sources]
    read = [*sources, *apart]
    quarantine = Quarantine()
    for source in read:
        quarantine.take(source.quarantine)
    accepted = sum(len(source.texts) for source in sources)
    unscored = sum(len(source.texts) for source in apart)
    filtered = sum(source.filtered for source in read)
    open_gate(accepted + unscored + quarantine.number, quarantine, config.max_bad_rows)
    _require_texts(accepted, quarantine.number, filtered, config)
    everything = _join(config.name, sources, encoded, origins, labels)
    del sources, encoded, read
    _require_classes(everything)

    normal = normalised_texts(everything.texts, everything.pairs)
    groups = group_duplicates(normal)
    splits = _sample(everything, config, notes)
    sampled_out = accepted - sum(map(len, splits.values()))
    splits, leaks, dropped = _handle_leaks(everything, splits, groups, config)
    splits = _complete_splits(everything, splits, groups, config, bool(unscored))
    _require_training_texts(everything, splits, config)
    dataset, kept = _compact(everything, splits)
    near, warnings = _near_leaks(dataset, [normal[index] for index in kept.tolist()], groups[kept])
    del normal

    conflicts = _count_conflicts(everything.labels, groups)
    warnings = [*_warnings(dataset, conflicts, leaks, dropped, config), *warnings]
    counts, without_label = class_counts(dataset), unlabelled(dataset)
    if unscored:
        dataset = with_unlabelled(dataset, apart)
        warnings.append(unlabelled_warning(unscored))
        counts.pop("test")
        without_label.pop("test", None)
    check_slices(dataset)
    check_curve(dataset, config)
    audit = Audit(
        name=config.name,
        sources=dataset.sources,
        records=accepted + unscored + quarantine.number,
        accepted=accepted + unscored,
        quarantined=quarantine.number,
        filtered=filtered,
        sampled_out=sampled_out,
        dropped=dropped,
        duplicates=accepted - int(groups.max(initial=-1)) - 1,
        conflicts=conflicts,
        leaks=leaks,
        near_leaks=near,
        train=len(dataset.splits["train"]),
        validation=len(dataset.splits["validation"]),
        test=len(dataset.splits["test"]),
        labels=dataset.label_names,
        multi_label=dataset.multi_label,
        class_counts=counts,
        unlabelled=without_label,
        reasons=reasons(quarantine),
        warnings=warnings,
        notes=notes,
        unscored=unscored,
    )
    return Prepared(dataset, audit, quarantine)


def _require_texts(accepted: int, quarantined: int, filtered: int, config: DataConfig) -> None:
    if accepted:
        return
    if filtered:
        raise DataError(f"where = {config.where} leaves no usable text ({filtered:,} rows filtered out); loosen it.")
    if quarantined:
        raise DataError(f"all {quarantined:,} records are bad, no text is left; look at text and label in [data].")
    raise DataError("the data has a header but no records; expected at least two labelled texts.")


def _join(
    name: str, sources: list[Examples], encoded: list[Labels], origins: list[SplitName], labels: LabelSet
) -> Dataset:
    """Returns all accepted texts; each split has those that come from its own source."""
    texts = [text for source in sources for text in source.texts]
    pairs = [text for source in sources for text in source.pairs]
    sizes = [len(source.texts) for source in sources]
    owner = np.repeat([SPLITS.index(split) for split in origins], sizes)
    return Dataset(
        name=name,
        texts=texts,
        pairs=pairs or None,
        label_names=labels.names,
        labels=_concatenated(encoded),
        splits={split: np.flatnonzero(owner == side).astype(np.int64) for side, split in enumerate(SPLITS)},
        files=np.repeat(np.arange(len(sources), dtype=np.int64), sizes),
        lines=np.array([line for source in sources for line in source.lines], dtype=np.int64),
        sources=[source.source for source in sources],
        slices=joined_slices([source.slices for source in sources]),
    )


def _concatenated(encoded: list[Labels]) -> Labels:
    joined = np.concatenate(encoded)
    return joined.astype(np.uint8) if joined.ndim == 2 else joined.astype(np.int64)


def _require_classes(dataset: Dataset) -> None:
    if dataset.multi_label:
        counts = dataset.labels.sum(axis=0, dtype=np.int64)
        if not counts.any():
            raise DataError("no text has any label; expected at least one 1 in the label columns.")
        if dataset.num_labels == 1 and counts[0] == len(dataset):
            raise DataError(
                f"every text has the one label {dataset.label_names[0]!r}; nothing can be learnt from that."
            )
        return
    present = np.unique(dataset.labels)
    if len(present) == 1:
        name = dataset.label_names[int(present[0])]
        raise DataError(
            f"all {len(dataset):,} texts have the label {name!r}; a classifier needs at least two classes.\n"
            "Check label and where in [data]."
        )
    if len(present) > FEW_VALUES and 2 * len(present) > len(dataset):
        raise DataError(
            f"the label column has {len(present):,} different values in {len(dataset):,} texts, such as "
            f"{dataset.label_names[0][:40]!r}.\nCheck label in [data]; a number to predict is not a class."
        )


def _sample(dataset: Dataset, config: DataConfig, notes: list[str]) -> dict[SplitName, Indices]:
    """Returns the splits, thinned out to `sample`."""
    if config.sample is None:
        return dataset.splits
    total = len(dataset)
    share = config.sample if isinstance(config.sample, float) else config.sample / total
    if share > 1:
        notes.append(f"sample = {config.sample:,} asks for more than the {total:,} texts there are; all are taken")
    thinned = {}
    for split, indices in dataset.splits.items():
        number = max(1, round(share * len(indices))) if len(indices) else 0
        thinned[split] = indices[draw(dataset.labels[indices], number, config.split.seed)] if number else indices
    return thinned


def _complete_splits(
    dataset: Dataset, splits: dict[SplitName, Indices], groups: Indices, config: DataConfig, has_test: bool
) -> dict[SplitName, Indices]:
    """Returns the splits with validation, and test where the data came in one piece, taken from training.

    Args:
        dataset: All texts with labels.
        splits: Those of them that `sample` and `leaks` leave.
        groups: Which texts are the same.
        config: What the recipe says.
        has_test: Whether there is a test split besides, without labels.
    """
    train, given = splits["train"], {split for split in SPLITS if len(dataset.splits[split])}
    if "validation" in given:
        return splits
    in_one_piece = config.train is None and "test" not in given and not has_test
    shares = config.split if in_one_piece else config.split.model_copy(update={"test": 0.0})
    _, own_groups = np.unique(groups[train], return_inverse=True)
    parts = split_texts(dataset.labels[train], own_groups, shares)
    test = train[parts["test"]] if in_one_piece else splits["test"]
    return {"train": train[parts["train"]], "validation": train[parts["validation"]], "test": test}


def _handle_leaks(
    dataset: Dataset, splits: dict[SplitName, Indices], groups: Indices, config: DataConfig
) -> tuple[dict[SplitName, Indices], int, int]:
    """Returns the splits, the number of leaking texts, and how many of them were dropped."""
    trained = np.zeros(int(groups.max(initial=-1)) + 1, dtype=np.bool_)
    trained[groups[splits["train"]]] = True
    leaking: dict[SplitName, Indices] = {
        split: splits[split][trained[groups[splits[split]]]] for split in SPLITS if split != "train"
    }
    leaks = sum(map(len, leaking.values()))
    if not leaks or config.leaks == "allow":
        return splits, leaks, 0
    if config.leaks == "error":
        raise DataError(_leak_message(dataset, splits["train"], leaking, groups))
    clean = {split: splits[split] for split in SPLITS}
    for split, indices in leaking.items():
        clean[split] = np.setdiff1d(splits[split], indices)
    return clean, leaks, leaks


def _leak_message(dataset: Dataset, train: Indices, leaking: dict[SplitName, Indices], groups: Indices) -> str:
    counts = " and ".join(f"{len(indices):,} of {split}" for split, indices in leaking.items() if len(indices))
    example = next(int(indices[0]) for indices in leaking.values() if len(indices))
    same = int(train[np.flatnonzero(groups[train] == groups[example])[0]])
    text = " ".join(dataset.texts[example].split())[:SHOWN_CHARACTERS]
    return (
        f"texts that also stand in training: {counts}, such as {dataset.place(example)} = {dataset.place(same)} "
        f"({text!r}).\n"
        'Type leaks = "drop" in [data] to leave them out of validation and test, or leaks = "allow" to keep them.'
    )


def _require_training_texts(dataset: Dataset, splits: dict[SplitName, Indices], config: DataConfig) -> None:
    labels = dataset.labels
    everywhere, training = (
        _label_counts(labels, dataset.num_labels),
        _label_counts(labels[splits["train"]], dataset.num_labels),
    )
    for index, name in enumerate(dataset.label_names):
        if training[index]:
            continue
        if not everywhere[index]:
            raise DataError(
                f"no text has the label {name!r}; take it out of labels in [data], or mend the label column."
            )
        if config.sample is not None and _label_counts(labels[dataset.splits["train"]], dataset.num_labels)[index]:
            raise DataError(
                f"sample = {config.sample} leaves no training text with the label {name!r}; take more texts."
            )
        raise DataError(
            f"the label {name!r} stands in validation or test ({everywhere[index]:,} times) and in no training text.\n"
            "Add training texts with it, or leave those texts out with where in [data]."
        )


def _label_counts(labels: Labels, number: int) -> list[int]:
    counts = labels.sum(axis=0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=number)
    return [int(count) for count in counts]


def _compact(dataset: Dataset, splits: dict[SplitName, Indices]) -> tuple[Dataset, Indices]:
    """Returns a data set of the texts that are in a split, and their indices in the old one."""
    kept = np.sort(np.concatenate([splits[split] for split in SPLITS]))
    if len(kept) == len(dataset):
        return replace(dataset, splits=splits), kept
    compacted = Dataset(
        name=dataset.name,
        texts=[dataset.texts[index] for index in kept.tolist()],
        pairs=None if dataset.pairs is None else [dataset.pairs[index] for index in kept.tolist()],
        label_names=dataset.label_names,
        labels=dataset.labels[kept],
        splits={split: np.searchsorted(kept, indices).astype(np.int64) for split, indices in splits.items()},
        files=dataset.files[kept],
        lines=dataset.lines[kept],
        sources=dataset.sources,
        slices={name: [values[index] for index in kept.tolist()] for name, values in dataset.slices.items()},
    )
    return compacted, kept


def _near_leaks(dataset: Dataset, normal: list[str], groups: Indices) -> tuple[dict[str, int], list[str]]:
    """Returns the number of near leaks by split, and a warning for each split that has some."""
    train = dataset.splits["train"]
    trained = set(groups[train].tolist())
    counts: dict[str, int] = {}
    warnings = []
    for split in ("validation", "test"):
        searched = [index for index in dataset.splits[split].tolist() if int(groups[index]) not in trained]
        near = find_near_duplicates([normal[index] for index in train.tolist()], [normal[index] for index in searched])
        counts[split] = len(near.found)
        if not near.found:
            continue
        ours, theirs = searched[near.found[0]], int(train[near.resembles[0]])
        part = "" if near.compared == len(train) else f" ({near.compared:,} of {len(train):,} training texts compared)"
        what = f"1 text of {split} stands" if counts[split] == 1 else f"{counts[split]:,} texts of {split} stand"
        warnings.append(
            f"{what} in training but for a few words{part}, such as {dataset.place(ours)} and {dataset.place(theirs)}"
        )
    return counts, warnings


def _count_conflicts(labels: Labels, groups: Indices) -> int:
    """Returns the number of distinct texts that stand with more than one label, or set of labels."""
    _, codes = np.unique(labels, axis=0, return_inverse=True)
    distinct = np.unique(np.stack([groups, codes.reshape(-1)], axis=1), axis=0)[:, 0]
    return int((np.bincount(distinct) > 1).sum())


def _warnings(dataset: Dataset, conflicts: int, leaks: int, dropped: int, config: DataConfig) -> list[str]:
    warnings = []
    if conflicts:
        warnings.append(
            f"{conflicts:,} distinct texts stand with more than one label; no classifier can be right on both"
        )
    if leaks and not dropped:
        warnings.append(f'{leaks:,} texts of validation and test also stand in training (leaks = "allow")')
    if dropped:
        warnings.append(f"{dropped:,} texts of validation and test also stood in training and were left out")
    for split, counts in class_counts(dataset).items():
        absent = [name for name, count in counts.items() if not count]
        if len(dataset.splits[split]) and absent:  # type: ignore[index]
            shown = ", ".join(map(repr, absent[:5])) + (", …" if len(absent) > 5 else "")
            warnings.append(f"{split} has no text with the label {shown}; its scores say nothing of it")
    if not len(dataset.splits["validation"]) and config.split.validation:
        warnings.append("there are too few texts for validation; the last checkpoint is taken as the best")
    return warnings
