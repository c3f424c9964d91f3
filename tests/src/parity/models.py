"""Makes models with the exporters people use, asks ONNX Runtime, and writes both down.

usage: models.py FOLDER SET... [--more] [--given FOLDER [--keywords TEST_SET]]

With --more the folder keeps the cases it holds, which another Python has made; else it is emptied first.

Every case is a folder in the form of ONNX's backend tests: model.onnx, test_data_set_0/input_*.pb and output_*.pb, and
meta.json with who made it. An exporter that fails leaves only meta.json.
"""

import argparse
import json
import os
import shutil
import sys

import edges
import given
import keras_networks
import networks
import nodes
import tabular
from cases import Cases

SETS = {
    "sklearn": tabular.sklearn,
    "lightgbm": tabular.lightgbm,
    "xgboost": tabular.xgboost,
    "quantised": networks.quantised,
    "torch": networks.torch,
    "keras": keras_networks.models,
    "nodes": nodes.nodes,
    "edges": edges.edges,
}
EXPORTERS = (
    "onnxruntime", "onnx", "sklearn", "skl2onnx", "onnxmltools", "lightgbm", "xgboost", "torch", "tensorflow", "keras", "tf2onnx",
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--given")
    parser.add_argument("--keywords")
    options = parser.parse_args()
    folder = options.folder
    if not options.more:
        shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, exist_ok=True)
    cases = Cases(folder)
    for name in options.sets:
        SETS[name](cases)
    if options.given:
        given.models(cases, options.given)
    if options.keywords:
        given.keywords(cases, options.given, options.keywords)
    path = os.path.join(folder, "versions.json")
    versions = {}
    if os.path.exists(path):
        with open(path) as file:
            versions = json.load(file)
    for module in EXPORTERS:
        if module in sys.modules:
            versions[module] = sys.modules[module].__version__
    with open(path, "w") as file:
        json.dump(versions, file)


main()
