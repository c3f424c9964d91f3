//! From files on the disk to a release that may serve.
use alloc::format;
use alloc::string::{String, ToString};

use dunlin_protocol::{Blob, Digest, Now, Phase, ReasonCode, ReleaseId, TaskId};

use super::not_awaited;
use crate::checks::{passes, terms};
use crate::{Ignored, Line, Pack, Proof, Step, Strikes, Updater, WRONG_MAX, Work};

impl Updater {
    pub(crate) fn staged_verified(&mut self, task: &TaskId, files: &[Blob], now: Now) -> Result<(), Ignored> {
        let Step::Verifying { work } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a verification"));
        };
        if !work.staged.iter().flat_map(Pack::files).eq(files.iter().copied()) {
            return Err(not_awaited(task, "a verification of these files"));
        }
        self.report(task, &work.goal, Phase::Staged, ReasonCode::Ok, String::new(), now);
        self.report(task, &work.goal, Phase::Proving, ReasonCode::Ok, String::new(), now);
        self.prove_next(task, work, now);
        Ok(())
    }

    pub(crate) fn staged_damaged(&mut self, task: &TaskId, digest: Digest, now: Now) -> Result<(), Ignored> {
        let Step::Verifying { mut work } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a verification"));
        };
        if !work.staged.iter().flat_map(Pack::files).any(|file| file.digest == digest) {
            return Err(not_awaited(task, "word of this file"));
        }
        work.damaged += 1;
        if work.damaged >= WRONG_MAX {
            let detail = format!("{digest} reads back damaged again and again; is the disk failing?");
            self.settle(task, work.goal, Phase::Failed, ReasonCode::DigestMismatch, detail, now);
        } else {
            work.staged.clear();
            self.next_part(task, work, now);
        }
        Ok(())
    }

    /// Proves the next release, or switches when all are. The proof of a release that serves already stands.
    pub(super) fn prove_next(&mut self, task: &TaskId, work: Work, now: Now) {
        let mut work = work;
        if let (Some(pack), Some(line)) = (work.staged.get(work.proofs.len()), self.designation(task).line())
            && pack.manifest == line.champion.manifest
            && (!pack.retrained || line.keeps_to(work.goal.policy_digest()))
            && work.proofs.is_empty()
        {
            work.proofs.push(line.proof);
        }
        if work.proofs.len() < work.staged.len() {
            self.known(task).step = Step::Proving { work, strikes: Strikes::default() };
            self.go_on(task);
            return;
        }
        let Work { goal, staged, proofs, .. } = work;
        let mut staged = staged.into_iter();
        let (Some(champion), Some(proof)) = (staged.next(), proofs.first().copied()) else {
            let detail = "nothing was staged".to_string();
            self.settle(task, goal, Phase::Failed, ReasonCode::ManifestMalformed, detail, now);
            return;
        };
        let (generation, policy) = (goal.generation, goal.policy_digest());
        let fallback = goal.fallback.as_ref().and_then(|_| staged.next());
        let members = goal.members.iter().map(|(member, _)| member.clone()).zip(staged).collect();
        let conduct = goal.conduct.clone();
        let line = Line { generation, champion, fallback, members, conduct, proof, policy };
        self.known(task).step = Step::Switching { goal, line, strikes: Strikes::default() };
        self.go_on(task);
    }

    pub(crate) fn proved(
        &mut self,
        task: &TaskId,
        manifest: Digest,
        proof: Proof,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Proving { mut work, .. } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a proof"));
        };
        let next = work.proofs.len();
        let (Some(part), Some(pack)) = (
            work.goal.parts().nth(next),
            work.staged.get(next).filter(|pack| pack.manifest.digest == manifest),
        ) else {
            return Err(not_awaited(task, "this proof"));
        };
        match passes(&terms(part, work.bounds.as_ref(), &self.budgets), &proof) {
            Ok(()) => {
                work.proofs.push(proof);
                self.prove_next(task, work, now);
            }
            Err((reason, detail)) => {
                let release = pack.release.clone();
                self.failed_proof(task, work, &release, reason, detail, now);
            }
        }
        Ok(())
    }

    pub(super) fn failed_proof(
        &mut self,
        task: &TaskId,
        work: Work,
        release: &ReleaseId,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) {
        if let Some(work) = self.blame(task, work, release, reason, detail, now) {
            self.prove_next(task, work, now);
        }
    }

    pub(crate) fn proof_failed(
        &mut self,
        task: &TaskId,
        manifest: Digest,
        reason: ReasonCode,
        detail: String,
        now: Now,
    ) -> Result<(), Ignored> {
        let Step::Proving { work, .. } = self.state(task)?.step.clone() else {
            return Err(not_awaited(task, "a proof"));
        };
        let Some(pack) = work.staged.get(work.proofs.len()).filter(|pack| pack.manifest.digest == manifest)
        else {
            return Err(not_awaited(task, "this proof"));
        };
        let release = pack.release.clone();
        self.failed_proof(task, work, &release, reason, detail, now);
        Ok(())
    }
}
