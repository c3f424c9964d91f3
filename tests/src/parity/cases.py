"""A folder of cases: models, inputs, and what ONNX Runtime answers."""

import json
import os
import time
import traceback
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

warnings.filterwarnings("ignore")
ort.set_default_logger_severity(4)

# 33 rows: a block of 32 and one more, so that both ways through the engine are taken.
ROWS = 33
CALLS = 300
RNG = np.random.default_rng(7)


class Cases:
    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def add(self, exporter, name, make):
        """`make` returns the ONNX file and its inputs by name."""
        case = os.path.join(self.folder, f"{self.count:03}")
        self.count += 1
        os.makedirs(case, exist_ok=True)
        meta = {"exporter": exporter, "model": name}
        try:
            model, inputs = make()
            data = model if isinstance(model, bytes) else model.SerializeToString()
            outputs, meta["us"] = answers(data, inputs)
            save(case, data, inputs, outputs)
        except Exception as error:
            meta["failed"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            if os.environ.get("PARITY_TRACE"):
                traceback.print_exc()
        with open(os.path.join(case, "meta.json"), "w") as file:
            json.dump(meta, file)


def answers(data, inputs):
    """What ONNX Runtime answers on one thread, and the median time for the first row in microseconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    outputs = session.run(names, inputs)
    # A sequence of maps is the table of its values.
    outputs = [
        np.array([list(row.values()) for row in out], dtype=np.float32) if isinstance(out, list) else out
        for out in outputs
    ]
    try:
        first = {name: value[:1] for name, value in inputs.items()}
        times = []
        for _ in range(CALLS):
            start = time.perf_counter_ns()
            session.run(names, first)
            times.append(time.perf_counter_ns() - start)
        us = float(np.median(times)) / 1000
    except Exception:
        us = None  # a model of fixed batch
    return outputs, us


def save(case, data, inputs, outputs):
    with open(os.path.join(case, "model.onnx"), "wb") as file:
        file.write(data)
    folder = os.path.join(case, "test_data_set_0")
    os.makedirs(folder, exist_ok=True)
    known = {port.name for port in onnx.load_from_string(data).graph.initializer}
    ports = [port.name for port in onnx.load_from_string(data).graph.input if port.name not in known]
    for kind, arrays in (("input", [inputs[name] for name in ports]), ("output", outputs)):
        for i, array in enumerate(arrays):
            array = np.asarray(array)
            if array.dtype.kind in "UO":
                array = array.astype(object)
            with open(os.path.join(folder, f"{kind}_{i}.pb"), "wb") as file:
                file.write(numpy_helper.from_array(array).SerializeToString())
