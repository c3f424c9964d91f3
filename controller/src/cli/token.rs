//! `dunlin token`.
use anyhow::Result;
use clap::Subcommand;

use super::{ApiClient, Exit, Output};
use crate::api::auth::Scope;
use crate::api::tokens::{MadeToken, NewToken};
use crate::store::TokenRow;

/// Verbs of `dunlin token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token; it is shown only once.
    Create {
        /// What the audit log calls its holder.
        name: String,
        /// viewer, operator, releaser or admin; may be repeated.
        #[arg(long = "scope", required = true)]
        scopes: Vec<Scope>,
        /// Days it is valid; 0 means until revoked.
        #[arg(long, default_value_t = 365)]
        days: u64,
    },
    /// List tokens, without their secrets.
    List,
    /// Revoke a token.
    Revoke {
        /// Id, as `list` shows it.
        id: String,
    },
}

impl TokenCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        match self {
            Self::Create { name, scopes, days } => {
                let valid_s = (days > 0).then(|| days.saturating_mul(86_400));
                let made: MadeToken = client
                    .post("/v1/tokens", &NewToken { name, scopes: scopes.into_iter().collect(), valid_s })
                    .await?;
                out.show(&made, |made| made.token.clone())?;
            }
            Self::List => {
                let tokens: Vec<TokenRow> = client.get("/v1/tokens").await?;
                let row = |token: &TokenRow| {
                    let scopes: Vec<&str> = token.scopes.iter().map(|scope| scope.as_str()).collect();
                    let state = if token.revoked_ms.is_some() { "revoked" } else { "valid" };
                    vec![token.id.clone(), token.name.clone(), scopes.join(","), state.to_owned()]
                };
                let rows: Vec<_> = tokens.iter().map(row).collect();
                out.table(&tokens, &["id", "name", "scopes", "state"], &rows)?;
            }
            Self::Revoke { id } => {
                let done: serde_json::Value = client.delete(&format!("/v1/tokens/{id}")).await?;
                out.show(&done, |_| format!("revoked {id}"))?;
            }
        }
        Ok(Exit::Ok)
    }
}
