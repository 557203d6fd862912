"""Parts of somebody else's, from outside the package: each a file or two, found by `--config-dir` or a dotted name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import cnnlab
from cnnlab.api import Run
from cnnlab.utils.errors import UserError
from tests.conftest import TINY_LINES, in_process, run_train

pytestmark = pytest.mark.slow

CODE = '''
import torch
from torch import nn
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from cnnlab.data.datamodule import BatchedDataset, ImageDataModule
from cnnlab.models.heads import Head
from cnnlab.models.networks import MultiHeadNet
from cnnlab.training.loss_weighting import LossWeighting


class Squares(BatchedDataset):
    """Squares, light or dark, at the left or in the middle or at the right: 3 x 24 x 40."""

    def __init__(self, first, size):
        self.first, self.size = first, size
    def __len__(self):
        return self.size
    def targets(self, indices):
        return {"place": (indices + self.first) % 3, "shade": (indices + self.first) // 3 % 2}
    def images(self, indices):
        at = self.targets(indices)
        images = torch.zeros(len(indices), 3, 24, 40, dtype=torch.uint8)
        for image, index, place, shade in zip(images, indices, at["place"], at["shade"]):
            image[:, 8:16, 4 + 12 * place : 12 + 12 * place] = 100 + 100 * shade
            image[0, 0, 0], image[0, 0, 1] = divmod(int(index) + self.first, 256)  # no two are alike
        return images

class SquaresDataModule(ImageDataModule):
    heads = (Head("place", ("left", "middle", "right")), Head("shade", ("dark", "light")))
    image_shape = (3, 24, 40)
    def setup(self, stage=None):
        self.splits = {"train": Squares(0, 480), "val": Squares(480, 60), "test": Squares(540, 60)}

class Tiny(MultiHeadNet):
    def __init__(self, image_shape, heads, filters=4):
        stem = {"conv": nn.Conv2d(image_shape[0], filters, 5), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2)}
        super().__init__(image_shape, heads, stem | {"flatten": nn.Flatten()})

class Halves(LossWeighting):
    def forward(self, losses):
        return losses.mean()

class Counter(Callback):
    steps = 0
    def on_train_batch_end(self, *args):
        type(self).steps += 1

class Kept(CSVLogger):
    seen = set()
    def log_metrics(self, metrics, step=None):
        self.seen.update(metrics)
        super().log_metrics(metrics, step)

def brightness(net, images, targets, power=1.0):
    return images.amax(dim=1) ** power
'''
FILES = {
    "data/squares.yaml": "_target_: {m}.SquaresDataModule\nseed: ${{seed}}\nbatch_size: 60\n",
    "net/tiny.yaml": "_target_: {m}.Tiny\nfilters: 4\n",
    "weighting/halves.yaml": "_target_: {m}.Halves\n",
    "callbacks/counter.yaml": "counter: {{_target_: {m}.Counter}}\n",
    "logger/kept.yaml": "kept: {{_target_: {m}.Kept, save_dir: null}}\n",
    "method/brightness.yaml": "brightness: {{_target_: {m}.brightness, power: 2.0}}\n",
    "experiment/squares.yaml": (
        "# @package _global_\ndefaults:\n  - override /data: squares\n  - override /net: tiny\n"
        "  - override /weighting: halves\n  - override /callbacks: [default, counter]\n  - override /logger: kept\n"
        "  - override /lr_scheduler: one_cycle\noptimizer: {{lr: 0.01}}\ntrainer: {{max_epochs: 6}}\n"
    ),
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code and configuration files of one's own, outside the package."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "squares.py").write_text(CODE)
    for name, text in FILES.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(m="squares"))
    return folder


@pytest.fixture
def conf(mine: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.syspath_prepend(str(mine))
    return ("--config-dir", str(mine / "conf"))


@pytest.fixture(scope="module")
def run(mine: Path) -> Path:
    """A run in which everything is one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(mine))
        return run_train(mine / "run", "--config-dir", str(mine / "conf"), "experiment=squares")


def test_data_heads_network_weighting_callback_logger_and_experiment(run: Path, conf: tuple[str, ...]) -> None:
    import squares  # type: ignore[import-not-found]

    summary = Run(run).summary
    assert (summary["status"], summary["title"]) == ("finished", "squares on squares")
    assert summary["test"]["joint_accuracy"] > 0.95  # it learns
    assert summary["data"]["overlap"] == 0
    assert squares.Counter.steps == 6 * 8
    wanted = {"train/loss", "val/acc", "val/place/acc", "test/shade/f1", "train/place/weight"}
    assert wanted <= squares.Kept.seen
    assert Run(run).metrics[-1]["val/acc"] == pytest.approx(1, abs=0.05)


def test_the_run_is_explained_and_graded_with_a_method_of_ones_own(
    run: Path, conf: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"run={run}", f"out={tmp_path}", "method=[grad_cam,brightness]")
    with pytest.raises(SystemExit, match="set CNNLAB_TRUST=squares"):
        in_process("explain", *conf, *words)
    monkeypatch.setenv("CNNLAB_TRUST", "squares")
    in_process("explain", *conf, *words, "ascent.steps=2")
    manifest = json.loads((tmp_path / "1" / "manifest.json").read_text())
    assert (manifest["title"], manifest["methods"]) == ("squares on squares", ["grad_cam", "brightness"])
    assert manifest["arrays"]["brightness/place/predicted"] == [6, 24, 40]
    maps = np.load(tmp_path / "1" / "maps.npz")
    np.testing.assert_allclose(maps["brightness/shade/predicted"], (maps["images"].max(axis=1) / 255) ** 2, rtol=1e-6)
    in_process("audit", *conf, *words, "images=10")
    assert "brightness" in (tmp_path / "2" / "checks.csv").read_text()


def test_a_method_by_its_dotted_name_alone(
    lines_run: Path, conf: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ("+method.mine._target_=squares.brightness", "+method.mine.power=3")
    in_process("explain", f"run={lines_run}", f"out={tmp_path}", *mine, "ascent.steps=1", "indices=[0]")
    maps = np.load(tmp_path / "1" / "maps.npz")
    np.testing.assert_allclose(maps["mine/angle/predicted"], (maps["images"].max(axis=1) / 255) ** 3, rtol=1e-6)
    in_process("audit", f"run={lines_run}", f"out={tmp_path}", *mine, "method=[grad_cam]", "images=8")
    assert "mine" in capsys.readouterr().out


def test_a_callback_by_its_dotted_name_alone(conf: tuple[str, ...], tmp_path: Path) -> None:
    import squares

    before = squares.Counter.steps
    run_train(tmp_path / "run", *TINY_LINES, "+callbacks.mine._target_=squares.Counter", "trainer.max_epochs=1")
    assert squares.Counter.steps > before


def test_images_of_32_x_32_in_colour_are_trained_on_and_explained(tmp_path: Path) -> None:
    fake = "{_target_: torchvision.datasets.FakeData, size: 60, image_size: [3, 32, 32], num_classes: 4}"
    conf = tmp_path / "conf" / "data"
    conf.mkdir(parents=True)
    (conf / "noise.yaml").write_text(
        "_target_: cnnlab.data.torchvision_data.TorchvisionDataModule\nseed: ${seed}\nval_size: 10\nbatch_size: 20\n"
        f"train: {fake[:-1]}, _partial_: true}}\ntest: {fake[:-1]}, _partial_: true}}\n"
    )
    words = ("--config-dir", str(tmp_path / "conf"), "data=noise", "trainer.max_epochs=1")
    for net in ("classifier1", "branched"):
        folder = run_train(tmp_path / net, *words, "experiment=mnist", f"net={net}", "data.batch_size=20")
        assert Run(folder).summary["title"] == "mnist on noise"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CNNLAB_TRUST", "torchvision")
            in_process("explain", f"run={folder}", "ascent.steps=1", "indices=[0,1]", "layers=[stem.conv]")
        manifest = json.loads((folder / "explain" / "1" / "manifest.json").read_text())
        assert manifest["arrays"]["grad_cam/class/predicted"] == [2, 32, 32]
        assert manifest["arrays"]["filters/class"] == [4, 3, 32, 32]


def test_all_of_it_from_python(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained here is trusted here."""
    monkeypatch.syspath_prepend(str(mine))
    run = cnnlab.train("squares", folder=tmp_path / "run", config_dir=mine / "conf")
    examples = run.examples(3)
    assert examples.truth is not None
    assert run.predict(examples)["place"] == [("left", "middle", "right")[k] for k in examples.truth["place"].tolist()]
    audit = run.audit(["saliency"], images=8)
    assert set(audit.by_head) == {("saliency", "place"), ("saliency", "shade")}
    assert "right pixels" not in {row.check for row in audit.checks}  # nobody knows them
    with pytest.raises(UserError, match="set CNNLAB_TRUST=squares"):
        cnnlab.load(run.path).predict(examples)


@pytest.mark.parametrize("target", ["1 + place", "2 * place - 1", "place.float()"])
def test_targets_that_are_no_classes_are_one_line(target: str, mine: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong_squares.py").write_text(
        f"""from squares import Squares, SquaresDataModule

class WrongSquares(Squares):
    def targets(self, indices):
        found = super().targets(indices)
        place = found["place"]
        return {{**found, "place": {target}}}

class WrongDataModule(SquaresDataModule):
    def setup(self, stage=None):
        self.splits = {{"train": WrongSquares(0, 48), "val": Squares(48, 6), "test": Squares(54, 6)}}
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        patch.syspath_prepend(str(mine))
        words = ("--config-dir", str(mine / "conf"), "experiment=squares")
        with pytest.raises(SystemExit, match=r"data: the train split has targets from .* for head 'place'; .* 0\.\.2"):
            run_train(tmp_path / "run", *words, "data._target_=wrong_squares.WrongDataModule")
