//! How the models of a task work together.
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ReleaseId;

/// Members of a line-up beside champion and fallback. Each costs memory and a proof; what needs more is better
/// trained as one model.
pub const MEMBERS_MAX: usize = 8;
/// Context rules of a line-up: there are five signals, and a few want two.
pub const CONTEXT_MAX: usize = 8;

/// How a task uses models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineUp {
    /// Answers requests.
    pub champion: ReleaseId,
    /// Answers when the champion can not; after it comes the constant baseline of the task's policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<ReleaseId>,
    /// Further models and what each is for; agents that do not know of them run champion and fallback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<Member>,
    /// How all of them make one answer.
    #[serde(default, skip_serializing_if = "Conduct::is_plain")]
    pub conduct: Conduct,
}

/// A further model of a line-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The release.
    pub release: ReleaseId,
    /// What it is for.
    pub role: Role,
    /// Microseconds it has for a request; later it is left out. Without one the agent's own limit holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_us: Option<u64>,
}

/// What a further model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Answers when those before it can not: after the fallback, in the order of the members.
    Fallback,
    /// Answers a share of the requests in the champion's place, chosen by their ids.
    Challenger {
        /// The share, parts per million.
        share_ppm: u32,
    },
    /// Answers the champion's inputs after it, for the record only, as far as its budget goes.
    Shadow {
        /// Share of one core's time it may take, parts per million.
        cpu_ppm: u32,
        /// Least memory that must be available on the device, bytes.
        ram_bytes: u64,
        /// Least charge of the battery, parts per million; a device without one has no such limit.
        battery_ppm_min: u32,
    },
    /// Votes beside the champion, or is one of those that a meta-model hears.
    Voter {
        /// Its weight in a weighted vote; the champion's is a million.
        weight_ppm: u32,
    },
    /// Asked when the one before it in a cascade is unsure.
    Bigger,
    /// Answers in the champion's place while a context rule holds.
    Smaller,
    /// Makes one answer of the scores of champion and voters.
    Meta,
}

impl Role {
    /// Whether it votes, or is heard by a meta-model.
    pub fn is_voter(self) -> bool {
        matches!(self, Self::Voter { .. })
    }

    /// Whether it is given scores instead of the request's inputs.
    pub fn is_meta(self) -> bool {
        self == Self::Meta
    }

    /// Whether it is a step of a cascade.
    pub fn is_bigger(self) -> bool {
        self == Self::Bigger
    }

    /// Whether it stands in for the champion while a context rule holds.
    pub fn is_smaller(self) -> bool {
        self == Self::Smaller
    }
}

/// How the models of a line-up make one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conduct {
    /// Whose answer it is.
    #[serde(default, skip_serializing_if = "Rule::is_first")]
    pub rule: Rule,
    /// When a smaller member answers instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub context: Vec<ContextRule>,
}

/// Whose answer is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The first that can: champion, then the fallbacks.
    #[default]
    First,
    /// The champion's if it is sure, else that of the next bigger member that is.
    Cascade {
        /// Least margin between the two best scores of every row, parts per million.
        margin_ppm: u32,
    },
    /// The class that most of champion and voters name; earlier ones break ties.
    HardVote,
    /// The mean of the scores of champion and voters.
    SoftVote,
    /// The same, weighted.
    WeightedVote,
    /// What the meta-model makes of the scores of champion and voters.
    Stack,
}

/// What a context rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Charge of the battery, parts per million; low is bad.
    BatteryPpm,
    /// Hottest sensor, thousandths of a degree Celsius; high is bad.
    TemperatureMc,
    /// Memory that is available on the device, bytes; low is bad.
    AvailableBytes,
    /// Load of the last minute as a share of the cores, parts per million; high is bad.
    LoadPpm,
    /// One while the link to the controller is up, else zero; low is bad.
    Link,
}

impl Signal {
    /// Whether smaller values are the worse ones.
    pub fn low_is_bad(self) -> bool {
        match self {
            Self::BatteryPpm | Self::AvailableBytes | Self::Link => true,
            Self::TemperatureMc | Self::LoadPpm => false,
        }
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BatteryPpm => "battery_ppm",
            Self::TemperatureMc => "temperature_mc",
            Self::AvailableBytes => "available_bytes",
            Self::LoadPpm => "load_ppm",
            Self::Link => "link",
        }
    }
}

/// When the task moves to a smaller member, and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextRule {
    /// What is looked at.
    pub signal: Signal,
    /// The rule begins to hold at this value or a worse one.
    pub enter: i64,
    /// It ends at this value or a better one.
    pub leave: i64,
    /// How long either must last before it counts, milliseconds.
    pub dwell_ms: u64,
}

/// Why models do not make a line-up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineUpError {
    /// Too many members.
    #[error("it has more than {MEMBERS_MAX} members")]
    Members,
    /// Too many context rules.
    #[error("it has more than {CONTEXT_MAX} context rules")]
    Context,
    /// A release stands in it twice.
    #[error("it names {0} twice")]
    Twice(ReleaseId),
    /// Shares over the whole.
    #[error("its challengers' shares are more than a million parts in all")]
    Shares,
    /// A rule without those it is about.
    #[error("its rule needs a {0}")]
    Needs(&'static str),
    /// More than one meta-model.
    #[error("it has more than one meta-model")]
    Metas,
    /// A limit that nothing can keep.
    #[error("{0} has no time to answer: leave the limit out, or give it microseconds")]
    Limit(ReleaseId),
    /// A context rule that would never end, or end at once.
    #[error("the context rule of {0} must leave at a better value than it enters at")]
    Hysteresis(&'static str),
}

impl Rule {
    fn is_first(&self) -> bool {
        *self == Self::First
    }
}

impl Conduct {
    /// Whether the first that can answers, whatever the context.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Fits this and the members that are left to each other, after members of the roles `gone` went. A meta-model hears all
    /// that it was trained with, or none; a rule without those it is about gives way to [`Rule::First`]; members that no
    /// rule asks go too.
    pub fn fit<M>(&mut self, members: &mut Vec<M>, role: impl Fn(&M) -> Role, gone: &[Role]) {
        let has = |wanted: fn(Role) -> bool| members.iter().any(|member| wanted(role(member)));
        let (voters, metas) = (has(Role::is_voter), has(Role::is_meta));
        let heard = !gone.iter().any(|role| role.is_voter() || role.is_meta());
        self.rule = match self.rule {
            Rule::Stack if heard && voters && metas => Rule::Stack,
            Rule::Cascade { margin_ppm } if has(Role::is_bigger) => Rule::Cascade { margin_ppm },
            vote @ (Rule::HardVote | Rule::SoftVote | Rule::WeightedVote) if voters => vote,
            Rule::First
            | Rule::Stack
            | Rule::Cascade { .. }
            | Rule::HardVote
            | Rule::SoftVote
            | Rule::WeightedVote => Rule::First,
        };
        if !has(Role::is_smaller) {
            self.context.clear();
        }
        let rule = self.rule;
        members.retain(|member| match role(member) {
            Role::Voter { .. } => !matches!(rule, Rule::First | Rule::Cascade { .. }),
            Role::Meta => rule == Rule::Stack,
            Role::Bigger => matches!(rule, Rule::Cascade { .. }),
            Role::Fallback | Role::Challenger { .. } | Role::Shadow { .. } | Role::Smaller => true,
        });
    }

    /// Whether these members can do as it says.
    ///
    /// # Errors
    /// The first thing that can not work.
    pub fn check(&self, members: &[Member]) -> Result<(), LineUpError> {
        let has = |wanted: fn(Role) -> bool| members.iter().filter(|m| wanted(m.role)).count();
        let (voters, metas) = (has(Role::is_voter), has(Role::is_meta));
        let needs = |n: usize, what| if n > 0 { Ok(()) } else { Err(LineUpError::Needs(what)) };
        if metas > 1 {
            return Err(LineUpError::Metas);
        }
        match self.rule {
            Rule::First => {}
            Rule::Cascade { .. } => needs(has(Role::is_bigger), "bigger member")?,
            Rule::HardVote | Rule::SoftVote | Rule::WeightedVote => needs(voters, "voter")?,
            Rule::Stack => {
                needs(voters, "voter")?;
                needs(metas, "meta-model")?;
            }
        }
        let share =
            |m: &Member| if let Role::Challenger { share_ppm } = m.role { share_ppm.into() } else { 0 };
        if let Some(member) = members.iter().find(|member| member.limit_us == Some(0)) {
            return Err(LineUpError::Limit(member.release.clone()));
        }
        if members.iter().map(share).sum::<u64>() > 1_000_000 {
            return Err(LineUpError::Shares);
        }
        if !self.context.is_empty() {
            needs(has(Role::is_smaller), "smaller member")?;
        }
        let unsound = |rule: &&ContextRule| match rule.signal.low_is_bad() {
            true => rule.leave <= rule.enter,
            false => rule.leave >= rule.enter,
        };
        match self.context.iter().find(unsound) {
            Some(rule) => Err(LineUpError::Hysteresis(rule.signal.as_str())),
            None => bounds(members, &self.context),
        }
    }
}

impl LineUp {
    /// Champion and fallback, nothing else.
    pub fn new(champion: ReleaseId, fallback: Option<ReleaseId>) -> Self {
        Self { champion, fallback, members: Vec::new(), conduct: Conduct::default() }
    }

    /// Its releases: the champion, the fallback, the members in their order.
    pub fn releases(&self) -> impl Iterator<Item = &ReleaseId> {
        core::iter::once(&self.champion)
            .chain(&self.fallback)
            .chain(self.members.iter().map(|member| &member.release))
    }

    /// Whether it keeps to the bounds that hold for every line-up.
    ///
    /// # Errors
    /// The bound that it breaks.
    pub fn check(&self) -> Result<(), LineUpError> {
        bounds(&self.members, &self.conduct.context)?;
        let lead = |release: &ReleaseId| *release == self.champion || Some(release) == self.fallback.as_ref();
        match self.members.iter().find(|member| lead(&member.release)) {
            Some(member) => Err(LineUpError::Twice(member.release.clone())),
            None => Ok(()),
        }
    }
}

fn bounds(members: &[Member], context: &[ContextRule]) -> Result<(), LineUpError> {
    if members.len() > MEMBERS_MAX {
        return Err(LineUpError::Members);
    }
    if context.len() > CONTEXT_MAX {
        return Err(LineUpError::Context);
    }
    let mut seen = BTreeSet::new();
    match members.iter().find(|member| !seen.insert(&member.release)) {
        Some(member) => Err(LineUpError::Twice(member.release.clone())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;
    use alloc::vec;

    use super::*;

    fn member(release: &str, role: Role) -> Member {
        Member { release: release.parse().unwrap(), role, limit_us: None }
    }

    #[test]
    fn a_full_line_up_survives_cbor() {
        let mut lineup = LineUp::new("m@1".parse().unwrap(), None);
        let shadow = Role::Shadow { cpu_ppm: 10_000, ram_bytes: 1, battery_ppm_min: 2 };
        lineup.members = vec![
            member("f@1", Role::Fallback),
            member("c@1", Role::Challenger { share_ppm: 50_000 }),
            member("s@1", shadow),
            Member { limit_us: Some(5_000), ..member("v@1", Role::Voter { weight_ppm: 500_000 }) },
            member("b@1", Role::Bigger),
            member("t@1", Role::Smaller),
            member("x@1", Role::Meta),
        ];
        let rule = ContextRule { signal: Signal::Link, enter: 0, leave: 1, dwell_ms: 60_000 };
        for how in [Rule::Cascade { margin_ppm: 1 }, Rule::WeightedVote, Rule::Stack] {
            lineup.conduct = Conduct { rule: how, context: vec![rule] };
            lineup.conduct.check(&lineup.members).unwrap();
            lineup.check().unwrap();
            let bytes = crate::cbor::encode(&lineup);
            assert_eq!(crate::cbor::decode::<LineUp>(&bytes, 10_000).unwrap(), lineup);
        }
        assert_eq!(lineup.releases().count(), 8);
    }

    #[test]
    fn what_can_not_work_is_said() {
        let voter = || member("v@1", Role::Voter { weight_ppm: 1 });
        let half = |name: &str| member(name, Role::Challenger { share_ppm: 600_000 });
        let rule = |rule| Conduct { rule, context: vec![] };
        let when = |signal, enter, leave| Conduct {
            rule: Rule::First,
            context: vec![ContextRule { signal, enter, leave, dwell_ms: 0 }],
        };
        let small = || member("t@1", Role::Smaller);
        for (conduct, members, expected) in [
            (rule(Rule::Cascade { margin_ppm: 1 }), vec![voter()], LineUpError::Needs("bigger member")),
            (rule(Rule::SoftVote), vec![], LineUpError::Needs("voter")),
            (rule(Rule::Stack), vec![voter()], LineUpError::Needs("meta-model")),
            (rule(Rule::First), vec![half("a@1"), half("b@1")], LineUpError::Shares),
            (
                rule(Rule::First),
                vec![Member { limit_us: Some(0), ..voter() }],
                LineUpError::Limit("v@1".parse().unwrap()),
            ),
            (rule(Rule::First), vec![voter(), voter()], LineUpError::Twice("v@1".parse().unwrap())),
            (when(Signal::LoadPpm, 2, 1), vec![], LineUpError::Needs("smaller member")),
            (when(Signal::LoadPpm, 1, 2), vec![small()], LineUpError::Hysteresis("load_ppm")),
            (when(Signal::BatteryPpm, 2, 1), vec![small()], LineUpError::Hysteresis("battery_ppm")),
        ] {
            assert_eq!(conduct.check(&members), Err(expected));
        }
        let mut lineup = LineUp::new("m@1".parse().unwrap(), None);
        lineup.members = vec![member("m@1", Role::Bigger)];
        assert!(lineup.check().is_err());
        lineup.members = (0..=MEMBERS_MAX).map(|i| member(&alloc::format!("m{i}@1"), Role::Bigger)).collect();
        assert_eq!(lineup.check(), Err(LineUpError::Members));
    }

    #[test]
    fn what_is_left_of_a_line_up_fits_together() {
        let all = || {
            vec![
                member("f@1", Role::Fallback),
                member("v@1", Role::Voter { weight_ppm: 1 }),
                member("w@1", Role::Voter { weight_ppm: 1 }),
                member("x@1", Role::Meta),
                member("b@1", Role::Bigger),
                member("t@1", Role::Smaller),
            ]
        };
        let rule = ContextRule { signal: Signal::Link, enter: 0, leave: 1, dwell_ms: 0 };
        let left = |rule_before, gone: &[&str]| {
            let mut members = all();
            let (mut conduct, mut roles) = (Conduct { rule: rule_before, context: vec![rule] }, vec![]);
            members.retain(|member| {
                let goes = gone.contains(&member.release.to_string().as_str());
                roles.extend(goes.then_some(member.role));
                !goes
            });
            conduct.fit(&mut members, |member| member.role, &roles);
            let names: Vec<_> = members.iter().map(|member| member.release.to_string()).collect();
            (conduct.rule, names.join(" "), conduct.context.len())
        };
        let cascade = Rule::Cascade { margin_ppm: 1 };
        assert_eq!(left(Rule::Stack, &["b@1"]), (Rule::Stack, "f@1 v@1 w@1 x@1 t@1".into(), 1));
        assert_eq!(left(Rule::Stack, &["w@1"]), (Rule::First, "f@1 t@1".into(), 1));
        assert_eq!(left(Rule::Stack, &["x@1"]), (Rule::First, "f@1 t@1".into(), 1));
        assert_eq!(left(Rule::SoftVote, &["v@1"]), (Rule::SoftVote, "f@1 w@1 t@1".into(), 1));
        assert_eq!(left(Rule::HardVote, &["v@1", "w@1"]), (Rule::First, "f@1 t@1".into(), 1));
        assert_eq!(left(cascade, &["t@1"]), (cascade, "f@1 b@1".into(), 0));
        assert_eq!(left(cascade, &["b@1", "f@1"]), (Rule::First, "t@1".into(), 1));
    }
}
