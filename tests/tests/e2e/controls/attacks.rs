//! What stolen keys, a tampered store and cut downloads come to where nothing stands against them.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dunlin_protocol::weaken::Defence;
use dunlin_protocol::{DeviceId, Down, RepoFiles, Topic};
use dunlin_tests::claims;
use dunlin_tests::digits::{NEW, views};
use dunlin_tests::operator::{push_file, train};
use dunlin_tests::process::wait_for;
use dunlin_tests::wide::annotate;

use super::world::{
    FROZEN_OUT, IN_VAIN, LIMIT, NO_ADDRESSEE, NO_DIGEST, NO_RESUME, NO_VERSIONS, WHOLE, World, fails,
};

/// Length of a model whose download can be cut, and what of it must have come.
const LONG_BYTES: usize = 24 << 20;
const CUT_BYTES: u64 = 1 << 20;

impl World {
    /// Over the broker, with the controller's stolen identity and online keys. All is sent before anything is waited for:
    /// who takes the controller's session over delays what devices report.
    pub(crate) async fn attacks(&mut self, stolen: &[(usize, RepoFiles)]) {
        let before = claims::serving(&self.database).await.unwrap();
        let attacker = &self.attacker;
        let sealed = |device: &DeviceId| {
            attacker.seal_desired(device, attacker.director_files(device).unwrap()).unwrap()
        };
        let (whole, weak) = (self.id(WHOLE), self.id(NO_ADDRESSEE));
        let since = claims::last_indicator(&self.database).await.unwrap();
        // One message twice, and one to somebody else.
        for device in [&whole, &weak] {
            let (topic, message) = (Topic::down(device, Down::Desired), sealed(device));
            attacker.publish(&topic, message.clone()).await.unwrap();
            attacker.publish(&topic, message).await.unwrap();
        }
        for (to, of) in [(&whole, &weak), (&weak, &whole)] {
            attacker.publish(&Topic::down(to, Down::Desired), sealed(of)).await.unwrap();
        }
        // Director documents from before there was a model.
        for (index, files) in stolen {
            attacker.push(&self.id(*index), files.clone()).await.unwrap();
        }
        // What another device shall run, and what nobody approved. The forged versions are far ahead, so who sees them takes
        // nothing genuine afterwards.
        for device in [self.id(FROZEN_OUT), self.id(NO_ADDRESSEE)] {
            let foreign = attacker.forge(&device, |assignment| assignment.device = whole.clone());
            attacker.push(&device, foreign.unwrap()).await.unwrap();
            let unapproved = attacker.forge(&device, |assignment| {
                assignment.generation += 10;
                assignment.tasks[0].lineup.champion = "meter-evil@1".parse().unwrap();
            });
            attacker.push(&device, unapproved.unwrap()).await.unwrap();
        }

        let attacks = [
            ("envelope_replayed", WHOLE, NO_ADDRESSEE),
            ("envelope_wrong_device", WHOLE, NO_ADDRESSEE),
            ("metadata_rollback", WHOLE, NO_VERSIONS),
            ("wrong_device", FROZEN_OUT, NO_ADDRESSEE),
            ("not_approved", FROZEN_OUT, NO_ADDRESSEE),
        ];
        for (reason, whole, _) in attacks {
            self.refused(whole, reason, since, LIMIT).await.unwrap();
        }
        tokio::time::sleep(IN_VAIN).await;
        for (reason, _, without) in attacks {
            fails(self.refused(without, reason, since, Duration::ZERO).await);
        }
        // Nobody sent bytes that are no message.
        fails(self.refused(WHOLE, "envelope_malformed", since, Duration::ZERO).await);
        let agents = &self.small.agents;
        claims::no_model_moved(&[&agents[WHOLE]], &before, &self.database, &[]).await.unwrap();
        fails(claims::no_model_moved(&[&agents[NO_VERSIONS]], &before, &self.database, &[]).await);
        for index in [FROZEN_OUT, NO_ADDRESSEE] {
            self.small.agents[index].stop().await.unwrap();
            self.small.controller.json(&["device", "revoke", &self.small.agents[index].id]).await.unwrap();
        }
    }

    /// One bit of a model is flipped after it was signed, in text that nothing reads, so that nothing but the digest can
    /// tell. Downloads of it are cut. The controller knows no waves and brings nobody back.
    pub(crate) async fn tampering(&mut self, folder: &Path) {
        self.task(folder, None).await;
        self.controller_without(&[Defence::Waves, Defence::Return]).await;
        let before = claims::serving(&self.database).await.unwrap();
        let job = folder.join("tampered");
        let images = views(&self.small.pools.training, NEW, 1, 1);
        let result = train(&self.small.controller, &job, &images, &["logistic"], 1).await.unwrap();
        let candidate = &result["candidates"][0];
        let model = job.join("candidates").join(candidate["id"].as_str().unwrap()).join("model.onnx");
        let long = annotate(&std::fs::read(model).unwrap(), LONG_BYTES).unwrap();
        let file = job.join("long.onnx");
        std::fs::write(&file, &long).unwrap();
        let release =
            push_file(&self.small.controller, &job, &file, "meter-tampered", candidate).await.unwrap();
        self.attacker.tamper(&dunlin_trust::sha256(&long).to_string()).unwrap();
        let since = claims::last_indicator(&self.database).await.unwrap();
        let rollout = self.roll_out(&release).await;

        let mut cuts = BTreeMap::new();
        wait_for("downloads to cut", LIMIT, async || {
            // A download lasts a fraction of a second here, so this looks many times before it pauses.
            for _ in 0..2000 {
                for index in [WHOLE, NO_RESUME] {
                    let agent = &mut self.small.agents[index];
                    if cuts.contains_key(&index) || agent.downloading(CUT_BYTES).is_none() {
                        continue;
                    }
                    agent.kill().await?;
                    // It may have been through before the blow; then it tries once more.
                    match agent.downloading(CUT_BYTES) {
                        Some(cut) => drop(cuts.insert(index, cut)),
                        None => self.small.start(index).await?,
                    }
                }
                if cuts.len() == 2 {
                    return Ok(Some(()));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(None)
        })
        .await
        .unwrap();
        for index in [WHOLE, NO_RESUME] {
            self.small.start(index).await.unwrap();
        }
        claims::resumed(&self.small.agents[WHOLE], &cuts[&WHOLE], LIMIT).await.unwrap();
        let why = fails(claims::resumed(&self.small.agents[NO_RESUME], &cuts[&NO_RESUME], LIMIT).await);
        assert!(why.contains("asked from byte 0 on"), "{why}");

        let (database, controller) = (&self.database, &self.small.controller);
        let (whole, weak) = (self.id(NO_VERSIONS), self.id(NO_DIGEST));
        claims::tampering_refused(database, &release, &[whole.as_str()], since, LIMIT).await.unwrap();
        wait_for("the tampered model to answer", LIMIT, async || {
            Ok(claims::never_answered(database, &release, &[weak.as_str()]).await.is_err().then_some(()))
        })
        .await
        .unwrap();
        fails(claims::tampering_refused(database, &release, &[weak.as_str()], since, IN_VAIN).await);
        claims::never_answered(database, &release, &[whole.as_str()]).await.unwrap();
        let releases = [release.clone()];
        fails(claims::committed(database, whole.as_str(), &releases, Duration::ZERO).await);
        claims::committed(database, weak.as_str(), &releases, LIMIT).await.unwrap();
        // The controller chose the release, which is why what was done to it has to be said.
        let fooled = [&self.small.agents[NO_DIGEST]];
        claims::no_model_moved(&fooled, &before, database, &[]).await.unwrap();
        fails(claims::no_model_moved(&fooled, &before, database, &[&release]).await);
        fails(claims::in_waves(controller, &rollout, 1, 2).await);
        fails(claims::only_the_canary_ran(controller, database, &rollout, &release, 1).await);
        claims::kept_out(database, &self.pool()).await.unwrap();

        controller.json(&["rollout", "abort", &rollout]).await.unwrap();
        fails(claims::promoted(database, &rollout).await);
        fails(claims::returned(database, &release, &before, IN_VAIN).await);
        self.controller_without(&[]).await;
        claims::returned(&self.database, &release, &before, LIMIT).await.unwrap();
    }
}
