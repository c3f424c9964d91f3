//! A small fleet whose cameras age, of two classes and with a device that is never retrained. It goes through what follows
//! from that without one defence after the other, and then with them.
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use dunlin_agent::identity::KEY_FILE;
use dunlin_protocol::weaken::Defence;
use dunlin_tests::agent::Agent;
use dunlin_tests::claims::{self, Measured};
use dunlin_tests::controller::Controller;
use dunlin_tests::digits::{AGED, NEW, views};
use dunlin_tests::operator::{TASK, policy, push, push_file, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use dunlin_tests::traffic::{LABEL_DELAY_MS, measure};
use dunlin_tests::wide::annotate;
use sqlx::SqlitePool;

use super::world::{
    CLASS, EVIDENCE, IN_VAIN, LIMIT, apply, controller_without, fails, rollout_of, rules, succeeded,
};

/// A class whose budget the larger of the two models exceeds.
const SMALL_CLASS: &str = "beaglebone-black";
/// Length of that model.
const LARGE_BYTES: usize = 64 << 10;

/// The devices by where they differ: so many of the larger class that their inputs are judged together.
const WHOLE: [usize; 3] = [0, 1, 2];
/// One of each class, without bounds to what a model may cost.
const UNBOUND: [usize; 2] = [3, 4];
/// In the group that the task holds and that retraining leaves out.
const HELD: usize = 5;
const CLASSES: [&str; 6] = [CLASS, SMALL_CLASS, CLASS, CLASS, SMALL_CLASS, CLASS];
const N: usize = CLASSES.len();
/// Classes with devices that are retrained, and how many labels tell of one.
const MANAGED: usize = 2;
const LABELS_MIN: u64 = 100;

/// The fleet, and what was measured of it.
pub(crate) struct Fleet {
    small: Small,
    database: SqlitePool,
    pool: BTreeSet<String>,
}

/// Accuracy on images that nobody labels, and as the controller has it from labels.
struct Moment {
    measured: Measured,
    labelled: Measured,
}

impl Fleet {
    /// Enrols, takes the first models, and is looked at with cameras that are new.
    pub(crate) async fn new(folder: &Path) -> Self {
        let mut controller = Controller::new(folder);
        controller.init(&format!("{CONTROLLER_CONFIG}{EVIDENCE}")).await.unwrap();
        controller.weaken(&[Defence::Explain, Defence::DriftEffect, Defence::Trigger]);
        controller.start().await.unwrap();
        let mut small = Small::with(folder, &CLASSES, controller, AGENT_CONFIG).unwrap();
        UNBOUND.iter().for_each(|index| small.agents[*index].weaken(&[Defence::Budgets]));
        small.enrol().await.unwrap();
        small.held = vec![HELD];
        small.controller.json(&["group", "create", "held"]).await.unwrap();
        small.controller.json(&["device", "group", &small.agents[HELD].id, "held"]).await.unwrap();
        let database = small.controller.database().await.unwrap();
        let pool = first_models(&small, folder).await;
        copied_key(&small, &database, folder).await;
        apply(&small, folder, &task(&pool)).await;
        small.ask().unwrap();
        wait_for("every device to commit to a model", LIMIT, async || {
            Ok(claims::every_device_serves(&database, N).await.ok())
        })
        .await
        .unwrap();
        Self { small, database, pool }
    }

    fn agents(&self, which: &[usize]) -> Vec<&Agent> {
        which.iter().map(|index| &self.small.agents[*index]).collect()
    }

    /// What is measured now, and what labels tell of windows that began at `since_ms` or later.
    async fn moment(&self, since_ms: u64) -> Moment {
        let scene = self.small.scene.as_ref().unwrap();
        Moment {
            measured: measure(scene, &self.small.pools.measurement, TASK).await.unwrap(),
            labelled: claims::labelled(&self.database, since_ms, &[]).await.unwrap(),
        }
    }

    /// The same once there are labels enough of every class.
    async fn told(&self, since_ms: u64) -> Moment {
        wait_for("labels of every class", LIMIT, async || {
            let labelled = claims::labelled(&self.database, since_ms, &[]).await?;
            let told = labelled.iter().filter(|((_, held), rate)| !held && rate.n >= LABELS_MIN);
            Ok((told.count() == MANAGED).then_some(()))
        })
        .await
        .unwrap();
        self.moment(since_ms).await
    }

    /// Waits until a trigger of retraining has fired, whatever follows from it, or until none does.
    async fn until_fired(&self, fired: bool) {
        wait_for("the triggers to be weighed so", LIMIT, async || {
            let weighed: Option<String> =
                sqlx::query_scalar("SELECT triggers FROM tasks").fetch_one(&self.database).await?;
            Ok(weighed.filter(|weighed| weighed.contains("\"fired\"") == fired).map(drop))
        })
        .await
        .unwrap();
    }

    /// Boards without budgets run the same model, nobody wrote down why, and chance alone is taken for drift.
    pub(crate) async fn chosen(&self) {
        claims::own_key_and_signed_model(&self.small.controller, &self.database, N).await.unwrap();
        let serving = claims::serving(&self.database).await.unwrap();
        let why = fails(claims::families(&self.small.controller).await);
        assert!(why.starts_with("1 families: ") && self.pool.iter().all(|one| why.contains(one)), "{why}");
        let (whole, unbound) = (self.agents(&WHOLE), self.agents(&UNBOUND));
        claims::choice_differs(&claims::by_class(whole, &serving)).unwrap();
        fails(claims::choice_differs(&claims::by_class(unbound, &serving)));
        let device = &self.small.agents[WHOLE[0]].id;
        fails(claims::explained(&self.small.controller, device, &self.pool).await);
        wait_for("chance to be taken for drift", LIMIT, async || {
            Ok(claims::no_drift_seen(&self.database).await.is_err().then_some(()))
        })
        .await
        .unwrap();
        fails(claims::no_drift_seen(&self.database).await);
    }

    /// The cameras age, a trigger fires, and no run comes of it, so that nothing recovers. Then one does, and the device
    /// that is never to be retrained takes its model too.
    pub(crate) async fn aged(&mut self) {
        let before = self.told(0).await;
        controller_without(&mut self.small, &[Defence::Trigger]).await;
        let device = self.small.agents[WHOLE[0]].id.clone();
        wait_for("the choice to be explained", LIMIT, async || {
            Ok(claims::explained(&self.small.controller, &device, &self.pool).await.ok())
        })
        .await
        .unwrap();
        self.until_fired(false).await;
        *self.small.scene.as_ref().unwrap().ageing.lock().unwrap() = AGED;
        let aged_ms = wall_ms();
        self.until_fired(true).await;
        // Labels that come before then may be of what the cameras saw when they were new.
        let labelled_ms = aged_ms + u64::try_from(LABEL_DELAY_MS.end).unwrap();
        let (during, fired_ms) = (self.told(labelled_ms).await, wall_ms());
        tokio::time::sleep(IN_VAIN).await;
        let runs: i64 =
            sqlx::query_scalar("SELECT count(*) FROM runs").fetch_one(&self.database).await.unwrap();
        assert_eq!(runs, 0, "no trigger starts a run");
        let after = self.told(fired_ms).await;
        // What is lacking is the way back.
        for why in [
            fails(claims::recovered(&before.measured, &during.measured, &after.measured)),
            fails(claims::recovered(&before.labelled, &during.labelled, &after.labelled)),
        ] {
            assert!(why.contains(&format!("; of {MANAGED} classes {MANAGED} fell and ")), "{why}");
        }

        let off = [Defence::Holding, Defence::Exclusion, Defence::Gain, Defence::Gate];
        controller_without(&mut self.small, &off).await;
        let run = wait_for("a run", LIMIT, async || {
            let run = sqlx::query_scalar::<_, String>("SELECT id FROM runs LIMIT 1");
            Ok(run.fetch_optional(&self.database).await?)
        })
        .await
        .unwrap();
        let (cause, facts) = succeeded(&self.database, &run).await;
        claims::started_by_itself(&run, &cause).unwrap();
        let facts: serde_json::Value = serde_json::from_str(&facts).unwrap();
        let release = facts["releases"][0].as_str().unwrap().to_owned();
        let rollout = rollout_of(&self.database, &run).await;
        self.small.committed(&release, LIMIT).await.unwrap();
        let after = self.moment(0).await;
        claims::recovered(&before.measured, &during.measured, &after.measured).unwrap();
        fails(claims::not_retrained_stayed(&before.measured, &after.measured));
        claims::confined(&self.small.controller, &rollout).await.unwrap();
        // Nothing is switched off: what the controller's own key signs may run, and is not what the offline keys signed.
        let why = fails(claims::own_key_and_signed_model(&self.small.controller, &self.database, N).await);
        assert!(why.contains(&format!(" 0 of {N} serve a release signed offline")), "{why}");
        for agent in &mut self.small.agents {
            agent.stop().await.unwrap();
        }
        self.small.controller.stop().await.unwrap();
    }
}

/// The rules of the task, with drift as the trigger and as many rows as are there.
fn task(pool: &BTreeSet<String>) -> toml::Table {
    let mut rules = rules(pool, None);
    rules["retraining"].as_table_mut().unwrap().insert("rows_max".into(), 1_200.into());
    rules
}

/// A board whose key was copied from another one's joins the fleet, and leaves it again. Nothing is switched off: no part
/// of the system compares the keys of devices, each of which makes its own.
async fn copied_key(small: &Small, database: &SqlitePool, folder: &Path) {
    let copy = Agent::new(folder, "copy", CLASS, AGENT_CONFIG).unwrap();
    let pending = copy.folder.join("state/identity.pending");
    std::fs::create_dir_all(&pending).unwrap();
    let original = small.agents[WHOLE[0]].folder.join("state/identity").join(KEY_FILE);
    std::fs::copy(original, pending.join(KEY_FILE)).unwrap();
    let claim = small.controller.json(&["device", "claim", "--device", &copy.id]).await.unwrap();
    copy.enrol(claim["token"].as_str().unwrap()).await.unwrap();
    let why = fails(claims::own_key_and_signed_model(&small.controller, database, N + 1).await);
    assert!(why.starts_with(&format!("{N} keys of {} devices", N + 1)), "{why}");
    small.controller.json(&["device", "revoke", &copy.id]).await.unwrap();
}

/// One model twice: the smaller release claims little, the larger one what it is worth. Returns both.
async fn first_models(small: &Small, folder: &Path) -> BTreeSet<String> {
    let (controller, job) = (&small.controller, folder.join("first-models"));
    let images = views(&small.pools.training, NEW, 1, 1);
    let result = train(controller, &job, &images, &["logistic"], 1).await.unwrap();
    let candidate = &result["candidates"][0];
    let id = candidate["id"].as_str().unwrap();
    let mut modest = candidate.clone();
    modest["accuracy_ppm"] = 700_000.into();
    let first = push(controller, &job, id, "meter-small", &modest).await.unwrap();
    let model = std::fs::read(job.join("candidates").join(id).join("model.onnx")).unwrap();
    let file = job.join("large.onnx");
    std::fs::write(&file, annotate(&model, LARGE_BYTES).unwrap()).unwrap();
    let second = push_file(controller, &job, &file, "meter-large", candidate).await.unwrap();
    // What is learnt of aged cameras alone knows little of new ones.
    policy(controller, folder, &views(&small.pools.training[..100], AGED, 1, 1)).await.unwrap();
    controller.json(&["model", "approve", "--keys", &small.offline_keys()]).await.unwrap();
    BTreeSet::from([first, second])
}

fn wall_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}
