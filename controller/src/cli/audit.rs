//! `dunlin audit`: reads the audit log, or checks its chain on the data folder itself.
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::{ApiClient, Exit, Output};
use crate::audit::{Broken, Entry, HEAD_FILE, Head, read_head};
use crate::identity::{Files, Presented, certificates};
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
    /// Print the signed head of the log, to be kept elsewhere and given to `verify`.
    Head,
    /// Check the chain of a data folder, without a controller.
    Verify(Verify),
}

/// `dunlin audit verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Data folder.
    #[arg(long)]
    data: PathBuf,
    /// A head that was kept elsewhere, as `audit head --json` printed it; may be repeated.
    #[arg(long = "head")]
    heads: Vec<PathBuf>,
}

impl Verify {
    /// Checks every row, and the heads; exit code 4 if a row was changed or is missing, also at the end.
    pub fn run(self, out: &Output) -> Result<Exit> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = self.data.join("dunlin.db");
        anyhow::ensure!(path.is_file(), "there is no database at {}", path.display());
        let files = Files::of(&self.data);
        let own = certificates(&files.controller)?.into_iter().next().as_ref().and_then(Presented::of);
        let own = own.with_context(|| format!("{} names nobody", files.controller.display()))?;
        let mut heads = vec![read_head(&self.data.join(HEAD_FILE))];
        for path in &self.heads {
            let text = std::fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
            let head = serde_json::from_slice(&text);
            heads.push(Some(head.with_context(|| format!("{} is no head of an audit log", path.display()))?));
        }
        let verdict = runtime.block_on(async {
            let store = Store::open(&path).await?;
            let verdict = store.audit_verify().await?;
            for head in heads {
                let Some(head) = head else { return Ok(verdict.and(Err(Broken::Headless))) };
                if verdict.is_ok() {
                    if let Err(broken) = store.audit_fits(&head).await? {
                        return Ok(Err(broken));
                    }
                    if !head.is_signed_by(&own.spki) {
                        return Ok(Err(Broken::Forged));
                    }
                }
            }
            crate::store::Result::Ok(verdict)
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
            Self::Head => {
                let head: Head = client.get("/v1/audit/head").await?;
                out.show(&head, |head| format!("row {} has the hash {}", head.no, head.hash))?;
                Ok(Exit::Ok)
            }
            Self::Verify(_) => unreachable!("checked on files before a client is made"),
        }
    }
}
