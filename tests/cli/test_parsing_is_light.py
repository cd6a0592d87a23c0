"""Help and errors of a command line come at once, because PyTorch is not imported for them."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.process import ROOT, environment
from vaez_fast import names
from vaez_fast.cli.main import COMMANDS
from vaez_fast.config import CHECKPOINT_SECONDS, DECODERS, KLS, OBJECTIVES, PRECISIONS
from vaez_fast.data import TORCHVISION_CLASSES
from vaez_fast.model import MODELS
from vaez_kernels.cases import OPS, cases

HEAVY = ("torch", "numpy", "triton", "scipy", "sklearn", "matplotlib", "tqdm", "vaez_kernels")
# One process answers all command lines, because each process takes a while to start.
CODE = """
import contextlib, io, json, sys
from vaez_fast.cli.main import main
found = []
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main(words)
    heavy = [name for name in sys.argv[1:] if name in sys.modules]
    found.append((words, status, said.getvalue(), heavy))
print(json.dumps(found))
"""

TAKES_A_FOLDER = ("evaluate", "sample", "latents", "report")
REFUSED = [
    ["train", "--lr", "fast"],
    ["train", "--lr", "-1", "--out", "x"],
    ["train", "--data", "cifar", "--out", "x"],
    ["train", "--model", "lenet", "--out", "x"],
    ["train", "--kl", "wrong", "--out", "x"],
    ["train", "--objective", "iwae", "--kl", "analytic", "--out", "x"],
    ["train", "--device", "tpu", "--out", "x"],
    ["train", "--epochs", "1", "--steps", "1", "--out", "x"],
    ["train", "--checkpoint-seconds", "-1", "--out", "x"],
    ["train", "--resume", "x", "--steps", "3"],
    ["train"],
    ["article", "--seeds", "1", "--out", "x"],
    ["article", "--beta", "1", "--out", "x"],
    ["article"],
    ["evaluate", "x", "--split", "train"],
    ["sample", "x", "--sampler", "q"],
    ["compare", "--ops", "normal,softmax"],
    ["compare", "--backends", "tpu"],
    ["theory"],
    ["sample", "x"],
    ["latents", "x"],
]


def answers(cases: list[list[str]]) -> list[tuple[list[str], int, str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", CODE, *HEAVY], input=json.dumps(cases),
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(case) for case in json.loads(done.stdout)]


def test_no_command_imports_pytorch_to_help_or_to_refuse() -> None:
    helps = [[], ["--help"], ["--version"], ["trian"]]
    refused = list(REFUSED)
    for name in COMMANDS:
        folder = ["x"] if name in TAKES_A_FOLDER else []
        helps.append([name, "--help"])
        refused += [[name, *folder, "--modle"], [name, *folder, "--config", "/proc/none.toml"]]
    for words, status, said, heavy in answers(helps + refused):
        assert heavy == [], words
        assert said, words
        if words in refused:
            assert status == 2, (words, said)
            assert said.startswith(f"vaez-fast {words[0]}: error: ")
            assert said.count("\n") == 1


def test_an_unknown_key_in_a_file_is_refused_without_pytorch(tmp_path: object) -> None:
    file = f"{tmp_path}/settings.toml"
    with open(file, "w") as stream:
        stream.write("modle = 'burda'\n")
    cases = [
        [name, *(["x"] if name in TAKES_A_FOLDER else []), "--config", file] for name in COMMANDS
    ]
    for words, status, said, heavy in answers(cases):
        assert (status, heavy) == (2, []), words
        assert "no setting 'modle'" in said


def test_the_names_that_can_be_chosen_are_those_that_are_computed() -> None:
    assert tuple(MODELS) == names.MODELS
    assert set(names.DATA_SETS) == {"mnist-5k", *TORCHVISION_CLASSES}
    assert {case.op for case in cases(names.OPS, large=False)} == set(names.OPS)
    assert tuple(OPS) == names.OPS


def test_help_names_every_choice_and_default() -> None:
    ((_, _, said, _),) = answers([["train", "--help"]])
    flat = " ".join(said.split())
    for choices in (
        names.DATA_SETS, names.BINARIZATIONS, names.MODELS, OBJECTIVES, KLS, DECODERS, PRECISIONS
    ):  # fmt: skip
        assert "|".join(choices) in flat.replace("- ", "-")
    assert f"(default {CHECKPOINT_SECONDS:g})" in flat
