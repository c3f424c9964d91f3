//! Golden vectors in a file: inference requests of the Open Inference Protocol V2, one a line, and the answers to them.
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use dunlin_engine::json;
use dunlin_protocol::{Bytes, DType, GoldenSet, TensorData};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read as read_file;
use crate::registry::TOLERANCE_PPM;

#[derive(Debug, Deserialize)]
struct Line {
    inputs: Vec<Tensor>,
    #[serde(default)]
    outputs: Vec<Tensor>,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<u64>,
    datatype: DType,
    /// As it stands in the line: its type may come behind it.
    data: Box<RawValue>,
}

impl Tensor {
    fn read(self) -> Result<TensorData> {
        let Self { name, shape, datatype, data } = self;
        let elements = shape.iter().try_fold(1_u64, |all, &dim| all.checked_mul(dim));
        let elements = elements.and_then(|n| usize::try_from(n).ok()).filter(|_| !shape.is_empty());
        let elements = elements.ok_or_else(|| anyhow!("{name:?} has no shape of rows: {shape:?}"))?;
        let data =
            json::read(datatype, data.get(), elements).map_err(|problem| anyhow!("{name:?}: {problem}"))?;
        Ok(TensorData { name, datatype, shape, data: Bytes(data) })
    }
}

/// The lines of a file as one set, row behind row.
pub(super) fn read(path: &Path) -> Result<GoldenSet> {
    let bytes = read_file(path)?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is no text", path.display()))?;
    let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let at = || format!("{} line {number}", path.display());
        let line: Line = serde_json::from_str(line).with_context(at)?;
        let is_first = inputs.is_empty();
        append(&mut inputs, line.inputs, is_first).with_context(at)?;
        append(&mut outputs, line.outputs, is_first).with_context(at)?;
    }
    ensure!(!inputs.is_empty(), "{} holds no inputs", path.display());
    Ok(GoldenSet { format: 1, inputs, outputs, tolerance_ppm: TOLERANCE_PPM, labels: vec![] })
}

fn append(all: &mut Vec<TensorData>, line: Vec<Tensor>, is_first: bool) -> Result<()> {
    ensure!(is_first || line.len() == all.len(), "{} tensors where {} belong", line.len(), all.len());
    for tensor in line {
        let more = tensor.read()?;
        match all.iter_mut().find(|before| before.name == more.name) {
            None if is_first => all.push(more),
            Some(before) if !is_first => {
                ensure!(
                    before.datatype == more.datatype && before.shape[1..] == more.shape[1..],
                    "{:?} is not of the type and shape of the lines before",
                    more.name
                );
                before.shape[0] += more.shape[0];
                before.data.0.extend(more.data.0);
            }
            None | Some(_) => ensure!(false, "{:?} is there twice, or not in the first line", more.name),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<GoldenSet> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn requests_become_one_set_row_behind_row() {
        let set = lines(
            r#"{"id": "1", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "INT8", "data": [-128, 127]},
                {"name": "on", "shape": [1, 1], "datatype": "BOOL", "data": [true]}],
                "outputs": [{"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [0.5]}]}"#
                .replace('\n', "")
                .as_str(),
        )
        .unwrap();
        assert_eq!((set.inputs[0].data.0.as_slice(), set.outputs.len()), (&[0x80, 0x7f][..], 1));
        let two = r#"{"inputs": [{"name": "x", "shape": [2, 1], "datatype": "UINT16", "data": [[1], [2]]}]}

            {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "UINT16", "data": [515]}]}"#;
        let set = lines(two).unwrap();
        assert_eq!((set.inputs[0].shape.as_slice(), set.outputs.len()), (&[3, 1][..], 0));
        assert_eq!(set.inputs[0].data.0, [1, 0, 2, 0, 3, 2]);
    }

    #[test]
    fn lines_that_do_not_fit_together_are_refused_by_number() {
        let x = |datatype: &str, shape: &str, rest: &str| {
            format!(
                r#"{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "{datatype}", "data": [1, 0]}}]{rest}}}"#
            )
        };
        let good = x("INT8", "[1, 2]", "");
        for (second, word) in [
            (x("UINT8", "[1, 2]", ""), "type and shape"),
            (x("INT8", "[2, 1]", ""), "type and shape"),
            (x("INT8", "[1, 3]", ""), "2 values"),
            (x("INT8", "[]", ""), "shape of rows"),
            (good.replace("\"x\"", "\"z\""), "first line"),
            (r#"{"inputs": []}"#.to_owned(), "0 tensors"),
            (
                x(
                    "INT8",
                    "[1, 2]",
                    r#", "outputs": [{"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [1]}]"#,
                ),
                "1 tensors",
            ),
            ("{".to_owned(), "EOF"),
        ] {
            let error = format!("{:#}", lines(&format!("{good}\n{second}")).unwrap_err());
            assert!(error.contains("line 2") && error.contains(word), "{second}: {error}");
        }
        assert!(lines("\n").unwrap_err().to_string().contains("no inputs"));
    }
}
