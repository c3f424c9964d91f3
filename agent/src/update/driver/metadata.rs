//! Metadata: when it is asked for, and what becomes of it.
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use dunlin_protocol::{Check, Outcome, Phase, ReasonCode};
use dunlin_update::Event;
use tokio::time::Instant;

use super::super::at_disk;
use super::super::fetch::{FetchError, Fetcher, chain};
use super::{Driver, Notice};
use crate::clock;

/// A clock that lies this much behind is told; less is the jitter of clocks that are being set.
const CLOCK_BEHIND_MS: u64 = 60_000;

impl Driver {
    pub(super) fn check(&mut self) {
        self.check_at = Instant::now() + self.config.check;
        let (device, (image, director), roles) = {
            let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
            (trusted.device().clone(), trusted.versions(), trusted.held_roles())
        };
        let fetcher = self.fetcher.clone();
        self.checking.spawn(async move { fetcher.check(&device, image, director, &roles).await });
    }

    pub(super) async fn checked(&mut self, answer: Result<Check, FetchError>) {
        match answer {
            Ok(files) => {
                self.failed_checks = 0;
                self.untrusted_told = false;
                self.judge(files).await;
            }
            Err(error) => {
                tracing::debug!(error = %chain(&error), "a check got no answer");
                let told_before = self.untrusted_told;
                self.untrusted_told = match &error {
                    FetchError::Untrusted { .. } => true,
                    // What is wrong came from the controller itself.
                    FetchError::Status { .. } | FetchError::Endless { .. } | FetchError::Answer { .. } => {
                        false
                    }
                    FetchError::Link { .. }
                    | FetchError::Slow { .. }
                    | FetchError::Thread(_)
                    | FetchError::Panicked
                    | FetchError::Store(_) => told_before,
                };
                let untrusted = matches!(error, FetchError::Untrusted { .. });
                if error.is_suspicious() && !(untrusted && told_before) {
                    self.indicate(error.reason(), chain(&error));
                }
                self.tell_stale();
                let factor = 1u32.checked_shl(self.failed_checks.min(16)).unwrap_or(u32::MAX);
                self.failed_checks = self.failed_checks.saturating_add(1);
                let pause = self.config.retry_min.saturating_mul(factor).min(self.config.retry_max);
                self.check_at = self.check_at.min(Instant::now() + pause);
            }
        }
    }

    /// Tells once that all that is held has expired, so that a device from which everything is kept away is not silent about it.
    fn tell_stale(&mut self) {
        let expired = {
            let trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
            trusted.expired_ms(clock::now())
        };
        if let Some(ms) = expired.filter(|_| !self.stale_told) {
            let detail = format!("no check is answered, and what is held expired {ms} ms ago");
            self.indicate(ReasonCode::MetadataExpired, detail);
            self.stale_told = true;
        }
    }

    /// Takes metadata from a medium through the same checks as any, and its files as they are asked for.
    pub(super) async fn install(&mut self, folder: PathBuf) -> ReasonCode {
        let device = self.trusted.lock().unwrap_or_else(PoisonError::into_inner).device().clone();
        match at_disk(|| Fetcher::check_on(&folder, &device)) {
            Ok(files) => {
                self.fetcher.look_on(folder);
                self.judge(files).await
            }
            Err(error) => {
                self.indicate(ReasonCode::FetchFailed, chain(&error));
                ReasonCode::FetchFailed
            }
        }
    }

    /// The one way in for metadata, fetched, pushed or carried.
    pub(super) async fn judge(&mut self, files: Check) -> ReasonCode {
        let now = clock::now();
        let behind_ms = self.trusted.lock().unwrap_or_else(PoisonError::into_inner).clock_behind_ms(now);
        if behind_ms > CLOCK_BEHIND_MS && !self.clock_told {
            let detail =
                format!("the clock lies {behind_ms} ms before a time that was verified; that time is taken");
            self.indicate(ReasonCode::ClockStepped, detail);
        }
        self.clock_told = behind_ms > CLOCK_BEHIND_MS;
        let judged =
            at_disk(|| self.trusted.lock().unwrap_or_else(PoisonError::into_inner).accept(&files, now));
        match judged {
            Ok(Ok(())) => {
                self.stale_told = false;
                self.approve().await
            }
            Ok(Err(refused)) => {
                let reason = refused.reason();
                self.indicate(reason, chain(&refused));
                reason
            }
            Err(error) => {
                self.indicate(ReasonCode::DiskFull, chain(&error));
                ReasonCode::DiskFull
            }
        }
    }

    pub(super) async fn approve(&mut self) -> ReasonCode {
        let (judged, floors) = {
            let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
            let judged = trusted.approve();
            (judged, trusted.floors().releases.clone())
        };
        self.tell(Event::FloorsRaised(floors)).await;
        match judged {
            Ok(Ok(approved)) => {
                self.refused = None;
                let generation = approved.assignment.generation;
                if self.inhibit() {
                    if generation > self.updater.generation() {
                        let detail = "an inhibit file holds updates back".to_owned();
                        self.refuse(
                            generation,
                            approved.assignment.correlation.clone(),
                            Phase::Deferred,
                            ReasonCode::Inhibited,
                            detail,
                        );
                    }
                    return ReasonCode::Inhibited;
                }
                self.tell(Event::AssignmentApproved(Box::new(approved))).await;
                ReasonCode::Ok
            }
            Ok(Err(refused)) => {
                let (reason, detail) = (refused.reason(), chain(&refused));
                if self.refused.as_ref() != Some(&(reason, detail.clone())) {
                    self.indicate(reason, detail.clone());
                }
                self.refuse(self.updater.generation(), String::new(), Phase::Rejected, reason, detail);
                reason
            }
            Err(error) => {
                self.indicate(ReasonCode::DiskFull, chain(&error));
                ReasonCode::DiskFull
            }
        }
    }

    /// Tells once that a whole assignment is not taken up.
    fn refuse(
        &mut self,
        generation: u64,
        correlation: String,
        phase: Phase,
        reason: ReasonCode,
        detail: String,
    ) {
        let told = Some((reason, detail.clone()));
        if self.refused == told {
            return;
        }
        self.refused = told;
        let at_ms = clock::now().wall_ms;
        self.notice(Notice::Outcome(Outcome {
            generation,
            task: None,
            release: None,
            correlation,
            phase,
            reason,
            detail,
            at_ms,
        }));
    }

    pub(super) fn inhibit(&mut self) -> bool {
        self.inhibited = self.config.inhibit_file.as_deref().is_some_and(Path::exists);
        self.inhibited
    }
}
