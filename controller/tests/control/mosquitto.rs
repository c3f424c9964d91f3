//! The same rules at Debian's mosquitto, configured as docs/operations.md says, with the lists that the controller writes.
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dunlin_controller::broker::link::{self, Proof};
use dunlin_controller::broker::lists::{ACL_FILE, CRL_FILE};
use dunlin_controller::identity::Files;
use dunlin_controller::serve::Controller;
use dunlin_protocol::{Topic, Up};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::LastWill;
use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, PublishOptions};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::{Instant, timeout};

use super::world::{Device, LIMIT, World, connect, hold_ceremony, prepared, publish, subscribe, window};

/// From the operator's word to the broker refusing a live session, at most. docs/operations.md says the same.
const BOUND: Duration = Duration::from_secs(5);

/// A mosquitto of our own; ends with its handle.
struct Mosquitto(Child);

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.0.kill().expect("a child can be killed");
        self.0.wait().expect("a killed child ends");
    }
}

fn program() -> &'static Path {
    let places = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
    let found = places.into_iter().map(Path::new).find(|path| path.is_file());
    found.expect("Debian's package mosquitto is installed")
}

fn start(folder: &Path, data: &Path, port: u16) -> Mosquitto {
    let files = Files::of(data);
    let lists = data.join("broker");
    // As root mosquitto would become another user, who may not read the certificates.
    let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let config = format!(
        "user {}\npid_file {}\nlistener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
         use_identity_as_username true\nuse_username_as_clientid true\ncrlfile {}\nacl_file {}\nmax_queued_messages 0\n",
        user.trim(),
        pid_file(folder).display(),
        files.ca.display(),
        files.server.display(),
        files.server_key.display(),
        lists.join(CRL_FILE).display(),
        lists.join(ACL_FILE).display(),
    );
    let path = folder.join("mosquitto.conf");
    std::fs::write(&path, config).unwrap();
    let log = std::fs::File::create(folder.join("mosquitto.log")).unwrap();
    let mut command = Command::new(program());
    command.arg("-c").arg(&path).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    Mosquitto(command.spawn().unwrap())
}

fn pid_file(folder: &Path) -> PathBuf {
    folder.join("mosquitto.pid")
}

async fn until(what: &str, limit: Duration, mut done: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < limit, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

struct External {
    world: World,
    port: u16,
    _mosquitto: Mosquitto,
}

impl External {
    async fn new() -> Self {
        let (dir, data, token) = prepared().await;
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let reload = format!("kill -HUP $(cat {})", pid_file(dir.path()).display());
        let config = format!(
            "[api]\nlisten = \"127.0.0.1:0\"\n\n[mqtt.external]\nhost = \"127.0.0.1\"\nport = {port}\nreload = [\"sh\", \"-c\", {reload:?}]\n"
        );
        std::fs::write(data.join("controller.toml"), config).unwrap();
        hold_ceremony(dir.path(), &data);
        let mut controller = Controller::start(&data).await.unwrap();
        let lists = data.join("broker");
        // A reload that is told to a broker which only begins would end it.
        until("the lists, which no broker took", LIMIT, async || {
            let alerted = controller.state.store.alerted("broker_lists").await.unwrap();
            lists.join(ACL_FILE).is_file() && alerted.contains("broker")
        })
        .await;
        let mosquitto = start(dir.path(), &data, port);
        assert!(controller.connected(LIMIT).await, "the controller reaches mosquitto");
        Self { world: World::of(dir, data, token, controller), port, _mosquitto: mosquitto }
    }

    /// Options of a client with the certificate of `device` and any client id.
    fn options(&self, client: &str, device: &Device) -> MqttOptions {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.world.data.join("ca.pem")).unwrap()).unwrap();
        let chain =
            CertificateDer::pem_slice_iter(device.certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivatePkcs8KeyDer::from(device.key.serialize_der());
        let tls = link::tls(roots, Some((chain, key.into()))).unwrap();
        link::options(client, "127.0.0.1", self.port, tls, Proof::Certificate)
    }

    async fn connect(&self, device: &Device) -> Result<(AsyncClient, EventLoop), String> {
        connect(self.options(device.id.as_str(), device)).await
    }

    /// Whether the broker takes a message of a device that calls itself `client`. This release of mosquitto ends the
    /// session of who publishes what it may not.
    async fn takes(&self, device: &Device, client: &str, topic: &str, payload: Vec<u8>) -> bool {
        let (client, mut events) = connect(self.options(client, device)).await.unwrap();
        accepted(&client, &mut events, topic, payload).await
    }

    async fn die_with_will(&self, device: &Device, topic: &str) {
        let mut options = self.options(device.id.as_str(), device);
        options.set_last_will(LastWill::new(topic, b"planted".to_vec(), QoS::AtLeastOnce, true, None));
        drop(connect(options).await.unwrap());
    }

    async fn refused(&self, device: &str) -> usize {
        let (_, detail) = self.world.get(&format!("/v1/devices/{device}")).await;
        detail["refused"].as_array().unwrap().len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_mosquitto_a_device_speaks_for_itself_alone_and_takes_nobodys_client_id() {
    let external = External::new().await;
    let (a, b) = (external.world.enrolled("a").await, external.world.enrolled("b").await);
    let (client, mut events) = external.connect(&a).await.unwrap();
    for foreign in ["dunlin/v1/d/b/down/+", "dunlin/v1/d/+/down/+", "dunlin/v1/d/+/up/+"] {
        assert!(!subscribe(&client, &mut events, foreign).await || quiet(&mut events).await, "{foreign}");
    }
    assert!(subscribe(&client, &mut events, &Topic::down_filter(&a.id)).await);
    for foreign in ["dunlin/v1/d/b/up/telemetry", "dunlin/v1/d/a/down/cmd", "dunlin/v1/all/notice"] {
        assert!(!external.takes(&a, "a", foreign, window(&b.id, &a.signer)).await, "{foreign}");
    }
    let (client, mut events) = external.connect(&a).await.unwrap();
    let own = Topic::up(&a.id, Up::Telemetry).to_string();
    assert!(publish(&client, &mut events, &own, window(&a.id, &a.signer)).await);

    // With another's client id a device is itself still, and the other's session stays.
    assert!(!external.takes(&b, "a", &own, window(&a.id, &b.signer)).await);
    assert!(
        publish(&client, &mut events, &own, window(&a.id, &a.signer)).await,
        "the session of a was taken"
    );
    drop((client, events));

    external.die_with_will(&a, "dunlin/v1/d/b/up/status").await;
    external.die_with_will(&a, "dunlin/v1/d/b/down/desired").await;
    external.die_with_will(&a, "dunlin/v1/d/a/up/status").await;
    until("a will on the device's own topic", LIMIT, async || external.refused("a").await > 0).await;
    assert_eq!(external.refused("b").await, 0, "a will was planted");
    let (client, mut events) = external.connect(&b).await.unwrap();
    assert!(subscribe(&client, &mut events, &Topic::down_filter(&b.id)).await);
    assert!(quiet(&mut events).await, "a retained message lay in wait");
    external.world.controller.stop().await;
}

/// Whether the broker takes a message; it may end the session instead.
async fn accepted(client: &AsyncClient, events: &mut EventLoop, topic: &str, payload: Vec<u8>) -> bool {
    client.publish(topic, payload, PublishOptions::new(QoS::AtLeastOnce)).await.unwrap();
    loop {
        match timeout(LIMIT, events.poll()).await.expect("the broker answers") {
            Ok(Event::Incoming(Incoming::PubAck(ack))) => {
                return !format!("{:?}", ack.reason).contains("NotAuthorized");
            }
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Whether nothing is delivered for a while.
async fn quiet(events: &mut EventLoop) -> bool {
    let heard = async {
        loop {
            if let Ok(Event::Incoming(Incoming::Publish(_))) = events.poll().await {
                return;
            }
        }
    };
    timeout(Duration::from_secs(2), heard).await.is_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_mosquitto_a_revoked_device_is_out_within_the_bound_and_the_controller_hears_it_no_more() {
    let external = External::new().await;
    let world = &external.world;
    let (a, b) = (world.enrolled("a").await, world.enrolled("b").await);
    let (client, mut events) = external.connect(&a).await.unwrap();
    let (other, mut others) = external.connect(&b).await.unwrap();
    let topic = Topic::up(&a.id, Up::Telemetry).to_string();
    assert!(publish(&client, &mut events, &topic, window(&a.id, &a.signer)).await);
    until("the first window", LIMIT, async || {
        world.controller.state.store.windows_count(Some(&a.id)).await.unwrap() == 1
    })
    .await;

    world.set_state("a", "revoked").await;
    // Whatever the broker still lets through, the controller takes nothing of it.
    let late = super::world::record(&a, dunlin_protocol::Kind::Window, 7, 2, &super::world::window_body());
    accepted(&client, &mut events, &topic, late).await;
    let taken = until("the live session's end", BOUND, async || {
        !accepted(&client, &mut events, &topic, window(&a.id, &a.signer)).await
    })
    .await;
    assert!(taken < BOUND, "{taken:?}");
    until("the broker to refuse its certificate", BOUND, async || external.connect(&a).await.is_err()).await;
    assert_eq!(world.controller.state.store.windows_count(Some(&a.id)).await.unwrap(), 1);
    let own = Topic::up(&b.id, Up::Telemetry).to_string();
    assert!(publish(&other, &mut others, &own, window(&b.id, &b.signer)).await, "others go on");
    assert!(external.connect(&b).await.is_ok());
    external.world.controller.stop().await;
}
