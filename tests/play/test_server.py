"""What the server of Play answers, and what it refuses: a real process, asked over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cnnlab
from cnnlab.data.line_scene import LineScene, draw
from cnnlab.interpret.metrics import rank_accuracy
from cnnlab.reporting.encode import levels
from tests.conftest import TINY_LINES, run_train
from tests.play.conftest import Served

pytestmark = pytest.mark.slow

LINE = {"length": 15, "width": 3, "angle": 45, "colour": [0, 0, 255], "x": 13.5, "y": 14}
SCENE = LineScene(15, 3, 45, (0, 0, 255), 13.5, 14)


def pixels_of(text: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape).copy())


def test_the_answer_to_a_line_is_that_of_the_python_api(played: Served, lines_run: Path) -> None:
    answer = played.ask("answer", run="run", input={"line": LINE}, method="grad_cam", inside=True)
    image = draw([SCENE])
    assert torch.equal(pixels_of(answer["pixels"], 28, 28, 3), image[0].permute(1, 2, 0))
    run = cnnlab.load(lines_run)
    inputs = image.float() / 255
    prediction = run.predict(inputs)
    for head in run.heads:
        found = answer["heads"][head.name]
        torch.testing.assert_close(torch.tensor([found["probabilities"]]), prediction.probabilities[head.name])
        maps = run.attribute(inputs, head=head.name).maps
        apart = pixels_of(found["map"]["values"], 28, 28).int() - levels(maps[0]).int()
        assert apart.abs().max() <= 1  # of 127
        truth = SCENE.truth([head.name])
        assert torch.equal(pixels_of(found["truth"], 28, 28) > 0, truth)
        assert found["chance"] == pytest.approx(truth.sum().item() / 784)
        assert found["rank"] == pytest.approx(rank_accuracy(maps, truth[None]).item())
    expected = run.activations(inputs, "stem.conv").maps[0]
    layer = answer["layers"]["stem.conv"]
    assert layer["most"] == pytest.approx(expected.abs().max().item(), rel=1e-4)
    drawn = (pixels_of(layer["values"], 32, 28, 28).float() - 128) / 127 * layer["most"]
    assert (drawn - expected).abs().max() <= layer["most"] / 127


def test_painted_pixels_are_what_the_network_sees_and_the_answer_before_stands_beside_it(played: Served) -> None:
    asked: dict[str, Any] = {"run": "run", "input": {"line": LINE}}
    plain = played.ask("answer", **asked)
    painted = played.ask("answer", **asked, paint=[[3, 5, 0, 255, 0], [900, 0, 1, 1, 1]])
    before, after = (pixels_of(answer["pixels"], 28, 28, 3) for answer in (plain, painted))
    assert (before != after).any(dim=2).nonzero().tolist() == [[5, 3]]
    assert after[5, 3].tolist() == [0, 255, 0]
    assert plain["heads"]["angle"]["before"] is None
    assert painted["heads"]["angle"]["before"] == pytest.approx(plain["heads"]["angle"]["probabilities"], abs=1e-5)
    assert painted["heads"]["angle"]["probabilities"] != plain["heads"]["angle"]["probabilities"]


def test_a_painted_pixel_is_true_of_no_answer(played: Served) -> None:
    everything = [[x, y, 0, 0, 0] for x in range(28) for y in range(14)]
    heads = played.ask("answer", run="run", input={"line": LINE}, paint=everything)["heads"]
    for name in ("length", "angle"):
        expected = SCENE.truth([name])
        expected[:14] = False
        assert torch.equal(pixels_of(heads[name]["truth"], 28, 28) > 0, expected)


def test_evidence_for_another_class_and_by_another_method(played: Served, lines_run: Path) -> None:
    found = played.ask("answer", run="run", input={"line": LINE}, method="saliency", targets={"angle": 2})
    expected = cnnlab.load(lines_run).attribute(draw([SCENE]).float() / 255, "angle", "saliency", "30°").maps
    assert found["heads"]["angle"]["target"] == 2
    assert (
        pixels_of(found["heads"]["angle"]["map"]["values"], 28, 28).int() - levels(expected[0]).int()
    ).abs().max() <= 1


def test_a_test_image_comes_with_its_truth(played: Served, lines_run: Path) -> None:
    run = cnnlab.load(lines_run)
    answer = played.ask("answer", run="run", input={"test": {"index": 7}}, method="grad_cam")
    expected = run.test_split.images(torch.tensor([7]))[0].permute(1, 2, 0)
    assert torch.equal(pixels_of(answer["pixels"], 28, 28, 3), expected)
    truth = run.test_split.truths(torch.tensor([7]), run.head("width"))["counterfactual"][0]
    assert torch.equal(pixels_of(answer["heads"]["width"]["truth"], 28, 28) > 0, truth)


def test_a_drawing_is_brought_to_the_form_of_the_data(played_digits: Served, digits_run: Path) -> None:
    sheet = np.zeros((112, 112, 3), np.uint8)
    sheet[10:60, 20:28] = 255
    drawing = {"width": 112, "height": 112, "pixels": base64.b64encode(sheet.tobytes()).decode()}
    answer = played_digits.ask("answer", run="run", input={"drawing": drawing}, method="grad_cam")
    expected = cnnlab.load(digits_run).inputs(sheet)
    given = pixels_of(answer["pixels"], 28, 28, 3)[..., 0]
    assert torch.equal(given, (expected.images[0, 0] * 255).round().to(torch.uint8))
    assert answer["notes"] == expected.notes[0]
    assert "truth" not in answer["heads"]["digit"]
    judged = played_digits.ask("ood", run="run", input={"drawing": drawing})
    assert judged["ood"] > 0
    assert not judged["empty"]
    blank = {**drawing, "pixels": base64.b64encode(bytes(sheet.nbytes)).decode()}
    assert played_digits.ask("ood", run="run", input={"drawing": blank})["empty"]


def test_the_way_to_the_nearest_other_class(played: Served, played_digits: Served) -> None:
    way = played.ask("path", run="run", input={"line": LINE}, head="colour")
    assert [way["lines"][0]["colour"], way["lines"][-1]["colour"]] == [[0, 0, 255], [255, 0, 0]]
    assert len(way["frames"]) == len(way["lines"]) == len(way["said"]["colour"]) == 21
    first = played.ask("answer", run="run", input={"line": LINE})
    assert way["frames"][0] == first["pixels"]
    assert way["said"]["angle"][0] == pytest.approx(first["heads"]["angle"]["probabilities"], abs=1e-5)
    blended = played_digits.ask("path", run="run", input={"test": {"index": 3}}, head="digit")
    said = [shares.index(max(shares)) for shares in blended["said"]["digit"]]
    assert said[0] != said[-1]
    assert blended["lines"] is None


PAINT = [[x, 14, 0, 0, 0] for x in (7, 8, 9, 18, 19)] + [[4, 4, 255, 255, 255]]


@pytest.mark.parametrize("paint", [[], PAINT], ids=["plain", "painted"])
@pytest.mark.parametrize("colour", [[255, 0, 0], [0, 0, 255], [0, 160, 0]], ids=["red", "blue", "green"])
@pytest.mark.parametrize("head", ["length", "width", "angle", "colour"])
def test_a_way_leaves_the_networks_own_answer(
    played: Served, head: str, colour: list[int], paint: list[list[int]]
) -> None:
    asked = {"run": "run", "input": {"line": {**LINE, "colour": colour, "angle": 0}}, "paint": paint}
    way = played.ask("path", **asked, head=head)
    said = [shares.index(max(shares)) for shares in way["said"][head]]
    assert said[0] != said[-1]
    first = played.ask("answer", **asked)
    assert way["frames"][0] == first["pixels"]
    assert said[0] == (own := first["heads"][head]["probabilities"]).index(max(own))
    if paint:
        assert way["lines"] is None
        assert way["words"].endswith(("the paint", "blended in"))


def test_a_channel_has_its_kernel_and_the_image_that_maximises_it(played: Served, lines_run: Path) -> None:
    run = cnnlab.load(lines_run)
    unit = played.ask("unit", run="run", layer="stem.conv", channel=5)
    assert unit["kernel"] == run.net.get_submodule("stem.conv").weight[5].tolist()
    best = run.visualize_features("stem.conv", [5])
    assert unit["activation"] == pytest.approx(best.activation.item(), rel=1e-4)
    assert played.ask("unit", run="run", layer="stem.pool", channel=0)["kernel"] is None


def test_what_it_says_of_a_run(played: Served) -> None:
    facts = played.ask("run", run="run")
    assert [head["name"] for head in facts["heads"]] == ["length", "width", "angle", "colour"]
    layers = {layer["name"]: layer for layer in facts["layers"]}
    assert layers["stem.conv"]["looks"][0] == {"start": 0.5, "step": 1.0, "size": 3.0}
    # After a pooling by 3 of windows of 4: places of 6 pixels, 3 apart, the first around the end of pixel 1.
    assert layers["stem.pool"]["looks"][0] == {"start": 2.0, "step": 3.0, "size": 6.0}
    assert layers["angle.conv1"]["branch"] == "angle"
    assert "angle.out" not in layers


LONG = base64.b64encode(bytes(12)).decode()
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "input: give an object"),
    ({"input": {}}, "input: give one of line, drawing and test"),
    ({"input": {"lines": {}}}, "there is no input 'lines'; did you mean 'line'?"),
    ({"input": {"line": {**LINE, "length": 1e9}}}, "line.length: give a number in 1..40"),
    ({"input": {"line": {**LINE, "angle": "45"}}}, "line.angle: give a number in -720..720"),
    ({"input": {"line": {**LINE, "colour": [0, 0, 256]}}}, "line.colour: give a whole number in 0..255"),
    ({"input": {"line": {**LINE, "x": True}}}, "line.x: give a number in -14..42"),
    ({"input": {"drawing": {"width": 3, "height": 3, "pixels": LONG}}}, "drawing.pixels: give 27 bytes"),
    ({"input": {"drawing": {"width": 10**9, "height": 1}}}, "drawing.width: give a whole number in 1..256"),
    ({"input": {"test": {"index": -1}}}, "input.test.index: give a whole number"),
    ({"input": {"test": {"index": 10**6}}}, "input.test.index: there are 0..287"),
    ({"input": {"test": {"index": 1, "run": "../../etc"}}}, "there is no such run here"),
    ({"input": {"line": LINE}, "paint": [[1, 2]]}, "paint: give a list of [x, y, red, green, blue]"),
    ({"input": {"line": LINE}, "method": "gradcam"}, "there is no method 'gradcam'; did you mean 'grad_cam'?"),
    ({"input": {"line": LINE}, "method": "../data/lines"}, "there is no method"),
    ({"input": {"line": LINE}, "targets": {"angle": 12}}, "targets.angle: the classes are 0..11"),
    ({"input": {"line": LINE}, "inside": 1}, "inside: give true or false"),
    ({"input": {"line": LINE}, "run": "/etc/passwd"}, "there is no such run here"),
    ({"input": {"line": {**LINE, "length": 10**400}}}, "line.length: give a number in 1..40"),
    ({"input": {"line": {**LINE, "length": float("nan")}}}, "line.length: give a number in 1..40"),
    ({"input": {"line": LINE}, "method": "\ud800"}, "there is no method '?'"),
    ({"input": {"\ud800": {}}}, "there is no input '?'"),
]


@pytest.mark.parametrize(("asked", "why"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_question_gets_one_line(played: Served, asked: dict[str, Any], why: str) -> None:
    status, answer = played.raw("answer", json.dumps({"run": "run", **asked}).encode())
    assert status == 400
    assert answer["error"].startswith(why)
    assert "\n" not in answer["error"]


def test_what_is_no_question_at_all(played: Served) -> None:
    assert played.raw("answer", b"{")[0] == 400
    assert played.raw("answer", b"[" * 100_000)[0] == 400
    assert played.raw("answer", b"[]") == (400, {"error": "a question is a JSON object"})
    assert played.raw("answer", b"\xff\xfe")[0] == 400
    assert played.raw("anser", b"{}") == (404, {"error": "there is no question 'anser'; did you mean 'answer'?"})
    assert played.raw("unit", json.dumps({"run": "run", "layer": "stem.conv", "channel": 99}).encode())[0] == 400
    for path in ("..%2f..%2fetc%2fpasswd", "play/server.py", "base.html", "api/answer"):
        assert played.status(played.address + path) in (404, 405)


def test_only_its_own_page_may_ask(played: Served) -> None:
    for origin in ("http://evil.example", "http://[::1", "null", ""):
        assert played.raw("runs", b"{}", Origin=origin)[0] == 403
    assert played.raw("runs", b"{}", Origin=played.address.rstrip("/"))[0] == 200
    assert played.raw("runs", b"{}", Host="evil.example")[0] == 400  # a name that leads to this machine


def test_another_host_asks_for_a_token(lines_run: Path) -> None:
    server = Served(f"run={lines_run}", "port=0", "host=0.0.0.0", folder=lines_run)
    token = server.page.partition("token=")[2]
    try:
        assert server.raw("runs", b"{}")[0] == 403
        assert server.raw("runs", b"{}", **{"X-Token": token})[0] == 200
        assert server.raw("runs", b"{}", **{"X-Token": "\u00e9"})[0] == 403
        assert server.status(server.address) == 403
        assert server.status(server.address + "?token=%C3%A9") == 403
        assert server.status(server.page) == 200
    finally:
        assert server.end() == 0


def test_another_address_of_this_machine_is_its_own(lines_run: Path) -> None:
    server = Served(f"run={lines_run}", "port=0", "host=127.0.0.2", folder=lines_run)
    assert server.address.startswith("http://127.0.0.2:")
    assert server.ask("runs")["first"] == "run"
    assert server.end() == 0


def test_a_taken_port_and_the_end(played: Served, lines_run: Path) -> None:
    port = played.address.rstrip("/").rpartition(":")[2]
    server = Served(f"run={lines_run}", f"port={port}", folder=lines_run)
    assert server.address != played.address
    assert server.ask("runs")["first"] == "run"
    assert server.end() == 0
    assert "".join(server.said).split()[-4:] == ["Ctrl-C", "ends", "it", "ended"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["port=70000"], "port=70000 is not in 0..65535"),
        (["host=198.51.100.7", "port=0"], "host=198.51.100.7 port=0: "),
        (["run=nowhere"], "nowhere is not a run folder"),
        (["prot=1"], "there is no setting 'prot'; did you mean 'port'?"),
    ],
)
def test_what_it_cannot_serve_is_said_in_one_line(words: list[str], why: str, lines_run: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cnnlab.play",
        *([] if words[0].startswith("run") else [f"run={lines_run}"]),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {why}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


FAKE = "{_target_: torchvision.datasets.FakeData, _partial_: true, size: 60, image_size: [3, 32, 32], num_classes: 4}"
NOISE = f"""_target_: cnnlab.data.torchvision_data.TorchvisionDataModule
seed: ${{seed}}
val_size: 10
batch_size: 20
train: {FAKE}
test: {FAKE}
"""


def test_every_kind_of_network_and_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """96 classes, whose truth is that of all four attributes; brightness alone for three heads; 32 x 32 in colour; and
    a run of the same name somewhere else."""
    monkeypatch.setenv("CNNLAB_TRUST", "torchvision")
    outputs, clash, conf = tmp_path / "outputs", tmp_path / "a", tmp_path / "conf" / "data"
    run_train(outputs / "a", "experiment=lines_deep", *TINY_LINES)
    run_train(outputs / "b", "experiment=multihead_hue_blind", *TINY_LINES)
    conf.mkdir(parents=True)
    (conf / "noise.yaml").write_text(NOISE)
    run_train(
        outputs / "c", "--config-dir", str(conf.parent), "experiment=mnist", "data=noise", "data.batch_size=20",
        "trainer.max_epochs=1",
    )  # fmt: skip
    shutil.copytree(outputs / "c", clash)
    server = Served(f"run={clash}", "port=0", folder=tmp_path)
    try:
        join_words = server.ask("runs")
        assert join_words["first"] == str(clash)  # not the one in outputs
        assert [run["name"] for run in join_words["runs"]] == [str(clash), "c", "b", "a"]
        assert server.ask("run", run=str(clash))["folder"] == str(clash)
        assert server.ask("run", run="a")["folder"] == str(outputs / "a")
        for name in ("a", "b", "c"):  # the line also where colour images of another size are known
            layers = [layer["name"] for layer in server.ask("run", run=name)["layers"]]
            answer = server.ask("answer", run=name, input={"line": LINE}, method="grad_cam", inside=True)
            assert list(answer["layers"]) == layers
        assert server.ask("answer", run="c", input={"test": {"run": "a", "index": 1}})["notes"]
        assert "truth" not in server.ask("answer", run="c", input={"line": LINE})["heads"]["class"]
        whole = server.ask("answer", run="a", input={"line": LINE}, method="grad_cam")["heads"]["class"]
        truth = SCENE.truth(["length", "width", "angle", "colour"])
        assert torch.equal(pixels_of(whole["truth"], 28, 28) > 0, truth)
        assert server.ask("path", run="a", input={"line": LINE}, head="class")["words"].startswith("another ")
    finally:
        server.end()
