use dunlin_protocol::{Bundle, DeviceProfile, Hard, ReasonCode, RetrainedBounds, TaskId};

use crate::ApprovedRelease;

/// Why one task's models are refused, while the others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({reason})")]
pub struct Refusal {
    /// The code that crosses the wire.
    pub reason: ReasonCode,
    /// The same for people.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(reason: ReasonCode, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Whether a device can run a release at all.
///
/// # Errors
/// The first constraint that does not fit.
pub fn check_hard(hard: &Hard, profile: &DeviceProfile) -> Result<(), Refusal> {
    if !hard.arch.is_empty() && !hard.arch.contains(&profile.arch) {
        let detail = format!("built for {:?}, this is {:?}", hard.arch, profile.arch);
        return Err(Refusal::new(ReasonCode::ArchMismatch, detail));
    }
    if !hard.classes.is_empty() && !hard.classes.contains(&profile.class) {
        let classes: Vec<&str> = hard.classes.iter().map(|class| class.as_str()).collect();
        let detail = format!("approved for {}, this is {}", classes.join(", "), profile.class);
        return Err(Refusal::new(ReasonCode::ClassMismatch, detail));
    }
    let missing: Vec<&str> = hard.ops.difference(&profile.ops).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(Refusal::new(
            ReasonCode::OpsMissing,
            format!("this agent does not run {}", missing.join(", ")),
        ));
    }
    let over = |reason, what, need: u64, have: u64| {
        if need <= have {
            Ok(())
        } else {
            Err(Refusal::new(reason, format!("needs {need} bytes of {what}, {have} allowed")))
        }
    };
    over(ReasonCode::RamExceeded, "memory", hard.ram_bytes, profile.budgets.model_ram_bytes_max)?;
    over(ReasonCode::SizeExceeded, "bundle", hard.bundle_bytes, profile.budgets.model_bytes_max)?;
    if !hard.min_agent.is_empty() && !at_least(&profile.agent, &hard.min_agent) {
        let detail = format!("needs agent {}, this is {}", hard.min_agent, profile.agent);
        return Err(Refusal::new(ReasonCode::AgentTooOld, detail));
    }
    Ok(())
}

/// Whether release `have` of the agent (`1.4.0`, build suffixes ignored) is not older than `need`. What does not read as
/// numbers is older than everything.
pub fn at_least(have: &str, need: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts: Vec<u64> = core.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        parts.resize(parts.len().max(3), 0);
        Some(parts)
    };
    match (numbers(have), numbers(need)) {
        (Some(have), Some(need)) => have >= need,
        (None | Some(_), None | Some(_)) => false,
    }
}

/// Whether a fetched manifest is the one that was approved: release, task and constraints as in the signed
/// metadata, and blobs that keep within the size it states.
///
/// # Errors
/// What differs.
pub fn check_bundle(approved: &ApprovedRelease, task: &TaskId, bundle: &Bundle) -> Result<(), Refusal> {
    let refuse = |detail: &str| Err(Refusal::new(ReasonCode::ManifestMalformed, detail));
    if bundle.format != 1 {
        return refuse("the manifest has a format this agent does not read");
    }
    if bundle.release != approved.release || bundle.task != *task {
        return refuse("the manifest is of another release or task");
    }
    if !approved.custom.hard.approves(&bundle.hard) {
        return refuse("the manifest's constraints are not those of the signed metadata");
    }
    let total = bundle.blobs().try_fold(0u64, |sum, blob| sum.checked_add(blob.length));
    if total.is_none_or(|total| total > bundle.hard.bundle_bytes) {
        return refuse("the blobs together are larger than the manifest states");
    }
    Ok(())
}

/// Whether a retrained release keeps within what the offline-signed policy of its task allows, as far as its
/// manifest tells. Latency and the anchor score are measured while proving.
///
/// # Errors
/// The first bound it breaks.
pub fn check_retrained(bounds: &RetrainedBounds, bundle: &Bundle) -> Result<(), Refusal> {
    let refuse = |detail: String| Err(Refusal::new(ReasonCode::RetrainedOutOfBounds, detail));
    if bundle.signature.inputs != bounds.inputs {
        return refuse("its inputs are not those of the policy".to_owned());
    }
    if bundle.signature.outputs != bounds.outputs {
        return refuse("its outputs are not those of the policy".to_owned());
    }
    if let Some(op) = bundle.hard.ops.difference(&bounds.ops).next() {
        return refuse(format!("it uses operator {op}, which the policy does not allow"));
    }
    let (bytes, ram) = (bundle.hard.bundle_bytes, bundle.hard.ram_bytes);
    if bytes > bounds.bundle_bytes_max {
        return refuse(format!(
            "its bundle of {bytes} bytes is over the policy's {}",
            bounds.bundle_bytes_max
        ));
    }
    if ram > bounds.ram_bytes_max {
        return refuse(format!("its memory of {ram} bytes is over the policy's {}", bounds.ram_bytes_max));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_releases_compare_by_number() {
        let cases = [
            ("0.10.0", "0.9.9", true),
            ("1.0", "1.0.0", true),
            ("1.0.0-rc1", "1.0.0", true),
            ("0.9", "1", false),
            ("", "0.1", false),
            ("x", "0.1", false),
            ("1", "x", false),
        ];
        for (have, need, expected) in cases {
            assert_eq!(at_least(have, need), expected, "{have} {need}");
        }
    }
}
