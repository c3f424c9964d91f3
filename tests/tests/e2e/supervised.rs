//! A service manager hears of a real agent that it serves, that it turns and that it stops.
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dunlin_tests::process::program;
use dunlin_tests::small::Small;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(90);

async fn heard(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 64];
    let length = timeout(LIMIT, manager.recv(&mut buffer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Whether an updater of the operating system would keep the image that this agent runs in.
fn kept(config: &Path) -> bool {
    let hook =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../firmware-targets/rootfs/usr/lib/dunlin/os-healthy");
    let mut hook = Command::new(hook);
    hook.arg("1").env("AGENT_PROGRAM", program("dunlin-agent").unwrap()).env("DUNLIN_AGENT_CONFIG", config);
    hook.status().unwrap().success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_hears_when_the_agent_serves_turns_and_stops() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = Small::new(folder.path(), &["x86-64-generic"]).await.unwrap();
    let config = world.agents[0].folder.join("agent.toml");
    assert!(kept(&config), "a device that is not enrolled has no agent to wait for");
    world.enrol().await.unwrap();
    let agent = &mut world.agents[0];
    agent.stop().await.unwrap();
    assert!(!kept(&config), "an enrolled device whose agent does not run is not healthy");

    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let environment = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "1000000")];
    agent.start_with(&environment).await.unwrap();
    assert_eq!(heard(&manager).await, "READY=1");
    for _ in 0..3 {
        assert_eq!(heard(&manager).await, "WATCHDOG=1");
    }
    assert!(kept(&config));
    while manager.try_recv(&mut [0; 64]).is_ok() {}
    agent.stop().await.unwrap();
    let mut last = heard(&manager).await;
    while last == "WATCHDOG=1" {
        last = heard(&manager).await;
    }
    assert_eq!(last, "STOPPING=1");
    world.controller.stop().await.unwrap();
}
