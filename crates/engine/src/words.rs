//! Text at the edge of a model. Graphs here compute with numbers alone: a file whose inputs or outputs are text
//! holds a list of words in its metadata, and the graph inside works on their places in it.

use std::collections::BTreeMap;

use dunlin_protocol::{Bytes, DType, IntoTree, TensorData, TensorSpec};
use serde::{Deserialize, Serialize};
use tract_onnx::pb;

use crate::EngineError;
use crate::check::malformed;

/// Name of the metadata entry that holds [`Words`] as JSON.
pub(crate) const KEY: &str = "dunlin.words";
/// The code of a text that is none of the words; the first word has the next one.
pub(crate) const UNKNOWN: i64 = 0;
/// Most words of a model: categories of a table, not a language.
pub(crate) const WORDS_MAX: usize = 1 << 16;

/// The words of a model, and which of its inputs and outputs are text.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Words {
    pub(crate) words: Vec<String>,
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    #[serde(skip)]
    codes: BTreeMap<Vec<u8>, i64>,
}

impl Words {
    pub(crate) fn new(words: Vec<String>, inputs: Vec<String>, outputs: Vec<String>) -> Self {
        let codes = words.iter().zip(UNKNOWN + 1..).map(|(word, code)| (word.clone().into_bytes(), code));
        Self { codes: codes.into_tree(), words, inputs, outputs }
    }

    /// The words a file holds; `None` if it has no text.
    pub(crate) fn of(file: &pb::ModelProto) -> Result<Option<Self>, EngineError> {
        let Some(entry) = file.metadata_props.iter().find(|entry| entry.key == KEY) else { return Ok(None) };
        let Self { words, inputs, outputs, .. } =
            serde_json::from_str(&entry.value).map_err(|e| malformed(&format!("the list of words: {e}")))?;
        let count = words.len();
        let made = Self::new(words, inputs, outputs);
        if made.codes.len() != count || count > WORDS_MAX {
            return Err(malformed("the list of words names one twice, or too many"));
        }
        Ok(Some(made))
    }

    /// Declares the ports that are text as such.
    pub(crate) fn declare(
        &self,
        inputs: &mut [TensorSpec],
        outputs: &mut [TensorSpec],
    ) -> Result<(), EngineError> {
        for (names, specs) in [(&self.inputs, inputs), (&self.outputs, outputs)] {
            for name in names {
                let spec = specs.iter_mut().find(|spec| spec.name == *name && spec.datatype == DType::Int64);
                let spec = spec.ok_or_else(|| malformed(&format!("no port {name:?} can be text")))?;
                spec.datatype = DType::Bytes;
            }
        }
        Ok(())
    }

    /// A tensor of text as one of codes, `INT64`.
    pub(crate) fn encode(&self, tensor: &TensorData) -> Result<TensorData, EngineError> {
        let wrong = |problem: &str| EngineError::Input {
            name: tensor.name.chars().take(100).collect(),
            problem: problem.to_owned(),
        };
        if tensor.datatype != DType::Bytes {
            return Err(wrong(&format!("it is {} where BYTES belongs", tensor.datatype.as_str())));
        }
        let texts = elements(&tensor.data.0).ok_or_else(|| wrong("its texts end within one"))?;
        let count = tensor.shape.iter().try_fold(1_u64, |all, &d| all.checked_mul(d));
        if count != Some(texts.len() as u64) {
            return Err(wrong(&format!(
                "it holds {} texts, which is not shape {:?}",
                texts.len(),
                tensor.shape
            )));
        }
        let codes = texts.iter().map(|text| self.codes.get(*text).copied().unwrap_or(UNKNOWN));
        Ok(TensorData {
            name: tensor.name.clone(),
            datatype: DType::Int64,
            shape: tensor.shape.clone(),
            data: Bytes(codes.flat_map(i64::to_le_bytes).collect()),
        })
    }

    /// Codes, little-endian `INT64`, as text.
    pub(crate) fn decode(&self, codes: &[u8]) -> Result<Vec<u8>, EngineError> {
        let mut out = Vec::new();
        for code in codes.as_chunks::<8>().0 {
            let code = i64::from_le_bytes(*code);
            let place = code.checked_sub(UNKNOWN + 1).and_then(|place| usize::try_from(place).ok());
            let word = place
                .and_then(|place| self.words.get(place))
                .ok_or_else(|| EngineError::Run(format!("{code} is the code of no word")))?;
            out.extend(join(&[word.as_bytes()]));
        }
        Ok(out)
    }
}

/// The elements of a `BYTES` tensor, each behind its length in four little-endian bytes (Open Inference Protocol V2,
/// binary tensor data); `None` if the last one is cut short.
pub(crate) fn elements(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        all.push(element);
        bytes = rest;
    }
    Some(all)
}

/// The bytes of a `BYTES` tensor, see [`elements`].
pub(crate) fn join(texts: &[&[u8]]) -> Vec<u8> {
    texts
        .iter()
        .flat_map(|text| (text.len() as u32).to_le_bytes().into_iter().chain(text.iter().copied()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(texts: &[&str]) -> TensorData {
        let data = join(&texts.iter().map(|t| t.as_bytes()).collect::<Vec<_>>());
        TensorData {
            name: "x".into(),
            datatype: DType::Bytes,
            shape: vec![texts.len() as u64],
            data: Bytes(data),
        }
    }

    #[test]
    fn known_words_come_back_and_others_have_the_code_of_none() {
        let words = Words::new(vec!["red".into(), "".into()], vec![], vec![]);
        let codes = words.encode(&text(&["", "red", "blue"])).unwrap();
        assert_eq!(codes.data.0, [2_i64, 1, 0].map(i64::to_le_bytes).concat());
        assert_eq!(words.decode(&codes.data.0[..16]).unwrap(), text(&["", "red"]).data.0);
        assert!(words.decode(&codes.data.0).is_err());
        assert!(words.decode(&i64::MIN.to_le_bytes()).is_err());
    }

    #[test]
    fn torn_texts_and_wrong_counts_are_the_callers_fault() {
        let words = Words::new(vec!["red".into()], vec![], vec![]);
        let mut torn = text(&["red"]);
        torn.data.0.pop();
        assert!(words.encode(&torn).unwrap_err().is_input());
        let many = TensorData { shape: vec![u64::MAX, 2], ..text(&["red"]) };
        assert!(words.encode(&many).unwrap_err().is_input());
    }
}
