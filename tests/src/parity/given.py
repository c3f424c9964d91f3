"""Models that somebody brings along: on inputs drawn at random, and the keyword model on its test set.

Float inputs are drawn from the normal distribution, whole ones from their type's whole range. A free dimension has as many
rows as everywhere here.
"""

import csv
import os

import numpy as np
import onnx
from onnx import numpy_helper

from cases import RNG, ROWS, session

# Rows of one case, below what is answered at once.
ROWS_MAX = 1000
# The keyword model among the given ones.
KEYWORDS = "kws_ref_model"
TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


def read(folder, name):
    with open(os.path.join(folder, name + ".onnx"), "rb") as file:
        return file.read()


def models(cases, folder):
    """All models of a folder."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".onnx"):
            name = name.removesuffix(".onnx")
            cases.add("given", name, lambda: on_drawn(read(folder, name)), strict=True)


def on_drawn(data):
    return data, {port.name: drawn(port) for port in session(data).get_inputs()}


def drawn(port):
    """An input's values."""
    kind = TYPES[port.type]
    shape = [dim if isinstance(dim, int) else ROWS for dim in port.shape]
    if np.issubdtype(kind, np.floating):
        return RNG.standard_normal(shape).astype(kind)
    limits = np.iinfo(kind)
    return RNG.integers(limits.min, limits.max, size=shape, dtype=kind, endpoint=True)


def keywords(cases, folder, path):
    """The keyword model on its test set, in parts."""
    x, y = test_set(path)
    for start in range(0, len(y), ROWS_MAX):
        part = slice(start, start + ROWS_MAX)
        name = f"{KEYWORDS}, rows of its test set from {start}"
        cases.add("labelled", name, lambda: on_set(read(folder, KEYWORDS), x[part], y[part]), strict=True)


def test_set(path):
    """Features and classes: the arrays `x` and `y` of an .npz, or a folder of .bin files of one byte a feature and
    y_labels.csv, whose lines hold a file, the number of classes, and the class."""
    if os.path.isdir(path):
        with open(os.path.join(path, "y_labels.csv")) as file:
            lines = [[word.strip() for word in line] for line in csv.reader(file) if line]
        x = [np.fromfile(os.path.join(path, name), dtype=np.int8) for name, *_ in lines]
        return np.stack(x), np.array([int(line[2]) for line in lines], dtype=np.int64)
    arrays = np.load(path)
    return arrays["x"], arrays["y"].astype(np.int64)


def on_set(data, x, y):
    (port,) = session(data).get_inputs()
    kind = TYPES[port.type]
    x = x.reshape([len(x)] + port.shape[1:])
    if np.issubdtype(x.dtype, np.floating) and np.issubdtype(kind, np.integer):
        scale, zero = steps(data, port.name)
        limits = np.iinfo(kind)
        x = np.clip(np.round(x / scale) + zero, limits.min, limits.max)
    return data, {port.name: x.astype(kind)}, y


def steps(data, name):
    """Scale and zero point that the model reads an input by."""
    graph = onnx.load_from_string(data).graph
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    moved = {name}
    for node in graph.node:
        if not node.input or node.input[0] not in moved:
            continue
        if node.op_type == "DequantizeLinear":
            scale, zero = (known[of] for of in node.input[1:3])
            return float(scale.item()), int(zero.item())
        if node.op_type in ("Reshape", "Transpose"):
            moved.update(node.output)
    raise ValueError(f"the model does not say what steps of {name} mean")
