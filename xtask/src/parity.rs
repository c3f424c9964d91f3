//! `cargo xtask parity`: models of other exporters, in this engine and in ONNX Runtime.
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::command::{cargo, root, run as execute, target_dir};
use crate::install;

/// The runtime that is compared with; exact like all here, so that tables of two days compare.
const RUNTIME: &[&str] = &["onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6"];
/// Exporters that are small.
const EXPORTERS: &[&str] = &[
    "pandas==3.1.1",
    "scikit-learn==1.9.1",
    "skl2onnx==1.20.0",
    "onnxmltools==1.16.0",
    "lightgbm==4.7.0",
    "xgboost==3.2.0",
];
/// What networks need beyond that; large, so only on request.
const NETWORKS: &[&str] = &["torch==2.15.0", "onnxconverter-common==1.16.0"];
/// What networks of Keras need beyond the runtime, in an environment of their own.
const KERAS: &[&str] = &["tensorflow-cpu==2.21.0", "keras==3.15.1", "tf2onnx==1.17.0"];
/// Sets of models whose exporters are small, and of single operators.
const SETS: &[&str] = &["sklearn", "lightgbm", "xgboost", "quantised", "nodes", "edges"];
/// Least share of the exported models that must run, per cent.
const LEAST: &str = "90";
/// The same of models that are brought along.
const LEAST_GIVEN: &str = "100";
/// Least share of the rows of a test set that must be answered rightly, per cent.
const RIGHT: &str = "90";

#[derive(Args)]
pub(crate) struct Options {
    /// Also make PyTorch networks; its wheels take gigabytes
    #[arg(long)]
    networks: bool,
    /// Also make networks of Keras, TensorFlow and TensorFlow Lite; their wheels take two gigabytes
    #[arg(long)]
    keras: bool,
    /// Compare the cases of this folder, in the form of ONNX's backend tests, instead of making any
    #[arg(long)]
    cases: Option<PathBuf>,
    /// Compare the ONNX files of this folder, such as those of MLPerf Tiny, on inputs drawn at random, instead of making
    /// any. Float scores are held to the tolerance of all; of 8-bit ones 98 of 100 must be no more than a step off what ONNX
    /// Runtime answers operator by operator; and every row must have the same class
    #[arg(long, conflicts_with_all = ["cases", "networks", "keras"])]
    mlperf: Option<PathBuf>,
    /// Test set of the keyword model in that folder, kws_ref_model.onnx: an .npz with the arrays x and y, or a folder of
    /// .bin files and y_labels.csv. 90 % must be right
    #[arg(long, requires = "mlperf")]
    kws_set: Option<PathBuf>,
    /// Also measure how long one row takes, on one thread, in this engine and in ONNX Runtime, which take turns
    #[arg(long)]
    time: bool,
    /// Where to write the table
    #[arg(long, default_value = "docs/parity.md")]
    out: PathBuf,
}

/// Makes the models of `sets` and returns their folder. Other arguments of the script may be among them.
fn make(python: &Path, sets: &[&str]) -> Result<PathBuf> {
    let cases = target_dir().join("parity");
    let script = root().join("tests/src/parity/models.py");
    execute(Command::new(python).env("PYTHONDONTWRITEBYTECODE", "1").arg(script).arg(&cases).args(sets))?;
    Ok(cases)
}

/// Holds the answers of this engine against those of the cases; with a Python also the times.
fn compare(profile: &str, cases: &Path, time: Option<&Path>, options: &[&str]) -> Result<()> {
    let program = target_dir().join(profile).join("dunlin-parity");
    let time = time.into_iter().flat_map(|python| [OsStr::new("--time"), python.as_os_str()]);
    execute(Command::new(program).current_dir(root()).arg(cases).args(time).args(options))
}

pub(crate) fn run(options: &Options) -> Result<()> {
    execute(&mut cargo(&["build", "--locked", "--release", "-p", "dunlin-tests", "--bin", "dunlin-parity"]))?;
    let python = || match options.networks {
        true => install::python("parity-networks", &[RUNTIME, EXPORTERS, NETWORKS].concat()),
        false => install::python("parity", &[RUNTIME, EXPORTERS].concat()),
    };
    let time = options.time.then(python).transpose()?;
    let time = time.as_deref();
    if let Some(cases) = &options.cases {
        return compare("release", cases, time, &[]);
    }
    if let Some(given) = &options.mlperf {
        let given = given.to_string_lossy();
        let set = options.kws_set.as_ref().map(|set| set.to_string_lossy());
        let mut arguments = vec!["--given", &*given];
        arguments.extend(set.iter().flat_map(|set| ["--keywords", &**set]));
        let cases = make(&python()?, &arguments)?;
        return compare("release", &cases, time, &["--complete", "--least", LEAST_GIVEN, "--right", RIGHT]);
    }
    let sets = if options.networks { [SETS, &["torch"]].concat() } else { SETS.to_vec() };
    let cases = make(&python()?, &sets)?;
    if options.keras {
        let python = install::python("parity-keras", &[RUNTIME, KERAS].concat())?;
        make(&python, &["keras", "--more"])?;
    }
    let out = options.out.to_string_lossy();
    compare("release", &cases, time, &["--least", LEAST, "--page", &out])
}

/// The same without networks, times and page, with the program that the tests have built.
pub(crate) fn test() -> Result<()> {
    let cases = make(&install::python("parity", &[RUNTIME, EXPORTERS].concat())?, SETS)?;
    compare("debug", &cases, None, &["--least", LEAST])
}
