//! Two clients that others wrote, python-tuf and tuf-js, on what our controller publishes: image repository and the
//! director repository of a device, served as static files and by the controller itself.
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dunlin_controller::keys::{self, Keyring, OfflineRole, OnlineRole, Request, RoleChange};
use dunlin_controller::repo::{Offline, Repos};
use dunlin_controller::serve::Controller;
use dunlin_controller::{clock, init};
use dunlin_trust::{RepoKind, Signer};

use super::delegation::{delegate, task, team};
use super::world::{World, assignment, data, enrol, offline};

/// Longest run of a client; it asks for some ten small files on loopback.
const LIMIT: Duration = Duration::from_secs(60);
/// Where `cargo xtask test` puts what tests need from other registries.
const TARGET_DIR: &str = env!("CARGO_TARGET_TMPDIR");
const DEVICE: &str = "pole-1";

#[derive(Clone, Copy, Debug)]
enum Foreign {
    PythonTuf,
    TufJs,
}

impl Foreign {
    fn command(self) -> Command {
        let target = Path::new(TARGET_DIR).parent().unwrap();
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/repositories/clients");
        let (program, script, needed) = match self {
            Self::PythonTuf => {
                let python = target.join("python/foreign/bin/python3");
                (python.clone(), scripts.join("python_tuf.py"), python)
            }
            Self::TufJs => {
                (PathBuf::from("node"), scripts.join("tuf_js.cjs"), target.join("node/foreign/node_modules"))
            }
        };
        assert!(
            needed.exists(),
            "{} is missing: run `cargo xtask test --only set-up` first",
            needed.display()
        );
        let mut command = Command::new(program);
        command.arg(script).env("NODE_PATH", target.join("node/foreign/node_modules"));
        command
    }
}

/// What a foreign client holds of one repository.
struct Client {
    kind: Foreign,
    folder: PathBuf,
    metadata_url: String,
    target_url: String,
    root: PathBuf,
    /// The authority it believes and the token it shows, where it is served by a controller.
    tls: Option<(PathBuf, String)>,
}

impl Client {
    fn at(kind: Foreign, world: &World, base: &str, repo: RepoKind) -> Self {
        let folder = world.folder.path().join(format!("{kind:?}-{repo:?}"));
        fs::create_dir_all(folder.join("metadata")).unwrap();
        fs::create_dir_all(folder.join("targets")).unwrap();
        let root = folder.join("first-root.json");
        fs::write(&root, world.repos.first_root(repo).unwrap().0).unwrap();
        let metadata = match repo {
            RepoKind::Image => "image".to_owned(),
            RepoKind::Director => format!("director/{DEVICE}"),
        };
        let (metadata_url, target_url) = (format!("{base}/{metadata}"), format!("{base}/targets"));
        Self { kind, folder, metadata_url, target_url, root, tls: None }
    }

    /// Refreshes and downloads; what the client says if it refuses.
    fn fetch(&self, targets: &[&str]) -> Result<(), String> {
        let errors = fs::File::create(self.folder.join("errors.txt")).unwrap();
        let mut command = self.kind.command();
        if let Some((authority, token)) = &self.tls {
            command.env("TUF_CA", authority).env("TUF_TOKEN", token);
        }
        let mut child = command
            .arg(self.folder.join("metadata"))
            .arg(format!("{}/", self.metadata_url))
            .arg(self.folder.join("targets"))
            .arg(format!("{}/", self.target_url))
            .arg(&self.root)
            .args(targets)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .unwrap();
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if begin.elapsed() > LIMIT {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = fs::read_to_string(self.folder.join("errors.txt")).unwrap();
        if status.success() { Ok(()) } else { Err(said) }
    }

    #[track_caller]
    fn gets(&self, name: &str, content: &[u8]) {
        let path = self.folder.join("targets").join(name);
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        self.fetch(&[name]).unwrap_or_else(|said| panic!("{:?} refuses {name}: {said}", self.kind));
        assert_eq!(fs::read(path).unwrap(), content);
    }
}

/// Every client on the image repository and on the director repository.
fn clients(world: &World, server: &Server) -> Vec<(RepoKind, Client)> {
    let repos = [RepoKind::Image, RepoKind::Director];
    let all =
        repos.into_iter().flat_map(|repo| [Foreign::PythonTuf, Foreign::TufJs].map(|kind| (repo, kind)));
    all.map(|(repo, kind)| (repo, Client::at(kind, world, &server.url(), repo))).collect()
}

#[test]
fn foreign_clients_follow_downloads_delegations_rotations_and_thresholds() {
    // They judge by the machine's own clock.
    let now_ms = clock::wall_ms();
    let mut world = World::at(now_ms, 1, 2);
    let add = vec![world.release("meter.1.json", b"one"), world.release("meter.2.json", b"two")];
    world.approve(&Request { add, ..Request::default() }, now_ms).unwrap();
    let retrained = world.release("auto.meter.gbdt.1.json", b"retrained");
    world.repos.publish_retrained(&[retrained], now_ms).unwrap();
    world.repos.publish_assignment(&assignment(DEVICE, 1, "meter@1"), now_ms).unwrap();
    let server = Server::start(&data(&world.folder).join("repo"));
    let clients = clients(&world, &server);

    // A target, and on the image repository one that a delegated role lists.
    for (repo, client) in &clients {
        client.gets("meter.1.json", b"one");
        assert!(client.fetch(&["meter.9.json"]).is_err(), "{:?}", client.kind);
        if *repo == RepoKind::Image {
            client.gets("auto.meter.gbdt.1.json", b"retrained");
        } else {
            assert!(client.fetch(&["meter.2.json"]).is_err(), "what is not assigned is not listed");
        }
    }

    // Both roots get new holders, of whom two must sign; a second rotation is signed by these alone.
    let safe = world.safe();
    for round in 1..=2 {
        for role in [OfflineRole::ImageRoot, OfflineRole::DirectorRoot] {
            let current = world.root(role.repo());
            let present = Keyring::from(&safe).signers(role.prefix()).unwrap();
            let new = keys::make_keys(&safe, role.prefix(), 3, None).unwrap();
            let change = RoleChange {
                add: new.iter().map(|signer| signer.key().clone()).collect(),
                drop: keys::role_key_ids(role, &current).unwrap(),
                threshold: Some(2),
            };
            let signers: Vec<_> = present.iter().chain(&new).map(|signer| signer as &dyn Signer).collect();
            let next = keys::change_role(role, &current, &change, &signers, now_ms).unwrap();
            world.publish(&offline(role.repo(), next), now_ms).unwrap();
        }
        for (_, client) in &clients {
            client.gets("meter.1.json", b"one");
            let held = fs::read(client.folder.join("metadata/root.json")).unwrap();
            let held: serde_json::Value = serde_json::from_slice(&held).unwrap();
            assert_eq!(held["signed"]["version"], 1 + round, "{:?}", client.kind);
        }
    }

    // The image targets go over to two of three new keys, and list one more release.
    let role = OfflineRole::ImageTargets;
    let fresh = world.folder.path().join("fresh");
    let new = keys::make_keys(&fresh, role.prefix(), 3, None).unwrap();
    let current = world.root(RepoKind::Image);
    let change = RoleChange {
        add: new.iter().map(|signer| signer.key().clone()).collect(),
        drop: keys::role_key_ids(role, &current).unwrap(),
        threshold: Some(2),
    };
    let root_keys = Keyring::from(&safe).signers(OfflineRole::ImageRoot.prefix()).unwrap();
    let signers: Vec<_> = root_keys.iter().map(|signer| signer as &dyn Signer).collect();
    let root = keys::change_role(role, &current, &change, &signers, now_ms).unwrap();
    let request = Request { add: vec![world.release("meter.3.json", b"three")], ..Request::default() };
    let targets = keys::sign_targets(&world.current_targets(), &request, &fresh, now_ms).unwrap();
    let both = Offline { image_root: Some(root), targets: Some(targets), ..Offline::default() };
    world.publish(&both, now_ms).unwrap();
    world.repos.publish_assignment(&assignment(DEVICE, 2, "meter@3"), now_ms).unwrap();
    for (_, client) in &clients {
        client.gets("meter.3.json", b"three");
    }

    // A task gets signers of its own, who list one more release; what was listed before is found where it went.
    let five = Request { add: vec![world.release("meter.5.json", b"five")], ..Request::default() };
    let delegated = delegate(&world, &fresh, 2, 1, vec![], now_ms);
    world.publish(&delegated, now_ms).unwrap();
    let role = world.repos.image().unwrap().stored().delegated.remove("task-meter").unwrap();
    let signed = keys::sign_task(&task(), role.as_slice(), &five, &team(&world), now_ms).unwrap();
    world.repos.publish_task(&task(), &signed, now_ms).unwrap();
    world.repos.publish_assignment(&assignment(DEVICE, 3, "meter@5"), now_ms).unwrap();
    for (repo, client) in &clients {
        client.gets("meter.5.json", b"five");
        if *repo == RepoKind::Image {
            client.gets("meter.3.json", b"three");
            client.gets("auto.meter.gbdt.1.json", b"retrained");
        }
    }

    // After a break-in every online role of both repositories gets another key, which the offline ones name.
    let held_keys = data(&world.folder).join("keys");
    fs::rename(&held_keys, world.folder.path().join("old-keys")).unwrap();
    let online = keys::create_online(&data(&world.folder)).unwrap();
    let next = |kind| keys::renew_root(kind, &world.root(kind), Some(&online), &safe, now_ms).unwrap();
    let (image_root, director_root) = (Some(next(RepoKind::Image)), Some(next(RepoKind::Director)));
    let retrained_key = Some(online.of(OnlineRole::Retrained).declared().clone());
    let request = Request { retrained_key, ..Request::default() };
    let targets = keys::sign_targets(&current_targets(&world), &request, &fresh, now_ms).unwrap();
    let renewed = Offline { image_root, director_root, targets: Some(targets), ..Offline::default() };
    world.publish(&renewed, now_ms).unwrap();
    world.repos.publish_assignment(&assignment(DEVICE, 4, "meter@5"), now_ms).unwrap();
    for (repo, client) in &clients {
        client.gets("meter.5.json", b"five");
        let held: serde_json::Value =
            serde_json::from_slice(&fs::read(client.folder.join("metadata/timestamp.json")).unwrap())
                .unwrap();
        let role = match repo {
            RepoKind::Image => OnlineRole::ImageTimestamp,
            RepoKind::Director => OnlineRole::DirectorTimestamp,
        };
        assert_eq!(held["signatures"][0]["keyid"], online.of(role).id(), "{:?}", client.kind);
    }

    // And they refuse what they should: a file that was changed after it was signed.
    let mut refuse = BTreeSet::new();
    for (bent, file) in
        [(RepoKind::Image, "image".to_owned()), (RepoKind::Director, format!("director/{DEVICE}"))]
    {
        let path = data(&world.folder).join("repo").join(file).join("timestamp.json");
        let text = String::from_utf8(fs::read(&path).unwrap()).unwrap();
        fs::write(&path, text.replace("\"version\":", "\"version\":1")).unwrap();
        refuse.insert(format!("{bent:?}"));
        for (repo, client) in &clients {
            let refuses = refuse.contains(&format!("{repo:?}"));
            assert_eq!(client.fetch(&["meter.5.json"]).is_err(), refuses, "{:?} of {repo:?}", client.kind);
        }
    }
}

/// The image targets as they lie in the data folder: a controller without its keys does not open it.
fn current_targets(world: &World) -> Vec<u8> {
    let folder = data(&world.folder).join("repo/image");
    let newest = (1..).take_while(|n| folder.join(format!("{n}.targets.json")).exists()).last();
    fs::read(folder.join(format!("{}.targets.json", newest.unwrap()))).unwrap()
}

/// The same from the controller itself, over TLS and under its own paths, with an operator's token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_clients_read_what_a_running_controller_serves() {
    let now_ms = clock::wall_ms();
    let folder = tempfile::tempdir().unwrap();
    let data = data(&folder);
    let any = Some("127.0.0.1:0".parse().unwrap());
    let options = init::Options { listen: any, mqtt_listen: any, ..init::Options::default() };
    let token = init::init(&data, &options).await.unwrap();
    let online = keys::OnlineKeys::read(&data.join("keys/online.json")).unwrap();
    let safe = folder.path().join("safe");
    let options = keys::CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms };
    keys::ceremony(&safe, &online, options).unwrap();
    let repos = Repos::open(&data).unwrap();
    repos.import(&safe.join("public"), now_ms).unwrap();
    let world = World { folder, repos };
    let add = vec![world.release("meter.1.json", b"one")];
    world.approve(&Request { add, ..Request::default() }, now_ms).unwrap();
    let controller = Controller::start(&data).await.unwrap();
    enrol(&controller, DEVICE).await;
    controller.state.repos.publish_assignment(&assignment(DEVICE, 1, "meter@1"), now_ms).unwrap();

    let served = |repo| move |kind| (kind, repo);
    let all = [RepoKind::Image, RepoKind::Director]
        .into_iter()
        .flat_map(|repo| [Foreign::PythonTuf, Foreign::TufJs].map(served(repo)));
    for (kind, repo) in all {
        let base = format!("https://{}/v1", controller.api);
        let tls = Some((data.join("ca.pem"), token.clone()));
        let client = Client { tls, ..Client::at(kind, &world, &base, repo) };
        tokio::task::block_in_place(|| {
            client.gets("meter.1.json", b"one");
            let nobody = Client { tls: Some((data.join("ca.pem"), "not-a-token".to_owned())), ..client };
            let may = nobody.fetch(&[]);
            assert_eq!(may.is_ok(), repo == RepoKind::Image, "{kind:?} of {repo:?}: {may:?}");
        });
    }
    controller.stop().await;
}

/// Serves a folder; a device's director repository has its roots one folder up.
struct Server {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, ends) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let (folder, ending) = (folder.to_path_buf(), ends.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if ending.load(Ordering::Relaxed) {
                    break;
                }
                // A client that hangs up is its own affair.
                drop(answer(stream, &folder));
            }
        });
        Self { address, ends, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn answer(mut stream: TcpStream, folder: &Path) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = folder.join(head.split(' ').nth(1).unwrap_or_default().trim_start_matches('/'));
    let above =
        path.parent().and_then(Path::parent).zip(path.file_name()).map(|(above, name)| above.join(name));
    let found = fs::read(&path).ok().or_else(|| fs::read(above?).ok());
    let (status, body) = found.map_or(("404 Not Found", vec![]), |body| ("200 OK", body));
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")?;
    stream.write_all(&body)
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.address));
        self.thread.take().map(JoinHandle::join);
    }
}
