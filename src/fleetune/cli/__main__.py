"""`python -m fleetune.cli`."""

from __future__ import annotations

from fleetune.cli.entry import main

main()
