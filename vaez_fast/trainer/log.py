"""Where the numbers of a training run go: callbacks `log(step, numbers)`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

from ..system.files import OutputError

Log = Callable[[int, Mapping[str, float]], None]


def to_csv(path: str | Path) -> Log:
    """Append a line for each call to a CSV file; the first call writes the header.

    A run that is resumed goes on in the same file.

    Raises:
        OutputError: when called, if the file cannot be written, or has other columns.
    """
    file = Path(path)

    def log(step: int, numbers: Mapping[str, float]) -> None:
        columns = ["step", *numbers]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new = not file.exists() or file.stat().st_size == 0
            if not new:
                with file.open(newline="") as opened:
                    found = next(csv.reader(opened))
                if found != columns:
                    raise OutputError(f"log: {file} has the columns {found}, not {columns}")
            with file.open("a", newline="") as opened:
                writer = csv.writer(opened)
                if new:
                    writer.writerow(columns)
                writer.writerow([step, *numbers.values()])
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
