//! One device that is cut again and again.
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dunlin_agent::update::{CHUNK_BYTES, SYNC_BYTES};
use serde_json::Value;
use sqlx::SqlitePool;

use super::instrument::{Instrument, Kind};
use super::left::{self, Downloads};
use crate::agent::{Agent, Application};
use crate::claims;
use crate::digits::PIXELS;
use crate::operator::TASK;

/// How long an update may take, from start to commit or cut, and from the start after a cut to the commit; and how long a
/// question is waited for, as a machine with many devices on it answers some of them late.
const LIMIT: Duration = Duration::from_secs(90);
/// How long an application waits between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// What the agent's marker holds while it runs; the mark of another boot of the board says that the power was cut.
const MARKER: &str = "running";

/// A device with the state that it gets back before each cut.
#[derive(Debug)]
pub struct Lane {
    agent: Agent,
    application: Application,
    first: String,
    second: String,
    state: PathBuf,
    aside: PathBuf,
    disk: PathBuf,
    questions: u64,
}

impl Lane {
    pub(super) fn new(agent: Agent, first: &str, second: &str) -> Result<Self> {
        let folder = agent.folder.clone();
        let lane = Self {
            agent,
            application: Application::patient(TASK, LIMIT)?,
            first: first.into(),
            second: second.into(),
            state: folder.join("state"),
            aside: folder.join("aside"),
            disk: folder.join("disk"),
            questions: 0,
        };
        left::copy(&lane.state, &lane.aside)?;
        Ok(lane)
    }

    pub(super) fn id(&self) -> &str {
        &self.agent.id
    }

    pub(super) async fn kill(&mut self) -> Result<()> {
        self.agent.kill().await
    }

    /// One update, cut at call `at`; if there is a call `before`, the one that takes it up after a cut there. How many
    /// downloads it took up where they were; nothing, if it was through before that.
    ///
    /// # Errors
    /// What is not as it must be afterwards.
    pub(super) async fn cut(
        &mut self,
        instrument: &Instrument,
        (kind, before): (Kind, Option<u64>),
        at: u64,
        database: &SqlitePool,
    ) -> Result<Option<u64>> {
        self.agent.kill().await?;
        left::copy(&self.aside, &self.state)?;
        left::sync(&self.state, &self.disk)?;
        let known = self.boots()?;
        if let Some(before) = before
            && self.die(instrument, kind, before).await?.is_none()
        {
            return Ok(None);
        }
        let Some(downloaded) = self.die(instrument, kind, at).await? else { return Ok(None) };
        let again_max = match kind {
            Kind::Kill => CHUNK_BYTES,
            Kind::Power | Kind::PowerUnsynced => SYNC_BYTES + CHUNK_BYTES,
        };
        let cut = left::floors(&self.state)?;
        let log = self.agent.log()?.len();
        self.agent.start().await?;
        self.comes_through().await?;
        left::not_lower(&cut, &left::floors(&self.state)?)?;
        let told = self.agent.log()?.split_off(log);
        let mut resumed = 0;
        for line in told.lines().filter(|line| line.contains("downloading")) {
            let (digest, from) = (field(line, "digest=")?, field(line, "from=")?.parse::<u64>()?);
            let had = downloaded.get(digest).copied().unwrap_or(0);
            ensure!(
                from + again_max >= had,
                "{} bytes of {digest} are fetched again of {had}",
                had.saturating_sub(from)
            );
            resumed += u64::from(from > 0);
        }
        let boots: Vec<String> = self.boots()?.into_iter().filter(|boot| !known.contains(boot)).collect();
        claims::delivered(&self.agent, &boots, database, LIMIT).await?;
        Ok(Some(resumed))
    }

    /// Launches the agent, which dies at call `at`, and leaves on the disk what such a death leaves. Returns how much of each
    /// download there was when it died; nothing, if its update was through before that.
    async fn die(&mut self, instrument: &Instrument, kind: Kind, at: u64) -> Result<Option<Downloads>> {
        let before = left::floors(&self.state)?;
        let environment = instrument.environment(kind, at, &self.state, &self.disk);
        let environment: Vec<_> = environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        self.agent.launch(&environment)?;
        if !self.dies().await? {
            return Ok(None);
        }
        let downloaded = left::downloaded(&self.state)?;
        match kind {
            Kind::Kill => {}
            Kind::Power | Kind::PowerUnsynced => {
                left::lose_power(&self.state, &self.disk)?;
                let marker = self.state.join("slots").join(MARKER);
                if std::fs::metadata(&marker).is_ok_and(|about| about.len() > 0) {
                    std::fs::write(marker, "another boot of this board")?;
                }
            }
        }
        left::not_lower(&before, &left::floors(&self.state)?)?;
        Ok(Some(downloaded))
    }

    /// Whether the launched agent dies before its update is through.
    async fn dies(&mut self) -> Result<bool> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            if let Some(status) = self.agent.ended()? {
                ensure!(status.signal() == Some(9), "the agent ended by itself: {status}");
                return Ok(true);
            }
            if let Some(api) = self.agent.listens() {
                self.agent.api = api;
                // It may die while it is asked.
                if self.ask().await.is_ok() && self.committed().await.unwrap_or(false) {
                    return Ok(false);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("the agent neither died nor finished its update in {LIMIT:?}")
    }

    /// The agent answers with one of the two releases from the first question on, and ends with the second one.
    async fn comes_through(&mut self) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            let version = self.ask().await.context("no answer after the cut")?;
            ensure!(
                version == self.first || version == self.second,
                "{version} answers, which is neither {} nor {}",
                self.first,
                self.second
            );
            if version == self.second && self.committed().await? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!(
            "the update did not come through after the cut: {}",
            self.application.status(self.agent.api).await?
        )
    }

    async fn ask(&mut self) -> Result<String> {
        self.questions += 1;
        let id = format!("cut-{}", self.questions);
        Ok(self.application.infer(self.agent.api, &id, &[0.0; PIXELS]).await?.version)
    }

    /// Whether the device itself says that the second release is there to stay.
    async fn committed(&self) -> Result<bool> {
        let status = self.application.status(self.agent.api).await?;
        let installed = &status["installed"][TASK];
        Ok(installed["phase"] == "committed" && installed["release"] == self.second.as_str())
    }

    /// The starts of the agent that its books name.
    fn boots(&self) -> Result<Vec<String>> {
        let text = std::fs::read(self.state.join("spool/counters.json")).context("the spool's books")?;
        let books: Value = serde_json::from_slice(&text)?;
        let boots = books["boots"].as_array().context("boots")?;
        Ok(boots.iter().filter_map(|boot| Some(boot["boot"].as_str()?.to_owned())).collect())
    }
}

fn field<'a>(line: &'a str, name: &str) -> Result<&'a str> {
    let rest = line.split_once(name).with_context(|| format!("no {name} in {line:?}"))?.1;
    Ok(rest.split_whitespace().next().unwrap_or_default())
}
