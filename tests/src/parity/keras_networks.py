"""Networks of Keras and TensorFlow, by each of the ways from there to ONNX that work with Keras 3: its own export, tf2onnx
from a SavedModel, and tf2onnx from TensorFlow Lite, in float32 and quantised.

Called keras.py, this file would be imported where the package of that name is meant.
"""

import contextlib
import io
import os
import sys
import tempfile
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

from cases import RNG
from given import on_drawn

# The newest operator set of tf2onnx, and the one that MLPerf Tiny's files of TensorFlow Lite were converted to.
OPSET, OPSET_LITE = 18, 13
# Rows that TensorFlow Lite takes the ranges of values from.
REPRESENTATIVE = 100
# Recurrent networks that stay loops. TensorFlow Lite takes them with fixed rows alone; quantising them ends its process.
LOOPS = ("LSTM", "LSTM, one row", "LSTM, ReLU", "bidirectional LSTM", "GRU")


def networks():
    """By name. All but the recurrent ones have a kernel of more than 1024 values: TensorFlow Lite quantises no smaller one."""
    import keras

    keras.utils.set_random_seed(0)
    of = keras.layers
    image, series, row = (16, 16, 3), (10, 4), (16,)

    def chain(shape, *layers, rows=None):
        return keras.Sequential([keras.Input(shape, rows), *layers])

    def normed(*layers):
        return [part for layer in layers for part in (layer, of.BatchNormalization(), of.ReLU(6.0))]

    def residual():
        x = keras.Input(image)
        a = of.Conv2D(16, 3, padding="same", activation="relu")(x)
        b = of.BatchNormalization()(of.Conv2D(16, 3, padding="same", use_bias=False)(a))
        y = of.GlobalAveragePooling2D()(of.ReLU()(of.Add()([a, b])))
        return keras.Model(x, of.Dense(5, activation="softmax")(y))

    separable = normed(
        of.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
        of.DepthwiseConv2D(3, padding="same", use_bias=False),
        of.Conv2D(32, 1, use_bias=False),
        of.SeparableConv2D(48, 3, strides=2, padding="same", use_bias=False),
    )
    batch_norm = [
        of.Conv2D(16, 3, padding="same"), of.BatchNormalization(), of.ReLU(), of.AveragePooling2D(2),
        of.Conv2D(16, 3), of.BatchNormalization(), of.LeakyReLU(), of.Flatten(),
    ]
    sequence = [of.Conv1D(32, 3, activation="relu"), of.Conv1D(16, 3, activation="relu"), of.MaxPooling1D(), of.Flatten()]
    coder = [of.Dense(n, activation=kind) for n, kind in ((128, "relu"), (8, "tanh"), (128, "relu"), (16, None))]
    classes = lambda n: of.Dense(n, activation="softmax")
    made = {
        "MLP": chain(row, of.Dense(128, activation="relu"), classes(3)),
        "CNN": chain(image, of.Conv2D(8, 3, activation="relu"), of.MaxPooling2D(), of.Flatten(), classes(5)),
        "depthwise-separable CNN": chain(image, *separable, of.GlobalAveragePooling2D(), classes(5)),
        "CNN, batch norm": chain(image, *batch_norm, of.Dense(5)),
        "residual CNN": residual(),
        "1-D CNN": chain(series, *sequence, of.Dense(2)),
        "auto-encoder": chain(row, *coder),
        "LSTM": chain(series, of.LSTM(32), of.Dense(3)),
        "LSTM, one row": chain(series, of.LSTM(32), of.Dense(3), rows=1),
        "LSTM, ReLU": chain(series, of.LSTM(32, activation="relu"), of.Dense(3)),
        "LSTM, unrolled": chain(series, of.LSTM(32, unroll=True), of.Dense(3)),
        "bidirectional LSTM": chain(series, of.Bidirectional(of.LSTM(32)), of.Dense(3)),
        "GRU": chain(series, of.GRU(32), of.Dense(3)),
        "GRU, unrolled": chain(series, of.GRU(32, unroll=True), of.Dense(3)),
    }
    for model in made.values():
        # Untrained, these are zeros and ones, which converters leave out.
        for weight in model.weights:
            if "kernel" not in weight.name:
                least = 0.5 if "variance" in weight.name else -0.5
                weight.assign(RNG.uniform(least, least + 1.0, weight.shape))
        # Keras exports what has been called.
        model(np.zeros((1, *model.input_shape[1:]), np.float32))
    return made


def exported(model, folder):
    """Keras' own export."""
    path = os.path.join(folder, "model.onnx")
    model.export(path, format="onnx", verbose=False)
    return path


def saved(model, folder):
    """`python -m tf2onnx.convert --saved-model`."""
    from tf2onnx import convert

    path, of = os.path.join(folder, "model.onnx"), os.path.join(folder, "saved")
    model.export(of, format="tf_saved_model", verbose=False)
    with mock.patch.object(sys, "argv", ["convert", "--saved-model", of, "--output", path, "--opset", str(OPSET)]):
        convert.main()
    return path


def lite(model, folder, form):
    """`python -m tf2onnx.convert --tflite`."""
    import tensorflow as tf
    from tf2onnx import convert

    maker = tf.lite.TFLiteConverter.from_keras_model(model)
    if form != "float":
        maker.optimizations = [tf.lite.Optimize.DEFAULT]
    if form.startswith("int8"):
        sample = RNG.standard_normal((REPRESENTATIVE, 1, *model.input_shape[1:])).astype(np.float32)
        maker.representative_dataset = lambda: ([one] for one in sample)
        maker.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if form == "int8":
        maker.inference_input_type = maker.inference_output_type = tf.int8
    path, file = os.path.join(folder, "model.onnx"), os.path.join(folder, "model.tflite")
    try:
        data = maker.convert()
    except Exception as error:
        # Its first lines name places in the graph, its last one says why.
        raise type(error)(str(error).strip().split("\n")[-1]) from error
    with open(file, "wb") as to:
        to.write(data)
    convert.from_tflite(file, opset=OPSET_LITE, output_path=path)
    return path


def models(cases):
    made = networks()

    def add(exporter, name, way, *of, strict=False):
        def make():
            # Keras lists what it exports on standard output.
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                with open(way(of[0], folder, *of[1:]), "rb") as file:
                    return on_drawn(file.read())

        cases.add(exporter, name, make, strict)

    for name, model in made.items():
        add("Keras (model.export)", name, exported, model)
    for name, model in made.items():
        add("TensorFlow (tf2onnx)", name, saved, model)
    for name, model in made.items():
        for form in ("float",) if name in LOOPS else ("float", "dynamic range", "int8", "int8, float ports"):
            add("TensorFlow Lite (tf2onnx)", f"{name}, {form}", lite, model, form, strict=form.startswith("int8"))
