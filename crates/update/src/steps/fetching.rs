//! From an assignment to files on the disk.
use alloc::format;
use alloc::string::{String, ToString};

use dunlin_protocol::{Blob, Bundle, Digest, Now, Phase, ReasonCode, TaskId, TaskPolicy};

use super::not_awaited;
use crate::checks::{admit, goes_with};
use crate::{Command, Designation, Fault, Goal, Ignored, Item, Pack, Step, Tries, Updater, WRONG_MAX, Work};

impl Updater {
    pub(super) fn fetch(&mut self, task: &TaskId, work: Work, item: Item) {
        self.known(task).step = Step::Fetching { work, item, tries: Tries::default() };
        self.go_on(task);
    }

    /// Leaves retrained releases that the policy does not allow any more. One that serves under bounds that changed
    /// goes on until it is held to them like a new one; what only stands by is let go.
    pub(super) fn hold_to_policy(&mut self, task: &TaskId, work: &Work, now: Now) {
        let not_retrained = |pack: &Pack| !pack.retrained;
        if work.bounds.is_none() {
            let why = "is retrained, which the policy does not allow";
            self.leave(task, not_retrained, ReasonCode::RetrainedNotAllowed, why, now);
            return;
        }
        let policy = work.goal.policy_digest();
        let previous = &mut self.known(task).previous;
        if previous.line().is_some_and(|line| !line.keeps_to(policy)) {
            *previous = core::mem::replace(previous, Designation::Baseline).trimmed(not_retrained);
        }
    }

    pub(super) fn after_policy(&mut self, task: &TaskId, work: Work, now: Now) {
        if self.settle_if_served(task, &work.goal, now) {
            return;
        }
        if work.goal.policy.is_none() {
            self.report(task, &work.goal, Phase::Fetching, ReasonCode::Ok, String::new(), now);
        }
        self.next_part(task, work, now);
    }

    /// Settles a goal that is served already; false if it is not. No champion serves here that a probation was cut short
    /// for: what ends one without a commit takes the champion out, see [`Updater::retreat`].
    pub(super) fn settle_if_served(&mut self, task: &TaskId, goal: &Goal, now: Now) -> bool {
        let policy = goal.policy_digest();
        match &mut self.known(task).serving {
            Designation::Line(line) if line.is(goal) && line.keeps_to(policy) => {
                line.generation = goal.generation;
            }
            Designation::Line(_) | Designation::Baseline => return false,
        }
        let (ok, detail) = (ReasonCode::Ok, "serves it already".to_string());
        self.settle(task, goal.clone(), Phase::Committed, ok, detail, now);
        true
    }

    pub(super) fn next_part(&mut self, task: &TaskId, work: Work, now: Now) {
        match work.awaited().map(|part| part.manifest.clone()) {
            Some(file) => self.fetch(task, work, Item::Manifest(file)),
            None => {
                self.report(task, &work.goal, Phase::Verifying, ReasonCode::Ok, String::new(), now);
                self.known(task).step = Step::Verifying { work };
                self.go_on(task);
            }
        }
    }

    pub(crate) fn policy_fetched(
        &mut self,
        task: &TaskId,
        file: Digest,
        policy: TaskPolicy,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { mut work, item: Item::Policy(wanted), .. } = self.state(task)?.step.clone()
        else {
            return Err(not_awaited(task, "a policy"));
        };
        if wanted.sha256 != file {
            return Err(not_awaited(task, "this policy"));
        }
        if policy.task != *task || policy.format != 1 {
            return self.file_malformed(
                task,
                file,
                format!("{} is no policy of {task} in format 1", wanted.name),
                now,
            );
        }
        let blob = Blob { digest: wanted.sha256, length: wanted.length };
        work.bounds = policy.retrained;
        let state = self.known(task);
        if state.policy != Some(blob) {
            state.policy = Some(blob);
            self.order(Command::ApplyPolicy { task: task.clone(), policy: blob });
        }
        self.hold_to_policy(task, &work, now);
        self.after_policy(task, work, now);
        Ok(())
    }

    pub(crate) fn manifest_fetched(
        &mut self,
        task: &TaskId,
        file: Digest,
        bundle: &Bundle,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { mut work, item: Item::Manifest(wanted), .. } = self.state(task)?.step.clone()
        else {
            return Err(not_awaited(task, "a manifest"));
        };
        let part = work.awaited().filter(|part| part.manifest == wanted && wanted.sha256 == file);
        let Some(part) = part.cloned() else {
            return Err(not_awaited(task, "this manifest"));
        };
        let admitted = admit(task, &part, bundle, work.bounds.as_ref(), &self.budgets).and_then(|pack| {
            goes_with(&mut work, bundle)?;
            Ok(pack)
        });
        match admitted {
            Ok(pack) => self.fetch(task, work, Item::Space(pack)),
            // Each of them may be sound; they are only not to be used together.
            Err((ReasonCode::LineupConflict, detail)) => {
                self.forgo(task, work, &part.release, ReasonCode::LineupConflict, detail, now);
            }
            Err((reason, detail)) => {
                if let Some(work) = self.blame(task, work, &part.release, reason, detail, now) {
                    self.next_part(task, work, now);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn file_malformed(
        &mut self,
        task: &TaskId,
        file: Digest,
        detail: String,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { work, item, .. } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a file"));
        };
        match &item {
            // A policy that can not be read says nothing about the release.
            Item::Policy(wanted) if wanted.sha256 == file => {
                self.settle(task, work.goal, Phase::Failed, ReasonCode::ManifestMalformed, detail, now);
                Ok(())
            }
            Item::Manifest(wanted) if wanted.sha256 == file => {
                let release = work.awaited().unwrap_or(&work.goal.champion).release.clone();
                let reason = ReasonCode::ManifestMalformed;
                if let Some(work) = self.blame(task, work, &release, reason, detail, now) {
                    self.next_part(task, work, now);
                }
                Ok(())
            }
            Item::Policy(_) | Item::Manifest(_) | Item::Space(_) | Item::Blob { .. } => {
                Err(not_awaited(task, "this file"))
            }
        }
    }

    pub(crate) fn space_checked(
        &mut self,
        task: &TaskId,
        enough: bool,
        detail: String,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { work, item: Item::Space(pack), tries } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a space check"));
        };
        if enough {
            self.fetch(task, work, Item::Blob { pack, index: 0 });
        } else if self.known(task).previous != Designation::Baseline {
            // What could be returned to gives way before an update fails for want of space.
            self.known(task).previous = Designation::Baseline;
            self.tidy();
            self.go_on(task);
        } else {
            let item = Item::Space(pack);
            self.defer(task, work, item, tries, ReasonCode::NoSpace, detail, None, now);
        }
        Ok(())
    }

    pub(crate) fn blob_stored(&mut self, task: &TaskId, digest: Digest, now: Now) -> Result<(), Ignored> {
        let Step::Fetching { mut work, item: Item::Blob { pack, index }, .. } =
            self.state(task)?.step.clone()
        else {
            return Err(not_awaited(task, "a blob"));
        };
        if pack.blobs.get(index).is_none_or(|blob| blob.digest != digest) {
            return Err(not_awaited(task, "this blob"));
        }
        if index + 1 < pack.blobs.len() {
            self.fetch(task, work, Item::Blob { pack, index: index + 1 });
        } else {
            work.staged.push(pack);
            self.next_part(task, work, now);
        }
        Ok(())
    }

    pub(crate) fn fetch_failed(
        &mut self,
        task: &TaskId,
        digest: Digest,
        fault: Fault,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Fetching { work, item, mut tries } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a fetch"));
        };
        if item.digest() != Some(digest) {
            return Err(not_awaited(task, "this fetch"));
        }
        match fault {
            Fault::Passing { reason, detail, retry_after_ms } => {
                self.defer(task, work, item, tries, reason, detail, retry_after_ms, now)
            }
            Fault::Wrong { reason, detail } => {
                tries.wrong += 1;
                if tries.wrong >= WRONG_MAX {
                    let release = work.awaited().unwrap_or(&work.goal.champion).release.clone();
                    self.forgo(task, work, &release, reason, detail, now);
                } else {
                    self.defer(task, work, item, tries, reason, detail, None, now);
                }
            }
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "all of it goes into the one step that waits")]
    fn defer(
        &mut self,
        task: &TaskId,
        work: Work,
        item: Item,
        tries: Tries,
        reason: ReasonCode,
        detail: String,
        asked_ms: Option<u64>,
        now: Now,
    ) {
        let wait_ms = self.backoff.wait_ms(tries.passing.saturating_add(tries.wrong), asked_ms);
        // The first wait of an item is news, the hundredth is not.
        if tries == Tries::default() || tries.wrong > 0 {
            self.report(task, &work.goal, Phase::Deferred, reason, detail, now);
        }
        let tries = Tries { passing: tries.passing.saturating_add(1), ..tries };
        self.known(task).step = Step::Deferred { work, item, tries, reason, wait_ms, since_ms: now.mono_ms };
    }
}
