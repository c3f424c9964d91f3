"""Drives an agent with tritonclient, over HTTP (JSON and binary, blocking and asyncio) and over gRPC.

Arguments: a JSON file with the addresses, the model, rows of its input, the scores that each must get, the version and
the administrator's token. Ends with 0 if everything was as it should be.
"""

import asyncio
import http.client
import json
import sys

import grpc as grpcio
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
import tritonclient.http.aio as over_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

with open(sys.argv[1]) as file:
    GIVEN = json.load(file)
MODEL, VERSION = GIVEN["model"], GIVEN["version"]
ROWS = np.array(GIVEN["rows"], dtype=np.float32)
SCORES = np.array(GIVEN["scores"], dtype=np.float32)
ADMIN = {"authorization": "Bearer " + GIVEN["token"]}
WIDTH = ROWS.shape[1]


def tensor(lib, rows, name="x", datatype="FP32", **how):
    made = lib.InferInput(name, list(rows.shape), datatype)
    made.set_data_from_numpy(rows, **how)
    return made


def same(result, n):
    got = result.as_numpy("scores")
    assert got.shape == (n, SCORES.shape[1]), got.shape
    assert np.allclose(got, SCORES[:n], atol=1e-5), (got, SCORES[:n])


def refused(status, call):
    """The call must end with one of these states and with words that say why."""
    try:
        call()
    except InferenceServerException as error:
        assert error.status() in status, f"{error.status()} is none of {status}: {error}"
        assert error.message(), error
        return
    raise AssertionError(f"a wrong request was answered, {status} was expected")


def wrong_requests(lib, client, how, bad, missing):
    """Every kind of wrong request that these clients can make."""
    one = ROWS[:1]

    def infer(inputs, **more):
        return lambda: client.infer(MODEL, inputs, **more)

    x = tensor(lib, one, **how)
    refused(bad, infer([tensor(lib, one.astype(np.int32), datatype="INT32", **how)]))
    refused(bad, infer([tensor(lib, one.astype(np.float64), datatype="FP64", **how)]))
    refused(bad, infer([tensor(lib, one[:, 1:], **how)]))
    refused(bad, infer([tensor(lib, one[0], **how)]))
    refused(bad, infer([tensor(lib, one[:0], **how)]))
    refused(bad, infer([tensor(lib, one, name="y", **how)]))
    refused(bad, infer([]))
    refused(bad, infer([x, tensor(lib, one, name="y", **how)]))
    refused(bad, infer([x, x]))
    refused(bad, infer([x], outputs=[lib.InferRequestedOutput("nothing")]))
    refused(bad, infer([x], request_id="i" * 1000))
    # One row more than are answered at once.
    refused(bad, infer([tensor(lib, np.zeros((4097, WIDTH), np.float32), **how)]))
    refused(missing, lambda: client.infer("other", [x]))
    refused(missing, lambda: client.infer(MODEL, [x], model_version="999"))
    refused(missing, lambda: client.get_model_metadata("other"))
    refused(missing, lambda: client.get_inference_statistics("other"))
    assert not client.is_model_ready("other")
    # And the next right one is answered.
    same(client.infer(MODEL, [x]), 1)


def meta(server, model, stats):
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(server["extensions"]), server
    assert model["name"] == MODEL and VERSION in model["versions"], model
    assert model["inputs"][0]["name"] == "x" and model["inputs"][0]["datatype"] == "FP32", model
    assert [int(d) for d in model["inputs"][0]["shape"]] == [-1, WIDTH], model
    of = stats["model_stats"][0]
    assert of["version"] == VERSION and int(of["inference_stats"]["success"]["count"]) > 0, stats
    assert int(of["inference_count"]) >= int(of["execution_count"]) > 0, stats
    spans = of["inference_stats"]
    parts = sum(int(spans[name]["ns"]) for name in ["queue", "compute_input", "compute_infer", "compute_output"])
    assert int(spans["success"]["ns"]) == parts, stats


def repository(client, state):
    """Out of memory and back, by the administrator alone."""
    for verb in [client.unload_model, client.load_model]:
        refused(["403", "StatusCode.PERMISSION_DENIED"], lambda: verb(MODEL))
    assert state(client.get_model_repository_index()) == ("READY", VERSION)
    client.unload_model(MODEL, headers=ADMIN)
    assert not client.is_model_ready(MODEL)
    assert client.is_server_ready()
    assert state(client.get_model_repository_index())[0] == "UNAVAILABLE"
    config = json.dumps({"backend": "onnxruntime"})
    brought = lambda: client.load_model(MODEL, headers=ADMIN, config=config)
    refused(["400", "StatusCode.INVALID_ARGUMENT"], brought)
    client.load_model(MODEL, headers=ADMIN)
    assert client.is_model_ready(MODEL)
    nothing = lambda: client.load_model("other", headers=ADMIN)
    refused(["404", "StatusCode.NOT_FOUND"], nothing)


def by_http():
    client = over_http.InferenceServerClient(GIVEN["http"])
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, VERSION)
    for binary_in in [True, False]:
        for binary_out in [True, False]:
            for n in [1, 7, len(ROWS)]:
                x = tensor(over_http, ROWS[:n], binary_data=binary_in)
                wanted = [over_http.InferRequestedOutput("scores", binary_data=binary_out)]
                result = client.infer(MODEL, [x], outputs=wanted, request_id=f"t{n}")
                same(result, n)
                assert result.get_response()["id"] == f"t{n}"
                assert result.get_response()["model_version"] == VERSION
        x = tensor(over_http, ROWS, binary_data=binary_in)
        same(client.infer(MODEL, [x]), len(ROWS))
        same(client.infer(MODEL, [x], model_version=VERSION), len(ROWS))
        same(client.async_infer(MODEL, [x]).get_result(), len(ROWS))
        wrong_requests(over_http, client, {"binary_data": binary_in}, ["400"], ["404", "400"])
    stats = client.get_inference_statistics(MODEL)
    meta(client.get_server_metadata(), client.get_model_metadata(MODEL), stats)
    repository(client, lambda index: (index[0]["state"], index[0]["version"]))
    x = tensor(over_http, np.zeros((10000, WIDTH), np.float32))
    refused(["413"], lambda: client.infer(MODEL, [x]))
    client.close()


async def by_aio():
    async with over_aio.InferenceServerClient(GIVEN["http"]) as client:
        x = tensor(over_http, ROWS)
        results = await asyncio.gather(*[client.infer(MODEL, [x]) for _ in range(8)])
        for result in results:
            same(result, len(ROWS))


def truncated_http():
    """A binary tensor that is shorter, or longer, than announced; the client library can not make these."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [1, WIDTH],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": 4 * WIDTH},
                }
            ]
        }
    ).encode()
    whole = ROWS[0].tobytes()
    for body in [head + whole[:-1], head + whole + b"\0", head[:-1], head]:
        connection = http.client.HTTPConnection(GIVEN["http"], timeout=20)
        headers = {"Inference-Header-Content-Length": str(len(head))}
        connection.request("POST", f"/v2/models/{MODEL}/infer", body, headers)
        response = connection.getresponse()
        text = response.read()
        assert response.status == 400 and json.loads(text)["error"], (response.status, text)
        connection.close()


def by_grpc():
    client = over_grpc.InferenceServerClient(GIVEN["grpc"])
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    for n in [1, 7, len(ROWS)]:
        result = client.infer(MODEL, [tensor(over_grpc, ROWS[:n])], request_id=f"g{n}")
        same(result, n)
        response = result.get_response()
        assert (response.id, response.model_version) == (f"g{n}", VERSION)
    wanted = [over_grpc.InferRequestedOutput("scores")]
    same(client.infer(MODEL, [tensor(over_grpc, ROWS)], outputs=wanted, model_version=VERSION), len(ROWS))
    bad, missing = ["StatusCode.INVALID_ARGUMENT"], ["StatusCode.NOT_FOUND"]
    wrong_requests(over_grpc, client, {}, bad, missing)
    plain = {"as_json": True}
    meta(
        client.get_server_metadata(**plain),
        client.get_model_metadata(MODEL, **plain),
        client.get_inference_statistics(MODEL, **plain),
    )
    repository(client, lambda index: (index.models[0].state, index.models[0].version))
    x = tensor(over_grpc, np.zeros((10000, WIDTH), np.float32))
    refused(["StatusCode.OUT_OF_RANGE", "StatusCode.RESOURCE_EXHAUSTED"], lambda: client.infer(MODEL, [x]))
    refused(["StatusCode.UNIMPLEMENTED"], lambda: client.get_model_config(MODEL))
    client.close()


def messages():
    """Typed contents, and raw ones that do not fit; the client library only makes raw ones that do."""
    with grpcio.insecure_channel(GIVEN["grpc"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def request():
            asked = service_pb2.ModelInferRequest(model_name=MODEL)
            x = asked.inputs.add(name="x", datatype="FP32", shape=[1, WIDTH])
            return asked, x

        typed, x = request()
        x.contents.fp32_contents.extend(ROWS[0].tolist())
        answer = stub.ModelInfer(typed, timeout=20)
        got = np.frombuffer(answer.raw_output_contents[-1], np.float32)
        assert np.allclose(got, SCORES[0], atol=1e-5), got
        assert answer.parameters["answered_by"].string_param == "champion", answer.parameters
        for raws in [[ROWS[0].tobytes()[:-1]], [ROWS[0].tobytes()] * 2]:
            wrong, _ = request()
            wrong.raw_input_contents.extend(raws)
            fails(stub, wrong)
        both, x = request()
        x.contents.fp32_contents.extend(ROWS[0].tolist())
        both.raw_input_contents.append(ROWS[0].tobytes())
        fails(stub, both)
        fails(stub, request()[0])


def fails(stub, asked):
    try:
        stub.ModelInfer(asked, timeout=20)
    except grpcio.RpcError as error:
        assert error.code() == grpcio.StatusCode.INVALID_ARGUMENT, error
        return
    raise AssertionError("a wrong message was answered")


by_http()
asyncio.run(by_aio())
truncated_http()
by_grpc()
messages()
print("tritonclient: HTTP, HTTP with asyncio, gRPC")
