//! The same loop over Debian's mosquitto as the external broker: mutual TLS, the certificate's common name as user
//! name, an access list by it. What goes over the wire is captured and checked against docs/protocol.cddl.
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_controller::broker::link::{Proof, client, options, tls};
use dunlin_controller::identity::{Files, certificates, chain};
use dunlin_protocol::{Envelope, Kind, Topic};
use dunlin_tests::controller::Controller;
use dunlin_tests::port::Port;
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use rumqttc::mqttbytes::QoS;
use rumqttc::{Event, EventLoop, Incoming};
use rustls::RootCertStore;

const LIMIT: Duration = Duration::from_secs(90);
/// How long nothing must be overheard once what could be was sent.
const SILENCE: Duration = Duration::from_secs(2);
const CDDL: &str = include_str!("../../../docs/protocol.cddl");

/// A mosquitto of our own; ends with its handle.
struct Mosquitto(Child);

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.0.kill().expect("a child can be killed");
        self.0.wait().expect("a killed child ends");
    }
}

fn start_mosquitto(folder: &Path, data: &Path, port: u16) -> Mosquitto {
    let files = Files::of(data);
    let acl = folder.join("acl");
    std::fs::write(
        &acl,
        "pattern write dunlin/v1/d/%u/up/#\npattern read dunlin/v1/d/%u/down/#\npattern read dunlin/v1/all/notice\n\n\
         user controller\ntopic readwrite dunlin/v1/#\n",
    )
    .unwrap();
    let state = folder.join("mosquitto");
    std::fs::create_dir(&state).unwrap();
    // As root mosquitto would become another user, who may not read the certificates.
    let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let config = format!(
        "user {}\nlistener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n\
         use_identity_as_username true\nacl_file {}\npersistence true\npersistence_location {}/\n\
         max_queued_messages 0\nmax_packet_size 1048576\n",
        user.trim(),
        files.ca.display(),
        files.server.display(),
        files.server_key.display(),
        acl.display(),
        state.display(),
    );
    let path = folder.join("mosquitto.conf");
    std::fs::write(&path, config).unwrap();
    let program = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
    let program = program
        .iter()
        .find(|path| Path::new(path).is_file())
        .expect("Debian's package mosquitto is installed");
    let log = std::fs::File::create(folder.join("mosquitto.log")).unwrap();
    let child = Command::new(program)
        .arg("-c")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Mosquitto(child)
}

fn roots(files: &Files) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca).unwrap() {
        roots.add(certificate).unwrap();
    }
    roots
}

/// Topics and payloads in the order they came.
type Captured = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Everything that is published, as the controller's user but under a client id of its own.
fn tap(data: &Path, broker: SocketAddr) -> Captured {
    let files = Files::of(data);
    let tls = tls(roots(&files), Some(chain(&files.controller, &files.controller_key).unwrap())).unwrap();
    let (client, mut events) =
        client(options("tap", &broker.ip().to_string(), broker.port(), tls, Proof::Certificate));
    client.try_subscribe("dunlin/v1/#", QoS::AtLeastOnce).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        let _client = client;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::Publish(publish))) => {
                    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                    kept.lock().unwrap().push((topic, publish.payload.to_vec()));
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    });
    seen
}

/// The next packet from the broker that `wanted` takes; a session that ends is no silence.
async fn next<T>(events: &mut EventLoop, wanted: impl Fn(Incoming) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await.expect("the broker keeps the session")
                && let Some(found) = wanted(packet)
            {
                return found;
            }
        }
    };
    tokio::time::timeout(LIMIT, found).await.expect("the broker sends it in time")
}

fn granted(packet: Incoming) -> Option<String> {
    if let Incoming::SubAck(ack) = packet { Some(format!("{:?}", ack.return_codes)) } else { None }
}

fn topic(packet: Incoming) -> Option<String> {
    let Incoming::Publish(publish) = packet else { return None };
    Some(String::from_utf8_lossy(&publish.topic).into_owned())
}

fn rule(kind: Kind) -> &'static str {
    match kind {
        Kind::Status => "status",
        Kind::Window => "window",
        Kind::Report => "report",
        Kind::Samples => "samples",
        Kind::Gap => "gap",
        Kind::Reply => "reply",
        Kind::Desired => "desired",
        Kind::Cmd => "cmd",
        Kind::Ack => "ack",
    }
}

/// Records that nobody has acknowledged go with a damaged spool, which the device declares as a gap.
async fn lose_records(world: &mut Small) {
    world.controller.kill().await.unwrap();
    let spool = world.agents[0].folder.join("state/spool");
    wait_for("records that wait", LIMIT, async || {
        let books: serde_json::Value = serde_json::from_slice(&std::fs::read(spool.join("counters.json"))?)?;
        let mut boots = books["boots"].as_array().into_iter().flatten();
        let number = |boot: &serde_json::Value, name: &str| boot[name].as_u64().unwrap_or(0);
        Ok(boots.any(|boot| number(boot, "appended") > number(boot, "acked") + 1).then_some(()))
    })
    .await
    .unwrap();
    world.agents[0].kill().await.unwrap();
    for entry in std::fs::read_dir(&spool).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("counters.json") {
            std::fs::write(&path, b"damaged").unwrap();
        }
    }
    world.start(0).await.unwrap();
    world.controller.start().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loop_runs_over_mosquitto_and_what_is_sent_is_what_the_cddl_says() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let folder = tempfile::tempdir().unwrap();
    let own = Port::reserve().unwrap();
    let (broker, port) = (own.address, own.address.port());
    let mut controller = Controller::new(folder.path());
    controller
        .init(&format!("[mqtt.external]\nhost = \"127.0.0.1\"\nport = {port}\n\n{CONTROLLER_CONFIG}"))
        .await
        .unwrap();
    let _mosquitto = start_mosquitto(folder.path(), &controller.data, port);
    wait_for("mosquitto to listen", LIMIT, async || Ok(std::net::TcpStream::connect(broker).ok()))
        .await
        .unwrap();
    let seen = tap(&controller.data, broker);
    controller.start().await.unwrap();
    let config = format!("[mqtt]\nauth = \"certificate\"\n\n{AGENT_CONFIG}");
    let mut world =
        Small::with(folder.path(), &["raspberry-pi-4", "raspberry-pi-4"], controller, &config).unwrap();
    let release = world.first_model(folder.path()).await.unwrap();
    world.enrol().await.unwrap();
    world.ask().unwrap();
    world.committed(&release, LIMIT).await.unwrap();
    world.controller.json(&["device", "check", "pole-0"]).await.unwrap();
    // Before its records are lost.
    wait_for("the reply", LIMIT, async || {
        Ok(seen.lock().unwrap().iter().any(|(topic, _)| topic.ends_with("/up/reply")).then_some(()))
    })
    .await
    .unwrap();
    lose_records(&mut world).await;

    let wanted =
        BTreeSet::from(["status", "window", "report", "samples", "gap", "reply", "desired", "cmd", "ack"]);
    wait_for("every kind of message", LIMIT, async || {
        let mut kinds = BTreeSet::new();
        for (topic, payload) in seen.lock().unwrap().iter() {
            let parsed = Topic::parse(topic).unwrap_or_else(|| panic!("a foreign topic: {topic}"));
            if parsed == Topic::Notice {
                assert!(payload.is_empty(), "a notice carries nothing");
                continue;
            }
            let fits = |rule: &str, bytes: &[u8]| {
                if let Err(error) = cddl_cat::validate_cbor_bytes(rule, CDDL, bytes) {
                    panic!("{topic}: {rule}: {error:?}");
                }
            };
            fits("envelope", payload);
            let envelope = Envelope::decode(payload).unwrap();
            fits("header", envelope.p.as_slice());
            let header = envelope.header().unwrap();
            assert!(
                topic.contains(&format!("/d/{}/", header.device)),
                "{topic} carries a message of {}",
                header.device
            );
            fits(rule(header.kind), header.body.as_slice());
            kinds.insert(rule(header.kind));
        }
        Ok(wanted.is_subset(&kinds).then_some(()))
    })
    .await
    .unwrap();

    // A device's certificate opens its own topics alone.
    let agent = &world.agents[0];
    let identity = agent.folder.join("state/identity");
    let files = Files::of(&world.controller.data);
    let find = |ending: &str| {
        let mut found = std::fs::read_dir(&identity).unwrap().map(|entry| entry.unwrap().path());
        found
            .find(|path| path.to_string_lossy().ends_with(ending))
            .unwrap_or_else(|| panic!("no {ending} in {}", identity.display()))
    };
    let key = folder.path().join("stolen.key");
    let der = data_encoding::BASE64.encode(&std::fs::read(find("device.key")).unwrap());
    std::fs::write(&key, format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n")).unwrap();
    let tls = tls(roots(&files), Some(chain(&find("device.pem"), &key).unwrap())).unwrap();
    let (intruder, mut events) = client(options("intruder", "127.0.0.1", port, tls, Proof::Certificate));
    next(&mut events, |packet| matches!(packet, Incoming::ConnAck(_)).then_some(())).await;
    let own = "dunlin/v1/d/pole-0/down/";
    intruder.try_subscribe(format!("{own}+"), QoS::AtLeastOnce).unwrap();
    let code = next(&mut events, granted).await;
    assert!(code.contains("Success"), "{code}");
    // A broker may refuse these, or grant them and deliver nothing.
    for foreign in ["dunlin/v1/d/pole-1/down/+", "dunlin/v1/d/+/up/+"] {
        intruder.try_subscribe(foreign, QoS::AtLeastOnce).unwrap();
        next(&mut events, granted).await;
    }
    let heard = next(&mut events, topic).await;
    assert!(heard.starts_with(own), "pole-0 overheard {heard}");
    let before = seen.lock().unwrap().len();
    let listening = async {
        loop {
            let heard = next(&mut events, topic).await;
            assert!(heard.starts_with(own), "pole-0 overheard {heard}");
        }
    };
    let sent = async {
        wait_for("messages from and to pole-1", LIMIT, async || {
            let seen = seen.lock().unwrap();
            let sent = |way: &str| seen[before..].iter().any(|(topic, _)| topic.starts_with(way));
            Ok((sent("dunlin/v1/d/pole-1/down/") && sent("dunlin/v1/d/pole-1/up/")).then_some(()))
        })
        .await
        .unwrap();
        tokio::time::sleep(SILENCE).await;
    };
    tokio::select! {
        () = listening => {}
        () = sent => {}
    }
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}
