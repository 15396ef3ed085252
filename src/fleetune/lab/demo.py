"""What the demonstration trains, and which texts it reads afterwards."""

from __future__ import annotations

from importlib.resources import as_file, files

from fleetune.lab.recipe import Recipe, load_recipe

TEXTS = (
    "The crew was wonderful and we landed early, thank you!",
    "Two hours on hold and then you lost my bag. Never again.",
    "Does the flight to Denver leave from gate 12?",
)


def demo_recipe() -> Recipe:
    """Returns the demonstration's recipe, which comes with the package."""
    with as_file(files("fleetune.lab") / "demo.toml") as path:
        return load_recipe(path)
