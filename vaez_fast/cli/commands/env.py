"""vaez-fast env."""

from __future__ import annotations

import argparse
import json

from ...system.errors import printable
from .. import settings
from ..settings import DEFAULTS

DESCRIPTION = """\
Print what works on this machine: versions, processor, CUDA devices, the ops' backends and why one
is off, compiler, precision, and which data sets are present. Nothing is downloaded."""
EXAMPLE = "vaez-fast env --data-root data"
ONLY_PRINTS = True


def add_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    settings.add_data_root(data, f"where data sets would lie (default {DEFAULTS.data_root})")
    output = parser.add_argument_group("output")
    settings.add_json(output, "all of it")


def run(options: argparse.Namespace) -> int:
    from ..machine import machine, table

    record = machine(options.data_root)
    if options.json:
        print(json.dumps(record, indent=1))
    else:
        print("\n".join(map(printable, table(record))))
    return 0
