"""The table of bad files: how each is made, which command line reads it, what the error must say.

A case damages one thing in a folder that holds `run` (a whole training run), `half` (an unfinished
run), `study` (an article's results) and `bench.json` (a run of the suite), and returns the command
line that reads it. `MARK` is the file that code hidden in a pickle would make.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vaez_fast.training import checkpoint as checkpoints

MARK = "the code ran"


class Code:
    """An object that makes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / MARK)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


Damage = Callable[[Path], list[str]]


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x40
    path.write_bytes(content)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def hide_code(path: Path) -> None:
    """A complete checkpoint that also holds code."""
    content = torch.load(path, weights_only=True)
    content["environment"] = {"torch": Code(path.parents[1])}
    torch.save(content, path)


def hide_code_in_a_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Code(path.parents[1])))


def change(path: Path, **values: Any) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
    else:
        torch.save(torch.load(path, weights_only=True) | values, path)


def model_of(path: Path) -> dict[str, torch.Tensor]:
    model: dict[str, torch.Tensor] = checkpoints.read(path).model
    return model


def done(command: Callable[[Path], list[str]], *damages: Callable[[Path], Any]) -> Damage:
    def damage(at: Path) -> list[str]:
        for one in damages:
            one(at)
        return command(at)

    return damage


def evaluate(at: Path) -> list[str]:
    return ["evaluate", str(at / "run")]


def sample(at: Path) -> list[str]:
    return ["sample", str(at / "run"), "--out", str(at / "samples")]


def report(at: Path) -> list[str]:
    return ["report", str(at / "run")]


def report_study(at: Path) -> list[str]:
    return ["report", str(at / "study")]


def resume(at: Path) -> list[str]:
    return ["train", "--resume", str(at / "half")]


def train_in(name: str) -> Callable[[Path], list[str]]:
    return lambda at: ["train", "--steps", "2", "--out", str(at / name)]


def article_in(name: str) -> Callable[[Path], list[str]]:
    return lambda at: ["article", "--steps", "2", "--seeds", "2", "--out", str(at / name)]


def from_config(content: bytes, name: str = "c.json") -> Damage:
    def damage(at: Path) -> list[str]:
        (at / name).write_bytes(content)
        return ["train", "--config", str(at / name), "--out", str(at / "out")]

    return damage


def of_checkpoint(**values: Any) -> Damage:
    return done(evaluate, lambda at: change(at / "run/checkpoint.pt", **values))


def of_half(**values: Any) -> Damage:
    return done(resume, lambda at: change(at / "half/checkpoint.pt", **values))


def of_results(**values: Any) -> Damage:
    return done(report_study, lambda at: change(at / "study/results.json", **values))


def not_finite(at: Path) -> None:
    model = model_of(at / "run/checkpoint.pt")
    next(iter(model.values())).view(-1)[0] = float("nan")
    change(at / "run/checkpoint.pt", model=model)


def compressed_by(method: int) -> Callable[[Path], None]:
    def damage(at: Path) -> None:
        with zipfile.ZipFile(at / "run/checkpoint.pt", "w", method) as archive:
            archive.writestr("x/data.pkl", b"\x80\x02}.")

    return damage


def npz(path: Path, **arrays: Any) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())


def first_images(at: Path) -> Path:
    return sorted((at / "study/runs").glob("*seed0.npz"))[0]


CHECKPOINT = "run/checkpoint.pt"
TOO_LONG = "x" * 300
NOT_TENSORS = "not a file of tensors, or a damaged one"

# Case → its damage, and what the one-line error must contain: the file and the reason.
FILES: dict[str, tuple[Damage, str]] = {
    # a checkpoint
    **{
        f"a checkpoint of which {share:.0%} are left": (
            done(evaluate, lambda at, share=share: cut(at / CHECKPOINT, share)),  # type: ignore[misc]
            f"run/checkpoint.pt: {NOT_TENSORS}",
        )
        for share in (0.0, 0.0001, 0.1, 0.5, 0.9, 0.9999)
    },
    "a checkpoint with a bit flipped in a weight": (
        done(evaluate, lambda at: flip(at / CHECKPOINT)),
        f"run/checkpoint.pt: {NOT_TENSORS}",
    ),
    "a folder as checkpoint": (
        done(evaluate, lambda at: folder_instead(at / CHECKPOINT)),
        "run/checkpoint.pt: Is a directory",
    ),
    "no checkpoint": (
        done(sample, lambda at: (at / CHECKPOINT).unlink()),
        "run holds no checkpoint.pt; `vaez-fast train` writes one",
    ),
    "a checkpoint of noise": (
        done(evaluate, lambda at: (at / CHECKPOINT).write_bytes(os.urandom(4096))),
        f"run/checkpoint.pt: {NOT_TENSORS}",
    ),
    "a checkpoint of text": (
        done(sample, lambda at: (at / CHECKPOINT).write_text("model: burda")),
        f"run/checkpoint.pt: {NOT_TENSORS}",
    ),
    "a checkpoint with code in it": (
        done(evaluate, lambda at: hide_code(at / CHECKPOINT)),
        "run/checkpoint.pt: expected tensors and plain values; what else it holds was not loaded",
    ),
    "an unfinished run's checkpoint with code in it": (
        done(resume, lambda at: hide_code(at / "half/checkpoint.pt")),
        "half/checkpoint.pt: expected tensors and plain values; what else it holds was not loaded",
    ),
    "a pickle with code in it as checkpoint": (
        done(report, lambda at: hide_code_in_a_plain_pickle(at / CHECKPOINT)),
        f"run/checkpoint.pt: {NOT_TENSORS}",
    ),
    "another archive as checkpoint": (
        done(evaluate, compressed_by(zipfile.ZIP_DEFLATED)),
        f"run/checkpoint.pt: {NOT_TENSORS}",
    ),
    "a list as checkpoint": (
        done(evaluate, lambda at: torch.save([1, 2], at / CHECKPOINT)),
        "run/checkpoint.pt: expected a checkpoint that `vaez-fast train` wrote",
    ),
    "a bare tensor as checkpoint": (
        done(evaluate, lambda at: torch.save(torch.zeros(3), at / CHECKPOINT)),
        "run/checkpoint.pt: expected a checkpoint that `vaez-fast train` wrote",
    ),
    "a checkpoint of the future": (
        of_checkpoint(schema=3),
        "run/checkpoint.pt: it is of schema 3, and this version reads 1 to 2",
    ),
    "a checkpoint of an endless schema": (of_checkpoint(schema=10**500), "it is of schema 1000"),
    "a checkpoint of another program": (
        of_checkpoint(kind="lightning"),
        "run/checkpoint.pt: expected a checkpoint that `vaez-fast train` wrote, not a 'lightning'",
    ),
    "a checkpoint without a model": (of_checkpoint(model=None), "its model is missing or damaged"),
    "a checkpoint whose model is words": (
        of_checkpoint(model={"encoder.0.weight": "x"}),
        "run/checkpoint.pt: expected a checkpoint that `vaez-fast train` wrote; its model is not",
    ),
    "a checkpoint whose weights have numbers for names": (
        of_checkpoint(model={1: torch.zeros(2)}),
        "run holds a run that cannot be read: ",
    ),
    "a checkpoint of another model": (
        of_checkpoint(model={"encoder.0.weight": torch.zeros(2)}),
        "run holds a run that cannot be read: Error(s) in loading state_dict for VAE",
    ),
    "a checkpoint whose weights are not finite": (
        done(sample, not_finite),
        "run holds a run that cannot be read: its weights are not finite",
    ),
    # an unfinished run
    "a model alone where a run should go on": (
        of_half(training=None),
        "holds a model alone, not a",
    ),
    "a training state without its step": (of_half(training={}), "its training is damaged"),
    "a training state of nothing else": (
        of_half(training={"done": 3}),
        "resume: the checkpoint is damaged, or another run's (it lacks 'images')",
    ),
    "settings that cannot be": (
        of_half(config={"lr": -1}),
        "holds no settings of a run (lr must be",
    ),
    "settings with numbers for names": (of_half(config={1: 2}), "holds no settings of a run"),
    "no settings in config.json": (
        done(
            resume,
            lambda at: (at / "half/checkpoint.pt").unlink(),
            lambda at: (at / "half/config.json").write_text("{}"),
        ),
        "half/config.json holds no settings of a run",
    ),
    "config.json of which half is left": (
        done(
            resume,
            lambda at: (at / "half/checkpoint.pt").unlink(),
            lambda at: cut(at / "half/config.json", 0.5),
        ),
        "half/config.json: not JSON",
    ),
    "a folder without a run": (
        done(lambda at: ["train", "--resume", str(at)]),
        "holds no run; `vaez-fast train --out` begins one",
    ),
    "the metrics of a whole run damaged": (
        done(
            lambda at: ["train", "--resume", str(at / "run"), "--json"],
            lambda at: (at / "run/metrics.json").write_bytes(b"\xff\xfe{"),
        ),
        "run/metrics.json: not JSON",
    ),
    # metrics.json
    "metrics that are a list": (
        done(evaluate, lambda at: (at / "run/metrics.json").write_text("[]")),
        "run/metrics.json: not a JSON object",
    ),
    "metrics with a NaN": (
        done(report, lambda at: (at / "run/metrics.json").write_text('{"test": NaN}')),
        "run/metrics.json: not JSON (NaN is no finite number)",
    ),
    "metrics that are endless": (
        done(report, lambda at: (at / "run/metrics.json").write_text("[" * 10**5)),
        "run/metrics.json: not JSON",
    ),
    "metrics without a curve": (
        done(report, lambda at: change(at / "run/metrics.json", curve=[])),
        "run/metrics.json: expected what `vaez-fast train` writes",
    ),
    "metrics whose bound is a word": (
        done(report, lambda at: change(at / "run/metrics.json", test={"elbo": "low"})),
        "run/metrics.json: expected what `vaez-fast train` writes",
    ),
    "metrics of no machine": (
        done(report, lambda at: change(at / "run/metrics.json", environment=None)),
        "run/metrics.json: expected what `vaez-fast train` writes",
    ),
    "metrics of settings of another kind": (
        done(evaluate, lambda at: change(at / "run/metrics.json", config=["lyeoni"])),
        "run holds a run that cannot be read: ",
    ),
    # a study
    "results of a training run": (
        of_results(kind="vaez-fast train"),
        "holds no study of the article",
    ),
    "results of no runs": (of_results(runs=[]), "expected what `vaez-fast article` writes"),
    "results whose runs are words": (
        of_results(runs="none"),
        "study/results.json: expected what `vaez-fast article` writes",
    ),
    "results that stop halfway": (
        done(report_study, lambda at: cut(at / "study/results.json", 0.5)),
        "study/results.json: not JSON",
    ),
    "images that are missing": (
        done(report_study, lambda at: first_images(at).unlink()),
        "No such file or directory",
    ),
    "images with code in them": (
        done(report_study, lambda at: npz(first_images(at), x=np.array([Code(at)], dtype=object))),
        "not a file of images, or a damaged one ('x.npy' is of Python's objects)",
    ),
    "images that are one array": (
        done(report_study, lambda at: np.save(first_images(at).open("wb"), np.zeros(3))),
        "not a file of images, or a damaged one",
    ),
    "images that stop halfway": (
        done(report_study, lambda at: cut(first_images(at), 0.5)),
        "not a file of images, or a damaged one",
    ),
    "a study's settings damaged": (
        done(article_in("study"), lambda at: (at / "study/study.json").write_text("{")),
        "study/study.json: not JSON",
    ),
    # folders that are not empty
    "training where a run is": (done(train_in("run")), "run holds a run already; name another"),
    "training where a run broke off": (
        done(train_in("half"), lambda at: (at / "half/checkpoint.pt").unlink()),
        "half holds an unfinished run; continue it with `vaez-fast train --resume",
    ),
    "training where only a checkpoint is": (
        done(train_in("half"), lambda at: (at / "half/config.json").unlink()),
        "half holds an unfinished run",
    ),
    "training where a study is": (done(train_in("study")), "study holds a study already"),
    "a study where a run is": (done(article_in("run")), "run holds a training run; name another"),
    "a study where a run broke off": (done(article_in("half")), "half holds a training run"),
    "a study of other settings": (
        done(article_in("study")),
        "study holds a study of other settings (",
    ),
    "samples where a run is": (
        done(lambda at: ["sample", str(at / "run"), "--out", str(at / "run")]),
        "run holds a run; name another folder, it may lie in that one",
    ),
    "latents where a run is": (
        done(lambda at: ["latents", str(at / "run"), "--out", str(at / "run")]),
        "run holds a run; name another folder, it may lie in that one",
    ),
    "the theory where another record is": (
        done(
            lambda at: ["theory", "--out", str(at)],
            lambda at: (at / "theory.json").write_text("{}"),
        ),
        "theory.json is not a record of the theory; name another folder",
    ),
    # places that cannot be written or read
    "a file as folder": (
        done(lambda at: ["train", "--steps", "2", "--out", str(at / "bench.json" / "run")]),
        "out: cannot write in ",
    ),
    "a folder of the kernel": (
        done(lambda at: ["train", "--steps", "2", "--out", "/proc/none"]),
        "out: cannot write in /proc/none: No such file or directory",
    ),
    "a name that is too long to write": (done(train_in(TOO_LONG)), "File name too long"),
    **{
        f"a name that is too long to {words[0]}": (done(lambda _, words=words: words), "too long")  # type: ignore[misc]
        for words in (
            ["evaluate", TOO_LONG],
            ["report", TOO_LONG],
            ["sample", TOO_LONG, "--out", "x"],
            ["latents", TOO_LONG, "--out", "x"],
            ["train", "--resume", TOO_LONG],
            ["env", "--data-root", TOO_LONG],
        )
    },
    "theory in a file": (
        done(lambda at: ["theory", "--out", str(at / "bench.json")]),
        "cannot write ",
    ),
    "a comparison in a folder": (
        done(lambda at: ["compare", "--ops", "normal", "--out", str(at)]),
        "it is a folder",
    ),
    "a report of nothing": (
        done(lambda at: ["report", str(at)]),
        "it holds neither a study's results.json nor a training run's metrics.json",
    ),
    "a report of a file": (
        done(lambda at: ["report", str(at / "bench.json")]),
        "it holds neither a study's results.json nor a training run's metrics.json",
    ),
    "an evaluation of nothing": (
        done(lambda at: ["evaluate", str(at / "none")]),
        "none holds no metrics.json; `vaez-fast train` writes one",
    ),
    # settings
    "settings of noise": (from_config(bytes(range(256))), "c.json is not JSON: "),
    "settings that are empty": (from_config(b""), "c.json is not JSON: "),
    "settings that are a number": (
        from_config(b"3"),
        "c.json must hold a table of settings, got 3",
    ),
    "settings of an endless number": (
        from_config(b"seed = 0x" + b"f" * 5000, "c.toml"),
        "seed must be an integer, got what is too large to be shown",
    ),
    "settings of a date": (
        from_config(b"seed = 2026-01-01", "c.toml"),
        "c.toml: seed must be an integer, got datetime.date(2026, 1, 1)",
    ),
    "settings of a checkpoint": (
        done(
            lambda at: ["train", "--config", str(at / CHECKPOINT), "--out", str(at / "out")],
        ),
        "run/checkpoint.pt is not JSON: ",
    ),
    "settings of another command": (
        done(lambda at: ["evaluate", "x", "--config", str(at / "run/metrics.json")]),
        "run/metrics.json is a record of 'vaez-fast train', not of 'vaez-fast evaluate'",
    ),
}
