use std::collections::BTreeMap;

use dunlin_protocol::{Conduct, ContextRule, LineUp, LineUpError, Member, ReleaseId, Role, Rule};
use dunlin_trust::check_hard;
use serde::{Deserialize, Serialize};

use super::assign::Approved;
use crate::store::DeviceRow;

/// What an operator says about the models beside champion and fallback.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lineup {
    /// Whose answer is given.
    pub rule: Rule,
    /// The further models.
    pub members: Vec<MemberDefinition>,
    /// When a smaller member answers instead.
    pub context: Vec<ContextRule>,
}

/// One further model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberDefinition {
    /// The release.
    pub release: ReleaseId,
    /// What it is for.
    pub role: Role,
    /// Microseconds it has for a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_us: Option<u64>,
}

impl Lineup {
    /// Whether the members can do as the rule says.
    ///
    /// # Errors
    /// The first thing that can not work.
    pub fn check(&self) -> Result<(), LineUpError> {
        self.conduct().check(&self.members().collect::<Vec<_>>())
    }

    fn conduct(&self) -> Conduct {
        Conduct { rule: self.rule, context: self.context.clone() }
    }

    fn members(&self) -> impl Iterator<Item = Member> {
        self.members.iter().map(|member| Member {
            release: member.release.clone(),
            role: member.role,
            limit_us: member.limit_us,
        })
    }
}

/// A line-up for one device, and in words what else was to be in it.
pub(super) struct Filled {
    pub(super) lineup: LineUp,
    pub(super) words: String,
}

/// Fills a device's line-up with the members that it can run. A device refuses a task of which it can not run a part, so
/// those that are not approved, do not fit or failed there are left out. `ram` is what the tasks before leave of the
/// device's memory, and afterwards what this one leaves.
pub(super) fn fill(
    plain: LineUp,
    wanted: &Lineup,
    device: &DeviceRow,
    approved: &BTreeMap<ReleaseId, Approved>,
    known_bad: impl Fn(&ReleaseId) -> bool,
    ram: &mut u64,
) -> Filled {
    let need = |release: &ReleaseId| approved.get(release).map_or(0, |approved| approved.hard.ram_bytes);
    let lead: u64 = plain.releases().map(need).sum();
    *ram = ram.saturating_sub(lead);
    let mut filled = Filled { lineup: LineUp { conduct: wanted.conduct(), ..plain }, words: String::new() };
    for member in wanted.members() {
        let against = against(&member, &filled.lineup, device, approved, &known_bad, *ram);
        let Member { release, role, .. } = &member;
        match against {
            Some(why) => {
                filled.words.push_str(&format!("\nwithout {} {release}: {why}", word(*role)));
                filled.lineup.conduct.without(*role);
            }
            None => {
                filled.words.push_str(&format!("\nwith {} {release}", word(*role)));
                *ram = ram.saturating_sub(need(release));
                filled.lineup.members.push(member);
            }
        }
    }
    if filled.lineup.members.is_empty() {
        filled.lineup.conduct = Conduct::default();
    }
    filled
}

/// What speaks against a member on this device.
fn against(
    member: &Member,
    lineup: &LineUp,
    device: &DeviceRow,
    approved: &BTreeMap<ReleaseId, Approved>,
    known_bad: impl Fn(&ReleaseId) -> bool,
    ram: u64,
) -> Option<String> {
    let release = &member.release;
    if lineup.releases().any(|taken| taken == release) {
        return Some("it has another part".into());
    }
    let Some(approved) = approved.get(release) else { return Some("it is not approved".into()) };
    if known_bad(release) {
        return Some("it failed there".into());
    }
    if let Err(refusal) = check_hard(&approved.hard, &device.profile) {
        return Some(refusal.detail);
    }
    let need = approved.hard.ram_bytes;
    (need > ram).then(|| format!("it needs {need} bytes of memory, {ram} are left"))
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Fallback => "fallback",
        Role::Challenger { .. } => "challenger",
        Role::Shadow { .. } => "shadow",
        Role::Voter { .. } => "voter",
        Role::Bigger => "bigger",
        Role::Smaller => "smaller",
        Role::Meta => "meta-model",
    }
}
