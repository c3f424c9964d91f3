//! `dunlin model anchor`.
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use dunlin_learn::data::Table;
use dunlin_learn::job::{Feature, Schema};
use dunlin_protocol::Blob;

use super::super::{Exit, Output};
use super::read;
use crate::registry::anchor_set;

/// `dunlin model anchor`.
#[derive(Debug, Args)]
pub struct AnchorArgs {
    /// Labelled rows, CSV: the model's features in order, and the label column.
    rows: PathBuf,
    /// The label column.
    #[arg(long)]
    label: String,
    /// Class names in the order of the scores, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    labels: Vec<String>,
    /// File to write; its digest and length go into the policy, itself to the controller (`dunlin model blob`).
    #[arg(long)]
    out: PathBuf,
}

impl AnchorArgs {
    pub(super) fn run(self, out: &Output) -> Result<Exit> {
        let bytes = read(&self.rows)?;
        let header = csv::Reader::from_reader(bytes.as_slice()).headers()?.clone();
        let names = header.iter().filter(|column| *column != self.label.as_str());
        let feature =
            |name: &str| Feature { name: name.to_owned(), unit: String::new(), min: None, max: None };
        let schema = Schema {
            features: names.map(feature).collect(),
            label: self.label,
            labels: self.labels,
            time: None,
        };
        let table = Table::parse(&bytes, &schema)?;
        let set = dunlin_protocol::cbor::encode(&anchor_set(&table));
        std::fs::write(&self.out, &set).with_context(|| format!("could not write {}", self.out.display()))?;
        let blob = Blob { digest: dunlin_trust::sha256(&set), length: set.len() as u64 };
        out.show(&blob, |blob| format!("{} rows: {} {}", table.rows(), blob.digest, blob.length))?;
        Ok(Exit::Ok)
    }
}
