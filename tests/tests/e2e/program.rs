//! Devices replace their own agent: by one that proves itself and is heard, and by nothing else.
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dunlin_protocol::{DeviceId, ProgramAssignment, ReleaseId};
use dunlin_tests::agent::Agent;
use dunlin_tests::attacker::Attacker;
use dunlin_tests::claims;
use dunlin_tests::process::{program, wait_for};
use dunlin_tests::small::Small;
use sqlx::{Row, SqlitePool};

const LIMIT: Duration = Duration::from_secs(180);

/// A board whose agent is what these tests are built for.
pub(super) const CLASS: &str =
    if cfg!(target_arch = "aarch64") { "raspberry-pi-4" } else { "x86-64-generic" };

fn triple() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Another build of a program: what stands behind it changes its digest and nothing else.
pub(super) fn another(folder: &Path, program: &Path, build: &str) -> PathBuf {
    let path = folder.join(build);
    std::fs::copy(program, &path).unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(build.as_bytes()).unwrap();
    path
}

/// Takes a program in; its release and the digest of its file.
pub(super) async fn push(world: &Small, file: &Path) -> (String, String) {
    let (file, triple) = (file.display().to_string(), triple());
    let args = ["agent", "push", &file, "--triple", &triple, "--version", dunlin_agent::VERSION];
    let target = world.controller.json(&args).await.unwrap();
    let release = ReleaseId::from_program_name(target["name"].as_str().unwrap()).unwrap();
    (release.to_string(), target["sha256"].as_str().unwrap().to_owned())
}

pub(super) async fn approve(world: &Small, release: &str) {
    world.controller.json(&["agent", "approve", release, "--keys", &world.offline_keys()]).await.unwrap();
}

pub(super) async fn roll_out(world: &Small, release: &str, reach_s: &str) {
    world.controller.json(&["agent", "roll-out", release, "--reach", reach_s]).await.unwrap();
}

/// The file that an agent's process runs.
pub(super) fn runs(agent: &Agent) -> PathBuf {
    let exe = agent.pid().and_then(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok());
    exe.unwrap_or_default()
}

pub(super) fn installed() -> PathBuf {
    program("dunlin-agent").unwrap().canonicalize().unwrap()
}

/// How the last try of a release ended, as the controller has it: phase, reason and detail. Until then an agent that ended is
/// started again, as a service manager does it.
pub(super) async fn ended(
    agent: &mut Agent,
    env: &[(&str, &str)],
    database: &SqlitePool,
    release: &str,
) -> (String, String, String) {
    wait_for(&format!("an end of {release}"), LIMIT, async || {
        if agent.ended()?.is_some() {
            agent.launch(env)?;
        }
        let query = "SELECT phase, reason, detail FROM outcomes WHERE release = ? \
                     AND phase IN ('committed', 'rolled_back', 'failed', 'rejected') ORDER BY id DESC LIMIT 1";
        let row = sqlx::query(query).bind(release).fetch_optional(database).await?;
        Ok(row.map(|row| (row.get(0), row.get(1), row.get(2))))
    })
    .await
    .unwrap()
}

pub(super) async fn until_it_runs(agent: &Agent, file: &Path) {
    wait_for("another program to run", LIMIT, async || Ok((runs(agent) == file).then_some(())))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_takes_another_build_of_its_agent_keeps_it_and_leaves_it_when_it_is_withdrawn() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &[CLASS]).await.unwrap();
    world.enrol().await.unwrap();
    let database = world.controller.database().await.unwrap();
    let second = another(folder.path(), &installed(), "second-build");
    let (release, digest) = push(&world, &second).await;
    let refused = world.controller.try_run(&["agent", "roll-out", &release]).await.unwrap();
    assert_eq!(refused.code, 4, "nobody has approved it: {}{}", refused.stdout, refused.stderr);
    let (again, triple) = (second.display().to_string(), triple());
    let args = ["agent", "push", &again, "--triple", &triple, "--version", dunlin_agent::VERSION];
    assert_eq!(
        world.controller.try_run(&args).await.unwrap().code,
        4,
        "the same program is a release already"
    );

    approve(&world, &release).await;
    let (pid, before) = (world.agents[0].pid(), runs(&world.agents[0]));
    assert_eq!(before, installed());
    roll_out(&world, &release, "120").await;
    let (phase, reason, _) = ended(&mut world.agents[0], &[], &database, &release).await;
    assert_eq!((phase.as_str(), reason.as_str()), ("committed", "ok"));
    let file = world.agents[0].folder.join("state/slots/blobs").canonicalize().unwrap().join(&digest);
    assert_eq!(
        (world.agents[0].pid(), runs(&world.agents[0])),
        (pid, file.clone()),
        "it is the same process"
    );

    // Every start begins with the installed program, which starts it.
    world.agents[0].stop().await.unwrap();
    world.agents[0].start().await.unwrap();
    assert_eq!(runs(&world.agents[0]), file);
    world.agents[0].kill().await.unwrap();
    world.agents[0].start().await.unwrap();
    assert_eq!(runs(&world.agents[0]), file);
    let listed = world.controller.json(&["agent", "list"]).await.unwrap();
    assert_eq!((&listed[0]["state"], &listed[0]["orders"][0]["canaries"]), (&"approved".into(), &1.into()));

    let audited = "SELECT COUNT(*) FROM audit WHERE what = 'model.approve' AND after LIKE ?";
    let approvals: i64 =
        sqlx::query_scalar(audited).bind(format!("%{release}%")).fetch_one(&database).await.unwrap();
    assert_eq!(approvals, 1, "the audit log names what was approved");

    let keys = world.offline_keys();
    world.controller.json(&["agent", "withdraw", &release, "--keys", &keys]).await.unwrap();
    until_it_runs(&world.agents[0], &installed()).await;
    let withdrawn = wait_for("the withdrawal to be told", LIMIT, async || {
        let query = "SELECT reason FROM outcomes WHERE release = ? AND phase = 'rolled_back'";
        let row = sqlx::query(query).bind(&release).fetch_optional(&database).await?;
        Ok(row.map(|row| row.get::<String, _>(0)))
    });
    assert_eq!(withdrawn.await.unwrap(), "below_release_floor");
    assert!(!file.exists(), "its file is dropped");

    // Somebody with every online key names a program that nobody approved.
    let victim: DeviceId = world.agents[0].id.parse().unwrap();
    let attacker = Attacker::new(&world.controller.data, world.controller.mqtt);
    let since = claims::last_indicator(&database).await.unwrap();
    let release = ReleaseId { version: 9, ..release.parse().unwrap() };
    let forged = attacker.forge(&victim, |assignment| {
        assignment.generation += 1;
        assignment.program = Some(ProgramAssignment { release, reach_ms: 60_000 });
    });
    attacker.push(&victim, forged.unwrap()).await.unwrap();
    claims::refused(&database, victim.as_str(), "not_approved", since, LIMIT).await.unwrap();
    assert_eq!(runs(&world.agents[0]), installed());
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_heard_is_left_whether_it_ends_hangs_or_finds_no_controller() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &[CLASS]).await.unwrap();
    world.enrol().await.unwrap();
    let database = world.controller.database().await.unwrap();
    let (gate, agent) = (folder.path().join("gate"), installed());
    let variables = |how: &'static str| {
        let (gate, agent) = (gate.to_str().unwrap(), agent.to_str().unwrap());
        [("MUTE", how), ("MUTE_GATE", gate), ("MUTE_AGENT", agent)]
    };

    // Something that does not even find itself sound is never tried.
    let no_agent = another(folder.path(), Path::new("/bin/true"), "no-agent");
    let (foreign, _) = push(&world, &no_agent).await;
    approve(&world, &foreign).await;
    roll_out(&world, &foreign, "60").await;
    let (phase, reason, _) = ended(&mut world.agents[0], &[], &database, &foreign).await;
    assert_eq!((phase.as_str(), reason.as_str()), ("failed", "proof_crashed"));
    assert_eq!(runs(&world.agents[0]), installed());

    for (how, reason, said) in [
        ("ends", "crash_loop", "again and again"),
        ("hangs", "controller_unreached", "hung"),
        ("waits", "controller_unreached", "acknowledged"),
    ] {
        let env = variables(how);
        world.agents[0].stop().await.unwrap();
        world.agents[0].start_with(&env).await.unwrap();
        let mute = another(folder.path(), &program("dunlin-mute").unwrap(), how);
        let (release, digest) = push(&world, &mute).await;
        approve(&world, &release).await;
        roll_out(&world, &release, "5").await;
        if how == "waits" {
            // It begins when there is no controller any more, and returns by itself when its time is over.
            let file = world.agents[0].folder.join("state/slots/blobs").canonicalize().unwrap().join(&digest);
            until_it_runs(&world.agents[0], &file).await;
            world.controller.kill().await.unwrap();
            std::fs::write(&gate, "open").unwrap();
            wait_for("it to begin anew", LIMIT, async || {
                let agent = &world.agents[0];
                Ok((runs(agent) == installed() && returned(agent)?).then_some(()))
            })
            .await
            .unwrap();
            assert!(world.agents[0].ended().unwrap().is_none(), "nobody had to end it");
            world.controller.start().await.unwrap();
        }
        let (phase, told, detail) = ended(&mut world.agents[0], &env, &database, &release).await;
        assert_eq!((phase.as_str(), told.as_str()), ("rolled_back", reason), "{how}: {detail}");
        assert!(detail.contains(said), "{how}: {detail}");
        assert_eq!(runs(&world.agents[0]), installed());
    }
    world.stop().await.unwrap();
}

/// Whether the last start of an agent was that of the installed program: it was started by nobody.
fn returned(agent: &Agent) -> anyhow::Result<bool> {
    let words = std::fs::read(format!("/proc/{}/cmdline", agent.pid().unwrap_or_default()))?;
    // In the middle of becoming another program a process has none.
    Ok(!words.is_empty() && !words.split(|byte| *byte == 0).any(|word| word == b"started-by"))
}
