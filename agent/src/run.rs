//! The main loop: one task that wires serving, updating, the link, the spool and the local API together.
//!
//! It decides nothing about models; it turns what the parts produce (windows, outcomes, refusals) into durable
//! records, and what comes in into orders for the updater.

mod agent;
mod control;
mod local;
mod report;

pub(crate) use control::LocalCommand;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_protocol::{BootId, ReasonCode};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::api::Api;
use crate::clock;
use crate::config::Settings;
use crate::identity::{Identity, IdentityError};
use crate::link::{MqttLink, Opener, Uplink, UplinkContext};
use crate::renew::keep_renewed;
use crate::sampler::Sampler;
use crate::serve::{Limits, Serving};
use crate::spool::{Found, Spool, SpoolError, draw_boot};
use crate::status::StatusBoard;
use crate::supervisor::{self, Supervisor};
use crate::update::UpdateDriver;
use agent::Agent;
use report::Reporter;

/// Orders, notices and news that wait: each comes from one task that waits when its queue is full.
const QUEUE: usize = 64;
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
            driver.heard(&header, boot).into_iter().for_each(clock::learn);
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

    // Another program that is heard of below, while this one ends because it was told to, is begun at the next start.
    let anew = agent.anew;
    tracing::info!(anew, "agent stops");
    // A manager that hears of an end would start another process in the place of this one, which goes on.
    supervisor.tell(if anew { supervisor::WATCHDOG } else { supervisor::STOPPING });
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
    let closed = agent.spool(Box::new(Spool::close)).await;
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
    if !anew || told_to_end(&mut signals).await {
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
