"""What `export` and `card` ask for and print."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fleetune.cli.output import print_json, print_line, print_table
from fleetune.cli.words import number, size
from fleetune.errors import UserError

if TYPE_CHECKING:
    from fleetune.compare.calibration import TrialPoint


def export_bundle(
    folder: Path,
    trial: str,
    to: Path,
    merge: bool,
    onnx: bool,
    precision: float | None,
    recall: float | None,
    as_json: bool,
) -> None:
    """Saves a bundle with its model card."""
    from fleetune.experiment import export

    if onnx:
        raise UserError("--onnx needs the extra 'onnx' and is not in this version.\nExport without --onnx")
    saved = export(folder, trial, to, merge, precision, recall)
    if as_json:
        print_json(
            {
                "trial": saved.trial,
                "name": saved.name,
                "bundle": str(saved.path),
                "bytes": saved.bytes,
                "max_difference": saved.max_difference,
                "temperature": saved.temperature,
                "thresholds": [asdict(point) for point in saved.points],
                "remark": saved.remark,
                "note": saved.note,
            }
        )
        return
    remark = f"; {saved.remark}" if saved.remark else ""
    print_line(f"{saved.name} ({saved.trial}) is in {saved.path}, {size(saved.bytes)}{remark}")
    print_line(f"reloaded: logits differ from the trial's by at most {saved.max_difference:.1e}")
    if saved.note is not None:
        print_line(f"note: {saved.note}")
    if saved.points:
        _print_points(saved.points)
    print_line(f'Next: fleetune predict {shlex.quote(str(saved.path))} "a text"')


def _print_points(points: Sequence[TrialPoint]) -> None:
    wish, wished = points[0].wish, points[0].wished
    print_line(f"thresholds that keep a {wish} of {wished:g} on validation, and what they give on test:")
    columns = ["label", "threshold", "validation precision", "recall", "test precision", "recall"]
    rows = [
        [
            point.label,
            *map(
                number,
                (
                    point.threshold,
                    point.validation_precision,
                    point.validation_recall,
                    point.precision,
                    point.recall,
                ),
            ),
        ]
        for point in points
    ]
    print_table(columns, rows, right=range(1, len(columns)))
    print_line("Of the two, test is to be believed: the thresholds were chosen on validation.")
    missed = [point.label for point in points if point.threshold is None]
    if missed:
        print_line(f"no threshold keeps it on validation, so these are decided as before: {', '.join(missed)}")


def make_card(folder: Path, trial: str | None, to: Path, as_json: bool) -> None:
    """Writes the model card of a bundle anew."""
    from fleetune.experiment import describe

    card = describe(folder, to, trial)
    if as_json:
        print_json({"run": str(folder), "bundle": str(to), "card": str(card), "bytes": card.stat().st_size})
    else:
        print_line(f"card: {card}")
