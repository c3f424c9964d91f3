//! `dunlin model check`.
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dunlin_engine::Rewrite;
use dunlin_engine::prove::{Examined, ProveError};
use dunlin_protocol::ReasonCode;
use serde_json::json;

use super::super::{Exit, Output};
use crate::registry::{self, RegistryError};

/// Imports the file in a child process, loads what comes of it there in the engine that devices have, and runs a row of drawn
/// values through it.
pub(super) fn check_file(file: &Path, out: &Output) -> Result<Exit> {
    let model = file.canonicalize().with_context(|| format!("could not read {}", file.display()))?;
    let program = dunlin_engine::this_program().context("could not find this program")?;
    let folder =
        tempfile::Builder::new().prefix("dunlin-check-").permissions(Permissions::from_mode(0o700)).tempdir();
    let folder = folder.context("could not make a temporary folder")?;
    let examined = run_one(&program, folder.path(), model);
    folder.close().context("could not remove the temporary folder")?;
    let Examined { inspection, rewritten: changes } = match examined {
        Ok(examined) => examined,
        Err(RegistryError::Import(error) | RegistryError::Proof(error)) => {
            let reason = error.reason();
            let text = match error {
                ProveError::Failed { detail, .. } => detail,
                error @ (ProveError::Timeout { .. } | ProveError::Crashed { .. }) => error.to_string(),
                error @ ProveError::Start { .. } => return Err(error.into()),
            };
            return refused(reason, &text, out);
        }
        Err(RegistryError::Refused(text)) => return refused(ReasonCode::ModelUnsupported, &text, out),
        Err(error) => return Err(error.into()),
    };
    let value = json!({
        "inputs": inspection.inputs,
        "outputs": inspection.outputs,
        "ops": inspection.ops,
        "rewritten": changes,
    });
    out.show(&value, |_| {
        let specs = |specs: &[dunlin_protocol::TensorSpec]| {
            specs
                .iter()
                .map(|spec| format!("{} {} {:?}", spec.name, spec.datatype.as_str(), spec.shape))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let ops: Vec<&str> = inspection.ops.iter().map(String::as_str).collect();
        let rewritten: Vec<String> = changes.iter().map(rewritten).collect();
        format!(
            "inputs:    {}\noutputs:   {}\nops:       {}\nrewritten: {}",
            specs(&inspection.inputs),
            specs(&inspection.outputs),
            ops.join(", "),
            if rewritten.is_empty() { "nothing".to_owned() } else { rewritten.join("\n           ") }
        )
    })?;
    Ok(Exit::Ok)
}

/// What there is to say of a file, once a row went through it.
fn run_one(program: &Path, folder: &Path, model: PathBuf) -> Result<Examined, RegistryError> {
    let (examined, rewritten) =
        registry::examine(program, folder, model.clone(), true).map_err(RegistryError::Import)?;
    let model = rewritten.unwrap_or(model);
    registry::runnable(program, folder, &model, |reach| {
        registry::inputs(&examined.inspection, &[], 1, reach)
    })?;
    Ok(examined)
}

fn refused(reason: ReasonCode, text: &str, out: &Output) -> Result<Exit> {
    out.show(&json!({ "refused": reason, "error": text }), |_| format!("refused ({reason}): {text}"))?;
    Ok(Exit::Refused)
}

fn rewritten(one: &Rewrite) -> String {
    let more = one.count - one.nodes.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} -> {} ({}{more})", one.what, one.became, one.nodes.join(", "))
}
