//! The main loop itself: what the parts tell becomes records, reports and orders.
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{Cmd, CmdBody, Indicator, Kind, ReasonCode, Reply, Samples, cbor};
use tokio::signal::unix::Signal;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until};

use super::control;
use super::report::Reporter;
use crate::clock;
use crate::link::{Inbound, News};
use crate::sampler::Sampler;
use crate::serve::{Reading, Serving};
use crate::spool::{BODY_BYTES_MAX, Spool, SpoolError};
use crate::status::StatusBoard;
use crate::supervisor::{self, Supervisor};
use crate::surroundings::{self, LOOK_EVERY};
use crate::update::{Notice, Order};

/// A change is reported after this pause, so that what happens together is reported together.
const SETTLE: Duration = Duration::from_millis(200);
/// Refusals are reported after this pause: a flood of forgeries must not become a flood of reports.
const SETTLE_INDICATORS: Duration = Duration::from_secs(5);
/// Records that wait in memory while the disk takes none.
const UNSPOOLED_MAX: usize = 256;
/// Commands that are remembered, far more than a controller gives within the life of one.
const COMMANDS_MAX: usize = 64;

/// The next beat of the watchdog's pulse; without a watchdog there is none.
async fn beat(pulse: &mut Option<Interval>) {
    match pulse {
        Some(pulse) => {
            pulse.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// What is done on the spool; boxed, so that the task that does it is compiled once.
type OnSpool = Box<dyn FnOnce(&Spool) -> Result<(), SpoolError> + Send>;

/// The main loop's state.
pub(super) struct Agent {
    pub(super) serving: Arc<Serving>,
    pub(super) spool: Arc<Spool>,
    pub(super) wake: Arc<Notify>,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) board: StatusBoard,
    pub(super) reporter: Reporter,
    /// Away while it measures on a blocking thread.
    pub(super) sampler: Option<Sampler>,
    pub(super) report_at: Instant,
    pub(super) report_every: Duration,
    /// Ids of the last commands; the controller gives one again until it has the reply.
    pub(super) commands: VecDeque<String>,
    pub(super) link_up: bool,
    /// Whether it stops for another program.
    pub(super) anew: bool,
    /// Records that the disk did not take; tried again with the next ones.
    pub(super) unspooled: VecDeque<(Kind, Vec<u8>)>,
}

impl Agent {
    /// Until a signal or the updater ends it.
    pub(super) async fn serve(
        &mut self,
        window: Duration,
        notices: &mut mpsc::Receiver<Notice>,
        news: &mut mpsc::Receiver<News>,
        [terminate, interrupt]: &mut [Signal; 2],
        supervisor: &Supervisor,
    ) {
        let mut windows = interval_at(Instant::now() + window, window);
        windows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // From this loop and no other task: one that stands still must not look alive.
        let mut pulse = supervisor.pulse().map(interval);
        loop {
            tokio::select! {
                () = beat(&mut pulse) => supervisor.tell(supervisor::WATCHDOG),
                _ = windows.tick() => self.close_windows().await,
                _ = looks.tick() => self.look_around().await,
                () = sleep_until(self.report_at) => self.report().await,
                Some(notice) = notices.recv() => {
                    self.notice(notice);
                    if self.anew {
                        return;
                    }
                }
                Some(news) = news.recv() => self.news(news).await,
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
            }
        }
    }

    fn report_within(&mut self, pause: Duration) {
        self.report_at = self.report_at.min(Instant::now() + pause);
    }

    pub(super) fn indicate(&mut self, reason: ReasonCode, detail: String, count: u64) {
        self.reporter.indicate(Indicator { reason, detail, count, at_ms: clock::now().wall_ms });
        self.report_within(SETTLE_INDICATORS);
    }

    pub(super) fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Outcome(outcome) => {
                self.reporter.outcome(outcome);
                self.report_within(SETTLE);
            }
            Notice::Indicator(indicator) => {
                self.reporter.indicate(indicator);
                self.report_within(SETTLE_INDICATORS);
            }
            Notice::Installed(installed, generation) => {
                self.reporter.installed(generation, installed);
                let (generation, installed) = (self.reporter.generation(), self.reporter.view().clone());
                self.board.update(|status| {
                    status.generation = generation;
                    status.installed = installed;
                });
                self.report_within(SETTLE);
            }
            Notice::StartAnew => self.anew = true,
        }
    }

    async fn news(&mut self, news: News) {
        match news {
            News::Up { epoch } => {
                self.link_up = true;
                self.board.update(|status| {
                    status.link.up = true;
                    status.link.epoch = epoch;
                    status.link.detail.clear();
                });
                // What changed while there was no link is asked for, not waited for.
                self.order(Order::Check).await;
            }
            News::Down { detail } => {
                self.link_up = false;
                self.board.update(|status| {
                    status.link.up = false;
                    status.link.detail = detail;
                });
            }
            News::Refused(refusal) => self.indicate(refusal.reason, refusal.detail, 1),
            News::Order(Inbound::Notice) => self.order(Order::Check).await,
            News::Order(Inbound::Desired(desired)) => match desired.files {
                Some(files) => self.order(Order::Files { files, via: "mqtt" }).await,
                None => self.order(Order::Check).await,
            },
            News::Order(Inbound::Cmd(cmd)) => self.command(cmd).await,
            News::Order(Inbound::Ack(_)) => tracing::debug!("acknowledgements end in the uplink"),
        }
    }

    async fn order(&self, order: Order) {
        if self.orders.send(order).await.is_err() {
            tracing::error!("the updater has ended");
        }
    }

    async fn command(&mut self, cmd: Cmd) {
        if self.commands.contains(&cmd.id) {
            tracing::info!(id = %cmd.id, "this command was carried out; its reply is on its way");
            return;
        }
        if self.commands.len() == COMMANDS_MAX {
            self.commands.pop_front();
        }
        self.commands.push_back(cmd.id.clone());
        tracing::info!(id = %cmd.id, command = ?cmd.cmd, "command");
        if cmd.cmd == CmdBody::Report {
            self.reporter.want_profile();
            self.report_within(SETTLE);
        }
        let reason = control::carry_out(cmd.cmd, &self.orders).await;
        self.reply(cmd.id, reason).await;
    }

    async fn reply(&mut self, id: String, reason: ReasonCode) {
        let body = cbor::encode(&Reply { id, reason, detail: String::new() });
        self.keep(vec![(Kind::Reply, body)]).await;
    }

    pub(super) async fn close_windows(&mut self) {
        let Some(mut sampler) = self.sampler.take() else { return };
        let measured = tokio::task::spawn_blocking(move || {
            let usage = sampler.sample();
            (sampler, usage)
        });
        let (sampler, usage) = measured.await.expect("reading system counters does not panic");
        self.sampler = Some(sampler);
        let windows = self.serving.close_windows(clock::now(), &usage);
        let mut records: Vec<_> = windows.iter().map(|window| (Kind::Window, cbor::encode(window))).collect();
        for samples in self.serving.take_samples() {
            encode_samples(samples, &mut records);
        }
        self.take_indicators();
        self.keep(records).await;
    }

    fn take_indicators(&mut self) {
        for indicator in self.serving.take_indicators() {
            self.reporter.indicate(indicator);
            self.report_within(SETTLE_INDICATORS);
        }
    }

    /// Tells the line-ups where the device stands, if any of them goes by it.
    async fn look_around(&mut self) {
        if self.serving.wants_reading() {
            let read = tokio::task::spawn_blocking(|| surroundings::read(Path::new("/"))).await;
            let reading = read.expect("reading small files does not panic");
            self.serving.surrounded(Reading { link_up: Some(self.link_up), ..reading }, clock::now());
        }
        self.take_indicators();
    }

    pub(super) async fn report(&mut self) {
        self.report_at = Instant::now() + self.report_every;
        let windows_closed = self.spool.counters().boot(&self.spool.boot()).map_or(0, |boot| boot.windows);
        let reports = self.reporter.reports(windows_closed);
        let records: Vec<_> = reports.iter().map(|report| (Kind::Report, cbor::encode(report))).collect();
        // Reports go in a commit of their own, so that a full queue of windows never holds one back.
        let quiet = self.reporter.are_quiet(&records);
        let kept = if quiet { self.append_quiet(records).await } else { self.append(records).await };
        match kept {
            Ok(()) if quiet => {}
            Ok(()) => self.reporter.kept(reports),
            Err(error) => tracing::error!(%error, "could not keep a report"),
        }
    }

    /// Makes records durable, with those that the disk did not take before.
    async fn keep(&mut self, records: Vec<(Kind, Vec<u8>)>) {
        let mut all: Vec<_> = self.unspooled.drain(..).collect();
        for record in records {
            if record.1.len() > BODY_BYTES_MAX {
                self.indicate(
                    ReasonCode::TooLarge,
                    format!("a {:?} of {} bytes", record.0, record.1.len()),
                    1,
                );
            } else {
                all.push(record);
            }
        }
        if all.is_empty() {
            return;
        }
        let appended = self.append(all.clone()).await;
        if appended.is_ok() {
            let windows = all.iter().filter(|(kind, _)| *kind == Kind::Window);
            windows.for_each(|(_, body)| self.reporter.window(body));
        }
        if let Err(error) = appended {
            tracing::error!(%error, records = all.len(), "could not keep records");
            let reason = match &error {
                SpoolError::DiskFull(_) => ReasonCode::DiskFull,
                SpoolError::TooLarge(_) | SpoolError::Database { .. } | SpoolError::Folder { .. } => {
                    ReasonCode::SpoolDamaged
                }
            };
            self.indicate(reason, error.to_string(), 1);
            let surplus = all.len().saturating_sub(UNSPOOLED_MAX);
            if surplus > 0 {
                self.indicate(
                    ReasonCode::SpoolEvicted,
                    "records that the disk did not take".to_owned(),
                    surplus as u64,
                );
            }
            self.unspooled = all.into_iter().skip(surplus).collect();
        }
    }

    async fn append(&self, records: Vec<(Kind, Vec<u8>)>) -> Result<(), SpoolError> {
        self.spool(Box::new(move |spool| spool.append_all(&records).map(|_| ()))).await
    }

    async fn append_quiet(&self, reports: Vec<(Kind, Vec<u8>)>) -> Result<(), SpoolError> {
        let now_ms = clock::now().mono_ms;
        let next = self.report_at.saturating_duration_since(Instant::now());
        let next_ms = now_ms.saturating_add(u64::try_from(next.as_millis()).unwrap_or(u64::MAX));
        let keep = move |spool: &Spool| {
            reports
                .into_iter()
                .try_for_each(|(_, body)| spool.append_quiet(body, now_ms, next_ms).map(|_| ()))
        };
        self.spool(Box::new(keep)).await
    }

    /// Runs `f` on the spool off this thread, as it waits for the disk, and has what it kept sent.
    pub(super) async fn spool(&self, f: OnSpool) -> Result<(), SpoolError> {
        let spool = self.spool.clone();
        let done = tokio::task::spawn_blocking(move || f(&spool)).await;
        done.expect("the spool returns errors and does not panic")?;
        self.wake.notify_one();
        Ok(())
    }
}

/// Encodes samples, halving what would not fit a payload.
fn encode_samples(mut samples: Samples, records: &mut Vec<(Kind, Vec<u8>)>) {
    let body = cbor::encode(&samples);
    if body.len() <= BODY_BYTES_MAX || samples.samples.len() < 2 {
        records.push((Kind::Samples, body));
        return;
    }
    let second = samples.samples.split_off(samples.samples.len() / 2);
    let second = Samples { task: samples.task.clone(), release: samples.release.clone(), samples: second };
    encode_samples(samples, records);
    encode_samples(second, records);
}
