"""The networks of the reports in Keras, layer by layer as the reports give them, and their training there."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

BINARY, CLASSES = "binary_crossentropy", "sparse_categorical_crossentropy"
LINE_LOSSES = {"length": BINARY, "width": BINARY, "angle": CLASSES, "colour": BINARY}


def branched() -> Any:
    """Report B, section 7.1."""
    from keras import Input, Model, layers

    def block(x: Any, filters: int) -> Any:
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        return layers.BatchNormalization()(x)

    def end(x: Any) -> Any:
        return layers.Flatten()(layers.Dropout(0.25)(layers.MaxPooling2D(2)(x)))

    images = Input((28, 28, 3))
    stem = layers.Dropout(0.25)(layers.MaxPooling2D(3)(block(images, 32)))
    heads = {"angle": layers.Dense(12, "softmax", name="angle")(end(block(block(stem, 64), 64)))}
    for name in ("length", "width", "colour"):
        heads[name] = layers.Dense(1, "sigmoid", name=name)(end(block(stem, 32)))
    return _compiled(Model(images, heads), 98_927, LINE_LOSSES)


def classifier1() -> Any:
    """Report B, section 3.2, on MNIST."""
    from keras import Input, Sequential, layers

    net = Sequential(
        [
            Input((28, 28, 1)),
            layers.Conv2D(32, 7, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Dense(1024, activation="relu"),  # at every pixel
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return _compiled(net, 1_274_570, CLASSES)


def figure5() -> Any:
    """Report B, section 5 and its Figure 5, with its recipe: Adam at 1e-4, decay 1e-5, weights 1, 5, 9, 1."""
    from keras import Input, Model, layers
    from keras.optimizers import Adam
    from keras.optimizers.schedules import InverseTimeDecay

    images = Input((28, 28, 3))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(32, 3)(images)))
    stem = layers.Flatten()(layers.Dropout(0.25)(layers.MaxPooling2D(2)(x)))
    heads = {}
    for name in LINE_LOSSES:
        units, activation = (12, "softmax") if name == "angle" else (1, "sigmoid")
        heads[name] = layers.Dense(units, activation, name=name)(layers.Dense(64, "relu")(stem))
    return _compiled(
        Model(images, heads),
        1_386_703,
        LINE_LOSSES,
        optimizer=Adam(InverseTimeDecay(1e-4, decay_steps=1, decay_rate=1e-5)),
        loss_weights={"length": 1.0, "width": 5.0, "angle": 9.0, "colour": 1.0},
    )


def _compiled(net: Any, total: int, losses: Any, optimizer: Any = "adam", **more: Any) -> Any:
    assert net.count_params() == total, f"{net.count_params()} parameters, not {total}"
    metrics = {name: ["accuracy"] for name in losses} if isinstance(losses, dict) else ["accuracy"]
    net.compile(optimizer=optimizer, loss=losses, metrics=metrics, jit_compile=False, **more)
    return net


def as_keras(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images uint8 (N, C, 28, 28) as Keras has them, float32 (N, 28, 28, C) in [0, 1]."""
    floats = np.ascontiguousarray(images.transpose(0, 2, 3, 1), dtype=np.float32)
    floats /= 255
    return floats


def filters_one_by_one(net: Any, channels: int, steps: int) -> Any:
    """Function of no arguments that finds, one after another, the images (channels, 28, 28, 3) that the first
    `channels` filters of `branched`'s layer of 64, the reports' `conv2d_2`, answer most: from a blank image,
    normalised gradients added, as one does it in Keras, in a compiled graph for all."""
    import tensorflow as tf
    from keras import Model

    layer = next(layer for layer in net.layers if getattr(layer, "filters", 0) == 64)
    until = Model(net.input, layer.output)

    @tf.function  # type: ignore[untyped-decorator]
    def climbed(image: Any, channel: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(image)
            value = tf.reduce_mean(tf.gather(until(image), channel, axis=3))
        slope = tape.gradient(value, image)
        return image + 0.05 * slope / tf.maximum(tf.sqrt(tf.reduce_mean(tf.square(slope))), 1e-12)

    def found(channel: int) -> Any:
        image = tf.zeros((1, 28, 28, 3))
        for _ in range(steps):
            image = climbed(image, tf.constant(channel))
        return image[0].numpy()

    return lambda: np.stack([found(channel) for channel in range(channels)])


def epoch_seconds(net: Any, images: NDArray[np.float32], targets: Any, batch_size: int) -> float:
    """Train one epoch; its seconds, from its first step to its last."""
    from keras.callbacks import Callback

    class Clock(Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    net.fit(images, targets, batch_size=batch_size, epochs=1, verbose=0, callbacks=[clock])
    return clock.seconds
