"""Speed and memory of Fleetune (C) against `peft` + `transformers.Trainer` (A, B, D), in turns on one machine.

    python -m benchmarks.run [w1 w2 …] [--contenders A,B,C,D] [--rounds N] [--share 1.0] [--json FILE] [--markdown FILE]

A: fp32, saved at each epoch's end, one trial after another. B: in bf16 where the device has it, nothing saved.
D: B in several one-thread processes at once. `docs/benchmarks.md` says what is measured and what is left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.contenders import names, take_turn
from benchmarks.inputs import Inputs, make_inputs, missing_feature
from benchmarks.measure import layer_products, matrix_product_rate
from benchmarks.results import Facts, Result
from benchmarks.tables import Setting, markdown, plain
from benchmarks.workloads import WORKLOADS, Workload
from fleetune.errors import UserError
from fleetune.memory import begin_peak
from fleetune.runtime import device, environment, is_busy, pick_precision


def main() -> int:
    """Measures and prints; returns the exit status."""
    # Before torch looks for devices: with several GPUs Trainer would use all of them, Fleetune one.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    options = _options()
    chosen = [WORKLOADS[name] for name in options.workloads or _default_names()]
    for_gpu = [workload.name for workload in chosen if workload.device == "cuda"]
    if for_gpu and device().type != "cuda":
        _say(f"error: {', '.join(for_gpu)} need a CUDA device, and there is none here")
        return 2
    if is_busy():
        _say("warning: other programs keep this machine busy; the figures will be worth little")
    setting = _setting(options)
    try:
        results = list(_measure(chosen, options))
    except UserError as error:
        _say(f"error: {error}")
        return 2
    print(plain(setting, results))
    if options.json:
        options.json.write_text(json.dumps(_document(setting, results), indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        with options.markdown.open("a", encoding="utf-8") as file:
            file.write("\n" + markdown(setting, results))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}; all that need no GPU if left out")
    parser.add_argument("--contenders", type=_contenders, default=("A", "B", "C", "D"), help="such as A,C")
    parser.add_argument("--rounds", type=_rounds, default=3, help="turns of each contender; the median counts")
    parser.add_argument("--share", type=_share, default=1.0, help="share of the texts, above 0 and up to 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="append a dated section")
    options = parser.parse_args()
    # Not by `choices`: with nargs="*" some versions of argparse refuse an empty list.
    if unknown := sorted(set(options.workloads) - set(WORKLOADS)):
        parser.error(f"{', '.join(unknown)}: not among {', '.join(WORKLOADS)}")
    return options


def _default_names() -> list[str]:
    return [workload.name for workload in WORKLOADS.values() if workload.device == "cpu"]


def _contenders(text: str) -> tuple[str, ...]:
    wanted = tuple(text.split(","))
    if not set(wanted) <= set("ABCD"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of A,B,C,D")
    return wanted


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number from 1")
    return int(text)


def _share(text: str) -> float:
    share = float(text)
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0 and up to 1")
    return share


def _setting(options: argparse.Namespace) -> Setting:
    machine = environment()
    machine["packages"]["accelerate"] = importlib.metadata.version("accelerate")
    return Setting(
        date=datetime.now(UTC),
        environment=machine,
        precision=pick_precision("auto"),
        rounds=options.rounds,
        share=options.share,
        own_peaks=begin_peak(),
        names=names(),
    )


def _measure(chosen: Sequence[Workload], options: argparse.Namespace) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as scratch:
        for workload in chosen:
            lacking = missing_feature(workload)
            if lacking:
                _say(lacking)
                continue
            inputs = make_inputs(workload, options.share, Path(scratch))
            result = Result(_facts(workload, inputs))
            asked = [name for name in workload.contenders if name[0] in options.contenders]
            for number, contender in turns(asked, options.rounds):
                turn = take_turn(contender, inputs)
                result.add(contender, turn)
                _say(f"{workload.name} round {number} {contender}: {turn.seconds:.1f} s")
            if result.turns:
                yield replace(result, facts=_with_peak_of_now(result.facts, inputs))


def turns(contenders: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yields each round's number and its contenders in turn; every other round goes through them backwards."""
    for number in range(1, rounds + 1):
        for contender in contenders if number % 2 else reversed(contenders):
            yield number, contender


def _facts(workload: Workload, inputs: Inputs) -> Facts:
    return Facts(
        name=workload.name,
        title=workload.title,
        trials=len(inputs.trials),
        texts=inputs.texts("train"),
        tokens=inputs.tokens("train"),
        evaluated=inputs.texts("validation"),
        operations=inputs.operations,
        products_per_second=matrix_product_rate(layer_products(inputs.shape)),
        targets=tuple(target for target in workload.targets if target.device == device().type),
    )


def _with_peak_of_now(facts: Facts, inputs: Inputs) -> Facts:
    # The higher of before and after: a peak that was disturbed would flatter the utilisation.
    rate = matrix_product_rate(layer_products(inputs.shape))
    return replace(facts, products_per_second=max(rate, facts.products_per_second))


def _document(setting: Setting, results: Sequence[Result]) -> dict[str, object]:
    return {
        "date": setting.date.isoformat(timespec="seconds"),
        "environment": setting.environment,
        "precision": setting.precision,
        "rounds": setting.rounds,
        "share": setting.share,
        "contenders": setting.names,
        "workloads": [result.to_json() for result in results],
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
