//! Size of the released agent.
use anyhow::{Context, Result};
use dunlin_tests::process::program;

use crate::report::{Bar, Section};

/// Megabytes, as disks count them.
const MB: f64 = 1e6;
/// Most bytes of the stripped agent on x86-64.
const AGENT_MB_MAX: f64 = 16.0;

pub(crate) fn measure(section: &mut Section) -> Result<()> {
    let agent = program("dunlin-agent")?;
    let bytes = std::fs::metadata(&agent).with_context(|| format!("looking at {}", agent.display()))?.len();
    section.hold(
        "agent, profile dist, built alone, stripped",
        bytes as f64 / MB,
        "MB",
        Bar::AtMost(AGENT_MB_MAX),
    );
    Ok(())
}
