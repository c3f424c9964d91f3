"""Drives an agent with KServe's own clients, REST and gRPC; see triton.py for the argument."""

import asyncio
import json
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

with open(sys.argv[1]) as file:
    GIVEN = json.load(file)
MODEL = GIVEN["model"]
ROWS = np.array(GIVEN["rows"], dtype=np.float32)
SCORES = np.array(GIVEN["scores"], dtype=np.float32)


def request(rows, binary, model=MODEL, name="x"):
    x = InferInput(name=name, shape=list(rows.shape), datatype="FP32")
    x.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[x], request_id="k1")


def same(response, n):
    got = response.outputs[-1].as_numpy().reshape(n, -1)
    assert np.allclose(got, SCORES[:n], atol=1e-5), got
    assert response.id == "k1"


async def refused(call, *status):
    try:
        await call
    except httpx.HTTPStatusError as error:
        assert error.response.status_code in status and error.response.json()["error"], error
    except grpc.RpcError as error:
        assert error.code() in status, error
    else:
        raise AssertionError(f"a wrong request was answered, {status} was expected")


async def rest():
    base = f"http://{GIVEN['http']}"
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(base)
    assert await client.is_server_ready(base)
    assert await client.is_model_ready(base, MODEL)
    for binary in [True, False]:
        for n in [1, len(ROWS)]:
            same(await client.infer(base, request(ROWS[:n], binary), model_name=MODEL), n)
        await refused(client.infer(base, request(ROWS[:, 1:], binary), model_name=MODEL), 400)
        await refused(client.infer(base, request(ROWS, binary, name="y"), model_name=MODEL), 400)
        await refused(client.infer(base, request(ROWS, binary), model_name="other"), 404)
    await client.close()


async def over_grpc():
    client = InferenceGRPCClient(GIVEN["grpc"], retries=0)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready(MODEL)
    for binary in [True, False]:
        for n in [1, len(ROWS)]:
            same(await client.infer(request(ROWS[:n], binary)), n)
        await refused(client.infer(request(ROWS[:, 1:], binary)), grpc.StatusCode.INVALID_ARGUMENT)
        await refused(client.infer(request(ROWS, binary, model="other")), grpc.StatusCode.NOT_FOUND)
    await client.close()


asyncio.run(rest())
asyncio.run(over_grpc())
print("kserve: REST, gRPC")
