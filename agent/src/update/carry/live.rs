//! What serves: line-ups in memory, what of them is kept warm, and what there is room for.
use std::collections::BTreeMap;

use dunlin_protocol::{ReasonCode, Role, TaskId};
use dunlin_update::{Designation, Event, Line, Pack, Record};

use super::super::load;
use super::{Hands, Told};
use crate::clock;
use crate::serve::{Crew, Resident};

/// What the serving side was told last.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) line: Option<Line>,
    /// What is kept warm of the line-up before.
    pub(super) previous: Option<Line>,
}

impl Hands {
    /// Takes a task's models out of memory. What it designates is not live then, so that whatever comes next loads it.
    pub(in crate::update) fn unload(&mut self, task: TaskId) {
        self.serving.unload(&task);
        self.live.remove(&task);
        self.crowd.forget(&task);
    }

    /// Takes out of memory what a line-up that serves is not designated with any more, because members failed too often. What
    /// serves instead of a champion was loaded by an order of its own.
    pub(in crate::update) fn trim(&mut self, task: &TaskId, designated: &Designation) {
        let (Some(live), Some(line)) = (self.live.get_mut(task), designated.line()) else { return };
        if live.line.as_ref().is_some_and(|now| now.champion == line.champion) {
            self.serving.trim(task, |release| line.packs().any(|pack| pack.release == *release));
            live.line = Some(line.clone());
        }
    }

    /// Whether memory or processor time of all models together is bounded.
    pub(in crate::update) fn is_bounded(&self) -> bool {
        self.crowd.is_bounded()
    }

    /// Takes members out of memory until the rest keeps to the bounds, and brings back what there is room for.
    pub(in crate::update) async fn make_room(&mut self) {
        if !self.crowd.is_bounded() {
            return;
        }
        let moves = self.crowd.decide(self.serving.held(), self.serving.rows(), clock::now().mono_ms);
        for held in moves.out {
            tracing::warn!(task = %held.task, release = %held.release, role = held.role.as_str(), bytes = held.bytes, "taken out of memory: all models together are over the bounds");
            self.serving.take_out(&held);
        }
        for held in moves.back {
            // Who is not designated any more has nothing to come back for.
            let line = self.live.get(&held.task).and_then(|live| live.line.as_ref());
            let found = line.into_iter().flat_map(Line::packs).find(|pack| pack.release == held.release);
            let Some(pack) = found.cloned() else { continue };
            let (store, in_memory) = (self.store.clone(), self.serving.residents());
            let load = move || load::resident(&store, &pack, &in_memory);
            let loaded = tokio::task::spawn_blocking(load).await;
            match loaded.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(resident) => {
                    tracing::info!(task = %held.task, release = %held.release, "there is room for it again");
                    self.serving.put_back(&held, resident);
                }
                Err(detail) => {
                    tracing::warn!(task = %held.task, release = %held.release, detail, "could not be loaded again");
                    self.crowd.stayed_away(held, clock::now().mono_ms);
                }
            }
        }
    }

    pub(super) async fn roll_back(&mut self, task: TaskId, to: Designation, record: &Record) -> Told {
        let live = self.live.entry(task.clone()).or_default();
        let line = match to {
            Designation::Baseline => {
                *live = Live::default();
                self.crowd.forget(&task);
                self.serving.vacate(&task);
                return self.reapply(&task, record);
            }
            Designation::Line(line) => line,
        };
        if live.line.as_ref().is_some_and(|now| now.serves_as(&line)) {
            return Told::Nothing;
        }
        // At once with what is warm; if that is not all of it, or may be without what there was no room for, then the whole
        // line-up.
        let bounded = self.crowd.is_bounded();
        if let Some(previous) = live.previous.take_if(|warm| warm.champion.manifest == line.champion.manifest)
            && self.serving.rollback(&task)
        {
            let whole = !bounded && previous.serves_as(&line);
            live.line = Some(previous);
            if whole {
                return Told::Nothing;
            }
        }
        self.serve(&task, &line, false)
            .await
            .map_or_else(|detail| failed(task, &line, detail), |()| Told::Nothing)
    }

    /// Puts the policy of a task in force that the generation record names.
    fn reapply(&self, task: &TaskId, record: &Record) -> Told {
        let policy = record.tasks.get(task).and_then(|slot| slot.policy);
        match policy.map(|blob| load::policy(&self.store, &blob)) {
            Some(Ok(policy)) => self.serving.set_policy(&policy),
            Some(Err(detail)) => {
                return Told::Trouble(ReasonCode::StateRecovered, format!("policy of {task}: {detail}"));
            }
            None => {}
        }
        Told::Nothing
    }

    pub(super) async fn serve(&mut self, task: &TaskId, line: &Line, trial: bool) -> Result<(), String> {
        let residents = self.residents(line).await?;
        self.switch(task, line, residents, trial).await;
        Ok(())
    }

    pub(super) async fn switch(&mut self, task: &TaskId, line: &Line, crew: Crew, trial: bool) {
        let live = self.live.entry(task.clone()).or_default();
        let before = live.line.take();
        *live = Live { line: Some(line.clone()), previous: before.filter(|_| trial).map(warm) };
        self.crowd.forget(task);
        self.serving.line_up(task, crew, line.generation, trial);
        self.make_room().await;
    }

    /// Loads a line-up. A fallback or member that does not load is gone without; the champion decides.
    pub(super) async fn residents(&self, line: &Line) -> Result<Crew, String> {
        let (store, line) = (self.store.clone(), line.clone());
        // What is in memory is shared: each twice would be twice the memory.
        let mut in_memory = self.serving.residents();
        let load = move || {
            let mut resident = |pack: &Pack| -> Result<Resident, String> {
                let resident = load::resident(&store, pack, &in_memory)?;
                in_memory.push(resident.clone());
                Ok(resident)
            };
            let champion = resident(&line.champion)?;
            let mut loaded = BTreeMap::new();
            for pack in line.packs().skip(1) {
                match resident(pack) {
                    Ok(resident) => drop(loaded.insert(pack.release.clone(), resident)),
                    Err(detail) => {
                        tracing::warn!(release = %pack.release, detail, "a member can not be loaded");
                    }
                }
            }
            let line = line.with_members(|pack| loaded.contains_key(&pack.release));
            let fallback = line.fallback.as_ref().and_then(|pack| loaded.remove(&pack.release));
            let member = |(member, pack): (_, Pack)| Some((member, loaded.remove(&pack.release)?));
            let members = line.members.into_iter().filter_map(member).collect();
            Ok(Crew { champion, fallback, members, conduct: line.conduct })
        };
        tokio::task::spawn_blocking(load).await.map_err(|e| e.to_string())?
    }
}

/// What of a line-up is kept warm in probation: champion and fallbacks.
pub(super) fn warm(mut line: Line) -> Line {
    line.members.retain(|(member, _)| member.role == Role::Fallback);
    line
}

pub(super) fn failed(task: TaskId, line: &Line, detail: String) -> Told {
    Told::Event(Event::ServeFailed { task, release: line.champion.release.clone(), detail })
}

#[cfg(test)]
mod tests {
    use dunlin_protocol::{Blob, Conduct, Digest, Member, Rule};
    use dunlin_update::Proof;

    use super::*;

    fn pack(release: &str) -> Pack {
        let manifest = Blob { digest: Digest([0; 32]), length: 1 };
        Pack { release: release.parse().unwrap(), manifest, blobs: vec![], retrained: false }
    }

    fn line(rule: Rule, members: &[(&str, Role)]) -> Line {
        let member = |&(release, role): &(&str, Role)| {
            let pack = pack(release);
            (Member { release: pack.release.clone(), role, limit_us: None }, pack)
        };
        Line {
            generation: 1,
            champion: pack("m@1"),
            fallback: Some(pack("f@1")),
            members: members.iter().map(member).collect(),
            conduct: Conduct { rule, context: vec![] },
            proof: Proof::default(),
            policy: None,
        }
    }

    #[test]
    fn champion_and_fallbacks_are_kept_warm_and_a_roll_back_to_more_is_not_whole() {
        let fallbacks = line(Rule::First, &[("g@1", Role::Fallback)]);
        assert!(warm(fallbacks.clone()).serves_as(&fallbacks));
        let voter = Role::Voter { weight_ppm: 1_000_000 };
        let voting = line(Rule::SoftVote, &[("v@1", voter), ("g@1", Role::Fallback), ("s@1", Role::Smaller)]);
        let kept = warm(voting.clone());
        let names: Vec<_> = kept.packs().map(|pack| pack.release.to_string()).collect();
        assert_eq!(names, ["m@1", "f@1", "g@1"]);
        assert!(!kept.serves_as(&voting));
    }
}
