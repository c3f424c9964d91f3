//! The agent as a process: start without a network, what it says of itself, its end, its next start.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use dunlin_agent::identity::{
    CA_FILE, CERTIFICATE_FILE, DIRECTOR_ROOT_FILE, ENROLMENT_FILE, Enrolment, IMAGE_ROOT_FILE, KEY_FILE,
    copy_of,
};
use dunlin_protocol::ClaimToken;
use dunlin_trust::{EcdsaP256Signer, Ed25519Signer, Signer, sha256, write};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::Value;

/// Longest wait for anything here; a loaded machine needs seconds.
const PATIENCE: Duration = Duration::from_secs(60);

fn agent(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin-agent"));
    command
        .env("DUNLIN_STATE_DIR", home.join("state"))
        .env("DUNLIN_RUN_DIR", home.join("run"))
        .env("DUNLIN_API__LISTEN", "127.0.0.1:0")
        .env("DUNLIN_TELEMETRY__WINDOW_S", "1")
        .env("DUNLIN_TELEMETRY__REPORT_S", "1")
        .env_remove("DUNLIN_AGENT_CONFIG")
        .arg("--config")
        .arg(home.join("agent.toml"));
    command
}

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("agent.toml"), "").unwrap();
    home
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn root() -> Vec<u8> {
    let key = Ed25519Signer::from_pkcs8(&Ed25519Signer::generate_pkcs8().unwrap()).unwrap();
    let role = write::RoleSpec { keys: vec![key.key().clone()], threshold: 1 };
    let spec = write::RootSpec {
        root: role.clone(),
        timestamp: role.clone(),
        snapshot: role.clone(),
        targets: role,
    };
    write::sign(&write::root(1, 4_000_000_000_000, &spec).unwrap(), &[&key as &dyn Signer]).unwrap()
}

/// What enrolment leaves behind, for a controller that nobody listens for.
fn enrolled(home: &Path) {
    let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let pkcs8 = EcdsaP256Signer::generate_pkcs8().unwrap();
    let key = PrivatePkcs8KeyDer::from(pkcs8.clone());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::default().signed_by(&key, &Issuer::new(params, ca_key)).unwrap();
    let (image, director) = (root(), root());
    let dead_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let pins = [sha256(ca.der()), sha256(&image), sha256(&director)];
    let broker = ("127.0.0.1".to_owned(), dead_port);
    let url = format!("https://127.0.0.1:{dead_port}");
    let enrolment = Enrolment::new("pole-17".parse().unwrap(), url, broker, pins);
    let dir = home.join("state/identity");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, bytes) in [
        (KEY_FILE, pkcs8),
        (CERTIFICATE_FILE, certificate.pem().into_bytes()),
        (CA_FILE, ca.pem().into_bytes()),
        (IMAGE_ROOT_FILE, image),
        (DIRECTOR_ROOT_FILE, director),
        (ENROLMENT_FILE, serde_json::to_vec(&enrolment).unwrap()),
    ] {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// A running agent, killed when the test ends early.
struct Running(Child);

impl Running {
    fn start(home: &Path) -> Self {
        let running = Self(agent(home).arg("run").stdout(Stdio::null()).spawn().unwrap());
        wait_for("the local API", || home.join("run/api.addr").exists());
        running
    }

    fn end(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn settings_are_shown_or_the_complaint_is() {
    let home = home();
    let shown = agent(home.path()).args(["check", "--json"]).output().unwrap();
    assert!(shown.status.success());
    assert_eq!(json(&shown)["api"]["listen"], "127.0.0.1:0");
    std::fs::write(home.path().join("agent.toml"), "[telemetry]\nwindow = 5\n").unwrap();
    let refused = agent(home.path()).arg("check").output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let complaint = String::from_utf8(refused.stderr).unwrap();
    assert!(complaint.contains("agent.toml") && complaint.contains("telemetry.window"), "{complaint}");
}

#[test]
fn a_device_that_is_not_enrolled_says_so() {
    let home = home();
    assert_eq!(agent(home.path()).arg("status").output().unwrap().status.code(), Some(3));
    let refused = agent(home.path()).arg("run").output().unwrap();
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("enrol"));
    assert_eq!(agent(home.path()).args(["enrol", "nonsense"]).output().unwrap().status.code(), Some(2));
}

/// An updater of the operating system keeps an image in which a device is not enrolled.
#[test]
fn an_enrolment_that_can_not_be_read_is_not_taken_for_none() {
    let home = home();
    enrolled(home.path());
    let identity = home.path().join("state/identity");
    let status = || {
        let told = agent(home.path()).args(["status", "--json"]).output().unwrap();
        assert_eq!(json(&told)["running"], false);
        (told.status.code(), String::from_utf8(told.stderr).unwrap())
    };
    assert_eq!(status().0, Some(5));
    for name in [ENROLMENT_FILE.to_owned(), copy_of(ENROLMENT_FILE)] {
        std::fs::write(identity.join(name), "{").unwrap();
    }
    let (code, complaint) = status();
    assert!(code == Some(1) && complaint.contains("is damaged"), "{code:?} {complaint}");
    // A folder that leads to itself: nobody can look into it, root included.
    std::fs::remove_dir_all(&identity).unwrap();
    std::os::unix::fs::symlink("identity", &identity).unwrap();
    let (code, complaint) = status();
    assert!(code == Some(1) && complaint.contains("could not access"), "{code:?} {complaint}");
    let refused = agent(home.path()).arg("run").output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    std::fs::remove_file(&identity).unwrap();
    assert_eq!(status().0, Some(3));
}

#[test]
fn an_enrolled_device_refuses_to_enrol_again_unless_it_is_told_to() {
    let home = home();
    enrolled(home.path());
    let identity = || -> BTreeMap<PathBuf, Vec<u8>> {
        let files = std::fs::read_dir(home.path().join("state/identity")).unwrap();
        files
            .map(|file| file.unwrap().path())
            .map(|path| (path.clone(), std::fs::read(path).unwrap()))
            .collect()
    };
    let before = identity();
    let [ca, image_root, director_root] = [sha256(b"ca"), sha256(b"image"), sha256(b"director")];
    let url = "https://127.0.0.1:1".to_owned();
    let claim = ClaimToken { url, ca, image_root, director_root, secret: "s".repeat(20) }.to_string();
    let refused = agent(home.path()).args(["enrol", &claim]).output().unwrap();
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    let complaint = String::from_utf8_lossy(&refused.stderr);
    assert!(complaint.contains("pole-17") && complaint.contains("--force"), "{complaint}");
    assert_eq!(identity(), before);
    // Told to, it asks the controller, which nobody is here.
    let tried = agent(home.path()).args(["enrol", "--force", "--wait", "0", &claim]).output().unwrap();
    assert_eq!(tried.status.code(), Some(1), "{tried:?}");
    assert_eq!(identity(), before);
}

#[test]
fn without_a_network_it_runs_keeps_its_records_and_ends_in_order() {
    let home = home();
    enrolled(home.path());
    let running = Running::start(home.path());

    let status = || json(&agent(home.path()).args(["status", "--json"]).output().unwrap());
    let shown = status();
    assert_eq!((&shown["running"], &shown["device"]), (&Value::Bool(true), &Value::from("pole-17")));
    assert_eq!(shown["link"]["up"], false);
    wait_for("a report", || status()["spool"]["boots"][0]["appended"].as_u64() > Some(0));

    let second = agent(home.path()).arg("run").output().unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let rollback = agent(home.path()).args(["rollback", "meter", "--json"]).output().unwrap();
    assert_eq!(rollback.status.code(), Some(3), "{rollback:?}");
    assert_eq!(json(&rollback)["reason"], "nothing_to_return_to");

    assert!(running.end().success());
    assert!(!home.path().join("run/api.addr").exists() && !home.path().join("run/agent.sock").exists());
    let offline = agent(home.path()).args(["status", "--json"]).output().unwrap();
    assert_eq!(offline.status.code(), Some(5));
    let kept = json(&offline)["spool"]["boots"][0]["appended"].as_u64().unwrap();
    assert!(kept > 0);

    let running = Running::start(home.path());
    let boots = status()["spool"]["boots"].as_array().unwrap().clone();
    assert_eq!(boots.len(), 2);
    assert_eq!(boots[0]["appended"].as_u64(), Some(kept), "what was kept is there after the restart");
    assert_eq!(boots[0]["evicted"].as_u64(), Some(0));
    // It listens for signals a moment after it serves.
    wait_for("a report of this boot", || status()["spool"]["boots"][1]["appended"].as_u64() > Some(0));
    assert!(running.end().success());
}
