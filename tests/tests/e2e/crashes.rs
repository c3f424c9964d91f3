//! A release under which the agent dies again and again in the middle of requests is left at the next start, be it on
//! probation or committed.
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dunlin_tests::agent::Application;
use dunlin_tests::digits::PIXELS;
use dunlin_tests::operator::{TASK, definition, unhurried};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::Small;
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_secs(90);
/// Deaths that one release may have, as `CRASHES_MAX` of crates/update has it.
const DEATHS: u32 = 3;
/// Applications that ask without a pause, so that the agent is always in the middle of some request.
const ASKING: u32 = 4;

/// The release of the first answer by a model since the agent was started.
async fn first_answer(world: &Small) -> String {
    let application = Application::new(TASK).unwrap();
    wait_for("a model to answer", LIMIT, async || {
        let answer = application.infer(world.agents[0].api, "first", &[0.0; PIXELS]).await.ok();
        Ok(answer.map(|answer| answer.version).filter(|version| version.contains('@')))
    })
    .await
    .unwrap()
}

/// Rules under which a release stays on probation for longer than this test takes, and only deaths end that.
async fn long_probation(world: &Small, folder: &Path, pool: &str) {
    let rules = unhurried(&definition(&[pool.to_owned()].into(), None))
        .replace("\nms_min = 4000\n", "\nms_min = 3600000\n")
        .replace("\nms_min = 10000\n", "\nms_min = 3600000\n");
    assert_eq!(rules.matches("ms_min = 3600000").count(), 2, "{rules}");
    let file = folder.join("long.toml");
    std::fs::write(&file, rules).unwrap();
    world.controller.json(&["task", "apply", &file.display().to_string()]).await.unwrap();
}

/// Applications that ask until they are not answered, and how many answers they got in all.
fn keep_asking(world: &Small) -> (JoinSet<()>, Arc<AtomicU32>) {
    let (mut asking, answers) = (JoinSet::new(), Arc::new(AtomicU32::new(0)));
    let api = world.agents[0].api;
    for n in 0..ASKING {
        let (application, answers) = (Application::new(TASK).unwrap(), Arc::clone(&answers));
        asking.spawn(async move {
            let id = format!("asked-{n}");
            while application.infer(api, &id, &[0.0; PIXELS]).await.is_ok() {
                answers.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    (asking, answers)
}

/// Kills the agent, which serves `second`, in the middle of requests until it starts with `first`, and waits until the
/// controller, which is not there meanwhile, has been told why.
async fn die_until_it_is_left(world: &mut Small, first: &str, second: &str) {
    // Nobody else shall judge it.
    world.controller.kill().await.unwrap();
    for death in 1..=DEATHS {
        assert_eq!(first_answer(world).await, second, "before death {death}");
        let (asking, answers) = keep_asking(world);
        wait_for("applications to be answered", LIMIT, async || {
            Ok((answers.load(Ordering::Relaxed) >= 10 * ASKING).then_some(()))
        })
        .await
        .unwrap();
        world.agents[0].kill().await.unwrap();
        asking.join_all().await;
        world.start(0).await.unwrap();
    }
    assert_eq!(first_answer(world).await, first, "the release before answers at once");

    world.controller.start().await.unwrap();
    let database = world.controller.database().await.unwrap();
    let phase = wait_for("the device to say why", LIMIT, async || {
        let query = "SELECT phase FROM outcomes WHERE release = ? AND reason = 'crash_loop'";
        Ok(sqlx::query_scalar::<_, String>(query).bind(second).fetch_optional(&database).await?)
    })
    .await
    .unwrap();
    assert_eq!(phase, "rolled_back");
    assert_eq!(first_answer(world).await, first, "and it is not tried again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_in_mid_request_again_and_again_starts_with_the_release_before() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mut world, first) = Small::serving(folder, &["raspberry-pi-4"], LIMIT).await.unwrap();
    world.hush();

    long_probation(&world, folder, &first).await;
    let second = world.model(folder, "meter-second", &world.others(), 2).await.unwrap();
    world.approve(&second).await.unwrap();
    world.roll_out(&second).await.unwrap();
    wait_for(
        "the device to switch",
        LIMIT,
        async || Ok((first_answer(&world).await == second).then_some(())),
    )
    .await
    .unwrap();
    die_until_it_is_left(&mut world, &first, &second).await;
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_whose_release_is_committed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (mut world, first) = Small::serving(folder, &["raspberry-pi-4"], LIMIT).await.unwrap();
    let second = world.model(folder, "meter-second", &world.others(), 2).await.unwrap();
    world.approve(&second).await.unwrap();
    world.roll_out(&second).await.unwrap();
    world.committed(&second, LIMIT).await.unwrap();
    world.hush();
    die_until_it_is_left(&mut world, &first, &second).await;
    world.stop().await.unwrap();
}
