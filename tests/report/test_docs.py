"""The documentation: its programs run unchanged and compute what the formulas say; its links have
targets; the API reference renders; the docstrings describe every argument, result and error."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import io
import math
import re
import runpy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import vaez_fast.ops
from tests.kernels.helpers import assert_within
from vaez_fast.data import Dataset, binarized, load
from vaez_kernels import compiler, kl_standard_normal, noise_key, reference

DOCS = Path(__file__).parents[2] / "docs"
LIBRARY = DOCS / "library.md"
MODULES: tuple[str, ...] = runpy.run_path(str(DOCS / "reference.py"))["MODULES"]
# Every op takes or returns tensors. `use_backend` is not an op: it switches their implementation.
OPS = [name for name in vaez_fast.ops.__all__ if name != "use_backend"]

OWN_MODULE = "The fused op in your own `nn.Module`"
PYTHAE = "The KL of a pythae model, replaced"
COMPILED = "`torch.compile` and a CUDA graph, with fresh noise"
CHECK = "A check of somebody else's KL"
TRAINING = "The training loop"

FLOAT32_SUM = 1e-6  # relative: a few ulp for a sum of positive terms in any order


class Ran(NamedTuple):
    names: dict[str, Any]  # everything that the program defined
    printed: str


def programs() -> dict[str, str]:
    """The page's Python programs by heading; line numbers are the page's, for tracebacks."""
    text = LIBRARY.read_text(encoding="utf-8")
    found = {}
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        heading = re.findall(r"^## (.*)$", text[: match.start()], re.MULTILINE)[-1]
        assert heading not in found, f"two programs under {heading!r}: the page promises one each"
        found[heading] = "\n" * text[: match.start(1)].count("\n") + match[1]
    return found


@functools.cache
def digits() -> Dataset:
    return load("mnist-5k")


@functools.cache
def ran(heading: str) -> Ran:
    names: dict[str, Any] = {"__name__": "__main__"}
    code = compile(programs()[heading], str(LIBRARY), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed, torch.random.fork_rng(devices=[]):
        exec(code, names)
    return Ran(names, printed.getvalue())


def number(pattern: str, printed: str) -> float:
    """The number at (.+) in `pattern`, which must occur once in `printed`."""
    found = re.findall(pattern.replace("(.+)", r"(-?[\d.]+(?:e[-+]\d+)?)"), printed)
    assert len(found) == 1, f"{pattern!r} occurs {len(found)} times in {printed!r}"
    return float(found[0])


def test_the_page_has_the_programs_that_are_tested_here() -> None:
    assert list(programs()) == [OWN_MODULE, PYTHAE, COMPILED, CHECK, TRAINING]


class TestOnesOwnModule:
    def test_the_bound_it_prints_is_the_formulas_of_its_weights(self) -> None:
        names, printed = ran(OWN_MODULE)
        vae = copy.deepcopy(names["vae"]).cpu().double()
        x = binarized(digits(), "validation", "static")
        with torch.no_grad():
            mu, logvar = vae.encoder(x.double()).chunk(2, 1)
            z = reference.rsample(
                mu, logvar, reference.normal(noise_key(0, "evaluate"), 1, 500, 16)
            )
            rate = reference.kl_standard_normal(mu, logvar).mean().item()
            distortion = -reference.bernoulli_log_prob(vae.decoder(z), x).mean().item()
        two_digits = 0.006  # plus the float32 rounding of sums of some hundred nats
        assert number("rate (.+),", printed) == pytest.approx(rate, abs=two_digits)
        assert number("distortion (.+)\n", printed) == pytest.approx(distortion, abs=two_digits)
        elbo = number("ELBO (.+) nats", printed)
        assert elbo == pytest.approx(-(rate + distortion), abs=two_digits)

    def test_it_learns_what_the_page_says(self) -> None:
        train = binarized(digits(), "train", "static").double()
        frequency = (train.sum(0) + 0.5) / (len(train) + 1)
        x = binarized(digits(), "validation", "static").double()
        ignorant = (x * frequency.log() + (1 - x) * (-frequency).log1p()).sum(1).mean().item()
        assert round(ignorant) == -208
        # Processors round products differently, and over 200 steps the difference grows.
        assert number("ELBO (.+) nats", ran(OWN_MODULE).printed) == pytest.approx(-153, abs=3)


@pytest.fixture(scope="module")
def with_pythae() -> Ran:
    pytest.importorskip("pythae", reason="pythae is not installed: pip install pythae")
    return ran(PYTHAE)


@pytest.fixture(scope="module")
def original(with_pythae: Ran) -> Any:
    """pythae's own VAE in float64 after a backward pass, with eps from the reference stream."""
    from pythae.models import VAE

    vae = VAE(with_pythae.names["config"]).double()
    weights = with_pythae.names["original"].state_dict()
    vae.load_state_dict({name: weight.double() for name, weight in weights.items()})
    eps = reference.normal(noise_key(0, "train", 1), 1, 100, 16)[0]
    vae._sample_gauss = lambda mu, std: (mu + eps * std, eps)
    vae.output = vae({"data": with_pythae.names["batch"]["data"].cpu().double()})
    vae.output.loss.backward()
    return vae


class TestPythae:
    def test_the_losses_are_pythaes_in_float64(self, with_pythae: Ran, original: Any) -> None:
        wanted = original.output.loss.item()
        four_digits = 5e-5 + FLOAT32_SUM * wanted
        for who in ("pythae", "fused"):
            printed = number(f"{who} (.+)(?: nats|,)", with_pythae.printed)
            assert printed == pytest.approx(wanted, abs=four_digits)

    def test_every_gradient_is_pythaes_in_float64(self, with_pythae: Ran, original: Any) -> None:
        fused = dict(with_pythae.names["fused"].named_parameters())
        for name, parameter in original.named_parameters():
            apart = (fused[name].grad.cpu().double() - parameter.grad).norm()
            assert apart <= FLOAT32_SUM * parameter.grad.norm(), name

    def test_the_next_call_draws_the_next_steps_numbers(self, with_pythae: Ran) -> None:
        fused = copy.deepcopy(with_pythae.names["fused"])
        output = fused(with_pythae.names["batch"])
        assert fused.noise.tolist() == noise_key(0, "train", 2).tolist()
        encoded = fused.encoder(with_pythae.names["batch"]["data"])
        mu, logvar = encoded.embedding.detach().cpu(), encoded.log_covariance.detach().cpu()
        assert_is_step(output.z[None], mu, logvar, step=2)


def assert_is_step(z: Tensor, mu: Tensor, logvar: Tensor, step: int) -> None:
    """z is the draw of seed 0 at that step of training, within the stream's stated error."""
    eps = reference.normal(noise_key(0, "train", step), *z.shape)
    sigma = torch.exp(0.5 * logvar.double())
    bound = 1e-6 * (1 + mu.double().abs() + sigma * eps.abs().clamp(min=1))
    assert_within("z", z.detach().cpu(), reference.rsample(mu, logvar, eps), bound)


@pytest.mark.skipif(not compiler.has_cpu_compiler(), reason="no C++ compiler")
class TestCompiledAndCaptured:
    def test_call_n_draws_step_n(self) -> None:
        names = ran(COMPILED).names
        mu, logvar = (names[name].detach().cpu() for name in ("mu", "logvar"))
        for step, z in enumerate(names["draws"], start=1):
            assert_is_step(z, mu, logvar, step)
        assert names["noise"].tolist() == noise_key(0, "train", 3).tolist()

    def test_each_call_is_the_eager_one_to_rounding(self) -> None:
        how = ("compiled", "graph") if torch.cuda.is_available() else ("compiled",)
        for call in (f"{name}, call {step}" for name in how for step in (1, 2, 3)):
            assert number(f"{call}: .*, (.+) from eager", ran(COMPILED).printed) <= FLOAT32_SUM

    def test_a_further_step_needs_no_other_graph(self) -> None:
        names = ran(COMPILED).names
        compiled, mu, logvar, noise = (names[n] for n in ("compiled", "mu", "logvar", "noise"))
        before = counters["stats"]["unique_graphs"]
        compiled(mu, logvar, noise.clone())
        assert counters["stats"]["unique_graphs"] == before

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_replayed_graph_has_drawn_step_3_last(self) -> None:
        names = ran(COMPILED).names
        mu, logvar = (names[name].detach().cpu() for name in ("mu", "logvar"))
        assert_is_step(names["captured"][0], mu, logvar, 3)


class TestACheckOfSomebodyElsesKl:
    @pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
    def test_it_finds_the_errors_that_are_there(self, scale: float) -> None:
        errors = ran(CHECK).names["errors"]
        latents = scale * torch.randn((2, 1000, 20), generator=torch.Generator().manual_seed(0))
        mu, logvar = latents.double().numpy()
        truth = 0.5 * (mu**2 + np.expm1(logvar) - logvar).sum(1)

        # The closed form of the published formula's error, which is σ in place of σ².
        defect = 0.5 * (np.expm1(logvar / 2) + logvar / 2 - np.expm1(logvar)).sum(1)
        nats, relative, _ = errors["published", scale]
        assert nats == pytest.approx(np.abs(defect).max(), rel=1e-3)
        assert relative == pytest.approx(np.abs(defect / truth).max(), rel=1e-3)

        ours = kl_standard_normal(*latents).double().numpy()
        assert errors["op", scale][1] == pytest.approx(np.abs(ours / truth - 1).max(), rel=0.01)

        # 1 + logvar loses half an ulp of 1, 6e-8, in each of 20 columns at worst.
        half_ulp = 20 * 2.0**-24 / truth.min()
        textbook = errors["textbook", scale][1]
        assert half_ulp / 100 < textbook < half_ulp + FLOAT32_SUM

    def test_it_prints_the_pages_table(self) -> None:
        text = LIBRARY.read_text(encoding="utf-8")
        (table,) = re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        printed = ran(CHECK).printed
        assert printed.splitlines()[0] == table.splitlines()[0]
        for line, wanted in zip(printed.splitlines()[1:], table.splitlines()[1:], strict=True):
            (*_, verdict), (*_, wanted_verdict) = line.split(), wanted.split()
            assert (line[:31], verdict) == (wanted[:31], wanted_verdict)
            # Roundings differ between processors; their size does not.
            for of, on_the_page in zip(line.split()[3:6], wanted.split()[3:6], strict=True):
                assert abs(math.log(float(of) / float(on_the_page))) < math.log(4), line


class TestTheTrainingLoop:
    def test_the_rate_it_prints_is_the_formula_of_its_weights(self) -> None:
        names, printed = ran(TRAINING)
        x = binarized(digits(), "test", "static")
        vae = copy.deepcopy(names["result"].vae).cpu().double()
        with torch.no_grad():
            rate = reference.kl_standard_normal(*vae.encode(x.double())).mean().item()
        assert number("rate (.+),", printed) == pytest.approx(rate, abs=0.006)
        parts = [number(pattern, printed) for pattern in ("rate (.+),", "distortion (.+)\n")]
        assert number("test: ELBO (.+) nats", printed) == pytest.approx(-sum(parts), abs=0.011)

    def test_it_learns_and_log_px_is_above_the_bound(self) -> None:
        printed = ran(TRAINING).printed
        curve = [float(elbo) for elbo in re.findall(r"validation ELBO (\S+)", printed)]
        assert len(curve) == 7  # 31 steps an epoch: six epochs and the rest of 200 steps
        assert curve[-1] > curve[0] + 10
        assert number(r"log p\(x\) (.+) ±", printed) > number("test: ELBO (.+) nats", printed)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|<!--.*?-->", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)
    # GitHub's anchors: lower case, punctuation dropped, spaces to hyphens.
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (page.parent / target.split("#")[0]).exists(), target


class TestTheApiReference:
    def test_it_renders_without_a_warning_and_every_section_is_one(self, tmp_path: Path) -> None:
        pytest.importorskip("pdoc", reason="pdoc is not installed: pip install pdoc")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runpy.run_path(str(DOCS / "reference.py"))["render"](tmp_path)
        assert [str(w.message) for w in caught if "pdoc" in w.filename] == []
        for module in MODULES:
            page = tmp_path.joinpath(*module.split(".")).with_suffix(".html").read_text("utf-8")
            # A section that pdoc did not recognise as one of Google's style would be a paragraph.
            assert not re.search(r"<p>\s*(Args|Arguments|Returns|Raises):", page), module
        ops = (tmp_path / "vaez_fast" / "ops.html").read_text("utf-8")
        for op in OPS:
            assert f'<section id="{op}">' in ops

    def test_the_index_names_every_module(self) -> None:
        index = (DOCS / "README.md").read_text("utf-8")
        assert re.findall(r"^\| \[`([\w.]+)`\]", index, re.MULTILINE) == list(MODULES)

    @pytest.mark.parametrize("name", OPS)
    def test_an_op_describes_its_arguments_result_and_errors(self, name: str) -> None:
        op = getattr(vaez_fast.ops, name)
        text = described(op)
        for parameter in inspect.signature(op).parameters:
            assert re.search(rf"^    .*\b{parameter}\b.*:", text, re.MULTILINE), parameter
        assert "Returns:\n" in text
        assert "Raises:\n" in text

    @pytest.mark.parametrize("name", MODULES)
    def test_every_module_and_public_function_says_what_it_is_for(self, name: str) -> None:
        module = importlib.import_module(name)
        assert module.__doc__
        for function in public_functions(module):
            assert inspect.getdoc(function), function.__qualname__


def described(function: Any) -> str:
    """A docstring, plus those of the functions whose arguments and errors it says it shares."""
    text = inspect.getdoc(function) or ""
    if re.search(r"^Arguments.* as ", text, re.MULTILINE):
        shared = re.findall(r"`(\w+)`", text)
        return "\n".join((text, *(described(getattr(vaez_fast.ops, name)) for name in shared)))
    return text


def public_functions(module: Any) -> list[Any]:
    """The functions in `__all__`, or else those that the module itself defines."""
    if names := getattr(module, "__all__", None):
        return [f for f in (getattr(module, name) for name in names) if inspect.isfunction(f)]
    found = (value for name, value in vars(module).items() if not name.startswith("_"))
    return [f for f in found if inspect.isfunction(f) and f.__module__ == module.__name__]
