//! Devices without a network: assignments and models come on media, through the same checks; then the network is back.
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::RepoVersions;
use dunlin_tests::agent::{Agent, Application};
use dunlin_tests::digits::{NEW, PIXELS, views};
use dunlin_tests::line::{Line, Versions};
use dunlin_tests::operator::{TASK, definition};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, Small};

const LIMIT: Duration = Duration::from_secs(90);
const CLASS: &str = "raspberry-pi-4";
/// As many characters as a device id may have.
const ID_CHARS_MAX: usize = 64;
/// Most bytes of a check that finds nothing new, request and answer.
const CHECK_BYTES_MAX: usize = 1024;
/// Most bytes of the metadata of one deployment.
const METADATA_BYTES_MAX: usize = 20 * 1024;

/// Waits until the controller assigns a release to a device; the device does not hear of it.
async fn assigned(world: &Small, device: &str, release: &str) {
    let director = world.controller.data.join("repo/director").join(device);
    let manifest = format!("{}.json", release.replace('@', "."));
    wait_for("an assignment for the device", LIMIT, async || {
        let Ok(files) = std::fs::read_dir(&director) else { return Ok(None) };
        let files = files.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
        Ok(files.into_iter().any(|text| text.contains(&manifest)).then_some(()))
    })
    .await
    .unwrap();
}

/// A medium with what all devices shall run now: this release.
async fn medium(world: &Small, folder: &Path, release: &str) -> String {
    for agent in &world.agents {
        assigned(world, &agent.id, release).await;
    }
    let out = folder.display().to_string();
    let devices: Vec<&str> = world.agents.iter().map(|agent| agent.id.as_str()).collect();
    world.controller.run(&[&["export"], &devices[..], &["--out", &out]].concat()).await.unwrap();
    out
}

async fn apply(world: &Small, folder: &Path, release: &str) {
    let task = folder.join("task.toml");
    std::fs::write(&task, definition(&[release.to_owned()].into(), None)).unwrap();
    world.controller.json(&["task", "apply", &task.display().to_string()]).await.unwrap();
}

async fn answers(agent: &Agent, release: &str) {
    let application = Application::new(TASK).unwrap();
    wait_for(&format!("{release} to answer"), LIMIT, async || {
        let answer = application.infer(agent.api, "carried", &[0.0; PIXELS]).await.ok();
        Ok(answer.filter(|answer| answer.version == release).map(drop))
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_arrive_on_media_in_any_order_and_the_network_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &[CLASS]).await.unwrap();
    let long = "p".repeat(ID_CHARS_MAX);
    world.agents.push(Agent::new(folder.path(), &long, CLASS, AGENT_CONFIG).unwrap());
    world.enrol().await.unwrap();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    let first = world.first_model(folder.path()).await.unwrap();
    let older = medium(&world, &folder.path().join("older"), &first).await;
    let images = views(&world.pools.training, NEW, 1, 1);
    let second = world.model(folder.path(), "meter-second", &images, 2).await.unwrap();
    world.controller.json(&["model", "approve", "--keys", &world.offline_keys()]).await.unwrap();
    apply(&world, folder.path(), &second).await;
    let newer = medium(&world, &folder.path().join("newer"), &second).await;
    world.controller.stop().await.unwrap();

    // In their order both are taken; the other way round the older one is refused and changes nothing.
    for agent in &mut world.agents {
        agent.start().await.unwrap();
    }
    let [forwards, backwards] = &world.agents[..] else { panic!("two devices") };
    assert!(forwards.run(&["install", "/nowhere"]).await.is_err());
    forwards.run(&["install", &older]).await.unwrap();
    answers(forwards, &first).await;
    forwards.run(&["install", &newer]).await.unwrap();
    answers(forwards, &second).await;
    backwards.run(&["install", &newer]).await.unwrap();
    answers(backwards, &second).await;
    assert!(backwards.run(&["install", &older]).await.is_err());
    answers(backwards, &second).await;

    // A medium that was bent is refused, and what serves goes on serving.
    let path = Path::new(&newer).join("devices").join(format!("{}.cbor", forwards.id));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|window| window == b"\"version\"").unwrap();
    bytes[at + 10] = b'9';
    std::fs::write(&path, bytes).unwrap();
    assert!(forwards.run(&["install", &newer]).await.is_err());
    answers(forwards, &second).await;

    // What the network brings then is taken by both, also a step back to the first release.
    world.controller.start().await.unwrap();
    apply(&world, folder.path(), &first).await;
    world.ask().unwrap();
    world.committed(&first, LIMIT).await.unwrap();
    sizes(&world);
    world.hush();
    for agent in &mut world.agents {
        agent.stop().await.unwrap();
    }
    world.controller.stop().await.unwrap();
}

/// What the device with the longest id asks and is answered: all metadata there is, and then nothing new.
fn sizes(world: &Small) {
    let agent = &world.agents[1];
    let mut line = Line::open(world.controller.api, agent).unwrap();
    let nothing = RepoVersions { root: 1, ..RepoVersions::default() };
    let (held, bytes) =
        line.check(&agent.id, Versions { image: nothing, director: nothing, ..Versions::default() }).unwrap();
    assert!(bytes <= METADATA_BYTES_MAX, "{bytes} bytes of metadata");
    let (_, bytes) = line.check(&agent.id, held).unwrap();
    assert!(bytes <= CHECK_BYTES_MAX, "{bytes} bytes when nothing is new");
}
