"""cnnlab from Python: what the commands do, and the same for networks and methods of one's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import cnnlab
from cnnlab.api import Run
from cnnlab.data.lines import LineDataset
from cnnlab.data.sampling import LineSampler
from cnnlab.utils.checkpoints import load_checkpoint
from cnnlab.utils.cli import compose_config
from cnnlab.utils.errors import UserError
from tests.conftest import HEADS, TINY_LINES, run_train


@pytest.fixture
def run(lines_run: Path) -> Run:
    return cnnlab.load(lines_run)


def brightness(net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """A method of one's own."""
    return images.amax(dim=1)


class TwoHeads(nn.Module):
    """Somebody else's network: two heads, in a tuple or a dict."""

    def __init__(self, form: type) -> None:
        super().__init__()
        self.form = form
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 12)

    def forward(self, images: Tensor) -> Any:
        features = self.conv2(self.conv1(images).relu()).relu().mean(dim=(2, 3))
        answers = {"width": self.first(features), "angle": self.second(features)}
        return answers if self.form is dict else tuple(answers.values())


def test_importing_cnnlab_is_quick_and_brings_no_torch() -> None:
    code = "import time; t = time.perf_counter(); import cnnlab; t = time.perf_counter() - t; import sys; "
    code += "assert 'torch' not in sys.modules; assert t < 0.1, t; assert set(cnnlab.__all__) <= set(dir(cnnlab))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'trains'"):
        _ = cnnlab.trains  # type: ignore[attr-defined]


@pytest.mark.slow
def test_training_from_python_is_the_command(tmp_path: Path) -> None:
    run = cnnlab.train("multihead", seed=3, overrides=[*TINY_LINES, "weighting.weights.angle=5"], folder=tmp_path / "a")
    folder = run_train(tmp_path / "b", "experiment=multihead", "seed=3", *TINY_LINES, "weighting.weights.angle=5")
    assert run.path == tmp_path / "a"
    assert run.finished
    ours, theirs = (load_checkpoint(Run(path).checkpoint("best"))["state_dict"] for path in (run.path, folder))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert run.config == Run(folder).config
    assert not GlobalHydra.instance().is_initialized()
    assert not HydraConfig.initialized()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"experiment": "multihad"}, "there is no experiment 'multihad'; did you mean 'multihead'?"),
        ({"overrides": ["net.drpout=0.1"]}, "there is no setting 'net.drpout'; did you mean 'net.dropout'?"),
        ({"overrides": ["data.batch_size=many"]}, "data.batch_size=many is not a whole number"),
        ({"overrides": ["data.train_per_class=0"]}, "data.train_per_class=0 is too small"),
        ({"experiment": "sweep_pooling"}, "is a sweep; start it with python -m cnnlab.train"),
        ({"overrides": "net.dropout=0.3"}, "give a list of words"),
        ({"config_dir": "nowhere"}, "there is no folder nowhere"),
        ({"overrides": ["trainer=ddp", "trainer.devices=2", *TINY_LINES]}, "cannot run in several processes"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as error:
        cnnlab.train(**words)
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if path != tmp_path / "outputs"]
    assert not HydraConfig.initialized()


@pytest.mark.slow
def test_a_run_is_resumed_from_python(lines_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(lines_run, tmp_path / "run")
    (copy / "checkpoints" / "ood.ckpt").write_bytes(b"of other weights")
    run = cnnlab.train(overrides=[f"resume={copy}", "trainer.max_epochs=3"])
    assert run.path == copy
    assert (run.summary["epochs"], run.summary["test_evaluations"]) == (3, 2)
    assert run.ood_detector is not None  # made anew


def test_hydra_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    (tmp_path / "kept").mkdir()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        with pytest.raises(UserError, match="did you mean 'multihead'"):
            cnnlab.train("multihad", folder=tmp_path / "kept")
        assert compose("mine").a == 1
        with pytest.raises(UserError, match="is too small"):
            cnnlab.train(overrides=["data.train_per_class=0"], folder=tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()  # it was there before


def test_nothing_is_written_over(lines_run: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not empty"):
        cnnlab.train(folder=lines_run)
    result = run.predict(run.examples(1))
    result.save(tmp_path / "kept")
    with pytest.raises(UserError, match="is not empty"):
        result.save(tmp_path / "kept")


def test_predictions_are_those_of_the_network(run: Run) -> None:
    examples = run.examples(5)
    said = run.predict(examples)
    with torch.no_grad():
        logits = run.net(examples.images)
    for head in HEADS:
        assert torch.allclose(said.probabilities[head.name], head.probabilities(logits[head.name]), atol=1e-6)
        assert said[head.name] == [head.classes[k] for k in head.predict(logits[head.name]).tolist()]
    assert len(said) == 5
    frame = said.to_pandas()
    assert list(frame["angle"]) == said["angle"]
    assert frame["angle_probability"].tolist() == pytest.approx(said.probabilities["angle"].amax(dim=1).tolist())
    assert str(said).splitlines()[0].split() == ["image", "length", "width", "angle", "colour"]
    with pytest.raises(UserError, match="no head 'angel'; did you mean 'angle'"):
        _ = said["angel"]


def test_one_or_many_images_of_any_kind(run: Run, tmp_path: Path) -> None:
    image = LineDataset(LineSampler(0, "test"), 1).images(torch.tensor([90]))[0]  # uint8 (3, 28, 28)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "line.png")
    wanted = run.predict(image).probabilities["angle"]
    array = image.permute(1, 2, 0).numpy()
    for given in (picture, array, image.float() / 255, tmp_path / "line.png", str(tmp_path), f"{tmp_path}/*.png"):
        assert torch.allclose(run.predict(given).probabilities["angle"], wanted, atol=1e-6), given
    many = run.predict([picture, array, tmp_path / "line.png"])
    assert many.inputs.names == ["image 0", "image 1", "line.png"]
    assert run.predict(torch.stack([image, image])).probabilities["angle"].shape == (2, 12)
    exact = torch.full((2, 3, 28, 28), 0.123456)  # of floats nothing is rounded
    assert torch.equal(run.inputs(exact).images, exact)
    with pytest.raises(UserError, match="float in"):
        run.predict(exact * 10)
    with pytest.raises(UserError, match="there is no image"):
        run.predict([])


def test_a_run_needs_no_data_set_to_predict(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(digits_run)
    monkeypatch.setattr(run, "datamodule", None)
    digit = np.zeros((28, 28), np.uint8)
    digit[8:20, 12:16] = 255
    assert run.predict(digit).probabilities["digit"].shape == (1, 10)
    assert run.attribute(digit).maps.shape == (1, 28, 28)


def test_results_are_drawn_kept_and_shown(run: Run, tmp_path: Path) -> None:
    examples = run.examples(2)
    results = {
        "prediction": run.predict(examples),
        "attribution": run.attribute(examples, head="angle"),
        "activations": run.activations(examples, "stem.conv"),
        "maximization": run.visualize_features("angle.conv1", channels=[0, 3], steps=2),
        "scores": run.audit(["saliency", brightness], images=8),
    }
    for name, result in results.items():
        assert isinstance(result.plot(), Figure)
        assert result._repr_png_().startswith(b"\x89PNG")
        folder = result.save(tmp_path / name)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["version"] == 1
        assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "table.csv").is_file() == (name in ("prediction", "scores"))
        if name in ("prediction", "scores"):
            assert len(result.to_pandas()) >= 2
        else:
            with pytest.raises(UserError, match="is no table"):
                result.to_pandas()
        assert "\n\n" not in repr(result)
    assert {row["method"] for row in results["scores"].rows()} > {"saliency", "brightness", "edges (Sobel)"}


def test_the_target_is_predicted_true_a_name_or_a_number(run: Run) -> None:
    examples = run.examples(3)
    assert examples.truth is not None
    assert torch.equal(run.attribute(examples, "angle", target="true").targets, examples.truth["angle"])
    assert run.attribute(examples, "angle", target="45").targets.tolist() == [3, 3, 3]
    assert run.attribute(examples, "angle", target=3).targets.tolist() == [3, 3, 3]
    assert run.attribute(examples, "angle", target=torch.tensor([0, 1, 2])).targets.tolist() == [0, 1, 2]
    predicted = run.attribute(examples, "angle")
    assert [HEADS[2].classes[k] for k in predicted.targets.tolist()] == run.predict(examples)["angle"]
    assert torch.equal(run.attribute(examples, "angle", brightness).maps, examples.images.amax(dim=1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda run: run.attribute(run.examples(1)), "name a head: length, width, angle, colour"),
        (lambda run: run.attribute(run.examples(1), "angel"), "no head 'angel'; did you mean 'angle'"),
        (lambda run: run.attribute(run.examples(1), "angle", "grad_camera"), "did you mean 'grad_cam'"),
        (lambda run: run.attribute(run.examples(1), "angle", window=3), "unexpected keyword argument 'window'"),
        (lambda run: run.attribute(run.examples(1), "angle", target="46"), "there is no target '46'"),
        (lambda run: run.attribute(run.examples(1), "angle", target=45), r"the classes are 0\.\.11"),
        (lambda run: run.attribute(torch.zeros(3, 28, 28), "angle", target="true"), "is not known"),
        (lambda run: run.activations(run.examples(1), "stem.cnv"), "did you mean 'stem.conv'"),
        (lambda run: run.visualize_features("angle.conv9"), "did you mean 'angle.conv"),
        (lambda run: run.visualize_features("angle.conv1", channels=[64]), r"has 0\.\.63"),
        (lambda run: run.visualize_features("angle", stepss=3), "visualize_features: .*stepss"),
        (lambda run: run.audit(["grad_cam"], images=10**6), "are too many or too few"),
        (lambda run: run.examples(0), "0 images: ask for 1 to 2,000"),
        (lambda run: run.audit({"a": brightness, "b": 3}), "is neither a name nor a function"),
        (lambda run: run.audit([brightness, brightness]), "two have one name"),
        (lambda run: cnnlab.attribute(nn.Flatten(), np.zeros((1, 3, 8, 8))), "takes an nn.Module and a float tensor"),
        (lambda run: cnnlab.attribute(nn.Flatten(0), torch.zeros(1, 3, 8, 8)), r"not scores \(N, classes\)"),
        (lambda run: run.attribute(run.examples(1), "angle", lambda net, x, t: x.numpy()), "are not a tensor"),
        (lambda run: cnnlab.load("nowhere"), "is not a run folder"),
    ],
)
def test_a_wrong_question_is_one_line(run: Run, asked: Callable[[Run], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        asked(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("form", "head"), [(tuple, 1), (dict, "angle")])
def test_any_network_of_several_heads_is_explained(form: type, head: str | int) -> None:
    torch.manual_seed(0)
    net, images = TwoHeads(form), torch.rand(3, 3, 20, 24)
    result = cnnlab.attribute(net, images, head=head)
    assert result.maps.shape == (3, 20, 24)
    assert torch.equal(result.targets, TwoHeads.forward(net, images)[head].argmax(dim=1))
    assert result.layer_map is not None
    assert result.layer_map.layer == "conv2"
    assert cnnlab.attribute(net, images, 0, head=head, target_layer="conv1").layer_map.layer == "conv1"  # type: ignore[union-attr]
    assert torch.equal(cnnlab.attribute(net, images, method=brightness, head=head).maps, images.amax(dim=1))
    with pytest.raises(UserError, match="name one of its heads"):
        cnnlab.attribute(net, images)


def test_another_network_is_audited_with_another_method() -> None:
    """The brightness of a line is the line: all right pixels are found, and the map ignores the weights."""
    torch.manual_seed(0)
    split, rows = LineDataset(LineSampler(0, "test"), 1), torch.arange(0, 96, 5)
    images = split.inputs(rows)
    masks = {head: split.images(rows).amax(dim=1) > 0 for head in ("width", "angle")}
    result = cnnlab.audit(TwoHeads(dict), images, methods={"own": brightness}, masks=masks)
    values = {(row.head, row.check): row.value for row in result.checks if row.method == "own"}
    for head in TwoHeads(dict)(images):
        assert values[head, "likeness to random weights"] == pytest.approx(1)
        assert abs(values.get((head, "planted marker"), 0)) < 0.1
    assert result.verdicts["own"][0] == "do not use"


def test_a_second_training_in_another_thread_is_one_line(tmp_path: Path) -> None:
    entered, errors = threading.Event(), []

    def second() -> None:
        entered.wait(30)
        try:
            cnnlab.train("multihead", folder=tmp_path / "second")
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=second)
    thread.start()
    with compose_config("train", TINY_LINES, tmp_path / "first"):
        entered.set()
        thread.join(60)
    assert errors == ["another thread of this process is training, and Hydra can serve one at a time; wait for it"]
    assert not (tmp_path / "second").exists()
