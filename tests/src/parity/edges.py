"""Single operators on values, and in forms, at the edge of what they are defined for, and what ONNX Runtime answers."""

import itertools

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXPORTER = "edges of single operators"
F32, F64 = np.float32, np.float64
NAN, INF = float("nan"), float("inf")
INTEGERS = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)

# Large and small magnitudes of both signs, halves, what exponentials overflow at, subnormals, infinities and no number.
GRID = np.array(
    [0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5, 2.5, -2.5, 3.0, -3.0, 10.3, -10.3, 20.0, -20.0, 30.0, -30.0,
     87.0, -87.0, 88.5, -88.5, 90.0, -90.0, 104.0, -104.0, 1e3, -1e3, 1e5, -1e5, 1e10, -1e10, 3e38, -3e38, 1e-3, -1e-3,
     1e-10, -1e-10, 1e-40, -1e-40, INF, -INF, NAN, 0.49999997, 8388609.0],
    F32,
)
# Where a choice is made: ONNX Runtime itself answers NaN or passes it over, by where in a tensor it lies.
ORDERED = GRID[~np.isnan(GRID)]
FINITE = GRID[np.isfinite(GRID)]
CALM = np.array([[0.5, -1.5, 2.0, 3.25, -0.25, 1.0], [4.0, -3.0, 0.0, -2.0, 2.0, 0.125]], F32)
# What ONNX Runtime has for doubles, too.
DOUBLES = ("Abs Ceil Cos Exp Floor Identity IsNaN Log Neg Reciprocal Relu Round Sigmoid Sign Sin Sqrt Tanh").split()


class Edges:
    """Adds models of one node, whose first inputs are fed and whose others are constants."""

    def __init__(self, cases):
        self.cases = cases
        self.rng = np.random.default_rng(11)

    def random(self, *shape, kind=F32):
        return (self.rng.standard_normal(shape) * 3).astype(kind)

    def add(self, op, how, inputs, opset=17, fed=1, outputs=1, **attributes):
        self.cases.single(EXPORTER, f"{op}, {how}", lambda: build(op, inputs, opset, fed, outputs, attributes))


def build(op, inputs, opset, fed, outputs, attributes):
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    named = {name: np.asarray(array) for name, array in zip(names, inputs) if name}
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(named[name].dtype), named[name].shape)
        for name in names[:fed]
    ]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, made, name="edge", **attributes)
    graph = helper.make_graph(
        [node], "edge", ports, [helper.make_empty_tensor_value_info(name) for name in made],
        [numpy_helper.from_array(named[name], name) for name in names[fed:] if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    # ONNX Runtime wants the types of outputs.
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return model, {name: named[name] for name in names[:fed]}


def edges(cases):
    edges = Edges(cases)
    for family in (unary, binary, integers, casts, reductions, softmaxes, pools, convolutions, shapes, choosing, norms, recurrent):
        family(edges)


def unary(e):
    for op in ("Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor IsInf IsNaN Log Neg Reciprocal Relu Round "
               "Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh Identity HardSwish").split():
        grid = GRID
        if op in ("Sin", "Cos", "Tan"):
            grid = GRID[np.abs(GRID) < 2e5]
        if op in ("Relu", "Sigmoid", "Tanh"):
            grid = ORDERED
        if op == "HardSwish":
            grid = GRID[np.abs(GRID) < 1e38]
        e.add(op, "grid", [grid])
        if op in DOUBLES:
            e.add(op, "float64", [grid.astype(F64)])
    e.add("Mish", "grid", [GRID], opset=18)
    for kind in ("none", "tanh"):
        e.add("Gelu", f"{kind}, grid", [GRID], opset=20, approximate=kind)
    e.add("IsInf", "negative ones alone", [GRID], detect_positive=0)
    e.add("IsInf", "positive ones alone", [GRID], detect_negative=0)
    for op, options in {
        "Elu": [{}, {"alpha": 2.0}], "Celu": [{}, {"alpha": 2.0}], "Selu": [{}, {"alpha": 1.5, "gamma": 0.7}],
        "HardSigmoid": [{}, {"alpha": 0.5, "beta": 0.25}], "LeakyRelu": [{}, {"alpha": 0.3}, {"alpha": -0.5}],
        "ThresholdedRelu": [{}, {"alpha": 2.0}, {"alpha": -1.0}],
    }.items():
        for option in options:
            e.add(op, f"grid {option}", [ORDERED if op == "HardSigmoid" else GRID], **option)
    for op in ("Abs", "Neg", "Sign", "Relu"):
        for kind in (np.int8, np.int32, np.int64):
            if (op, kind) != ("Relu", np.int64):
                e.add(op, np.dtype(kind).name, [np.array([-127, -3, 0, 3, 127], kind)])


def binary(e):
    a, b = (np.array(v, F32) for v in zip(*itertools.product([-3.0, -1.0, -0.5, 0.0, -0.0, 0.5, 1.0, 2.0, 2.5, 1e20, INF, -INF, NAN], repeat=2)))
    ordered = ~(np.isnan(a) | np.isnan(b))
    for op in ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "PRelu"):
        x, y = (a[ordered], b[ordered]) if op in ("Max", "Min") else (a, b)
        e.add(op, "pairs", [x, y], fed=2)
        e.add(op, "pairs, a constant", [x, y])
    for op in ("Max", "Min", "Sum", "Mean"):
        x, y = (a[ordered], b[ordered]) if op in ("Max", "Min") else (a, b)
        e.add(op, "three", [x, y, np.array([0.25], F32)])
        e.add(op, "one", [x])
    e.add("Mod", "fmod", [a, b], fed=2, fmod=1)
    for exponent in (0.0, 0.5, 1.0, 2.0, 3.0, -1.0, -2.0, -0.5, 0.25, 10.0):
        # A root of minus infinity is infinite to `pow`, and no number to `sqrt`.
        e.add("Pow", f"grid, {exponent}", [GRID[GRID != -INF] if exponent == 0.5 else GRID, np.array(exponent, F32)])
    e.add("Pow", "integer exponent", [CALM, np.array([2], np.int64)])
    e.add("Pow", "float exponent of integers", [np.array([1, 2, 3], np.int32), np.array([0.5], F32)])
    e.add("Pow", "int64", [np.array([-2, 2, 3], np.int64), np.array([3], np.int64)])
    e.add("Clip", "grid", [ORDERED, np.array(-1, F32), np.array(2, F32)])
    e.add("Clip", "no least", [FINITE, None, np.array(2, F32)])
    e.add("Clip", "no most", [FINITE, np.array(-1, F32)])
    e.add("Clip", "no limits", [FINITE])
    e.add("Clip", "least above most", [ORDERED, np.array(3, F32), np.array(-1, F32)])
    e.add("Clip", "int64", [np.arange(-5, 6), np.array(-2), np.array(3)])
    e.add("Clip", "int8", [np.arange(-5, 6).astype(np.int8), np.array(-2, np.int8), np.array(3, np.int8)])
    e.add("Clip", "attributes", [ORDERED], opset=6, min=-1.0, max=2.0)
    for op in ("And", "Or", "Xor"):
        e.add(op, "all", [np.array([True, True, False, False]), np.array([True, False, True, False])], fed=2)
    for op in ("Add", "Mul"):
        e.add(op, "broadcast", [e.random(2, 1, 3), e.random(4, 1)])
    e.add("Where", "broadcast", [np.array([[True], [False]]), e.random(2, 3), e.random(1, 3)], fed=1)
    e.add("Where", "NaN", [np.array([True, False, True]), np.array([1, NAN, 2], F32), np.array([NAN, 3, NAN], F32)])


def integers(e):
    a, b = (np.array(v) for v in zip(*itertools.product([-7, -3, -1, 0, 1, 3, 7, 20], [-5, -3, -1, 1, 3, 5])))
    for kind in INTEGERS:
        name = np.dtype(kind).name
        x, y = (a, b) if np.dtype(kind).kind == "i" else (np.abs(a), np.abs(b))
        x, y = x.astype(kind), y.astype(kind)
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mod", "Equal", "Greater", "Less"):
            if op in ("Max", "Min") and kind in (np.int16, np.uint16):
                continue
            # Nothing wraps around here: a build with checks stops there.
            left = x + kind(30) if op == "Sub" else x
            e.add(op, name, [left, y], fed=2)
            e.add(op, f"{name}, a constant", [left, y])
            e.add(op, f"{name}, one constant", [left, np.array([3], kind)])
            e.add(op, f"{name}, of a constant", [y, np.array([60], kind)] if op == "Max" else [left, np.array([5], kind)])
        e.add("Mod", f"{name}, fmod", [x, y], fed=2, fmod=1)


def casts(e):
    inside = np.array([0.0, -0.0, 0.5, 0.9, 1.5, 2.5, 3.99, 100.7, 127.0], F32)
    signed = np.array([-0.5, -0.9, -1.5, -2.5, -100.7, -128.0], F32)
    # What is outside of the type is not defined, and is not asked.
    large = {np.int32: [7e4, -7e4, 2e9, -2e9], np.uint32: [7e4, 3e9], np.int64: [3e9, -3e9, 1e18, -1e18], np.uint64: [3e9, 1e19]}
    for kind in INTEGERS:
        to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        name = np.dtype(kind).name
        values = inside if np.dtype(kind).kind == "u" else np.concatenate([inside, signed])
        e.add("Cast", f"float32 to {name}", [values], to=to)
        e.add("Cast", f"float64 to {name}", [values.astype(F64)], to=to)
        if kind in large:
            e.add("Cast", f"float32 to {name}, large", [np.array(large[kind], F32)], to=to)
            e.add("Cast", f"float64 to {name}, large", [np.array(large[kind], F64)], to=to)
        for back in (F32, F64, np.bool_, *INTEGERS):
            with np.errstate(all="ignore"):
                whole = np.array([0, 1, 2, 100, 200, -1, -100, 40000, 2**31 - 1, 2**31, 2**40 + 3, 16777217]).astype(kind)
            e.add("Cast", f"{name} to {np.dtype(back).name}", [whole], to=helper.np_dtype_to_tensor_dtype(np.dtype(back)))
    e.add("Cast", "float32 to bool", [GRID], to=TensorProto.BOOL)
    e.add("Cast", "bool to float32", [np.array([True, False])], to=TensorProto.FLOAT)
    e.add("Cast", "bool to int64", [np.array([True, False])], to=TensorProto.INT64)
    e.add("Cast", "float64 to float32", [np.array([1e300, -1e300, 1e-300, 0.1, NAN, INF])], to=TensorProto.FLOAT)
    e.add("Cast", "float32 to float64", [GRID], to=TensorProto.DOUBLE)


def reductions(e):
    x, special = e.random(2, 3, 4), np.array([[NAN, 1, 2], [INF, 1, 2], [-INF, INF, 0], [3, NAN, INF]], F32)
    ops = ("ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare").split()
    for op in ops:
        data = np.abs(x) if op == "ReduceLogSum" else x
        old = 11
        new = 18
        for keep in (0, 1):
            e.add(op, f"all, keepdims {keep}", [data], opset=new, keepdims=keep)
            e.add(op, f"attribute, keepdims {keep}", [data], opset=old, keepdims=keep, axes=[1])
            e.add(op, f"input, keepdims {keep}", [data, np.array([-1, 0])], opset=new, keepdims=keep)
        e.add(op, "two axes", [data], opset=old, axes=[0, -1])
        e.add(op, "no axes, noop", [data], opset=new, noop_with_empty_axes=1)
        e.add(op, "empty axes, noop", [data, np.array([], np.int64)], opset=new, noop_with_empty_axes=1)
        e.add(op, "empty axes", [data, np.array([], np.int64)], opset=new)
        e.add(op, "specials", [np.nan_to_num(special, nan=1, posinf=INF, neginf=-INF) if op in ("ReduceMax", "ReduceMin") else special], opset=old, axes=[1])
        e.add(op, "infinite", [np.array([[INF, INF], [-INF, -INF], [-INF, 1]], F32)], opset=old, axes=[1])
        if op not in ("ReduceLogSum", "ReduceLogSumExp"):
            e.add(op, "int32", [np.array([[1, -2, 3], [4, 5, -7]], np.int32)], opset=old, axes=[1])
            e.add(op, "int64", [np.array([[1, -2, 3], [4, 5, -7]], np.int64)], opset=old, axes=[1])
        e.add(op, "float64", [data.astype(F64)], opset=old, axes=[1])
        e.add(op, "large", [np.full((2, 3), 1e20 if op != "ReduceProd" else 1e10, F32)], opset=old, axes=[1])
    for op in ("ReduceMax", "ReduceMin"):
        for kind in (np.int8, np.uint8):
            e.add(op, np.dtype(kind).name, [np.array([[1, 2, 3], [100, 5, 7]], kind)], opset=18)
    ties = np.array([[1, 3, 3, 2], [2, 2, 2, 2], [-1, -1, -5, -5]], F32)
    for op, last, keep, axis in itertools.product(("ArgMax", "ArgMin"), (0, 1), (0, 1), (0, 1, -1)):
        e.add(op, f"ties, last {last}, keepdims {keep}, axis {axis}", [ties], opset=13, select_last_index=last, keepdims=keep, axis=axis)
    for op in ("ArgMax", "ArgMin"):
        e.add(op, "default", [ties], opset=13)
        e.add(op, "int32", [ties.astype(np.int32)], axis=1)
        e.add(op, "int8", [ties.astype(np.int8)], axis=1)
        e.add(op, "infinite", [np.full((2, 3), -INF if op == "ArgMax" else INF, F32)], axis=1)
    for exclusive, reverse in itertools.product((0, 1), repeat=2):
        for axis in (0, 1, -1):
            e.add("CumSum", f"exclusive {exclusive}, reverse {reverse}, axis {axis}", [e.random(3, 4), np.array(axis)], exclusive=exclusive, reverse=reverse)
    e.add("CumSum", "int32", [np.array([[1, 2, 3]], np.int32), np.array(1)])
    e.add("CumSum", "axis as a list", [e.random(3, 4), np.array([1])])


def softmaxes(e):
    x = e.random(2, 3, 4, 5)
    large = np.array([[1e4, 1e4 - 1, 0], [-1e4, -1e4, -1e4], [3e38, -3e38, 0], [INF, 0, 1], [-INF, -INF, -INF], [-INF, 0, 1], [NAN, 0, 1]], F32)
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        e.add(op, "default, old", [x], opset=11)
        e.add(op, "default", [x], opset=13)
        for opset, axis in itertools.product((11, 13), (0, 1, 2, 3, -1, -2)):
            e.add(op, f"axis {axis}, operator set {opset}", [x], opset=opset, axis=axis)
        rows = large[:-1] if op == "Hardmax" else large
        e.add(op, "large", [rows], axis=1)
        e.add(op, "large, old", [rows], axis=1, opset=11)
        e.add(op, "ties", [np.array([[1, 1, 0], [0, 2, 2]], F32)], axis=1)
        if op != "Hardmax":
            e.add(op, "float64", [x.astype(F64)], axis=1)


def pools(e):
    x = e.random(1, 2, 7, 8)
    options = [
        {}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 1, 0], "strides": [2, 3]},
        {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "VALID", "strides": [2, 2]},
        {"ceil_mode": 1, "strides": [2, 2]}, {"ceil_mode": 1, "strides": [3, 3], "pads": [1, 1, 1, 1]},
        {"ceil_mode": 1, "strides": [3, 3], "pads": [0, 0, 1, 1]}, {"ceil_mode": 1, "auto_pad": "VALID", "strides": [2, 2]},
        {"ceil_mode": 1, "auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ]
    for option in options:
        for kernel in ([3, 3], [2, 2], [2, 3]):
            how = f"{kernel} {option}"
            e.add("MaxPool", how, [x], opset=12, kernel_shape=kernel, **option)
            for include in (0, 1):
                e.add("AveragePool", f"{how} counted {include}", [x], opset=11, kernel_shape=kernel, count_include_pad=include, **option)
            e.add("AveragePool", f"{how}, set 19", [x], opset=19, kernel_shape=kernel, count_include_pad=1, **option)
    e.add("MaxPool", "dilations", [x], opset=12, kernel_shape=[2, 2], dilations=[2, 2])
    e.add("MaxPool", "dilations and ceil_mode", [x], opset=12, kernel_shape=[2, 2], dilations=[2, 2], strides=[2, 2], ceil_mode=1)
    e.add("MaxPool", "dilations and pads", [x], opset=12, kernel_shape=[2, 2], dilations=[2, 3], pads=[1, 1, 1, 1])
    e.add("MaxPool", "dilations and SAME_UPPER", [x], opset=12, kernel_shape=[2, 2], dilations=[2, 2], auto_pad="SAME_UPPER")
    e.add("AveragePool", "dilations", [x], opset=19, kernel_shape=[2, 2], dilations=[2, 2])
    e.add("AveragePool", "dilations and pads", [x], opset=19, kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
    for order in (0, 1):
        e.add("MaxPool", f"indices, order {order}", [x], opset=12, outputs=2, kernel_shape=[2, 2], storage_order=order)
        e.add("MaxPool", f"indices, order {order}, pads", [x], opset=12, outputs=2, kernel_shape=[3, 3], storage_order=order, pads=[1, 1, 1, 1])
    e.add("MaxPool", "one dimension", [e.random(1, 2, 9)], opset=12, kernel_shape=[3])
    e.add("MaxPool", "three dimensions", [e.random(1, 2, 4, 5, 6)], opset=12, kernel_shape=[2, 2, 2])
    e.add("MaxPool", "int8", [(x * 10).astype(np.int8)], opset=12, kernel_shape=[2, 2], pads=[1, 1, 1, 1])
    e.add("MaxPool", "uint8", [(x * 10).astype(np.uint8)], opset=12, kernel_shape=[2, 2])
    special = x.copy()
    special[0, 1, 3, 3], special[0, 1, 5, 5] = INF, -INF
    e.add("MaxPool", "specials", [special], opset=12, kernel_shape=[3, 3])
    special[0, 0, 2, 2] = NAN
    e.add("AveragePool", "specials", [special], opset=11, kernel_shape=[3, 3])
    e.add("GlobalMaxPool", "specials", [special])
    e.add("GlobalAveragePool", "specials", [special])
    e.add("MaxPool", "float64", [x.astype(F64)], opset=12, kernel_shape=[2, 2])


def convolutions(e):
    x, w, b = e.random(1, 4, 7, 8), e.random(6, 4, 3, 3), e.random(6)
    options = [
        {}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 0], "strides": [2, 3]}, {"dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "VALID"},
    ]
    for option in options:
        e.add("Conv", f"{option}", [x, w, b], **option)
        e.add("Conv", f"without bias {option}", [x, e.random(6, 4, 2, 2)], **option)
        e.add("Conv", f"2 groups {option}", [x, e.random(6, 2, 3, 3), b], group=2, **option)
        e.add("Conv", f"depthwise {option}", [x, e.random(4, 1, 3, 3), e.random(4)], group=4, **option)
        e.add("Conv", f"depthwise, multiplied {option}", [x, e.random(8, 1, 3, 3), e.random(8)], group=4, **option)
    e.add("Conv", "one dimension", [e.random(1, 2, 9), e.random(3, 2, 3)], dilations=[2], pads=[1, 2])
    e.add("Conv", "three dimensions", [e.random(1, 2, 5, 6, 7), e.random(3, 2, 2, 3, 2)], strides=[1, 2, 1])
    e.add("Conv", "empty bias", [x, w, None])
    e.add("Conv", "infinite", [np.where(x > 4, F32(INF), x), w, b])
    t = e.random(4, 3, 3, 3)
    options = [
        {}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}, {"strides": [2, 3], "pads": [0, 1, 1, 0]}, {"dilations": [2, 2]},
        {"strides": [3, 3], "output_padding": [1, 2]}, {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID", "strides": [2, 2]},
        {"output_shape": [15, 17], "strides": [2, 2]}, {"output_shape": [14, 16], "strides": [2, 2]},
        {"output_shape": [14, 16], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, {"output_shape": [14, 16], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"output_shape": [16, 18], "strides": [2, 2], "output_padding": [1, 1]},
        {"strides": [2, 2], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
    ]
    for option in options:
        e.add("ConvTranspose", f"{option}", [x, t], **option)
        e.add("ConvTranspose", f"bias {option}", [x, t, e.random(3)], **option)
        e.add("ConvTranspose", f"2 groups {option}", [x, t, e.random(6)], group=2, **option)
    e.add("ConvTranspose", "one dimension", [e.random(1, 2, 9), e.random(2, 3, 3)], strides=[2])
    e.add("ConvTranspose", "three dimensions", [e.random(1, 2, 3, 4, 3), e.random(2, 3, 2, 2, 2)], strides=[2, 1, 2])


def shapes(e):
    x = e.random(3, 4, 5)
    whole = np.arange(60).reshape(3, 4, 5)
    for mode in ("constant", "edge", "reflect"):
        e.add("Pad", mode, [x, np.array([0, 1, 2, 0, 2, 1])], opset=13, mode=mode)
        e.add("Pad", f"{mode}, negative", [x, np.array([0, -1, 2, 0, 2, -1])], opset=13, mode=mode)
        e.add("Pad", f"{mode}, axes", [x, np.array([1, 2]), None, np.array([-1])], opset=18, mode=mode)
        e.add("Pad", f"{mode}, old", [x], opset=10, mode=mode, pads=[0, 1, 2, 0, 2, 1])
        e.add("Pad", f"{mode}, integers", [whole, np.array([0, 1, 2, 0, 2, 1])], opset=13, mode=mode)
        e.add("Pad", f"{mode}, int32", [whole.astype(np.int32), np.array([0, 1, 2, 0, 2, 1])], opset=13, mode=mode)
    e.add("Pad", "value", [x, np.array([0, 1, 2, 0, 2, 1]), np.array(2.5, F32)], opset=13)
    e.add("Pad", "value, old", [x], opset=10, pads=[0, 1, 2, 0, 2, 1], value=2.5)
    e.add("Pad", "value, integers", [whole, np.array([0, 1, 2, 0, 2, 1]), np.array(7)], opset=13)
    e.add("Pad", "wrap", [x, np.array([0, 1, 2, 0, 2, 1])], opset=19, mode="wrap")
    e.add("Pad", "axes and value", [x, np.array([1, 2, 0, 1]), np.array(2.5, F32), np.array([0, 2])], opset=18)
    for starts, ends, axes, steps in (
        ([1], [3], [1], [1]), ([-3], [-1], [1], [1]), ([3], [0], [1], [-1]), ([-1], [-100], [2], [-2]), ([100], [-100], [2], [-1]),
        ([0], [100], [2], [3]), ([2], [1], [1], [1]), ([0, 1], [2, 4], [0, 2], [1, 2]), ([-1, -1], [-5, -6], [1, 2], [-1, -3]),
        ([0], [2**63 - 1], [-1], [2]), ([-1], [-2**63], [-2], [-1]), ([4], [1], [-1], [-2]), ([1], [4], [2], [2])
    ):
        e.add("Slice", f"{starts} {ends} {axes} {steps}", [x] + [np.array(v) for v in (starts, ends, axes, steps)])
    e.add("Slice", "no axes", [x, np.array([1, 0, 2]), np.array([3, 2, 4])])
    e.add("Slice", "int32", [x] + [np.array(v, np.int32) for v in ([1], [3], [1], [2])])
    e.add("Slice", "old", [x], opset=9, starts=[1, -2], ends=[3, 100], axes=[1, 2])
    table = e.random(5, 4)
    for axis in (0, 1, -1):
        places = np.array([[0, -1], [2, -3]])
        e.add("Gather", f"negative, axis {axis}", [table, places], axis=axis)
        e.add("Gather", f"scalar, axis {axis}", [table, np.array(-2)], axis=axis)
        e.add("GatherElements", f"negative, axis {axis}", [table, np.array([[0, -1], [2, -3]])], axis=axis)
        e.add("ScatterElements", f"negative, axis {axis}", [table, np.array([[0, -1], [2, -3]]), e.random(2, 2)], opset=16, axis=axis)
        for reduction in ("none", "add", "mul", "max", "min"):
            e.add("ScatterElements", f"{reduction}, axis {axis}", [table, np.array([[1, 2], [0, 1]]), e.random(2, 2)], opset=18, axis=axis, reduction=reduction)
            e.add("ScatterElements", f"{reduction}, twice, axis {axis}", [table, np.array([[1, 1], [1, 1]]), e.random(2, 2)], opset=18, axis=axis, reduction=reduction)
    for reduction in ("none", "add", "mul", "max", "min"):
        e.add("ScatterND", reduction, [table, np.array([[0], [2]]), e.random(2, 4)], opset=18, reduction=reduction)
        e.add("ScatterND", f"{reduction}, negative", [table, np.array([[-1], [-3]]), e.random(2, 4)], opset=18, reduction=reduction)
        e.add("ScatterND", f"{reduction}, single", [table, np.array([[1, 2], [1, 2], [0, -1]]), e.random(3)], opset=18, reduction=reduction)
    e.add("GatherND", "negative", [x, np.array([[0, -1], [-2, 1]])])
    e.add("GatherND", "batched", [x, np.array([[0], [-1], [2]])], batch_dims=1)
    for shape in ([0, -1], [-1], [1, 3, 4, 5], [0, 0, 0]):
        e.add("Reshape", f"{shape}", [x, np.array(shape)])
    e.add("Reshape", "allowzero", [x, np.array([3, 20])], opset=14, allowzero=1)
    for axis in (0, 1, 2, 3, -1):
        e.add("Flatten", f"axis {axis}", [x], axis=axis)
    e.add("Transpose", "default", [x])
    e.add("Transpose", "given", [x], perm=[2, 0, 1])
    e.add("Squeeze", "all", [e.random(1, 3, 1)])
    e.add("Squeeze", "negative", [e.random(1, 3, 1), np.array([-1])])
    e.add("Squeeze", "old", [e.random(1, 3, 1)], opset=11, axes=[0])
    e.add("Unsqueeze", "negative", [x, np.array([-1, 0])])
    e.add("Unsqueeze", "unsorted", [x, np.array([4, 1])])
    e.add("Unsqueeze", "old", [x], opset=11, axes=[0, 2])
    e.add("Expand", "both ways", [e.random(3, 1), np.array([2, 1, 4])])
    e.add("Expand", "smaller", [e.random(3, 4), np.array([1])])
    e.add("Tile", "two", [e.random(2, 3), np.array([2, 3])])
    e.add("Concat", "negative axis", [x, x, e.random(3, 4, 2)], axis=-1)
    for start, end in ((0, 2), (1, None), (-2, None), (-100, 100), (2, 1)):
        option = {"start": start} | ({} if end is None else {"end": end})
        e.add("Shape", f"{option}", [x], opset=15, **option)
    e.add("Size", "all", [x])
    e.add("Split", "equal", [e.random(2, 6)], outputs=3, opset=13, axis=1)
    e.add("Split", "given", [e.random(2, 6), np.array([1, 2, 3])], outputs=3, opset=13, axis=-1)
    e.add("Split", "num_outputs, uneven", [e.random(2, 7)], outputs=3, opset=18, axis=1, num_outputs=3)
    e.add("Split", "old", [e.random(2, 6)], outputs=2, opset=11, axis=1, split=[2, 4])
    for mode in ("DCR", "CRD"):
        e.add("DepthToSpace", mode, [e.random(1, 8, 2, 3)], blocksize=2, mode=mode)
    e.add("SpaceToDepth", "two", [e.random(1, 2, 4, 6)], blocksize=2)
    for upper, k in itertools.product((0, 1), (None, 0, 1, -1, -2, 10, -10)):
        e.add("Trilu", f"upper {upper}, {k}", [e.random(3, 4)] + ([] if k is None else [np.array(k)]), upper=upper)
    e.add("Trilu", "int64", [whole], upper=0)
    for equation, shape in (("ij->ji", None), ("ij->i", None), ("ij->", None), ("ij,jk->ik", (4, 3)), ("ij,ij->i", (3, 4)), ("ij,kj", (2, 4)), ("...j,jk->...k", (4, 2)), (" ij , jk -> ik ", (4, 2)), ("ij,k->ijk", (2,))):
        e.add("Einsum", equation, [e.random(3, 4)] + ([] if shape is None else [e.random(*shape)]), equation=equation)
    e.add("Einsum", "diagonal", [e.random(3, 3)], equation="ii->i")
    e.add("Einsum", "trace", [e.random(3, 3)], equation="ii")
    e.add("MatMul", "vector right", [e.random(3, 4), e.random(4)])
    e.add("MatMul", "vector left", [e.random(4), e.random(4, 3)])
    e.add("MatMul", "stacked", [e.random(2, 3, 4), e.random(4, 5)])
    e.add("MatMul", "broadcast", [e.random(2, 1, 3, 4), e.random(5, 4, 2)])
    e.add("MatMul", "float64", [e.random(3, 4, kind=F64), e.random(4, 2, kind=F64)])
    e.add("MatMul", "int32", [np.arange(6, dtype=np.int32).reshape(2, 3), np.arange(6, dtype=np.int32).reshape(3, 2)])
    e.add("MatMul", "infinite", [np.array([[INF, 1], [NAN, 0], [-INF, 2]], F32), np.array([[1, 0], [2, 3]], F32)])
    for a, b in itertools.product((0, 1), repeat=2):
        left, right = e.random(*((4, 3) if a else (3, 4))), e.random(*((5, 4) if b else (4, 5)))
        for name, bias in (("none", None), ("row", e.random(5)), ("column", e.random(3, 1)), ("all", e.random(3, 5)), ("scalar", e.random())):
            e.add("Gemm", f"transposed {a} {b}, {name}", [left, right] + ([] if bias is None else [bias]), transA=a, transB=b, alpha=0.5, beta=2.0)
    e.add("Gemm", "beta 0", [e.random(3, 4), e.random(4, 5), np.full(5, NAN, F32)], beta=0.0)


def choosing(e):
    ties = np.array([[3, 1, 3, 2, 3], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]], F32)
    special = np.array([[7, 1, INF, -INF, 2], [1, -INF, 2, INF, 0]], F32)
    for largest in (0, 1):
        for axis in (0, 1, -1):
            e.add("TopK", f"ties, largest {largest}, axis {axis}", [ties, np.array([2])], opset=11, outputs=2, largest=largest, axis=axis)
        e.add("TopK", f"all, largest {largest}", [ties, np.array([5])], opset=11, outputs=2, largest=largest)
        e.add("TopK", f"infinite, largest {largest}", [special, np.array([3])], opset=11, outputs=2, largest=largest)
        e.add("TopK", f"int64, largest {largest}", [ties.astype(np.int64), np.array([2])], opset=11, outputs=2, largest=largest)
        e.add("TopK", f"int32, largest {largest}", [ties.astype(np.int32), np.array([2])], opset=11, outputs=2, largest=largest)
    e.add("TopK", "old", [ties, np.array([2])], opset=10, outputs=2)
    for axis in (-1, 0, 1):
        places = np.array([0, 3, -1, -4, 4, -5, 100])
        e.add("OneHot", f"outside, axis {axis}", [places, np.array([4]), np.array([2, 5], F32)], axis=axis)
    e.add("OneHot", "inside", [np.array([0, 3, 1]), np.array(4), np.array([0, 1], F32)])
    e.add("OneHot", "two dimensions", [np.array([[0, 3], [1, -1]]), np.array([4]), np.array([0, 1], np.int64)], axis=1)
    e.add("Range", "int64", [np.array(1), np.array(10), np.array(3)])
    e.add("ConstantOfShape", "computed", [np.array([2, 3])])


def norms(e):
    x = e.random(2, 3, 4, 5)
    for axis in (1, 2, 3, -1, -2):
        shape = x.shape[axis:]
        e.add("LayerNormalization", f"axis {axis}", [x, e.random(*shape), e.random(*shape)], axis=axis)
        e.add("LayerNormalization", f"axis {axis}, without bias", [x, e.random(*shape)], axis=axis, epsilon=0.1)
        e.add("LpNormalization", f"axis {axis}, p 1", [x], axis=axis, p=1)
        e.add("LpNormalization", f"axis {axis}, p 2", [x], axis=axis, p=2)
    e.add("LayerNormalization", "all outputs", [x, e.random(5), e.random(5)], outputs=3)
    e.add("LayerNormalization", "constant rows", [np.full((2, 5), 3, F32), e.random(5), e.random(5)])
    e.add("LayerNormalization", "large", [e.random(2, 5) * F32(1e15), e.random(5), e.random(5)])
    e.add("LpNormalization", "zeros", [np.zeros((2, 3), F32)])
    e.add("BatchNormalization", "plain", [x, e.random(3), e.random(3), e.random(3), np.abs(e.random(3))], opset=15)
    e.add("BatchNormalization", "epsilon", [x, e.random(3), e.random(3), e.random(3), np.abs(e.random(3))], opset=9, epsilon=0.1)
    e.add("BatchNormalization", "two dimensions", [e.random(2, 3), e.random(3), e.random(3), e.random(3), np.abs(e.random(3))], opset=15)
    e.add("BatchNormalization", "training", [x, e.random(3), e.random(3), e.random(3), np.abs(e.random(3))], opset=15, training_mode=1, outputs=3)
    e.add("InstanceNormalization", "plain", [x, e.random(3), e.random(3)], epsilon=0.01)
    e.add("InstanceNormalization", "one dimension", [e.random(2, 3, 5), e.random(3), e.random(3)])
    for size in (1, 3, 5):
        e.add("LRN", f"size {size}", [e.random(1, 6, 3, 3)], size=size, alpha=0.1, beta=0.5, bias=2.0)
    e.add("Dropout", "mask", [x], outputs=2, opset=13)
    e.add("Dropout", "ratio", [x, np.array(0.7, F32)], opset=13)
    e.add("Dropout", "not training", [x, np.array(0.7, F32), np.array(False)], opset=13)
    e.add("Dropout", "training", [x, np.array(0.7, F32), np.array(True)], opset=13)
    e.add("Dropout", "training, ratio 0", [x, np.array(0.0, F32), np.array(True)], opset=13)


def recurrent(e):
    steps, batch, inputs, hidden = 4, 3, 5, 2
    x = e.random(steps, batch, inputs)
    for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction in ("forward", "reverse", "bidirectional"):
            n = 2 if direction == "bidirectional" else 1
            w, r, b = e.random(n, gates * hidden, inputs) / 4, e.random(n, gates * hidden, hidden) / 4, e.random(n, 2 * gates * hidden) / 4
            h, c = e.random(n, batch, hidden), e.random(n, batch, hidden)
            outs = 3 if op == "LSTM" else 2
            state = [h, c] if op == "LSTM" else [h]
            for linear in (0, 1) if op == "GRU" else (None,):
                option = {"hidden_size": hidden, "direction": direction} | ({} if linear is None else {"linear_before_reset": linear})
                how = f"{direction}" + ("" if linear is None else f", linear_before_reset {linear}")
                e.add(op, how, [x, w, r, b], opset=14, outputs=outs, **option)
                e.add(op, f"{how}, without bias", [x, w, r], opset=14, outputs=outs, **option)
                e.add(op, f"{how}, state", [x, w, r, b, None] + state, opset=14, outputs=outs, **option)
                e.add(op, f"{how}, full lengths", [x, w, r, b, np.full(batch, steps, np.int32)], opset=14, outputs=outs, **option)
                e.add(op, f"{how}, lengths", [x, w, r, b, np.array([4, 2, 1], np.int32)], opset=14, outputs=outs, **option)
                e.add(op, f"{how}, lengths and state", [x, w, r, b, np.array([4, 2, 1], np.int32)] + state, opset=14, outputs=outs, **option)
                e.add(op, f"{how}, clip", [x, w, r, b], opset=14, outputs=outs, clip=0.1, **option)
                e.add(op, f"{how}, one step", [x[:1], w, r, b, None] + state, opset=14, outputs=outs, **option)
                if op == "LSTM":
                    p = e.random(n, 3 * hidden)
                    e.add(op, f"{how}, peepholes", [x, w, r, b, None, h, c, p], opset=14, outputs=outs, **option)
                    e.add(op, f"{how}, cell state alone", [x, w, r, b, None, None, c], opset=14, outputs=outs, **option)
        e.add(op, "activations", [x, w[:1], r[:1], b[:1]], opset=14, hidden_size=hidden, activations=["Relu"] * {"LSTM": 3, "GRU": 2, "RNN": 1}[op])
