//! What is lost, what is sent twice, and what somebody changes afterwards.
use std::time::Duration;

use dunlin_protocol::weaken::Defence;
use dunlin_tests::claims;
use dunlin_tests::process::wait_for;
use sqlx::SqlitePool;

use super::world::{HELD, IN_VAIN, LIMIT, NO_ACKNOWLEDGEMENT, NO_VERSIONS, World, fails};

impl World {
    /// What was sent dies with the connection, and with the devices that sent it.
    pub(crate) async fn losses(&mut self) {
        self.controller_without(&[]).await;
        let both = [NO_VERSIONS, NO_ACKNOWLEDGEMENT];
        self.hear(&both, self.heard().await).await;
        self.small.controller.freeze().unwrap();
        self.close(&both).await;
        for index in both {
            self.small.agents[index].kill().await.unwrap();
        }
        self.small.controller.kill().await.unwrap();
        self.small.hush();
        self.small.controller.start().await.unwrap();
        for index in both {
            self.small.start(index).await.unwrap();
        }
        let [acknowledged, not] = both.map(|index| &self.small.agents[index]);
        claims::accounted_for(&[acknowledged], &self.database, LIMIT).await.unwrap();
        let why = fails(claims::accounted_for(&[not], &self.database, IN_VAIN).await);
        assert!(why.contains(" 0 twice"), "{why}");
        self.small.ask().unwrap();
    }

    /// A device that did not hear that its records are stored sends them again. From here on any device may have some
    /// stored twice: each hears nothing more when the controller stops. The one that is killed here is killed nowhere else before
    /// its last model: a third time would have it give its model up.
    pub(crate) async fn copies(&mut self) {
        self.controller_without(&[Defence::Once]).await;
        self.hear(&[HELD], self.heard().await).await;
        self.small.controller.freeze().unwrap();
        let heard = self.heard().await;
        self.close(&[HELD]).await;
        self.small.agents[HELD].freeze().unwrap();
        self.small.controller.thaw().unwrap();
        self.small.hush();
        // What the device sent is stored before it dies, and it does not hear so.
        self.hear(&[HELD], heard).await;
        self.small.agents[HELD].kill().await.unwrap();
        self.controller_without(&[Defence::Once]).await;
        self.small.start(HELD).await.unwrap();
        let agent = &self.small.agents[HELD];
        // Until the device sends again, what is stored agrees with what it closed.
        let why = wait_for("a window to be stored twice", LIMIT, async || {
            let why = claims::accounted_for(&[agent], &self.database, Duration::ZERO).await.err();
            Ok(why.map(|why| format!("{why:#}")).filter(|why| why.contains("differing: []")))
        })
        .await
        .unwrap();
        assert!(!why.contains(" 0 twice"), "{why}");
        self.small.ask().unwrap();
    }

    /// Somebody with the database changes what happened.
    pub(crate) async fn audit(&mut self) {
        claims::audit_whole(&self.small.controller).await.unwrap();
        self.small.hush();
        for agent in &mut self.small.agents {
            agent.stop().await.unwrap();
        }
        self.small.controller.stop().await.unwrap();
        let options =
            sqlx::sqlite::SqliteConnectOptions::new().filename(self.small.controller.data.join("dunlin.db"));
        let database = SqlitePool::connect_with(options).await.unwrap();
        for change in ["DROP TRIGGER audit_no_update", "UPDATE audit SET who = 'nobody' WHERE no = 2"] {
            sqlx::query(change).execute(&database).await.unwrap();
        }
        let why = fails(claims::audit_whole(&self.small.controller).await);
        let told = "row 2 of the audit log was changed, or the one before it was; compare with your backups";
        assert!(why.starts_with(&format!("exit code 4: {told}")), "{why}");
    }
}
