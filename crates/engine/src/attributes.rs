//! Reading the attributes of a node.

use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

use crate::EngineError;
use crate::check::{malformed, node_name};

/// The attributes of one node, by name.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub(crate) node: &'a NodeProto,
}

impl<'a> Attributes<'a> {
    pub(crate) fn find(&self, name: &str) -> Option<&'a AttributeProto> {
        self.node.attribute.iter().find(|a| a.name == name)
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> i64 {
        self.find(name).map_or(default, |a| a.i)
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> f32 {
        self.find(name).map_or(default, |a| a.f)
    }

    pub(crate) fn ints(&self, name: &str) -> &'a [i64] {
        self.find(name).map(|a| a.ints.as_slice()).unwrap_or_default()
    }

    pub(crate) fn floats(&self, name: &str) -> &'a [f32] {
        self.find(name).map(|a| a.floats.as_slice()).unwrap_or_default()
    }

    pub(crate) fn strings(&self, name: &str) -> &'a [Vec<u8>] {
        self.find(name).map(|a| a.strings.as_slice()).unwrap_or_default()
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.find(name).and_then(|a| a.t.as_ref())
    }

    pub(crate) fn text(&self, name: &str, default: &'static str) -> String {
        self.find(name).map_or_else(|| default.to_owned(), |a| String::from_utf8_lossy(&a.s).into_owned())
    }

    /// `list` if it has `len` entries.
    pub(crate) fn same<T>(&self, name: &str, list: &'a [T], len: usize) -> Result<&'a [T], EngineError> {
        if list.len() == len {
            return Ok(list);
        }
        Err(malformed(&format!(
            "{:?}: {name} has {} entries where {len} belong",
            node_name(self.node),
            list.len()
        )))
    }
}
