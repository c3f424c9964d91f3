//! What is learnt and rolled out where nothing judges it, and what a schedule and aged cameras bring about.
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::weaken::Defence;
use dunlin_tests::agent::Application;
use dunlin_tests::claims;
use dunlin_tests::digits::{AGED, NEW, views};
use dunlin_tests::operator::TASK;
use dunlin_tests::process::wait_for;

use super::world::{
    HELD, IN_VAIN, LIMIT, NO_ACKNOWLEDGEMENT, NO_DIGEST, NO_RESUME, NO_VERSIONS, WHOLE, World, fails,
    rollout_of, succeeded,
};

/// How long a release is watched that devices are cut in the middle of: they tell that they watch it with a report, which
/// takes a second or more on a busy machine.
const CUT_PROBATION: Duration = Duration::from_secs(20);

/// What the controller does without while it learns and rolls out.
const UNBOUND: [Defence; 7] = [
    Defence::Gain,
    Defence::Gate,
    Defence::Holding,
    Defence::Exclusion,
    Defence::Confine,
    Defence::Drift,
    Defence::Schedule,
];

impl World {
    /// A run of too few rows to show anything, on cameras that did not age. An operator asked for it, as no trigger starts
    /// one here.
    pub(crate) async fn learning(&mut self, folder: &Path) {
        self.controller_without(&[&UNBOUND[..], &[Defence::Trigger]].concat()).await;
        self.task(folder, None).await;
        // Somebody labels at once what some devices are asked, so that no digit is rare.
        let application = Application::new(TASK).unwrap();
        let labelled = [WHOLE, NO_DIGEST, NO_RESUME, HELD];
        // All are connected by then: what cameras are told of later is newer, and would take its place.
        self.hear(&labelled, self.heard().await).await;
        for (number, image) in views(&self.small.pools.stream, NEW, 2, 5).iter().enumerate() {
            let agent = &self.small.agents[labelled[number % labelled.len()]];
            let id = format!("labelled-{number}");
            application.infer(agent.api, &id, &image.pixels).await.unwrap();
            application.feedback(agent.api, &id, image.digit).await.unwrap();
        }
        wait_for("labelled samples of each", LIMIT, async || {
            let devices = sqlx::query("SELECT device FROM samples JOIN devices ON devices.id = device WHERE label IS NOT NULL AND state = 'active' AND request LIKE 'labelled-%' GROUP BY device HAVING count(*) >= 75")
                .fetch_all(&self.database)
                .await?;
            Ok((devices.len() == labelled.len()).then_some(()))
        })
        .await
        .unwrap();
        let run = self.small.controller.json(&["run", "start", TASK]).await.unwrap();
        let run = run["id"].as_str().unwrap().to_owned();
        let (cause, facts) = succeeded(&self.database, &run).await;
        let why = fails(claims::gained(&facts));
        assert!(why.starts_with("1 released; "), "{why}");
        fails(claims::started_by_itself(&run, &cause));
        let why = fails(claims::learnt_from_devices(&self.small.controller, &self.database, &run).await);
        assert!(why.contains("; 0 nobody sent") && !why.contains(" 0 of devices that are left out"), "{why}");
        let rollout = rollout_of(&self.database, &run).await;
        let why = fails(claims::confined(&self.small.controller, &rollout).await);
        assert!(why.starts_with("auto.foreign.logistic@1;"), "{why}");
        // Whatever follows is seen by aged cameras.
        claims::no_drift_seen(&self.database).await.unwrap();
        let scene = self.small.scene.as_ref().unwrap();
        *scene.ageing.lock().unwrap() = AGED;
    }

    /// A model that is always wrong, properly signed, before a gate that does not look. The controller ends in the middle
    /// of its rollout, and the next one leaves that alone until it has its defence.
    pub(crate) async fn bad_model(&mut self, folder: &Path) {
        let bad = self.small.model(folder, "meter-bad", &self.small.mislabelled(), 3).await.unwrap();
        self.watched_for(folder, CUT_PROBATION).await;
        let rollout = self.roll_out(&bad).await;
        let releases = [bad.clone()];
        let canary = wait_for("a canary", LIMIT, async || {
            let canary = claims::canary(&self.database, &rollout).await?;
            Ok(Some(canary).filter(|canary| !canary.devices.is_empty()))
        })
        .await
        .unwrap();
        self.controller_without(&[&UNBOUND[..], &[Defence::Takeover]].concat()).await;
        let first = canary.devices.first().unwrap();
        claims::committed(&self.database, first, &releases, LIMIT).await.unwrap();
        tokio::time::sleep(IN_VAIN).await;
        fails(claims::promoted(&self.database, &rollout).await);
        fails(claims::reached_all_by_itself(&self.database, &rollout).await);
        fails(claims::went_on(&self.database, &rollout, &canary, &releases).await);
        fails(claims::taken_up(&self.database, &rollout, &canary, &releases).await);
        self.controller_without(&UNBOUND).await;
        // Of the devices that take the model now, two go down while they try it.
        let later = |pair: [usize; 2]| {
            pair.into_iter().find(|index| !canary.devices.contains(&self.small.agents[*index].id)).unwrap()
        };
        let (unforgiven, forgiven) = (later([NO_RESUME, NO_ACKNOWLEDGEMENT]), later([NO_VERSIONS, WHOLE]));
        self.cut_on_probation([unforgiven, forgiven], &bad).await;
        let (database, controller) = (&self.database, &self.small.controller);
        let device = self.id(unforgiven);
        wait_for("the cut to be blamed on the model", LIMIT, async || {
            Ok(claims::not_blamed(database, device.as_str(), &releases).await.is_err().then_some(()))
        })
        .await
        .unwrap();
        let device = self.id(forgiven);
        claims::committed(database, device.as_str(), &releases, LIMIT).await.unwrap();
        claims::not_blamed(database, device.as_str(), &releases).await.unwrap();
        wait_for("the rollout to end", LIMIT, async || {
            let state: String = sqlx::query_scalar("SELECT state FROM rollouts WHERE id = ?")
                .bind(&rollout)
                .fetch_one(database)
                .await?;
            Ok((state == "promoted" || state == "stopped").then_some(()))
        })
        .await
        .unwrap();
        fails(claims::stopped(database, &rollout).await);
        fails(claims::told_to_pipelines(controller, &rollout).await);
        claims::in_waves(controller, &rollout, 1, 2).await.unwrap();
        claims::went_on(database, &rollout, &canary, &releases).await.unwrap();
        claims::taken_up(database, &rollout, &canary, &releases).await.unwrap();
        // It was opened to all, and one of them failed.
        let why = fails(claims::reached_all_by_itself(database, &rollout).await);
        assert!(why.contains("left out []; ") && !why.contains(" 0 failed"), "{why}");
        fails(claims::only_the_canary_ran(controller, database, &rollout, &bad, 1).await);
        wait_for("the held device to have it too", LIMIT, async || {
            Ok(claims::kept_out(database, &self.pool()).await.is_err().then_some(()))
        })
        .await
        .unwrap();
    }

    /// Kills each of two devices as soon as it has this release on probation, and then starts both again.
    async fn cut_on_probation(&mut self, devices: [usize; 2], release: &str) {
        let mut cut = BTreeSet::new();
        wait_for("a release on probation on each", LIMIT, async || {
            for index in devices {
                let agent = &mut self.small.agents[index];
                let n: i64 = sqlx::query_scalar(
                    "SELECT count(*) FROM installed WHERE device = ? AND release = ? AND phase = 'probation'",
                )
                .bind(agent.id.as_str())
                .bind(release)
                .fetch_one(&self.database)
                .await?;
                if n > 0 && cut.insert(index) {
                    agent.kill().await?;
                }
            }
            Ok((cut.len() == devices.len()).then_some(()))
        })
        .await
        .unwrap();
        for index in devices {
            self.small.start(index).await.unwrap();
        }
    }

    /// A schedule that is due at every second and cameras that have aged: neither is acted on until the controller has its
    /// defences, which then act on the very same.
    pub(crate) async fn by_itself(&mut self, folder: &Path) {
        self.task(folder, Some("* * * * * *")).await;
        tokio::time::sleep(IN_VAIN).await;
        fails(claims::schedule_fired(&self.database, 1.., Duration::ZERO).await);
        fails(claims::drift_seen(&self.database).await);
        self.controller_without(&[]).await;
        claims::schedule_fired(&self.database, 1.., LIMIT).await.unwrap();
        wait_for("an alert", LIMIT, async || Ok(claims::drift_seen(&self.database).await.ok()))
            .await
            .unwrap();
        fails(claims::no_drift_seen(&self.database).await);
    }
}
