"""Times ONNX Runtime on one thread on request: one line of JSON in, one line of JSON out, until the input ends.

A question names a case and a number of calls. The answer is the median time of its first row, microseconds, or none where
the model takes no single row.
"""

import json
import os
import sys
import time

import onnx
from onnx import numpy_helper

from cases import session

# The session of the last case and its first row: rounds of one case come after each other.
last = {}


def prepared(case):
    if last.get("case") != case:
        with open(os.path.join(case, "model.onnx"), "rb") as file:
            runtime = session(file.read())
        names = [port.name for port in runtime.get_inputs()]
        first = {name: read(case, i)[:1] for i, name in enumerate(names)}
        last.update(case=case, runtime=runtime, first=first)
    return last["runtime"], last["first"]


def read(case, i):
    with open(os.path.join(case, "test_data_set_0", f"input_{i}.pb"), "rb") as file:
        return numpy_helper.to_array(onnx.TensorProto.FromString(file.read()))


def median_us(case, calls):
    try:
        runtime, first = prepared(case)
        runtime.run(None, first)
    except Exception as error:  # a model of a fixed batch, most of all
        print(f"{case}: {type(error).__name__}: {error}".split("\n")[0][:200], file=sys.stderr)
        return None
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        runtime.run(None, first)
        times.append(time.perf_counter_ns() - start)
    times.sort()
    return times[len(times) // 2] / 1000


for line in sys.stdin:
    ask = json.loads(line)
    print(json.dumps({"us": median_us(ask["case"], ask["calls"])}), flush=True)
