"""Training time until 99.9 % of new lines have every head right: Branched with half its filters, in the
recipe of `experiment=multihead` on images drawn once, beside Keras with the network and recipe of Report B's
Figure 5. Both validate after each epoch, on the same leak-free images."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from research.performance.side_by_side import Library, Result, Rounds, command, compared, in_turns

GOAL = 0.999
OURS = (
    "experiment=multihead",
    "net.filters=16",
    "data.train_per_class=750",
    "data.resample_each_epoch=false",
    "trainer.max_epochs=2",
)


def torch_rounds() -> Rounds:
    from research.performance.ours import configuration, job

    def ours() -> float:
        with job(configuration(*OURS)) as run:
            run.trainer.fit(run.classifier, datamodule=run.data)
            seconds = 0.0
            for row in run.rows:
                seconds += row["seconds"] + row["val_seconds"]
                if row["val/acc"] >= GOAL:
                    return seconds
        raise RuntimeError(f"cnnlab did not reach {GOAL:.1%}: there is no time to compare")

    return {"cnnlab": ours}


def keras_rounds(limit: float, train: tuple[Any, Any], val: tuple[Any, Any]) -> Rounds:
    """Of Keras, which is stopped after `limit` seconds, wherever it is then."""
    from keras.callbacks import Callback

    from research.performance import peers

    images, val_images = peers.as_keras(train[0]), peers.as_keras(val[0])

    def joint(net: Any) -> float:
        right = True
        for name, given in net.predict(val_images, batch_size=500, verbose=0).items():
            predicted = given.argmax(axis=1) if name == "angle" else given[:, 0] > 0.5
            right = right & (predicted == val[1][name])
        return float(right.mean())  # type: ignore[attr-defined]

    def theirs() -> float:
        class Stop(Callback):  # type: ignore[misc]
            reached = False

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                self.model.stop_training = time.perf_counter() - start > limit

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                if self.model.stop_training:
                    return
                share, seconds = joint(self.model), time.perf_counter() - start
                print(f"Keras, epoch {epoch + 1}: {share:.2%} after {seconds:.0f} s", flush=True)
                self.model.stop_training = self.reached = share >= GOAL

        net, stop = peers.figure5(), Stop()
        start = time.perf_counter()
        net.fit(images, train[1], batch_size=16, epochs=15, verbose=0, callbacks=[stop])
        seconds = time.perf_counter() - start
        if not stop.reached:
            print(f"Keras had not reached it after {seconds:.0f} s: the ratio is a lower bound.", flush=True)
        return seconds

    return {"Keras": theirs}


def measure(full: bool, given: int | None) -> tuple[list[Result], list[dict[str, str]]]:
    from cnnlab.training.build import build_datamodule
    from research.performance.ours import arrays, configuration

    rounds, limit = (3, 3600.0) if full else (1, 10.0)
    data = build_datamodule(configuration(*OURS))
    keras = Library(keras_rounds, limit, arrays(data, "train"), arrays(data, "val"))
    seconds = in_turns([Library(torch_rounds), keras], given or rounds, warm_up=0)
    goal = f"{GOAL:.1%} of new lines all right"
    results = [compared(seconds, goal, "cnnlab", "Keras", 10)]
    figures = [
        {"work": goal, "contestant": who, "seconds (median)": f"{median(took):.1f}"} for who, took in seconds.items()
    ]
    return results, figures


if __name__ == "__main__":
    command("time_to_accuracy", measure, __doc__)
