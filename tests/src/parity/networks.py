"""Networks: PyTorch, and what ONNX Runtime's own tool quantises."""

import io
import os
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cases import RNG, ROWS


def torch(cases):
    import torch as t

    t.manual_seed(0)
    nn = t.nn

    class Recurrent(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.cell = kind(4, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.block(x).mean(1))

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.a(x)
            x = x + self.b(x)
            return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)).softmax(1)

    image, series = (3, 16, 16), (10, 4)
    models = [
        ("MLP", nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3), nn.Softmax(1)), (6,)),
        ("MLP, LayerNorm and GELU", nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3)), (6,)),
        ("CNN", nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 5)), image),
        ("residual CNN", Residual(), image),
        ("1-D CNN", nn.Sequential(nn.Conv1d(10, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 2)), series),
        ("LSTM", Recurrent(nn.LSTM), series),
        ("GRU", Recurrent(nn.GRU), series),
        ("RNN", Recurrent(nn.RNN), series),
        ("transformer block", Attention(), (10, 8)),
        ("auto-encoder", nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6)), (6,)),
    ]
    for name, model, shape in models:
        for half in (False, True) if name in ("MLP", "CNN") else (False,):

            def make(model=model, shape=shape, half=half):
                model = model.eval()
                sample = t.randn(ROWS, *shape)
                buffer = io.BytesIO()
                t.onnx.export(
                    model, (sample[:2],), buffer, input_names=["x"], output_names=["y"], opset_version=17,
                    dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, dynamo=False,
                )
                file = onnx.load_from_string(buffer.getvalue())
                values = sample.numpy()
                if half:
                    from onnxconverter_common import float16

                    file, values = float16.convert_float_to_float16(file), values.astype(np.float16)
                return file, {"x": values}

            cases.add("PyTorch", name + (", float16" if half else ""), make)


def quantised(cases):
    """Static quantisation by ONNX Runtime's own tool, both forms."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    def network(conv):
        w = lambda *s: RNG.normal(scale=0.4, size=s).astype(np.float32)
        named = lambda **all: [numpy_helper.from_array(v, k) for k, v in all.items()]
        if conv:
            nodes = [
                helper.make_node("Conv", ["x", "w", "b"], ["c"]),
                helper.make_node("Relu", ["c"], ["r"]),
                helper.make_node("GlobalAveragePool", ["r"], ["p"]),
                helper.make_node("Flatten", ["p"], ["f"]),
                helper.make_node("Gemm", ["f", "v", "d"], ["l"]),
                helper.make_node("Softmax", ["l"], ["y"]),
            ]
            shape, weights = [None, 3, 8, 8], named(w=w(6, 3, 3, 3), b=w(6), v=w(6, 4), d=w(4))
        else:
            nodes = [
                helper.make_node("MatMul", ["x", "w"], ["a"]),
                helper.make_node("Add", ["a", "b"], ["h"]),
                helper.make_node("Relu", ["h"], ["r"]),
                helper.make_node("MatMul", ["r", "v"], ["m"]),
                helper.make_node("Add", ["m", "d"], ["y"]),
            ]
            shape, weights = [None, 6], named(w=w(6, 16), b=w(16), v=w(16, 4), d=w(4))
        port = lambda n, s: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        graph = helper.make_graph(nodes, "g", [port("x", shape)], [port("y", [None, 4])], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), shape

    class Reader(CalibrationDataReader):
        def __init__(self, shape):
            self.left = [{"x": RNG.normal(size=[8, *shape[1:]]).astype(np.float32)} for _ in range(4)]

        def get_next(self):
            return self.left.pop() if self.left else None

    for name, conv in (("MLP", False), ("CNN", True)):
        for form in (QuantFormat.QDQ, QuantFormat.QOperator):
            for kind in (QuantType.QInt8, QuantType.QUInt8):

                def make(conv=conv, form=form, kind=kind):
                    file, shape = network(conv)
                    with tempfile.TemporaryDirectory() as folder:
                        a, b = os.path.join(folder, "a"), os.path.join(folder, "b")
                        onnx.save(file, a)
                        # Weights of 7 bits: with 8, ONNX Runtime's own sums of unsigned by signed bytes saturate on
                        # processors without VNNI, as its documentation of quantisation says.
                        quantize_static(
                            a, b, Reader(shape), quant_format=form, activation_type=kind, weight_type=QuantType.QInt8,
                            per_channel=conv, reduce_range=True,
                        )
                        file = onnx.load(b)
                    return file, {"x": RNG.normal(size=[ROWS, *shape[1:]]).astype(np.float32)}

                cases.add("ONNX Runtime quantiser", f"{name}, {form.name}, {kind.name}", make)
