//! The repositories as devices and operators reach them: over TLS, from a controller that runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_controller::clock;
use dunlin_controller::init;
use dunlin_controller::keys::{self, Addition, Delegation, Keyring, OfflineRole, Request, RoleChange};
use dunlin_controller::repo::{Offline, RepoError, Repos};
use dunlin_controller::serve::Controller;
use dunlin_protocol::{Check, Now, TaskId, cbor};
use dunlin_trust::{RepoKind, Signer, TrustError, TrustedRepo, held_roles, update_both};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::repositories::enrol;

/// One request over a connection of its own; the whole answer with its head.
async fn get(controller: &Controller, data: &Path, path: &str, token: Option<&str>) -> (usize, u16, Vec<u8>) {
    let mut authorities = rustls::RootCertStore::empty();
    authorities.add(CertificateDer::from_pem_file(data.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(authorities).with_no_client_auth();
    let tcp = TcpStream::connect(controller.api).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{token}connection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The peer may close without a TLS goodbye; what came before it is judged by its length.
    drop(tokio::time::timeout(Duration::from_secs(20), tls.read_to_end(&mut answer)).await.unwrap());
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (request.len() - token.len() + end, status, answer.split_off(end))
}

/// A controller's data folder with imported roots, beside a safe; the first token.
async fn prepared(folder: &Path) -> (PathBuf, String) {
    let data = folder.join("data");
    let any = Some("127.0.0.1:0".parse().unwrap());
    let options = init::Options { listen: any, mqtt_listen: any, ..init::Options::default() };
    let token = init::init(&data, &options).await.unwrap();
    let online = keys::OnlineKeys::read(&data.join("keys/online.json")).unwrap();
    let ceremony = keys::CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms: clock::wall_ms() };
    keys::ceremony(&folder.join("safe"), &online, ceremony).unwrap();
    Repos::open(&data).unwrap().import(&folder.join("safe/public"), clock::wall_ms()).unwrap();
    (data, token)
}

/// What a device holds that knows nothing but its pinned roots.
fn pinned(controller: &Controller) -> (TrustedRepo, TrustedRepo) {
    let of = |kind| {
        TrustedRepo::pinned(kind, controller.state.repos.first_root(kind).unwrap().as_slice()).unwrap()
    };
    (of(RepoKind::Image), of(RepoKind::Director))
}

/// Assigns a release of the task `meter` to a device, and gives the task signers of its own, to whose file the release goes
/// over.
fn team(folder: &Path, data: &Path, device: &str) {
    let (repos, now_ms) = (Repos::open(data).unwrap(), clock::wall_ms());
    let targets = || repos.image().unwrap().stored().targets.unwrap().0;
    let hard = json!({ "arch": [], "ops": [], "bundle_bytes": 1, "ram_bytes": 1, "min_agent": "" });
    let custom = json!({ "task": "meter", "hard": hard });
    let sha256 = repos.put_target("meter.1.json", b"1").unwrap();
    let add = vec![Addition { name: "meter.1.json".into(), length: 1, sha256, custom }];
    let request = Request { add, ..Request::default() };
    let safe = folder.join("safe/private");
    repos.publish_targets(&keys::sign_targets(&targets(), &request, &safe, now_ms).unwrap(), now_ms).unwrap();
    let probation = json!({
        "ms_min": 1, "requests_min": 1, "error_ppm_max": 1, "latency_percent_max": 200, "rss_bytes_max": 0, "disagree_ppm_max": 1
    });
    let task = json!({ "task": "meter", "lineup": { "champion": "meter@1" }, "probation": probation });
    let assignment = json!({ "device": device, "generation": 1, "correlation": "c", "tasks": [task] });
    repos.publish_assignment(&serde_json::from_value(assignment).unwrap(), now_ms).unwrap();

    let task: TaskId = "meter".parse().unwrap();
    let holders = keys::make_keys(&folder.join("team"), &keys::task_prefix(&task), 1, None).unwrap();
    let owners = Keyring::from(&safe).signers(OfflineRole::ImageTargets.prefix()).unwrap();
    let owners: Vec<&dyn Signer> = owners.iter().map(|signer| signer as &dyn Signer).collect();
    let team: Vec<&dyn Signer> = holders.iter().map(|signer| signer as &dyn Signer).collect();
    let add = holders.iter().map(|signer| signer.key().clone()).collect();
    let change = RoleChange { add, threshold: Some(1), ..RoleChange::default() };
    let delegation = Delegation { task: task.clone(), lines: Vec::new(), keys: change };
    let made = keys::delegate(&targets(), None, &delegation, &owners, &team, now_ms).unwrap();
    let tasks = [(task, made.role)].into();
    let offline = Offline { targets: Some(made.targets), tasks, ..Offline::default() };
    drop(repos);
    Repos::publish_offline(data, &offline, now_ms).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_stays_small_where_a_task_has_signers_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (data, token) = prepared(folder.path()).await;
    team(folder.path(), &data, "pole-017");
    let controller = Controller::start(&data).await.unwrap();
    enrol(&controller, "pole-017").await;
    let (mut image, mut director) = pinned(&controller);
    let path = |image: &TrustedRepo, director: &TrustedRepo| {
        let (i, o, held) = (image.versions(), director.versions(), held_roles(image, director));
        format!(
            "/v1/check?d=pole-017&i={}.{}.{}.{}.{}&o={}.{}.{}.{}&r={held}",
            i.root,
            i.timestamp,
            i.snapshot,
            i.targets,
            i.retrained,
            o.root,
            o.timestamp,
            o.snapshot,
            o.targets
        )
    };
    let (_, status, body) = get(&controller, &data, &path(&image, &director), Some(&token)).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let now = Now { mono_ms: 0, wall_ms: Some(clock::wall_ms()) };
    update_both(&mut image, &mut director, &cbor::decode(&body, 1 << 20).unwrap(), now).unwrap();
    assert_eq!(image.role_versions().len(), 1, "{:?}", image.role_versions());

    let asked = path(&image, &director);
    assert!(!asked.ends_with("&r="), "{asked}");
    let (heads, status, body) = get(&controller, &data, &asked, Some(&token)).await;
    assert_eq!(status, 200);
    assert!(heads + body.len() <= 1024, "{heads} + {}", body.len());
    let check: Check = cbor::decode(&body, 1 << 20).unwrap();
    assert!(check.image.delegated.is_empty() && check.image.snapshot.is_none(), "{check:?}");
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_over_http_is_small_and_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let (data, token) = prepared(folder.path()).await;
    let controller = Controller::start(&data).await.unwrap();

    enrol(&controller, "pole-1").await;
    let (mut image, mut director) = pinned(&controller);
    let (_, status, body) =
        get(&controller, &data, "/v1/check?d=pole-1&i=1.0.0.0.0&o=1.0.0.0", Some(&token)).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let check: Check = cbor::decode(&body, 1 << 20).unwrap();
    let now = Now { mono_ms: 0, wall_ms: Some(clock::wall_ms()) };
    update_both(&mut image, &mut director, &check, now).unwrap();

    // The same device when nothing changed: both timestamps, heads included, in a kibibyte.
    let (heads, status, body) =
        get(&controller, &data, "/v1/check?d=pole-1&i=1.1.1.1.1&o=1.1.1.1", Some(&token)).await;
    assert_eq!(status, 200);
    assert!(heads + body.len() <= 1024, "{heads} + {}", body.len());

    // The static layout holds the same bytes; only the image repository is open to everyone.
    let (_, status, body) = get(&controller, &data, "/v1/image/timestamp.json", None).await;
    assert_eq!((status, body), (200, check.image.timestamp.0));
    let (_, status, body) = get(&controller, &data, "/v1/director/pole-1/1.targets.json", Some(&token)).await;
    assert_eq!((status, body), (200, check.director.targets.unwrap().0));
    let refused = [
        ("/v1/check?d=pole-1&i=1.0.0.0&o=1.0.0.0", None, 401),
        ("/v1/director/pole-1/timestamp.json", None, 401),
        ("/v1/check?d=NO&i=1&o=1", Some(token.as_str()), 400),
        ("/v1/check?d=pole-1&i=x&o=1", Some(token.as_str()), 400),
        ("/v1/check?i=1.0.0.0.0&o=1.0.0.0", Some(token.as_str()), 400),
        ("/v1/check?d=pole-9&i=1&o=1", Some(token.as_str()), 404),
        ("/v1/director/pole-9/timestamp.json", Some(token.as_str()), 404),
        ("/v1/image/2.root.json", None, 404),
        ("/v1/image/..%2F..%2Fcontroller.toml", None, 404),
        ("/v1/targets/..%2Fimage%2F1.root.json", Some(token.as_str()), 404),
    ];
    for (path, token, expected) in refused {
        assert_eq!(get(&controller, &data, path, token).await.1, expected, "{path}");
    }
    assert!(!data.join("repo/director/pole-9").exists(), "nothing is made for a device that is not there");
    controller.stop().await;
    a_copy_of_the_data_folder_approves_nothing(&data, &folder.path().join("forged"));
}

/// With every private key that any file of the data folder holds, under the name of any role.
fn a_copy_of_the_data_folder_approves_nothing(data: &Path, forged: &Path) {
    std::fs::create_dir(forged).unwrap();
    let (mut folders, mut found) = (vec![data.to_path_buf()], 0);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let content = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
            for block in content.split("-----BEGIN PRIVATE KEY-----").skip(1) {
                let key = format!("-----BEGIN PRIVATE KEY-----{block}");
                for role in ["image-root", "image-targets", "director-root"] {
                    let file = forged.join(format!("{role}-{found}.pem"));
                    std::fs::write(&file, &key).unwrap();
                    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
                    // Those of TLS are of another kind, and no root may name such.
                    if keys::load(&file, None).is_err() {
                        std::fs::remove_file(&file).unwrap();
                    }
                }
                found += 1;
            }
        }
    }
    assert!(std::fs::read_dir(forged).unwrap().next().is_some(), "the online keys lie there");
    let (repos, now_ms) = (Repos::open(data).unwrap(), clock::wall_ms());
    let targets = repos.image().unwrap().stored().targets.unwrap().0;
    let refused = |offline| {
        let refused = Repos::publish_offline(data, &offline, now_ms).unwrap_err();
        let RepoError::Trust { source: TrustError::Threshold { have: 0, .. }, .. } = refused else {
            unreachable!("{refused}")
        };
    };
    let targets = keys::sign_targets(&targets, &keys::Request::default(), forged, now_ms).unwrap();
    refused(Offline { targets: Some(targets), ..Offline::default() });
    let root = |kind| {
        let root = repos.first_root(kind).unwrap();
        Some(keys::renew_root(kind, root.as_slice(), None, forged, now_ms).unwrap())
    };
    refused(Offline { image_root: root(RepoKind::Image), ..Offline::default() });
    refused(Offline { director_root: root(RepoKind::Director), ..Offline::default() });
}
