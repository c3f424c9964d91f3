"""A folder of cases: models, inputs, and what ONNX Runtime answers."""

import json
import os
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
RNG = np.random.default_rng(7)


class Cases:
    def __init__(self, folder):
        self.folder = folder
        self.count = sum(entry.is_dir() for entry in os.scandir(folder))

    def single(self, exporter, name, make, known=None):
        """A case of a single operator, or of what it is a short word for. `known` are the outputs where ONNX Runtime does
        not take the model."""
        self.add(exporter, name, make, known=known, single=True)

    def add(self, exporter, name, make, strict=False, known=None, single=False):
        """`make` returns the ONNX file, its inputs by name, and their classes if those are known. A strict case is held to
        single steps of 8 bits, and to what ONNX Runtime answers operator by operator: fused, it answers otherwise itself."""
        case = os.path.join(self.folder, f"{self.count:04}")
        self.count += 1
        os.makedirs(case, exist_ok=True)
        meta = {"exporter": exporter, "model": name, "strict": strict}
        try:
            model, inputs, *labels = make()
            if single:
                meta["single"] = sorted({f"{node.domain or 'ai.onnx'}/{node.op_type}" for node in model.graph.node})
            data = model if isinstance(model, bytes) else model.SerializeToString()
            try:
                outputs = answers(data, inputs, fused=not strict)
            except Exception:
                if known is None:
                    raise
                outputs = known
            save(case, data, inputs, outputs)
            for known in labels:
                write(case, "labels", known)
        except Exception as error:
            meta["failed"] = f"{type(error).__name__}: {error}".split("\n")[0][:200]
            if os.environ.get("PARITY_TRACE"):
                traceback.print_exc()
        with open(os.path.join(case, "meta.json"), "w") as file:
            json.dump(meta, file)


def session(data, fused=True):
    """ONNX Runtime on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def answers(data, inputs, fused):
    """What ONNX Runtime answers."""
    runtime = session(data, fused)
    outputs = runtime.run([port.name for port in runtime.get_outputs()], inputs)
    # A sequence of maps is the table of its values.
    return [
        np.array([list(row.values()) for row in out], dtype=np.float32) if isinstance(out, list) else out
        for out in outputs
    ]


def save(case, data, inputs, outputs):
    with open(os.path.join(case, "model.onnx"), "wb") as file:
        file.write(data)
    known = {port.name for port in onnx.load_from_string(data).graph.initializer}
    ports = [port.name for port in onnx.load_from_string(data).graph.input if port.name not in known]
    for i, name in enumerate(ports):
        write(case, f"input_{i}", inputs[name])
    for i, array in enumerate(outputs):
        write(case, f"output_{i}", array)


def write(case, name, array):
    folder = os.path.join(case, "test_data_set_0")
    os.makedirs(folder, exist_ok=True)
    array = np.asarray(array)
    if array.dtype.kind in "UO":
        array = array.astype(object)
    with open(os.path.join(folder, f"{name}.pb"), "wb") as file:
        file.write(numpy_helper.from_array(array).SerializeToString())
