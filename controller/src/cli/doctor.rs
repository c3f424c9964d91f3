//! `dunlin doctor`: looks at a data folder, without a controller, and says what is wrong and what to do.
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{Exit, Output};
use crate::config::Config;
use crate::identity::Identity;
use crate::init::DATABASE;
use crate::store::Store;

/// `dunlin doctor`.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Data folder.
    #[arg(long)]
    data: PathBuf,
}

#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    ok: bool,
    detail: String,
}

fn finding(check: &'static str, result: Result<String>) -> Finding {
    match result {
        Ok(detail) => Finding { check, ok: true, detail },
        Err(error) => Finding { check, ok: false, detail: format!("{error:#}") },
    }
}

impl Doctor {
    /// Examines the folder; exit code 1 if something is wrong.
    pub fn run(self, out: &Output) -> Result<Exit> {
        let data = &self.data;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut findings = vec![
            finding("configuration", Config::load(data).map(|_| "readable".into()).map_err(Into::into)),
            finding(
                "certificates",
                Identity::open(data)
                    .and_then(|identity| identity.server_chain().map(|_| "readable".into()))
                    .map_err(Into::into),
            ),
            finding(
                "offline keys",
                crate::keys::guard(data).map(|()| "none in the data folder".into()).map_err(Into::into),
            ),
            finding("repositories", roots(data)),
        ];
        findings.extend(runtime.block_on(database(&data.join(DATABASE))));
        let well = findings.iter().all(|finding| finding.ok);
        let rows: Vec<_> = findings
            .iter()
            .map(|f| vec![if f.ok { "ok" } else { "WRONG" }.to_owned(), f.check.to_owned(), f.detail.clone()])
            .collect();
        out.table(&findings, &["", "check", "detail"], &rows)?;
        Ok(if well { Exit::Ok } else { Exit::Error })
    }
}

fn roots(data: &Path) -> Result<String> {
    let repos = crate::repo::Repos::open(data)?;
    Ok(format!("image root {}", repos.pin(dunlin_trust::RepoKind::Image)?))
}

async fn database(path: &Path) -> Vec<Finding> {
    if !path.is_file() {
        return vec![finding(
            "database",
            Err(anyhow::anyhow!("{} is missing; bring it back from a backup", path.display())),
        )];
    }
    let store = match Store::open(path).await {
        Ok(store) => store,
        Err(error) => return vec![finding("database", Err(error.into()))],
    };
    let findings = vec![
        finding("database", store.integrity().await.map_err(Into::into)),
        finding(
            "rows",
            store.damaged().await.map_err(Into::into).and_then(|rows| match rows.as_slice() {
                [] => Ok("all can be read".into()),
                rows => {
                    let named: Vec<String> = rows.iter().map(ToString::to_string).collect();
                    Err(anyhow::anyhow!("{}", named.join("; ")))
                }
            }),
        ),
        finding(
            "audit log",
            match store.audit_verify().await {
                Ok(Ok((rows, _))) => Ok(format!("{rows} rows, chain whole")),
                Ok(Err(broken)) => Err(broken.into()),
                Err(error) => Err(error.into()),
            },
        ),
    ];
    store.close().await;
    findings
}
