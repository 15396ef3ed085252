"""The commands: what they take, and which function answers. Everything heavy is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from fleetune.errors import UserError

COMMANDS = ("demo", "init", "check", "run", "status", "compare", "report", "export", "card", "predict", "methods")

app = typer.Typer(
    name="fleetune",
    help="Fits, compares and serves parameter-efficient fine-tunes of language models for text classification.\n\n"
    "Start with: fleetune demo, or fleetune init YOUR_FILE.csv",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file.")]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  typer reads this at run time
    typer.Option("--set", metavar="a.b=c", help="Set a key of the recipe; may be given more than once."),
]
Cost = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--cost",
        metavar="trainable|bundle_bytes|seconds|serving",
        help="By what the cheapest of the tied is recommended; the recipe's if absent.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from fleetune import __version__
        from fleetune.cli.output import print_line

        print_line(f"fleetune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The run's folder.")] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """The whole story on embedded data and an embedded backbone, offline."""
    from fleetune.cli.demo import tell

    tell(out, as_json)


@app.command()
def init(
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(
            metavar="[FILE]", help="The labelled texts; may be left out where the folder has one data file."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="Where the recipe goes.")] = Path("recipe.toml"),
    text: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--text", metavar="COLUMN", help="Column of the text; twice for pairs. Guessed if absent."),
    ] = None,
    label: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--label", metavar="COLUMN", help="Column of the label; more than once for 0/1 columns."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--model", metavar="NAME", help="Backbone: a folder, a hub name or an embedded one."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the recipe.")] = False,
    as_json: Json = False,
) -> None:
    """Writes a commented recipe from a data file it looks at."""
    from fleetune.cli.commands import init_recipe

    init_recipe(file, out, text, label, model, force, as_json)


@app.command()
def check(recipe: Recipe, overrides: Overrides = None, as_json: Json = False) -> None:
    """Audits the data, lists the trials, forecasts memory and time from a few steps; keeps nothing of them."""
    from fleetune.lab.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)

    from fleetune.cli.commands import check_recipe

    check_recipe(loaded, recipe, as_json)


@app.command()
def run(
    recipe: Recipe,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="DIR", help="The run's folder.  [default: runs/NAME_OF_THE_RECIPE]"),
    ] = None,
    executor: Annotated[str, typer.Option("--executor", metavar="local|ray", help="What trains the fleets.")] = "local",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Trains the recipe's trials and writes the report; run again, it goes on where it stopped."""
    from fleetune.lab.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)

    from fleetune.cli.commands import run_recipe

    run_recipe(loaded, recipe, out, executor, as_json)


@app.command()
def status(folder: RunDir, as_json: Json = False) -> None:
    """Where a run is: each trial's progress."""
    from fleetune.cli.commands import show_status

    show_status(folder, as_json)


@app.command()
def compare(
    folder: RunDir,
    metric: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--metric", metavar="NAME", help="Another score than the recipe's."),
    ] = None,
    cost: Cost = None,
    pairs: Annotated[
        str, typer.Option("--pairs", metavar="chosen|all", help="Show tests against the chosen one, or of all pairs.")
    ] = "chosen",
    table: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--format", metavar="csv|md|latex", help="A table for a spreadsheet, a README or a paper."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What may be said of a run's configurations."""
    from fleetune.cli.commands import Asked, show_comparison

    show_comparison(folder, Asked(metric, cost, pairs), as_json, table)


@app.command()
def report(
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(metavar="[DIR]", help="The run's folder; left out with --compare."),
    ] = None,
    both: Annotated[
        Optional[tuple[Path, Path]],  # noqa: UP045
        typer.Option("--compare", metavar="A B", help="Folders of two runs to put side by side on one page."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", metavar="FILE", help="Where the page of two runs goes.  [default: in the folder of A]"),
    ] = None,
    cost: Cost = None,
    as_json: Json = False,
) -> None:
    """Writes the run's page: one HTML file that works offline."""
    from fleetune.cli.commands import Asked, write_page, write_two_runs

    if both is not None and folder is None:
        write_two_runs(*both, out, as_json)
    elif folder is not None and both is None and out is None:
        write_page(folder, Asked(cost=cost), as_json)
    else:
        raise UserError(
            "report takes one run's folder, or two after --compare (and --out only with them)."
            "\nType: fleetune report DIR, or fleetune report --compare A B"
        )


@app.command()
def export(
    folder: RunDir,
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="The bundle's folder.")],
    trial: Annotated[
        str, typer.Argument(metavar="[TRIAL|best]", help="An id, a configuration's name, or the best on validation.")
    ] = "best",
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into a copy of the backbone.")] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also write an ONNX model.")] = False,
    precision: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--precision", metavar="P", help="Precision that each label's threshold keeps on validation."),
    ] = None,
    recall: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--recall", metavar="R", help="Recall that each label's threshold keeps on validation."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Saves a trained classifier as a bundle with its model card, verified by reloading it."""
    from fleetune.cli.bundles import export_bundle

    export_bundle(folder, trial, to, merge, onnx, precision, recall, as_json)


@app.command()
def card(
    folder: RunDir,
    to: Annotated[Path, typer.Option("--to", metavar="BUNDLE", help="The bundle's folder.")],
    trial: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[TRIAL|best]", help="The trial that the bundle is expected to hold."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Writes a bundle's model card anew: README.md, as the Hugging Face hub reads it."""
    from fleetune.cli.bundles import make_card

    make_card(folder, trial, to, as_json)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.")],
    texts: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[TEXT…]", help="Texts; read from stdin, one a line, where neither is given."),
    ] = None,
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--file", metavar="F", help="Texts one a line (.txt), or a CSV, JSONL or Parquet file."),
    ] = None,
    text: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--text", metavar="COLUMN", help="Column of the text in the file; twice for pairs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Labels and probabilities of texts."""
    from fleetune.cli.commands import predict_texts

    predict_texts(bundle, texts, file, text, as_json)


@app.command()
def methods(
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--model", metavar="PATH", help="Folder with a config.json; counts parameters for it."),
    ] = None,
    num_labels: Annotated[int, typer.Option("--num-labels", metavar="N", min=1, help="Number of labels.")] = 2,
    method: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--method", metavar="JSON", help='One method with settings: \'{"kind": "lora", "rank": 8}\'.'),
    ] = None,
    as_json: Json = False,
) -> None:
    """Every method, its options, source, and expected parameters."""
    from fleetune.cli.commands import show_methods

    show_methods(model, num_labels, method, as_json)
