//! The main loop: one task that wires serving, updating, the link, the spool and the local API together.
//!
//! It decides nothing about models; it turns what the parts produce (windows, outcomes, refusals) into durable
//! records, and what comes in into orders for the updater.

mod control;
mod local;
mod report;

pub(crate) use control::LocalCommand;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{BootId, Cmd, CmdBody, Indicator, Kind, ReasonCode, Reply, Samples, cbor};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at, sleep_until, timeout};

use crate::api::Api;
use crate::clock;
use crate::config::Settings;
use crate::identity::{Identity, IdentityError};
use crate::link::{Inbound, MqttLink, News, Opener, Uplink, UplinkContext};
use crate::renew::keep_renewed;
use crate::sampler::Sampler;
use crate::serve::{Limits, Reading, Serving};
use crate::spool::{BODY_BYTES_MAX, Found, Spool, SpoolError, draw_boot};
use crate::status::StatusBoard;
use crate::supervisor::{self, Supervisor};
use crate::surroundings::{self, LOOK_EVERY};
use crate::update::{Notice, Order, UpdateDriver};
use report::Reporter;

/// Orders, notices and news that wait: each comes from one task that waits when its queue is full.
const QUEUE: usize = 64;
/// A change is reported after this pause, so that what happens together is reported together.
const SETTLE: Duration = Duration::from_millis(200);
/// Refusals are reported after this pause: a flood of forgeries must not become a flood of reports.
const SETTLE_INDICATORS: Duration = Duration::from_secs(5);
/// Records that wait in memory while the disk takes none.
const UNSPOOLED_MAX: usize = 256;
/// Commands that are remembered, far more than a controller gives within the life of one.
const COMMANDS_MAX: usize = 64;
/// Longest wait for the parts to end at shutdown.
const END: Duration = Duration::from_secs(8);

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No usable identity.
    #[error("could not load the device's identity")]
    Identity(#[from] IdentityError),
    /// No usable spool; most likely another agent runs.
    #[error("could not open the spool; is another agent running?")]
    Spool(#[from] SpoolError),
    /// A folder or file could not be made.
    #[error("could not write {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The local API's address is taken or not ours.
    #[error("could not listen on {0}")]
    Listen(std::net::SocketAddr, #[source] std::io::Error),
    /// The local API's Unix socket can not be made.
    #[error("could not listen on {0}")]
    Socket(PathBuf, #[source] std::io::Error),
    /// A token of the local API can not be read.
    #[error("could not read the token in {0}")]
    Token(PathBuf, #[source] std::io::Error),
    /// The updater could not start.
    #[error("could not start the updater")]
    Update(#[from] crate::update::UpdateError),
    /// Signals can not be caught.
    #[error("could not catch signals")]
    Signals(#[source] std::io::Error),
}

/// How long the spool may be held by somebody else: a child that an agent was starting when it was killed holds its files
/// until it has begun.
const SPOOL_HELD: Duration = Duration::from_secs(5);
/// Time between two tries.
const SPOOL_RETRY: Duration = Duration::from_millis(50);

async fn open_spool(settings: &Settings, boot: BootId) -> Result<Spool, SpoolError> {
    let deadline = Instant::now() + SPOOL_HELD;
    loop {
        match Spool::open(&settings.spool_dir(), Some(settings.given_file()), settings.spool.bytes_max, boot)
        {
            Err(error) if error.is_held() && Instant::now() < deadline => {
                tokio::time::sleep(SPOOL_RETRY).await;
            }
            done => return done,
        }
    }
}

/// Runs the agent until it is told to stop. True if it stopped for another program, and is to be started anew.
pub async fn run(settings: Settings) -> Result<bool, RunError> {
    settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    // Before it can be seen to run: who sees that may tell it to end.
    let catch = |kind| signal(kind).map_err(RunError::Signals);
    let mut signals = [catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?];
    let supervisor = Supervisor::from_env();
    for dir in [&settings.state_dir, &settings.run_dir] {
        std::fs::create_dir_all(dir).map_err(|source| RunError::Folder { path: dir.clone(), source })?;
    }
    let (identity, damaged) = Identity::take_up(&settings.identity_dir())?;
    let boot = draw_boot();
    let spool = Arc::new(open_spool(&settings, boot).await?);
    write_file(&settings.pid_file(), &std::process::id().to_string())?;
    tracing::info!(device = %identity.device(), %boot, agent = crate::VERSION, "agent starts");

    let limits = Limits { run_max: settings.api.run_max, ..Limits::default() };
    let serving = Serving::with(limits, settings.serving.clone());
    let board = StatusBoard::new(&settings, spool.clone());
    let (orders, orders_in) = mpsc::channel(QUEUE);
    let (notices_out, mut notices) = mpsc::channel(QUEUE);
    let driver = UpdateDriver::start(&settings, &identity, serving.clone(), orders_in, notices_out).await?;

    let (stop, stopped) = watch::channel(false);
    let shown = board.clone();
    let extra =
        move |method: &str, path: &str| (method == "GET" && path == "/dunlin/status").then(|| shown.json());
    let api = Api::new(serving.clone(), Arc::new(clock::now), settings.api.limits)
        .with_extra(Arc::new(extra))
        .with_loader(control::loader(orders.clone()))
        .with_access(local::access(&settings.api)?);
    let doors = local::open(&settings, &api, &stopped).await?;
    let socket = settings.socket_file();
    let control =
        control::bind(&socket).map_err(|source| RunError::Folder { path: socket.clone(), source })?;
    let control = tokio::spawn(control::serve(control, orders.clone()));
    let wake = Arc::new(Notify::new());
    let (news_out, mut news) = mpsc::channel(QUEUE);
    let open: Opener = {
        let driver = driver.clone();
        Arc::new(move |envelope| {
            let header = driver.open_down(envelope, clock::now())?;
            driver.time_hint(&header, boot).into_iter().for_each(clock::learn);
            driver.note_reached(&header, boot);
            Ok(header)
        })
    };
    let context = UplinkContext {
        device: identity.device().clone(),
        signer: identity.signer.clone(),
        open,
        spool: spool.clone(),
        wake: wake.clone(),
        news: news_out,
        stop: stopped.clone(),
    };
    let renewal = tokio::spawn(keep_renewed(identity.clone(), settings.identity_dir(), stopped.clone()));
    let uplink = tokio::spawn(Uplink::new(MqttLink::new(identity, settings.mqtt.clone()), context).run());

    let mut agent = Agent {
        sampler: Some(Sampler::new(&settings.state_dir)),
        reporter: Reporter::new(settings.device.clone()),
        report_at: Instant::now(),
        commands: VecDeque::new(),
        unspooled: VecDeque::new(),
        serving,
        spool,
        wake,
        orders,
        board,
        report_every: settings.telemetry.report,
        link_up: false,
        anew: false,
    };
    if let Found::Damaged(aside) = agent.spool.found() {
        let detail = format!("the damaged file is {}", aside.display());
        agent.indicate(ReasonCode::SpoolDamaged, detail, 1);
    }
    if !damaged.is_empty() {
        let detail = format!("written anew from the other copy: {} of the identity", damaged.join(", "));
        agent.indicate(ReasonCode::StateRecovered, detail, 1);
    }
    supervisor.tell(supervisor::READY);
    agent.serve(settings.telemetry.window, &mut notices, &mut news, &mut signals, &supervisor).await;

    tracing::info!(anew = agent.anew, "agent stops");
    // A manager that hears of an end would start another process in the place of this one, which goes on.
    supervisor.tell(if agent.anew { supervisor::WATCHDOG } else { supervisor::STOPPING });
    driver.stop().await;
    while let Ok(notice) = notices.try_recv() {
        agent.notice(notice);
    }
    agent.close_windows().await;
    agent.report().await;
    if stop.send(true).is_err() {
        tracing::debug!("all parts have ended already");
    }
    // The uplink drains the spool and says goodbye; its news are taken so that it never waits for this loop.
    let parts = async {
        while news.recv().await.is_some() {}
        for part in doors.into_iter().chain([uplink, renewal]) {
            if let Err(error) = part.await {
                tracing::error!(%error, "a part of the agent ended badly");
            }
        }
    };
    if timeout(END, parts).await.is_err() {
        tracing::warn!("not all parts ended in time");
    }
    let closed = agent.spool(Spool::close).await;
    if let Err(error) = &closed {
        tracing::error!(%error, "what waited in memory for the spool is lost");
    }
    control.abort();
    let given = closed.is_ok().then(|| settings.given_file());
    for file in local::files(&settings).into_iter().chain([settings.pid_file(), socket]).chain(given) {
        if let Err(error) = std::fs::remove_file(&file) {
            tracing::debug!(%error, file = %file.display(), "could not remove a file");
        }
    }
    if !agent.anew || told_to_end(&mut signals).await {
        return Ok(false);
    }
    // The start that follows has the manager's whole patience.
    supervisor.tell(supervisor::WATCHDOG);
    Ok(true)
}

/// Whether a signal came that nobody waited for.
async fn told_to_end([terminate, interrupt]: &mut [Signal; 2]) -> bool {
    tokio::select! {
        biased;
        _ = terminate.recv() => true,
        _ = interrupt.recv() => true,
        () = std::future::ready(()) => false,
    }
}

fn write_file(path: &Path, text: &str) -> Result<(), RunError> {
    let scratch = path.with_extension("new");
    let write = || std::fs::write(&scratch, text).and_then(|()| std::fs::rename(&scratch, path));
    write().map_err(|source| RunError::Folder { path: path.to_path_buf(), source })
}

/// Done when the agent stops.
async fn until(mut stopped: watch::Receiver<bool>) {
    if stopped.wait_for(|stop| *stop).await.is_err() {
        tracing::debug!("the main loop has ended");
    }
}

/// The next beat of the watchdog's pulse; without a watchdog there is none.
async fn beat(pulse: &mut Option<Interval>) {
    match pulse {
        Some(pulse) => {
            pulse.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// The main loop's state.
struct Agent {
    serving: Arc<Serving>,
    spool: Arc<Spool>,
    wake: Arc<Notify>,
    orders: mpsc::Sender<Order>,
    board: StatusBoard,
    reporter: Reporter,
    /// Away while it measures on a blocking thread.
    sampler: Option<Sampler>,
    report_at: Instant,
    report_every: Duration,
    /// Ids of the last commands; the controller gives one again until it has the reply.
    commands: VecDeque<String>,
    link_up: bool,
    /// Whether it stops for another program.
    anew: bool,
    /// Records that the disk did not take; tried again with the next ones.
    unspooled: VecDeque<(Kind, Vec<u8>)>,
}

impl Agent {
    async fn serve(
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

    fn indicate(&mut self, reason: ReasonCode, detail: String, count: u64) {
        self.reporter.indicate(Indicator { reason, detail, count, at_ms: clock::now().wall_ms });
        self.report_within(SETTLE_INDICATORS);
    }

    fn notice(&mut self, notice: Notice) {
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

    async fn close_windows(&mut self) {
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

    async fn report(&mut self) {
        self.report_at = Instant::now() + self.report_every;
        let windows_closed = self.spool.counters().boot(&self.spool.boot()).map_or(0, |boot| boot.windows);
        let reports = self.reporter.reports(windows_closed);
        let records: Vec<_> = reports.iter().map(|report| (Kind::Report, cbor::encode(report))).collect();
        // Reports go in a commit of their own, so that a full queue of windows never holds one back.
        let kept = if self.reporter.are_quiet(&reports) {
            self.append_quiet(records).await
        } else {
            self.append(records).await
        };
        match kept {
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
        self.spool(move |spool| spool.append_all(&records).map(|_| ())).await
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
        self.spool(keep).await
    }

    /// Runs `f` on the spool off this thread, as it waits for the disk, and has what it kept sent.
    async fn spool(
        &self,
        f: impl FnOnce(&Spool) -> Result<(), SpoolError> + Send + 'static,
    ) -> Result<(), SpoolError> {
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
