"""Makes models with the exporters people use, asks ONNX Runtime, and writes both down.

usage: models.py FOLDER SET... [--given FOLDER [--keywords TEST_SET]]

Every case is a folder in the form of ONNX's backend tests: model.onnx, test_data_set_0/input_*.pb and output_*.pb, and
meta.json with who made it. An exporter that fails leaves only meta.json.
"""

import argparse
import json
import os
import shutil
import sys

import given
import networks
import tabular
from cases import Cases

SETS = {
    "sklearn": tabular.sklearn,
    "lightgbm": tabular.lightgbm,
    "xgboost": tabular.xgboost,
    "quantised": networks.quantised,
    "torch": networks.torch,
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--given")
    parser.add_argument("--keywords")
    options = parser.parse_args()
    folder = options.folder
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    cases = Cases(folder)
    for name in options.sets:
        SETS[name](cases)
    if options.given:
        given.models(cases, options.given)
    if options.keywords:
        given.keywords(cases, options.given, options.keywords)
    versions = {}
    for module in ("onnxruntime", "onnx", "sklearn", "skl2onnx", "onnxmltools", "lightgbm", "xgboost", "torch"):
        if module in sys.modules:
            versions[module] = sys.modules[module].__version__
    with open(os.path.join(folder, "versions.json"), "w") as file:
        json.dump(versions, file)


main()
