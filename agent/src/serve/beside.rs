//! What runs after an answer was given, for the record only.

use std::sync::{Arc, PoisonError};

use super::asked::{Asked, expected_us, run};
use super::lineup::LineUp;
use super::live::{Answered, Principal};
use super::pool::{Place, Pool, Wait, is_inline};
use super::resident::{Made, Serving, Unable};
use super::task::Task;
use super::view::MemberRole;

/// Requests of a task whose record is being made at one time; while so many are, further ones go without. Records must
/// not take the workers from requests.
const BESIDE_MAX: usize = 2;

impl Task {
    /// Runs on the inputs of an answered request what is only run for the record, on idle workers: in probation the previous
    /// champion, and the shadows that their budgets allow. With a pool that happens after the answer.
    pub(super) async fn go_beside(
        self: &Arc<Self>,
        pool: Option<&Pool>,
        lineup: &Arc<LineUp>,
        principal: Principal,
        asked: &Arc<Asked>,
        degraded: bool,
    ) {
        let Some(champion) = lineup.champion().filter(|c| *c.release() == principal.release) else { return };
        // Where the device is short of something, records are the first to go; a probation is not.
        let shadows = !degraded && lineup.slot.of(MemberRole::Shadow).next().is_some();
        if lineup.before().is_none() && !shadows {
            return;
        }
        let Some(place) = Place::take(&self.beside, BESIDE_MAX) else { return };
        let (lineup, champion, asked) = (Arc::clone(lineup), Arc::clone(champion), Arc::clone(asked));
        let (task, of_work) = (Arc::clone(self), pool.cloned());
        after(pool, async move {
            let _place = place;
            task.previous(of_work.as_ref(), &lineup, &champion, &principal, &asked).await;
            if shadows {
                task.shadows(of_work.as_ref(), &lineup, &principal, &asked).await;
            }
        })
        .await;
    }

    /// Asks in probation the previous champion what the champion failed on and the request may be to blame for. If it has
    /// an answer, the new one is worse there, and that counts against it.
    pub(super) async fn go_judge(
        self: &Arc<Self>,
        pool: Option<&Pool>,
        lineup: &Arc<LineUp>,
        asked: &Arc<Asked>,
    ) {
        if lineup.before().is_none() {
            return;
        }
        let Some(place) = Place::take(&self.beside, BESIDE_MAX) else { return };
        let (lineup, asked) = (Arc::clone(lineup), Arc::clone(asked));
        let (task, of_work) = (Arc::clone(self), pool.cloned());
        after(pool, async move {
            let _place = place;
            if task.of_previous(of_work.as_ref(), &lineup, &asked).await.is_none() {
                return;
            }
            let mut live = task.live();
            if live.watch.is_of(lineup.slot.generation) {
                live.watch.failed(asked.rows as u64);
            }
        })
        .await;
    }

    /// What the previous champion makes of a request, if it is still there when it has made it.
    async fn of_previous<'a>(
        &self,
        pool: Option<&Pool>,
        lineup: &'a LineUp,
        asked: &Arc<Asked>,
    ) -> Option<(&'a Arc<Serving>, Made)> {
        let previous = lineup.before()?;
        // No answer waits for a record; what is as short as a way to a worker needs none.
        let wait = if is_inline(expected_us(previous, asked), None) { Wait::Alone } else { Wait::Never };
        let made = run(pool, wait, previous, None, asked).await.ok()?.made.ok()?;
        // What was rolled back or committed meanwhile is not on probation any more.
        let there = self.lineup().before().is_some_and(|now| Arc::ptr_eq(now, previous));
        there.then_some((previous, made))
    }

    async fn previous(
        &self,
        pool: Option<&Pool>,
        lineup: &LineUp,
        champion: &Arc<Serving>,
        principal: &Principal,
        asked: &Arc<Asked>,
    ) {
        let Some((previous, made)) = self.of_previous(pool, lineup, asked).await else { return };
        let (of_previous, of_champion) =
            (lineup.key(Some(previous.release().clone())), lineup.key(Some(champion.release().clone())));
        let done = Answered::new(of_previous, previous, &made, asked);
        self.live().previous(&of_champion, champion, principal, &done);
    }

    async fn shadows(&self, pool: Option<&Pool>, lineup: &LineUp, principal: &Principal, asked: &Arc<Asked>) {
        let reading = self.reading();
        for seat in lineup.slot.of(MemberRole::Shadow) {
            let Some(model) = seat.berth.model() else { continue };
            let budget = || Some(seat.budget.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner));
            let allowed = budget().is_some_and(|mut budget| budget.allows(&reading, asked.now.mono_ms));
            if !allowed || model.strikes.out().is_some() {
                continue;
            }
            // A worker that is not idle is not in its budget either.
            let Ok(ran) = run(pool, Wait::Never, model, seat.limit, asked).await else { continue };
            if let Some(mut budget) = budget() {
                budget.spent(ran.spent_ns);
            }
            let key = lineup.key(Some(model.release().clone()));
            match ran.made {
                Ok(made) => {
                    self.answered(false, key, model, &made, Some(principal.clone()), asked);
                }
                // What others could read is not for this one. That is no failure.
                Err(Unable::Input(_)) => {}
                Err(Unable::Failed(failure)) => {
                    self.missed(false, &key, model, asked, &failure);
                    self.failed(model, asked, &failure, ran.spent_ns);
                }
            }
        }
    }
}

/// Does some work after the answer where there are workers, else at once.
async fn after(pool: Option<&Pool>, work: impl Future<Output = ()> + Send + 'static) {
    if pool.is_some() {
        drop(tokio::spawn(work));
    } else {
        work.await;
    }
}
