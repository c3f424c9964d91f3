use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_protocol::{Conduct, Member, ReleaseId, Role, TaskPolicy};

use super::budget::Budget;
use super::live::Key;
use super::pool::Wait;
use super::resident::{Resident, Serving};
use super::view::MemberRole;

/// The models of a line-up, loaded.
#[derive(Debug)]
pub struct Crew {
    /// Answers requests.
    pub champion: Resident,
    /// Answers when the champion can not.
    pub fallback: Option<Resident>,
    /// Further models, each with what it is for.
    pub members: Vec<(Member, Resident)>,
    /// How all of them make one answer.
    pub conduct: Conduct,
}

impl Crew {
    /// Champion and fallback, nothing else.
    pub fn new(champion: Resident, fallback: Option<Resident>) -> Self {
        Self { champion, fallback, members: Vec::new(), conduct: Conduct::default() }
    }
}

/// The place of a member: its model, or whose place it is while that is not in memory.
#[derive(Debug, Clone)]
pub(super) enum Berth {
    Loaded(Arc<Serving>),
    /// There is no room for it.
    Away(ReleaseId),
    /// It failed too often, at last like this.
    Out(ReleaseId, String),
}

impl Berth {
    pub(super) fn new(model: Resident) -> Self {
        Self::Loaded(Arc::new(Serving::new(model)))
    }

    pub(super) fn model(&self) -> Option<&Arc<Serving>> {
        match self {
            Self::Loaded(model) => Some(model),
            Self::Away(_) | Self::Out(..) => None,
        }
    }

    pub(super) fn release(&self) -> &ReleaseId {
        match self {
            Self::Loaded(model) => model.release(),
            Self::Away(release) | Self::Out(release, _) => release,
        }
    }

    /// The same place without its model.
    pub(super) fn emptied(&self) -> Self {
        match self {
            Self::Loaded(model) => match model.strikes.out() {
                Some(why) => Self::Out(model.release().clone(), why.to_owned()),
                None => Self::Away(model.release().clone()),
            },
            Self::Away(_) | Self::Out(..) => self.clone(),
        }
    }
}

/// A member beside the champion.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub(super) berth: Berth,
    pub(super) role: Role,
    pub(super) limit: Option<Duration>,
    /// What a shadow may cost.
    pub(super) budget: Option<Arc<Mutex<Budget>>>,
}

impl Seat {
    fn new(model: Resident, role: Role, limit_us: Option<u64>) -> Self {
        let budget = match role {
            Role::Shadow { cpu_ppm, ram_bytes, battery_ppm_min } => {
                Some(Arc::new(Mutex::new(Budget::new(cpu_ppm, ram_bytes, battery_ppm_min))))
            }
            Role::Fallback
            | Role::Challenger { .. }
            | Role::Voter { .. }
            | Role::Bigger
            | Role::Smaller
            | Role::Meta => None,
        };
        let limit = limit_us.map(Duration::from_micros);
        Self { berth: Berth::new(model), role, limit, budget }
    }
}

/// The models of one generation.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) generation: u64,
    pub(super) champion: Option<Berth>,
    /// The fallback first.
    pub(super) seats: Arc<[Seat]>,
    pub(super) conduct: Arc<Conduct>,
}

impl Slot {
    pub(super) fn new(crew: Crew, generation: u64) -> Self {
        let fallback = crew.fallback.map(|model| Seat::new(model, Role::Fallback, None));
        let members =
            crew.members.into_iter().map(|(member, model)| Seat::new(model, member.role, member.limit_us));
        Self {
            generation,
            champion: Some(Berth::new(crew.champion)),
            seats: fallback.into_iter().chain(members).collect(),
            conduct: Arc::new(crew.conduct),
        }
    }

    /// What of it is kept warm in probation: champion and fallbacks, as two whole line-ups need twice the memory.
    pub(super) fn warm(&self) -> Self {
        Self { seats: self.of(MemberRole::Fallback).cloned().collect(), ..self.clone() }
    }

    /// All its places, the champion's first.
    pub(super) fn berths(&self) -> impl Iterator<Item = &Berth> {
        self.champion.iter().chain(self.seats.iter().map(|seat| &seat.berth))
    }

    /// All its models in memory, the champion first.
    pub(super) fn models(&self) -> impl Iterator<Item = &Arc<Serving>> {
        self.berths().filter_map(Berth::model)
    }

    /// The members that failed too often and are not in memory any more, and how they failed at last.
    pub(super) fn dismissed(&self) -> impl Iterator<Item = (&ReleaseId, &str)> {
        self.berths().filter_map(|berth| match berth {
            Berth::Out(release, why) => Some((release, why.as_str())),
            Berth::Loaded(_) | Berth::Away(_) => None,
        })
    }

    /// Changes the place that a release has in this part, if it has one.
    pub(super) fn change(&mut self, part: MemberRole, release: &ReleaseId, change: impl FnOnce(&mut Berth)) {
        let mut seats = self.seats.to_vec();
        let champion = self.champion.iter_mut().filter(|_| part == MemberRole::Champion);
        let of_part = seats.iter_mut().filter(|seat| MemberRole::from(seat.role) == part);
        let mut berths = champion.chain(of_part.map(|seat| &mut seat.berth));
        if let Some(berth) = berths.find(|berth| berth.release() == release) {
            change(berth);
        }
        self.seats = seats.into();
    }

    /// Goes on without the members that `keep` refuses, and without those that can not be without them. The place of one
    /// that failed too often stays, empty, so that answers and the index can say what became of it.
    pub(super) fn trim(&mut self, keep: impl Fn(&ReleaseId) -> bool) {
        let (mut stay, gone): (Vec<Seat>, Vec<Seat>) =
            self.seats.iter().cloned().partition(|seat| keep(seat.berth.release()));
        let roles: Vec<Role> = gone.iter().map(|seat| seat.role).collect();
        let mut conduct = Conduct::clone(&self.conduct);
        conduct.fit(&mut stay, |seat| seat.role, &roles);
        let emptied = gone.into_iter().map(|seat| Seat { berth: seat.berth.emptied(), ..seat });
        let out = emptied.filter(|seat| matches!(seat.berth, Berth::Out(..)));
        self.seats = stay.into_iter().chain(out).collect();
        self.conduct = Arc::new(conduct);
    }

    /// The seats of one part.
    pub(super) fn of(&self, part: MemberRole) -> impl Iterator<Item = &Seat> {
        self.seats.iter().filter(move |seat| MemberRole::from(seat.role) == part)
    }
}

/// What a task runs; replaced whole.
#[derive(Debug, Clone, Default)]
pub(super) struct LineUp {
    pub(super) slot: Slot,
    /// Champion and fallbacks of the generation before, kept warm in probation.
    pub(super) previous: Option<Slot>,
    pub(super) policy: Option<Arc<TaskPolicy>>,
    pub(super) probation: bool,
    pub(super) unloaded: Vec<ReleaseId>,
    /// The output that callers know: the last one of the last champion, which the baseline's answer has the name of.
    pub(super) output: Option<String>,
}

impl LineUp {
    /// The champion, if it is in memory.
    pub(super) fn champion(&self) -> Option<&Arc<Serving>> {
        self.slot.champion.as_ref()?.model()
    }

    /// The champion before this one, in probation.
    pub(super) fn before(&self) -> Option<&Arc<Serving>> {
        self.previous.as_ref()?.champion.as_ref()?.model()
    }

    /// How its requests wait for a worker. What is on probation is held against a predecessor that runs alone.
    pub(super) fn wait(&self) -> Wait {
        if self.probation { Wait::Alone } else { Wait::Gathered }
    }

    /// Its members in memory, the champion first.
    pub(super) fn members(&self) -> impl Iterator<Item = (MemberRole, &Arc<Serving>)> {
        let champion = self.champion().map(|m| (MemberRole::Champion, m));
        let seats = self.slot.seats.iter().filter_map(|seat| {
            let model = seat.berth.model()?;
            Some((MemberRole::from(seat.role), model))
        });
        champion.into_iter().chain(seats).chain(self.before().map(|m| (MemberRole::Previous, m)))
    }

    pub(super) fn key(&self, release: Option<ReleaseId>) -> Key {
        let probation =
            self.probation && release.is_some() && self.champion().map(|c| c.release()) == release.as_ref();
        Key { release, generation: self.slot.generation, probation }
    }

    pub(super) fn classes(&self) -> usize {
        let of_policy = || self.policy.as_ref().map_or(0, |p| p.labels.len());
        self.slot.models().next().map(|model| model.classes()).filter(|n| *n > 0).unwrap_or_else(of_policy)
    }
}
