//! A fleet crosses from one version of the agent to another by the agents' own update, and back. `cargo xtask versions` gives
//! the programs of two versions; without it the other one is another build of the same.
use std::path::PathBuf;
use std::time::Duration;

use dunlin_tests::operator::TASK;
use dunlin_tests::small::Small;

use crate::program::{CLASS, another, approve, ended, installed, push, roll_out, runs, until_it_runs};

const LIMIT: Duration = Duration::from_secs(180);
/// The agent of the version that the fleet crosses to.
const NEXT: &str = "NEXT_AGENT_PROGRAM";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_becomes_that_of_another_version_and_goes_on_with_its_state() {
    let folder = tempfile::tempdir().unwrap();
    let next = std::env::var_os(NEXT)
        .map_or_else(|| another(folder.path(), &installed(), "next-build"), PathBuf::from);
    let (mut world, first) = Small::serving(folder.path(), &[CLASS], LIMIT).await.unwrap();
    let database = world.controller.database().await.unwrap();

    let (release, digest) = push(&world, &next).await;
    approve(&world, &release).await;
    roll_out(&world, &release, "120").await;
    let (phase, reason, detail) = ended(&mut world.agents[0], &[], &database, &release).await;
    assert_eq!((phase.as_str(), reason.as_str()), ("committed", "ok"), "{detail}");
    let file = world.agents[0].folder.join("state/slots/blobs").canonicalize().unwrap().join(&digest);
    assert_eq!(runs(&world.agents[0]), file);

    // The model that the other version installed serves on, and the next one is taken.
    let shown = world.controller.json(&["device", "show", "pole-0"]).await.unwrap();
    assert!(shown.to_string().contains(&first), "{shown}");
    let second = world.model(folder.path(), "meter-second", &world.others(), 2).await.unwrap();
    world.approve(&second).await.unwrap();
    world.roll_out(&second).await.unwrap();
    world.committed(&second, LIMIT).await.unwrap();
    world.controller.json(&["device", "rollback", "pole-0", "--task", TASK]).await.unwrap();
    world.committed(&first, LIMIT).await.unwrap();

    // And back: what the installed version wrote before and what the other one wrote since are read by it.
    let keys = world.offline_keys();
    world.controller.json(&["agent", "withdraw", &release, "--keys", &keys]).await.unwrap();
    until_it_runs(&world.agents[0], &installed()).await;
    world.committed(&first, LIMIT).await.unwrap();
    world.stop().await.unwrap();
}
