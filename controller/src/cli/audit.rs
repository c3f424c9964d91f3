//! `dunlin audit`: reads the audit log, or checks its chain on the data folder itself.
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::{ApiClient, Exit, Output};
use crate::audit::Entry;
use crate::store::Store;

/// Verbs of `dunlin audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Show rows.
    Show {
        /// Rows after this number.
        #[arg(long, default_value_t = 0)]
        after: u64,
        /// Rows at most.
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Check the chain of a data folder, without a controller.
    Verify(Verify),
}

/// `dunlin audit verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Data folder.
    #[arg(long)]
    data: PathBuf,
}

impl Verify {
    /// Checks every row; exit code 4 if one was changed or is missing.
    pub fn run(self, out: &Output) -> Result<Exit> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = self.data.join("dunlin.db");
        anyhow::ensure!(path.is_file(), "there is no database at {}", path.display());
        let verdict = runtime.block_on(async {
            let store = Store::open(&path).await?;
            store.audit_verify().await
        });
        match verdict.with_context(|| format!("could not read the audit log in {}", path.display()))? {
            Ok((rows, hash)) => {
                let value = serde_json::json!({ "ok": true, "rows": rows, "hash": hash });
                out.show(&value, |_| format!("the audit log is whole: {rows} rows, last hash {hash}"))?;
                Ok(Exit::Ok)
            }
            Err(broken) => {
                let value = serde_json::json!({ "ok": false, "error": broken.to_string() });
                out.show(&value, |_| format!("{broken}; compare with your backups"))?;
                Ok(Exit::Refused)
            }
        }
    }
}

impl AuditCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Show { after, limit } => {
                let entries: Vec<Entry> =
                    client.get(&format!("/v1/audit?after={after}&limit={limit}")).await?;
                let row = |entry: &Entry| {
                    vec![
                        entry.no.to_string(),
                        entry.at_ms.to_string(),
                        entry.who.clone(),
                        entry.what.clone(),
                        entry.before.clone(),
                        entry.after.clone(),
                    ]
                };
                let rows: Vec<_> = entries.iter().map(row).collect();
                out.table(&entries, &["no", "at (ms)", "who", "what", "before", "after"], &rows)?;
                Ok(Exit::Ok)
            }
            Self::Verify(_) => unreachable!("checked on files before a client is made"),
        }
    }
}
