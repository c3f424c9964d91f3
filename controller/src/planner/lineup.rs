use std::collections::BTreeMap;

use dunlin_protocol::{
    Bundle, Conduct, ContextRule, DType, LineUp, LineUpError, Member, ModelSignature, ReleaseId, Role, Rule,
};
use dunlin_trust::check_hard;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::assign::{Approved, TaskView, is_stopped};
use crate::api::shape;
use crate::store::DeviceRow;

/// What an operator says about the models beside champion and fallback.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Lineup {
    /// Whose answer is given.
    #[schema(value_type = shape::Rule)]
    pub rule: Rule,
    /// The further models.
    pub members: Vec<MemberDefinition>,
    /// When a smaller member answers instead.
    #[schema(value_type = Vec<shape::ContextRule>)]
    pub context: Vec<ContextRule>,
}

/// One further model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberDefinition {
    /// The release.
    #[schema(value_type = String)]
    pub release: ReleaseId,
    /// What it is for.
    #[schema(value_type = shape::Role)]
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

    /// What keeps a member from working beside a champion, by their manifests, to follow "the member". Devices find
    /// the same (`goes_with` of crates/update), but long after whoever wrote the line-up has left.
    pub fn conflict(&self, role: Role, member: &Bundle, champion: &Bundle) -> Option<String> {
        let (pool, [of_member, of_champion]) = (&champion.release, [&member.signature, &champion.signature]);
        if of_member.labels != of_champion.labels {
            return Some(format!("names other classes than {pool}"));
        }
        let heard = 1 + self.members.iter().filter(|member| member.role.is_voter()).count();
        match role.is_meta() {
            true if of_member.takes_scores(heard) => None,
            true => Some(format!(
                "takes {}, and {pool} with the voters gives {} scores in one FP32 input",
                takes_text(of_member),
                heard * of_champion.labels.len()
            )),
            false if of_member.takes().eq(of_champion.takes()) => None,
            false => {
                Some(format!("takes {}, and {pool} takes {}", takes_text(of_member), takes_text(of_champion)))
            }
        }
    }
}

/// What a release takes, for people.
fn takes_text(signature: &ModelSignature) -> String {
    let port =
        |(name, datatype, shape): (&str, DType, &[i64])| format!("{name:?} {} {shape:?}", datatype.as_str());
    signature.takes().map(port).collect::<Vec<_>>().join(", ")
}

/// A line-up for one device, and in words who is in it and what else was to be.
pub(super) struct Filled {
    pub(super) lineup: LineUp,
    pub(super) words: Vec<String>,
}

/// What is known where a line-up is filled.
pub(super) struct Place<'a> {
    pub(super) task: &'a TaskView<'a>,
    pub(super) device: &'a DeviceRow,
    pub(super) approved: &'a BTreeMap<ReleaseId, Approved>,
}

impl Place<'_> {
    /// Fills a line-up with the members that the device can run. It refuses a task of which it can not run a part, so those
    /// that are not approved, do not fit or failed there are left out, and with them those that no rule asks any more.
    /// `ram` is what is left of the device's memory, and afterwards what these members leave.
    pub(super) fn fill(&self, plain: LineUp, ram: &mut u64) -> Filled {
        let wanted = &self.task.definition.lineup;
        let mut lineup = LineUp { conduct: wanted.conduct(), ..plain };
        let (mut verdicts, mut gone) = (Vec::new(), Vec::new());
        let mut left = *ram;
        for member in wanted.members() {
            let against = self.against(&member, &lineup, left);
            if against.is_some() {
                gone.push(member.role);
            } else {
                left = left.saturating_sub(need(self.approved, &member.release));
                lineup.members.push(member.clone());
            }
            verdicts.push((member, against));
        }
        lineup.conduct.fit(&mut lineup.members, |member| member.role, &gone);
        // Only now it is known who needs memory.
        let needs = lineup.members.iter().map(|member| need(self.approved, &member.release));
        *ram = needs.fold(*ram, u64::saturating_sub);
        let say = |(member, against): (Member, Option<String>)| {
            let who = format!("{} {}", word(member.role), member.release);
            match against {
                Some(why) => format!("without {who}: {why}"),
                None if lineup.members.contains(&member) => format!("with {who}"),
                None => format!("without {who}: no rule that is possible here asks it"),
            }
        };
        let words = verdicts.into_iter().map(say).collect();
        Filled { lineup, words }
    }

    /// What speaks against a member on this device, as the device itself would judge ([`dunlin_trust::approve`]) or as the
    /// planner knows.
    fn against(&self, member: &Member, lineup: &LineUp, left: u64) -> Option<String> {
        let (release, task) = (&member.release, &self.task.definition.task);
        if lineup.releases().any(|taken| taken == release) {
            return Some("it has another part".into());
        }
        let Some(approved) = self.approved.get(release) else { return Some("it is not approved".into()) };
        if approved.task != *task {
            return Some(format!("it is approved for the task {}", approved.task));
        }
        if approved.retrained && !release.model.is_retrained_for(task) {
            return Some("it is a retrained release of another line or task".into());
        }
        if approved.retrained && !self.task.policy {
            return Some("it is retrained, and the task has no signed policy".into());
        }
        if is_stopped(self.task, release) {
            return Some("its rollout was stopped".into());
        }
        if self.task.outcomes.is_known_bad(&self.device.id, release) {
            return Some("it failed there".into());
        }
        if let Err(refusal) = check_hard(&approved.hard, &self.device.profile) {
            return Some(refusal.detail);
        }
        let need = approved.hard.ram_bytes;
        (need > left).then(|| format!("it needs {need} bytes of memory, {left} are left"))
    }
}

/// Memory that a release needs; of one that is not approved nothing is known.
pub(super) fn need(approved: &BTreeMap<ReleaseId, Approved>, release: &ReleaseId) -> u64 {
    approved.get(release).map_or(0, |approved| approved.hard.ram_bytes)
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
