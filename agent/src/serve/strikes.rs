//! When a member that fails is no longer asked.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Strikes that take a member out.
pub const STRIKES_MAX: u32 = 5;
/// Answers that make up for one strike. A member is taken out that fails at more than about one request in so many, not
/// one that has met a few odd inputs in a year.
pub const ANSWERS_PER_STRIKE: u32 = 100;

/// The strikes of one loaded member. They begin anew when it is loaded anew.
#[derive(Debug, Default)]
pub(super) struct Strikes {
    /// What is not made up for yet, in answers.
    owed: AtomicU32,
    out: OnceLock<String>,
}

impl Strikes {
    /// Counts a failure; true if it is the one that takes the member out.
    pub(super) fn strike(&self, detail: &str) -> bool {
        let owed = self.owed.fetch_add(ANSWERS_PER_STRIKE, Ordering::Relaxed) + ANSWERS_PER_STRIKE;
        owed > (STRIKES_MAX - 1) * ANSWERS_PER_STRIKE && self.out.set(detail.to_owned()).is_ok()
    }

    /// Counts an answer.
    pub(super) fn answered(&self) {
        if self.owed.load(Ordering::Relaxed) > 0 {
            // Two answers at the same moment may count as one; none is counted that was not there.
            let _raced =
                self.owed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owed| owed.checked_sub(1));
        }
    }

    /// Why the member is out, if it is.
    pub(super) fn out(&self) -> Option<&str> {
        self.out.get().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dunlin_protocol::{Conduct, Member, Now, ReleaseId, Role, Rule, TaskId};

    use super::*;
    use crate::serve::onnx::{IDENTITY, broken, linear, resident};
    use crate::serve::{Absence, Answer, AnsweredBy, Crew, Limits, Resident, Serving};

    fn task() -> TaskId {
        "meter".parse().unwrap()
    }

    fn ask(serving: &Serving, row: [f32; 3]) -> Answer {
        let x = vec![dunlin_engine::of_floats("x", &[1, 3], &row)];
        serving.infer(&task(), "a", &x, Now { mono_ms: 1, wall_ms: None }).unwrap()
    }

    /// A champion with two voters, of which one is not finite below zero, where it was proved.
    fn voting() -> Crew {
        let linear = |release, log| resident(release, &task(), &linear(3, 3, &IDENTITY, log), 3);
        let voter = |model: Resident| {
            let role = Role::Voter { weight_ppm: 1_000_000 };
            (Member { release: model.release.clone(), role, limit_us: None }, model)
        };
        Crew {
            members: vec![
                voter(linear("good@1", false)),
                voter(broken(linear("bad@1", true), &[-1.0, 1.0, 2.0])),
            ],
            conduct: Conduct { rule: Rule::SoftVote, context: vec![] },
            ..Crew::new(linear("m@1", false), None)
        }
    }

    #[test]
    fn a_member_that_is_out_gives_its_memory_back_and_a_new_line_up_asks_it_again() {
        let (bad, fine) = ([-1.0, 1.0, 2.0], [1.0, 2.0, 3.0]);
        let serving = Serving::new(Limits::default());
        let crew = voting();
        let weak: Vec<_> = crew.members.iter().map(|(_, model)| Arc::downgrade(&model.model)).collect();
        serving.line_up(&task(), crew, 1, false);
        (0..STRIKES_MAX).for_each(|_| drop(ask(&serving, bad)));
        let quarantined = [("bad@1".parse::<ReleaseId>().unwrap(), Absence::Quarantined)];
        assert_eq!(ask(&serving, fine).left_out, quarantined);
        assert!(weak[1].upgrade().is_some(), "nobody has decided yet what becomes of it");

        serving.trim(&task(), |release| release.to_string() != "bad@1");
        assert!(weak[1].upgrade().is_none() && weak[0].upgrade().is_some());
        let answer = ask(&serving, fine);
        assert_eq!((answer.by, &answer.left_out[..]), (AnsweredBy::Vote, &quarantined[..]));
        let view = serving.view_of(&task()).unwrap();
        assert_eq!((view.members.len(), view.away.len()), (2, 0));
        let (release, why) = &view.dismissed[0];
        assert!(release.to_string() == "bad@1" && why.contains("finite"), "{release}: {why}");
        assert_eq!(serving.held().len(), 2, "what is not in memory takes no room");

        serving.line_up(&task(), voting(), 2, false);
        let answer = ask(&serving, fine);
        assert_eq!((answer.voters.len(), answer.left_out.len()), (3, 0));
    }

    #[test]
    fn who_can_not_be_without_a_member_that_is_out_goes_with_it() {
        let serving = Serving::new(Limits::default());
        let crew = voting();
        let weak: Vec<_> = crew.members.iter().map(|(_, model)| Arc::downgrade(&model.model)).collect();
        serving.line_up(&task(), crew, 1, false);
        (0..STRIKES_MAX).for_each(|_| drop(ask(&serving, [-1.0, 1.0, 2.0])));
        serving.trim(&task(), |release| release.to_string() == "m@1");
        assert!(weak.iter().all(|model| model.upgrade().is_none()));
        let answer = ask(&serving, [1.0, 2.0, 3.0]);
        assert_eq!((answer.by, answer.left_out.len()), (AnsweredBy::Champion, 0));
        let view = serving.view_of(&task()).unwrap();
        let absent: Vec<_> = view.absent().map(|(release, _)| release.to_string()).collect();
        assert_eq!(absent, ["bad@1"]);
    }

    #[tokio::test]
    async fn who_names_a_member_that_is_out_is_told_why() {
        let serving = Serving::new(Limits::default());
        serving.line_up(&task(), voting(), 1, false);
        (0..STRIKES_MAX).for_each(|_| drop(ask(&serving, [-1.0, 1.0, 2.0])));
        serving.trim(&task(), |release| release.to_string() == "m@1");
        let x = vec![dunlin_engine::of_floats("x", &[1, 3], &[1.0, 2.0, 3.0])];
        let now = Now { mono_ms: 1, wall_ms: None };
        let named = serving.answer(&task(), Some("bad@1".parse().unwrap()), "n".into(), x, now).await;
        assert!(named.unwrap_err().to_string().contains("finite"));
    }

    #[test]
    fn a_few_failures_in_a_row_take_a_member_out_once() {
        let strikes = Strikes::default();
        for _ in 1..STRIKES_MAX {
            assert!(!strikes.strike("odd"));
        }
        assert!(strikes.out().is_none());
        assert!(strikes.strike("the last"));
        assert!(!strikes.strike("more"), "it is told once");
        assert_eq!(strikes.out(), Some("the last"));
    }

    #[test]
    fn answers_make_up_for_failures() {
        let strikes = Strikes::default();
        for _ in 0..100 {
            assert!(!strikes.strike("one in so many"));
            (0..ANSWERS_PER_STRIKE).for_each(|_| strikes.answered());
        }
        let strikes = Strikes::default();
        let out = (0..100).any(|_| {
            (0..ANSWERS_PER_STRIKE / 2).for_each(|_| strikes.answered());
            strikes.strike("twice as often")
        });
        assert!(out);
    }
}
