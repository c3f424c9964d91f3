//! What runs after an answer was given, for the record only.

use std::sync::{Arc, PoisonError};

use super::asked::{Asked, expected_us, run};
use super::lineup::LineUp;
use super::live::{Answered, Principal};
use super::pool::{Place, Pool, Wait, is_inline};
use super::resident::{Serving, Unable};
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
        let (task, pool) = (Arc::clone(self), pool.cloned());
        let after = pool.is_some();
        let work = async move {
            let _place = place;
            task.previous(pool.as_ref(), &lineup, &champion, &principal, &asked).await;
            if shadows {
                task.shadows(pool.as_ref(), &lineup, &principal, &asked).await;
            }
        };
        if after {
            drop(tokio::spawn(work));
        } else {
            work.await;
        }
    }

    async fn previous(
        &self,
        pool: Option<&Pool>,
        lineup: &LineUp,
        champion: &Arc<Serving>,
        principal: &Principal,
        asked: &Arc<Asked>,
    ) {
        let Some(previous) = lineup.before() else { return };
        // No answer waits for a record; what is as short as a way to a worker needs none.
        let wait = if is_inline(expected_us(previous, asked), None) { Wait::Alone } else { Wait::Never };
        let Ok(ran) = run(pool, wait, previous, None, asked).await else { return };
        let Ok(made) = ran.made else { return };
        // What was rolled back or committed meanwhile is not on probation any more.
        if !self.lineup().before().is_some_and(|now| Arc::ptr_eq(now, previous)) {
            return;
        }
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
                Err(Unable::Input(detail) | Unable::Failed(detail)) => {
                    self.failed(false, &key, model, asked, &detail, ran.spent_ns);
                }
            }
        }
    }
}
