"""ONNX's own tests of single operators, which come with the package onnx, and what ONNX Runtime answers."""

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

EXPORTER = "ONNX's node tests"
# What a request can hold. Cases of other tensors, of sequences and of optional values are not made.
KINDS = {
    TensorProto.BOOL, TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.UINT32,
    TensorProto.INT32, TensorProto.UINT64, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE,
    TensorProto.STRING,
}


def nodes(cases):
    from onnx.backend.test.case.node import collect_testcases

    for test in collect_testcases(None):
        inputs, outputs = ([plain(value) for value in values] for values in test.data_sets[0])
        if any(value is None for value in inputs + outputs):
            continue
        graph = test.model.graph
        named = dict(zip([port.name for port in graph.input], inputs))
        name = test.name.removeprefix("test_")
        cases.single(EXPORTER, name, lambda: (test.model, named), known=outputs)
        if len(named) > 1:
            # As exporters write axes, shapes and weights.
            model, first = with_constants(test.model, named)
            cases.single(EXPORTER, f"{name}, constants", lambda: (model, first), known=outputs)


def plain(value):
    """An array, if it is one of `KINDS`."""
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value) if value.data_type in KINDS else None
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return array if array.dtype.kind in "OUS" or array.dtype.isbuiltin == 1 and array.dtype.kind in "biuf" else None
    return None


def with_constants(model, named):
    """The model with all inputs but the first in the file."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    graph = changed.graph
    for name, array in list(named.items())[1:]:
        if array.dtype.kind in "OUS":
            array = array.astype(object)
        graph.initializer.append(numpy_helper.from_array(array, name))
    while len(graph.input) > 1:
        graph.input.pop()
    first = next(iter(named))
    return changed, {first: named[first]}
