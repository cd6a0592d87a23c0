"""Where the numbers of a training run go: callbacks `log(step, numbers)`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path

from ..system.files import OutputError, write_atomically

Log = Callable[[int, Mapping[str, float]], None]


def to_csv(path: str | Path) -> Log:
    """Add a line for each call to a CSV file; the first call writes the header.

    A run that is resumed goes on in the same file: lines of its step or later ones are replaced.

    Raises:
        OutputError: when called, if the file cannot be written, or has other columns.
    """
    file = Path(path)

    def log(step: int, numbers: Mapping[str, float]) -> None:
        columns = ["step", *numbers]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new = not file.exists() or file.stat().st_size == 0
            lines = [columns]
            if not new:
                with file.open(newline="") as opened:
                    lines = list(csv.reader(opened))
                if lines[0] != columns:
                    raise OutputError(f"log: {file} has the columns {lines[0]}, not {columns}")
            kept = [line for line in lines[1:] if line and int(line[0]) < step]
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerows([columns, *kept, [str(step), *map(str, numbers.values())]])
            write_atomically(file, text.getvalue().encode())
        except OSError as error:
            raise OutputError(f"log: cannot write {file}: {error.strerror}") from None

    return log


def to_tensorboard(folder: str | Path) -> Log:
    """Write scalars that TensorBoard shows.

    Raises:
        ImportError: the package tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("to_tensorboard needs tensorboard: pip install tensorboard") from None
    writer = SummaryWriter(str(folder))

    def log(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log
