//! `dunlin drift`.
use anyhow::Result;
use clap::Args;
use dunlin_monitor::scope::Scope;
use dunlin_monitor::vote::Verdict;
use dunlin_protocol::{DeviceId, GroupId, TaskId};

use super::{ApiClient, Exit, Output};
use crate::api::drift::{DriftState, ReleaseDrift};
use crate::evidence::{Finding, Subject};

/// Where inputs moved away from what the models were made on.
#[derive(Debug, Args)]
pub struct DriftCommand {
    /// Of this task only.
    #[arg(long)]
    task: Option<TaskId>,
}

impl DriftCommand {
    /// Carries the verb out.
    pub async fn run(self, client: &ApiClient, out: &Output) -> Result<Exit> {
        let query = self.task.map(|task| format!("?task={task}")).unwrap_or_default();
        let state: DriftState = client.get(&format!("/v1/drift{query}")).await?;
        out.show(&state, text)?;
        Ok(Exit::Ok)
    }
}

fn text(state: &DriftState) -> String {
    let mut lines: Vec<String> = state
        .alerts
        .iter()
        .map(|alert| format!("alert {} {}: {}", alert.kind, alert.subject, alert.detail))
        .collect();
    if state.releases.is_empty() {
        lines.push("no inputs were judged lately".into());
    }
    for release in &state.releases {
        lines.extend(about(release));
    }
    lines.join("\n")
}

fn about(release: &ReleaseDrift) -> Vec<String> {
    let ReleaseDrift { task, judged, drift } = release;
    let mut lines = vec![format!("task {task} {}: {}", drift.release, place(&drift.scope))];
    lines.extend(drift.findings.iter().flat_map(finding));
    if drift.findings.len() < *judged {
        lines.push(format!("  and {} more", judged - drift.findings.len()));
    }
    lines
}

fn finding(finding: &Finding) -> Vec<String> {
    let subject = match &finding.subject {
        Subject::Device(device) => format!("device {device}"),
        Subject::Group(group) => format!("quiet devices of group {group}"),
        Subject::Fleet => "quiet devices of the fleet".into(),
    };
    let verdict = match finding.verdict {
        Verdict::Learning => "too few windows yet",
        Verdict::Stable => "stable",
        Verdict::Drifted => "drifted",
    };
    let ((drifted, of), report) = (finding.tally, &finding.report);
    let mut lines = vec![format!(
        "  {subject}: {verdict} ({drifted} of {of} windows); last window: {} inputs, {:.0} % of the features",
        report.n,
        report.share * 100.0
    )];
    lines.extend(report.worst().into_iter().map(|feature| {
        format!("    {}: D {:.3}, p {:.2e}", feature.name, feature.ks.value, feature.ks_p_adjusted)
    }));
    lines
}

fn place(scope: &Scope) -> String {
    let devices = |ids: &std::collections::BTreeSet<DeviceId>| {
        ids.iter().map(DeviceId::as_str).collect::<Vec<_>>().join(", ")
    };
    match scope {
        Scope::Nowhere => "no drift".into(),
        Scope::Devices { suspects } => format!("suspect sensors: {}", devices(suspects)),
        Scope::Groups { groups, suspects } => {
            let names: Vec<&str> = groups.iter().map(GroupId::as_str).collect();
            let besides = if suspects.is_empty() {
                String::new()
            } else {
                format!("; suspect sensors: {}", devices(suspects))
            };
            format!("drift of group {}{besides}", names.join(", "))
        }
        Scope::Fleet => "drift of the fleet".into(),
        Scope::Unclear { devices: ids } => {
            format!("drift of {}, too few to tell a sensor from the world", devices(ids))
        }
    }
}
