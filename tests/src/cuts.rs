//! Updates that are cut at each system call which changes something of the agent's state.
//!
//! A fleet in which one release is installed and another one assigned is stopped, and the devices' state put aside. For each
//! cut a device gets that state back, begins the update, and dies before the n-th such call (`cuts/cut.c`). What is left
//! must come up by itself and finish the update. `n` rises until the update is through before it is reached.

mod instrument;
mod lane;
mod left;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sqlx::SqlitePool;
use tokio::task::{JoinSet, LocalSet};

pub use instrument::{Instrument, Kind};
pub use lane::Lane;

use crate::agent::Agent;
use crate::claims;
use crate::controller::Controller;
use crate::digits::{NEW, views};
use crate::operator::{definition, push_file, train, unhurried};
use crate::process::wait_for;
use crate::small::{AGENT_CONFIG, CONTROLLER_CONFIG, Small};
use crate::wide::annotate;

/// How long a step of the set-up may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Text in the model that nothing reads: more than is written between two syncs, so that a power cut can cost something.
const LONG_BYTES: usize = 3 << 19;
/// Updates in a row that were through before their cut, after which there is no call left to cut at. More than one, as
/// threads do not take turns the same way twice.
const THROUGH: u64 = 3;
const CLASS: &str = "raspberry-pi-4";

/// A fleet before an update.
#[derive(Debug)]
pub struct Cuts {
    controller: Controller,
    lanes: Vec<Lane>,
    second: String,
}

/// What came of many cuts.
#[derive(Debug, Default)]
pub struct Tally {
    /// Cuts made.
    pub cuts: u64,
    /// The last call that was cut at.
    pub last: u64,
    /// Downloads that were taken up where they were.
    pub resumed: u64,
    /// Cuts after which something was not as it must be, and what.
    pub bad: BTreeMap<u64, String>,
}

impl Cuts {
    /// Brings `lanes` devices to where an update is assigned to them and they have not heard of it.
    pub async fn prepare(folder: &Path, lanes: usize) -> Result<Self> {
        let mut controller = Controller::new(folder);
        controller.init(CONTROLLER_CONFIG).await?;
        controller.start().await?;
        let classes = vec![CLASS; lanes];
        let mut small = Small::with(folder, &classes, controller, AGENT_CONFIG)?;
        let first = small.first_model(folder).await?;
        small.enrol().await?;
        assign(&small, folder, &first).await?;
        small.ask()?;
        small.committed(&first, LIMIT).await?;
        small.hush();
        for agent in &mut small.agents {
            agent.stop().await?;
        }
        let second = second_model(&small, folder).await?;
        let generations = generations(&small)?;
        assign(&small, folder, &second).await?;
        wait_for("the assignments", LIMIT, async || {
            let now = self::generations(&small)?;
            Ok(now.iter().zip(&generations).all(|(now, before)| now > before).then_some(()))
        })
        .await?;
        let Small { controller, agents, .. } = small;
        let lanes =
            agents.into_iter().map(|agent| Lane::new(agent, &first, &second)).collect::<Result<_>>()?;
        Ok(Self { controller, lanes, second })
    }

    /// Cuts updates at every `step`-th call until there are no more, or `limit` cuts are made; with `before`, updates that
    /// are taken up after a cut at that call.
    pub async fn sweep(&mut self, kind: Kind, before: Option<u64>, step: u64, limit: u64) -> Result<Tally> {
        let instrument = Instrument::build(&self.controller.data)?;
        let database = self.controller.database().await?;
        let turns = Turns { next: Cell::new(0), through: Cell::new(0), begin: Instant::now() };
        let shared = Rc::new((instrument, database, turns));
        let mut work = JoinSet::new();
        let set = LocalSet::new();
        for lane in self.lanes.drain(..) {
            let shared = shared.clone();
            work.spawn_local_on(async move { sweep(lane, (kind, before), step, limit, &shared).await }, &set);
        }
        let all = async {
            let mut all = (Vec::new(), Tally::default());
            while let Some(done) = work.join_next().await {
                let (lane, tally) = done.context("a lane panicked")??;
                all.1.cuts += tally.cuts;
                all.1.last = all.1.last.max(tally.last);
                all.1.resumed += tally.resumed;
                all.1.bad.extend(tally.bad);
                all.0.push(lane);
            }
            anyhow::Ok(all)
        };
        let (lanes, tally) = set.run_until(all).await?;
        self.lanes = lanes;
        Ok(tally)
    }

    /// No cut was counted as a failed deployment of the release.
    pub async fn not_blamed(&self) -> claims::Claim {
        let database = self.controller.database().await?;
        for lane in &self.lanes {
            claims::not_blamed(&database, lane.id(), std::slice::from_ref(&self.second)).await?;
        }
        Ok(format!("no failure of {}", self.second))
    }

    /// Ends the controller.
    pub async fn end(mut self) -> Result<()> {
        self.controller.stop().await
    }
}

/// Whose turn it is, for lanes that take their cuts from one row.
struct Turns {
    next: Cell<u64>,
    through: Cell<u64>,
    begin: Instant,
}

async fn sweep(
    mut lane: Lane,
    kind: (Kind, Option<u64>),
    step: u64,
    limit: u64,
    (instrument, database, turns): &(Instrument, SqlitePool, Turns),
) -> Result<(Lane, Tally)> {
    let mut tally = Tally::default();
    while turns.through.get() < THROUGH && turns.next.get() < limit {
        let at = 1 + turns.next.replace(turns.next.get() + 1) * step;
        let outcome = lane.cut(instrument, kind, at, database).await;
        if matches!(outcome, Ok(None)) {
            turns.through.set(turns.through.get() + 1);
            continue;
        }
        turns.through.set(0);
        (tally.cuts, tally.last) = (tally.cuts + 1, tally.last.max(at));
        match outcome {
            Ok(resumed) => tally.resumed += resumed.unwrap_or(0),
            Err(error) => {
                eprintln!(
                    "{:7.1} s  {} cut at call {at}: {error:#}",
                    turns.begin.elapsed().as_secs_f64(),
                    lane.id()
                );
                tally.bad.insert(at, format!("{error:#}"));
            }
        }
    }
    lane.kill().await.map(|()| (lane, tally))
}

/// Makes `release` the only one of the task, proved to be good by a moment on probation.
async fn assign(small: &Small, folder: &Path, release: &str) -> Result<()> {
    let mut rules: toml::Table = toml::from_str(&unhurried(&definition(&[release.to_owned()].into(), None)))?;
    let probation = rules["probation"].as_table_mut().context("probation")?;
    probation.insert("ms_min".into(), 200.into());
    probation.insert("requests_min".into(), 5.into());
    let file = folder.join("task.toml");
    std::fs::write(&file, toml::to_string(&rules)?)?;
    small.controller.json(&["task", "apply", &file.display().to_string()]).await.map(drop)
}

async fn second_model(small: &Small, folder: &Path) -> Result<String> {
    let job = folder.join("second-model");
    let images = views(&small.pools.training, NEW, 1, 2);
    let result = train(&small.controller, &job, &images, &["logistic"], 2).await?;
    let candidate = &result["candidates"][0];
    let id = candidate["id"].as_str().context("a candidate's id")?;
    let model = std::fs::read(job.join("candidates").join(id).join("model.onnx"))?;
    let file = job.join("long.onnx");
    std::fs::write(&file, annotate(&model, LONG_BYTES)?)?;
    let release = push_file(&small.controller, &job, &file, "meter-second", candidate).await?;
    small.approve(&release).await?;
    Ok(release)
}

/// The newest version of each device's assignment, by the names of the files.
fn generations(small: &Small) -> Result<Vec<u64>> {
    let of = |agent: &Agent| {
        let folder = small.controller.data.join("repo/director").join(&agent.id);
        let names = std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        let numbers = names.filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_suffix(".targets.json")?.parse::<u64>().ok()
        });
        Ok(numbers.max().unwrap_or(0))
    };
    small.agents.iter().map(of).collect()
}
