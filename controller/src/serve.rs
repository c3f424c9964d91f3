//! `dunlin serve`: broker, ingest, API, planner and training supervisor in one process.
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_trust::{RepoKind, Signer, TrustError};
use rustls::RootCertStore;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::api::{self, AppState, Wake};
use crate::audit::Audit;
use crate::broker::link::{self, ChallengeAnswer, Proof};
use crate::broker::lists::{self, Lists};
use crate::broker::{Broker, BrokerError, Running, public_host};
use crate::clock;
use crate::config::{Config, ConfigError};
use crate::downlink::Downlink;
use crate::evidence::Ledgers;
use crate::identity::{self, CONTROLLER, Endpoints, Identity, IdentityError};
use crate::ingest::{self, Ingest};
use crate::init::DATABASE;
use crate::keys::{self, KeyError};
use crate::metrics::Metrics;
use crate::registry::{Registry, RegistryError};
use crate::repo::{RepoError, Repos};
use crate::store::{Store, StoreError};
use crate::tls::{self, TlsError};
use crate::{damage, planner, retention, training};

/// How long a loop may take to end after it was asked to.
const STOP: Duration = Duration::from_secs(10);
/// Longest pause between two looks at what must be signed anew.
const REFRESH_MAX: Duration = Duration::from_secs(3600);
/// Shortest pause, so that a failure does not spin.
const REFRESH_MIN: Duration = Duration::from_secs(5);

/// Why the controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A key that may approve models lies in the data folder.
    #[error("refusing to start: {0}")]
    Guard(#[source] KeyError),
    /// The repositories.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The models.
    #[error("could not open the models of the data folder")]
    Registry(#[source] RegistryError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The clock stands before what this controller signed.
    #[error(transparent)]
    Clock(#[from] clock::ClockError),
    /// Certificates.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS towards the broker.
    #[error("could not set up TLS towards the broker")]
    BrokerTls(#[source] rustls::Error),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The API's address is taken, or not ours.
    #[error("could not listen on {listen} for the API; is another controller running?")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The addresses can not be written down.
    #[error("could not write {path}")]
    Run {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Tells every loop of the process to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Pulls the lever.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl Shutdown {
    /// A lever and what it moves.
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Returns when the process is to end.
    pub async fn requested(&mut self) {
        // A lost lever means that the process is ending.
        drop(self.0.wait_for(|requested| *requested).await);
    }

    /// Whether the process is to end.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

impl ShutdownTrigger {
    /// Asks every loop to end.
    pub fn pull(&self) {
        self.0.send_replace(true);
    }
}

/// Signs messages to devices with the director's timestamp key.
#[derive(Debug)]
struct DownSigner(Arc<Repos>);

impl Signer for DownSigner {
    fn key_id(&self) -> &str {
        self.0.down_signer().key_id()
    }

    fn public(&self) -> &[u8] {
        self.0.down_signer().public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        self.0.down_signer().sign(message)
    }
}

/// A controller that runs.
#[derive(Debug)]
pub struct Controller {
    /// What its handlers share.
    pub state: AppState,
    /// Address of the API.
    pub api: SocketAddr,
    /// Address of the embedded broker; none if another one is used.
    pub mqtt: Option<SocketAddr>,
    connected: watch::Receiver<bool>,
    run: PathBuf,
    trigger: ShutdownTrigger,
    loops: Vec<(&'static str, JoinHandle<()>)>,
    ingest: JoinHandle<()>,
    broker: Running,
}

impl Controller {
    /// Starts on a data folder.
    pub async fn start(data: &Path) -> Result<Self, ServeError> {
        Self::start_at(data, false).await
    }

    /// The same; with `clock_is_right` also where the clock stands before what was signed.
    pub async fn start_at(data: &Path, clock_is_right: bool) -> Result<Self, ServeError> {
        let config = Arc::new(Config::load(data)?);
        keys::guard(data).map_err(ServeError::Guard)?;
        let repos = Arc::new(Repos::open(data)?);
        repos.pin(RepoKind::Image)?;
        repos.pin(RepoKind::Director)?;
        let identity = Arc::new(Identity::open(data)?);
        let store = Store::open(&data.join(DATABASE)).await?;
        clock::check(&store, &repos, clock_is_right).await?;
        store.certificates_catch_up().await?;
        let audit = Audit::open(store.clone(), data, &identity)?;
        if let Some(broken) = audit.settle().await? {
            tracing::error!(%broken, "the audit log does not fit its head");
            let facts = serde_json::json!({ "kept": "audit.head.kept" });
            let detail = format!("{broken}; compare with your backups and with heads kept elsewhere");
            store.alert_raise("audit_broken", "audit", &detail, &facts, clock::wall_ms()).await?;
        }
        let registry = Registry::open(data, store.clone(), Arc::clone(&repos), audit.clone())
            .map_err(ServeError::Registry)?;
        registry.settle(clock::wall_ms()).await.map_err(ServeError::Registry)?;
        let registry = Arc::new(registry);
        let metrics = Arc::new(Metrics::new());
        let wake = Wake::default();

        let listen = config.api.listen;
        let listener =
            TcpListener::bind(listen).await.map_err(|source| ServeError::Listen { listen, source })?;
        let api = listener.local_addr().map_err(|source| ServeError::Listen { listen, source })?;
        let (broker, handle) = Broker::open(&config.mqtt, &identity, &store).await?;
        let mqtt = broker.address();
        let endpoints = endpoints(&config, api, broker.port());
        identity.set_endpoints(endpoints.clone());

        let options = link_options(&config, &identity, &endpoints)?;
        let broker = broker.run();
        let (client, events) = link::client(options);
        let signer: Arc<dyn Signer + Send + Sync> = Arc::new(DownSigner(Arc::clone(&repos)));
        let downlink = Downlink::new(client.clone(), signer, store.clone(), Arc::clone(&metrics));
        let (trigger, shutdown) = Shutdown::new();
        let (messages, incoming) = mpsc::channel(ingest::QUEUE_MAX);
        let (connected_tx, connected) = watch::channel(false);

        let ingest = Ingest {
            store: store.clone(),
            downlink: downlink.clone(),
            metrics: Arc::clone(&metrics),
            wake: wake.clone(),
            config: config.ingest.clone(),
        };
        let state = AppState {
            limits: Arc::new(api::limit::Limits::new(&config.limits)),
            data: data.into(),
            audit,
            store,
            repos: Arc::clone(&repos),
            registry,
            config,
            ledgers: Ledgers::default(),
            identity: Arc::clone(&identity),
            metrics,
            wake,
            downlink,
            broker: handle,
        };
        let mut loops = Vec::new();
        let ingest = tokio::spawn(ingest.run(incoming));
        loops.push((
            "link",
            tokio::spawn(link::drive(client, events, messages, connected_tx, shutdown.clone())),
        ));
        let router = api::router(state.clone());
        loops.push((
            "api",
            tokio::spawn(tls::serve(listener, tls::server_config(&identity)?, router, shutdown.clone())),
        ));
        if let Some(external) = &state.config.mqtt.external {
            let lists = Lists::new(data, external, state.store.clone(), Arc::clone(&identity));
            let changed = Arc::clone(&state.wake.lists);
            loops.push(("lists", tokio::spawn(lists::keep(lists, changed, shutdown.clone()))));
        }
        loops.push(("refresh", tokio::spawn(refresh(repos, shutdown.clone()))));
        let old = retention::run(state.store.clone(), state.config.retention.clone(), shutdown.clone());
        loops.push(("retention", tokio::spawn(old)));
        loops.push(("damage", tokio::spawn(damage::run(state.store.clone(), shutdown.clone()))));
        loops.push(("planner", tokio::spawn(planner::run(state.clone(), shutdown.clone()))));
        loops.push(("training", tokio::spawn(training::run(state.clone(), shutdown))));

        let run = data.join("run");
        write_addresses(&run, api, mqtt)?;
        tracing::info!(%api, mqtt = %endpoints.mqtt_host, port = endpoints.mqtt_port, "the controller runs");
        Ok(Self { state, api, mqtt, connected, run, trigger, loops, ingest, broker })
    }

    /// Returns when the controller hears what devices say; `false` if that takes longer than `limit`.
    pub async fn connected(&mut self, limit: Duration) -> bool {
        matches!(tokio::time::timeout(limit, self.connected.wait_for(|up| *up)).await, Ok(Ok(_)))
    }

    /// Ends everything in order: no new work, then what is on its way, then the broker and the database.
    pub async fn stop(self) {
        self.trigger.pull();
        for name in ["api.addr", "mqtt.addr"] {
            if let Err(error) = std::fs::remove_file(self.run.join(name)) {
                tracing::debug!(%error, name, "no address file to remove");
            }
        }
        let all = self.loops.into_iter().chain([("ingest", self.ingest)]);
        for (name, mut task) in all {
            match tokio::time::timeout(STOP, &mut task).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, name, "a loop did not end well"),
                Err(_) => {
                    tracing::warn!(name, "a loop did not end in time and is cut off");
                    task.abort();
                }
            }
        }
        self.broker.stop().await;
        self.state.store.close().await;
        tracing::info!("the controller has stopped");
    }
}

fn endpoints(config: &Config, api: SocketAddr, mqtt_port: u16) -> Endpoints {
    let host = if api.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { api.ip() };
    let api_url = match config.api.public_url.trim_end_matches('/') {
        "" => format!("https://{}", SocketAddr::new(host, api.port())),
        url => url.to_owned(),
    };
    Endpoints { api_url, mqtt_host: public_host(&config.mqtt), mqtt_port }
}

/// How the controller's own client reaches the broker. The embedded one is dialled by its address, whatever
/// name devices use; what is signed is always that name.
fn link_options(
    config: &Config,
    identity: &Identity,
    endpoints: &Endpoints,
) -> Result<rumqttc::MqttOptions, ServeError> {
    let mut roots = RootCertStore::empty();
    let files = identity.files();
    let Some(external) = &config.mqtt.external else {
        let (chain, _) = identity.server_chain()?;
        let authority = chain.into_iter().last().expect("a chain that was read holds a certificate");
        roots.add(authority).map_err(ServeError::BrokerTls)?;
        let tls = link::tls(roots, None).map_err(ServeError::BrokerTls)?;
        let answer =
            ChallengeAnswer::new(CONTROLLER, &endpoints.mqtt_host, Arc::new(identity.controller_signer()?));
        let ip = config.mqtt.listen.ip();
        let host = if ip.is_unspecified() { "127.0.0.1".to_owned() } else { ip.to_string() };
        // The certificate is valid for loopback and the names given to `init`; an address that is neither
        // is dialled by the public name.
        let host = if ip.is_loopback() || ip.is_unspecified() { host } else { endpoints.mqtt_host.clone() };
        return Ok(link::options(CONTROLLER, &host, endpoints.mqtt_port, tls, Proof::Challenge(answer)));
    };
    let certificate = external.certificate.as_ref().unwrap_or(&files.controller);
    let key = external.key.as_ref().unwrap_or(&files.controller_key);
    let client = identity::chain(certificate, key)?;
    let ca = external.ca.as_ref().unwrap_or(&files.ca);
    for authority in identity::certificates(ca)? {
        roots.add(authority).map_err(ServeError::BrokerTls)?;
    }
    let tls = link::tls(roots, Some(client)).map_err(ServeError::BrokerTls)?;
    Ok(link::options(CONTROLLER, &external.host, external.port, tls, Proof::Certificate))
}

fn write_addresses(run: &Path, api: SocketAddr, mqtt: Option<SocketAddr>) -> Result<(), ServeError> {
    let error = |path: &Path, source| ServeError::Run { path: path.to_owned(), source };
    std::fs::create_dir_all(run).map_err(|source| error(run, source))?;
    for (name, address) in [("api.addr", Some(api)), ("mqtt.addr", mqtt)] {
        let Some(address) = address else { continue };
        // Renamed into place, so that whoever waits for the file never reads half of it.
        let (path, fresh) = (run.join(name), run.join(format!("{name}.new")));
        std::fs::write(&fresh, address.to_string()).map_err(|source| error(&fresh, source))?;
        std::fs::rename(&fresh, &path).map_err(|source| error(&path, source))?;
    }
    Ok(())
}

/// Signs timestamps anew before they expire.
async fn refresh(repos: Arc<Repos>, mut shutdown: Shutdown) {
    loop {
        let now_ms = clock::wall_ms();
        let task = Arc::clone(&repos);
        let next = tokio::task::spawn_blocking(move || task.refresh(now_ms)).await;
        let pause = match next {
            Ok(Ok(due_ms)) => {
                Duration::from_millis(due_ms.saturating_sub(now_ms)).clamp(REFRESH_MIN, REFRESH_MAX)
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the image repository can not be signed anew");
                REFRESH_MAX / 60
            }
            Err(error) => {
                tracing::error!(%error, "signing anew did not end well");
                REFRESH_MAX / 60
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.requested() => return,
        }
    }
}

/// Runs on a data folder until the process is asked to end (SIGINT, SIGTERM).
pub async fn serve(data: &Path, clock_is_right: bool) -> Result<(), ServeError> {
    // Before it says that it is up: who reads that may ask it to end.
    let catch = |kind, name| {
        let caught = tokio::signal::unix::signal(kind);
        caught.map_err(|source| ServeError::Run { path: PathBuf::from(name), source })
    };
    let mut terminate = catch(tokio::signal::unix::SignalKind::terminate(), "SIGTERM")?;
    let mut interrupt = catch(tokio::signal::unix::SignalKind::interrupt(), "SIGINT")?;
    let controller = Controller::start_at(data, clock_is_right).await?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("asked to end"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
    }
    controller.stop().await;
    Ok(())
}
