//! A running agent as its applications see it, on a board or on this machine.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Lost;
use super::fleet::{FEATURES, TASK};
use super::http::ask;
use crate::command;

/// How long a step may take: a board emulated by a busy machine is a hundred times slower than a real one.
pub(super) const LIMIT: Duration = Duration::from_secs(900);
/// What an agent fetches and checks at a time, bytes; after a cut it fetches at most one chunk again.
pub(super) const CHUNK_BYTES: u64 = 64 * 1024;
/// How long an emulated board may take over one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(120);
/// How long it is asked whether it answers already.
const KNOCK_LIMIT: Duration = Duration::from_secs(5);

const STATUS: &str = "/dunlin/status";

/// Looks until there is something to see.
pub(super) fn until<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    command::until(what, LIMIT, look)
}

/// What an agent told of itself at one moment: what it said is so must be so after a cut.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// Generation of the assignment that it accepted.
    pub(super) generation: u64,
    /// This start of the agent.
    pub(super) boot: String,
    /// The release that serves, and its phase.
    pub(super) release: String,
    pub(super) phase: String,
    /// Records made durable, by start of the agent.
    pub(super) durable: BTreeMap<String, u64>,
    /// Those of all starts that are so long ago that they are no longer named.
    pub(super) durable_earlier: u64,
    /// Telemetry windows among them.
    pub(super) windows: BTreeMap<String, u64>,
}

impl Told {
    /// Whether the release is there to stay.
    pub(super) fn committed(&self, release: &str) -> bool {
        self.phase == "committed" && self.release == release
    }

    fn read(status: &Value) -> Result<Self> {
        let installed = &status["installed"][TASK];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut told = Self {
            generation: status["generation"].as_u64().context("a status has a generation")?,
            boot: text(&status["boot"]),
            release: text(&installed["release"]),
            phase: text(&installed["phase"]),
            ..Self::default()
        };
        let spool = &status["spool"];
        for boot in spool["boots"].as_array().context("a spool has boots")? {
            told.durable.insert(text(&boot["boot"]), durable(boot)?);
            told.windows.insert(text(&boot["boot"]), number(boot, "windows")?);
        }
        told.durable_earlier = durable(&spool["earlier"])?;
        Ok(told)
    }

    /// What was told `before` a cut is so after it.
    pub(super) fn keeps(&self, before: &Self) -> Result<()> {
        let mut earlier = before.durable_earlier;
        for (boot, records) in &before.durable {
            match self.durable.get(boot) {
                Some(kept) => {
                    ensure!(
                        kept >= records,
                        Lost(format!("of {records} records of boot {boot}, {kept} are left"))
                    );
                }
                None => earlier += records,
            }
        }
        let kept = self.durable_earlier;
        ensure!(kept >= earlier, Lost(format!("of {earlier} records of earlier boots, {kept} are left")));
        let (then, now) = (before.generation, self.generation);
        ensure!(now >= then, Lost(format!("generation {then} was accepted, now {now} is")));
        Ok(())
    }
}

/// A number of the books of a start of the agent.
fn number(boot: &Value, name: &str) -> Result<u64> {
    boot[name].as_u64().with_context(|| format!("a boot has {name}"))
}

/// Its records that are durable: reports that tell nothing new wait in memory for a while, and those that a cut took are told as
/// lost.
fn durable(boot: &Value) -> Result<u64> {
    let apart = |name: &str| boot[name].as_u64().unwrap_or(0);
    Ok(number(boot, "appended")?.saturating_sub(apart("in_memory") + apart("lost")))
}

/// Where the task is asked.
pub(super) fn infer_path() -> String {
    format!("/v2/models/{TASK}/infer")
}

/// A row to decide on.
pub(super) fn question() -> Value {
    json!({"inputs": [{"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "data": vec![0.5; FEATURES]}]})
}

/// An agent's API.
#[derive(Debug, Clone, Copy)]
pub(super) struct Device {
    pub(super) api: SocketAddr,
}

impl Device {
    /// Asks a question; returns which release answered.
    pub(super) fn answer(self) -> Result<String> {
        let answer = ask(self.api, &infer_path(), Some(&question()), ANSWER_LIMIT)?;
        Ok(answer["model_version"].as_str().unwrap_or("baseline").to_owned())
    }

    /// What it tells of itself.
    pub(super) fn told(self) -> Result<Told> {
        Told::read(&ask(self.api, STATUS, None, ANSWER_LIMIT)?)
    }

    /// Whether it answers at all.
    pub(super) fn listens(self) -> bool {
        ask(self.api, STATUS, None, KNOCK_LIMIT).is_ok()
    }

    /// Waits until it has a session with the broker.
    pub(super) fn connects(self) -> Result<()> {
        until("the board to connect", || {
            let status = ask(self.api, STATUS, None, ANSWER_LIMIT)?;
            Ok((status["link"]["up"] == true).then_some(()))
        })
    }

    /// Asks on until the first release is there to stay; before it there may be no answer.
    pub(super) fn takes(self, release: &str) -> Result<()> {
        until("the first release to be installed", || {
            let answered = self.answer().is_ok();
            Ok((answered && self.told()?.committed(release)).then_some(()))
        })
    }

    /// Asks on until `release` is there to stay; every answer is one of `releases`. Returns what the agent tells then.
    pub(super) fn comes_to(self, release: &str, releases: &[&str]) -> Result<Told> {
        let mut last = String::new();
        until("the update to come through", || {
            let version = self.answer().context("no answer")?;
            ensure!(releases.contains(&version.as_str()), "{version} answers, which is none of {releases:?}");
            let told = self.told()?;
            last = format!("{} {}", told.release, told.phase);
            Ok(told.committed(release).then_some(told))
        })
        .with_context(|| format!("{release} was assigned; the device is at {last:?}"))
    }
}

/// What is downloaded in these lines begins at most `again_max` bytes before what was there. Returns from where on, bytes: the
/// most of all of them, zero if nothing was.
pub(super) fn not_fetched_again(log: &str, there: &BTreeMap<String, u64>, again_max: u64) -> Result<u64> {
    let field = |line: &str, name: &str| -> Option<String> {
        Some(line.split_once(name)?.1.split_whitespace().next()?.to_owned())
    };
    let mut most = 0;
    for line in log.lines().filter(|line| line.contains("downloading")) {
        let digest = field(line, "digest=").with_context(|| format!("no digest in {line:?}"))?;
        let from: u64 = field(line, "from=").with_context(|| format!("no offset in {line:?}"))?.parse()?;
        let had = there.get(&digest).copied().unwrap_or(0);
        ensure!(from + again_max >= had, "{} bytes of {digest} are fetched again of {had}", had - from);
        most = from.max(most);
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_that_begins_anew_is_found_and_one_that_goes_on_is_not() {
        let there = BTreeMap::from([("ab".to_owned(), 200)]);
        let log = |from: u64| format!("INFO x: downloading digest=ab from={from} length=300\n");
        assert_eq!(not_fetched_again(&log(136), &there, 64).unwrap(), 136);
        assert!(not_fetched_again(&log(135), &there, 64).is_err());
        let other = "INFO x: downloading digest=cd from=0 length=3\n";
        assert_eq!(not_fetched_again(other, &there, 64).unwrap(), 0);
        assert_eq!(not_fetched_again(&[&log(136), other].concat(), &there, 64).unwrap(), 136);
        assert_eq!(not_fetched_again("INFO x: serving\n", &there, 64).unwrap(), 0);
        assert!(not_fetched_again("INFO x: downloading", &there, 64).is_err());
    }

    #[test]
    fn a_record_that_was_told_and_is_gone_is_found() {
        let status = |generation: u64, appended: u64| {
            Told::read(&json!({
                "generation": generation,
                "installed": {TASK: {"release": "gate@1", "phase": "committed"}},
                "spool": {"boots": [{"boot": "aa", "appended": appended, "windows": 1}], "earlier": {"appended": 5}},
            }))
            .unwrap()
        };
        let quiet = |apart: &str| {
            let boot = json!({"boot": "aa", "appended": 11, "windows": 1, apart: 4});
            let spool = json!({"boots": [boot], "earlier": {"appended": 0}});
            Told::read(&json!({"generation": 2, "spool": spool})).unwrap().durable["aa"]
        };
        assert_eq!((quiet("in_memory"), quiet("lost"), quiet("evicted")), (7, 7, 11));
        let before = status(2, 7);
        assert!(before.committed("gate@1") && !before.committed("gate@2"));
        assert!(status(3, 8).keeps(&before).is_ok());
        for less in [status(3, 6), status(1, 8), Told::default()] {
            assert!(less.keeps(&before).unwrap_err().is::<Lost>());
        }
        // Starts that are long ago are only summed up.
        let of_long_ago =
            |durable_earlier| Told { durable_earlier, durable: BTreeMap::new(), ..status(3, 8) };
        assert!(of_long_ago(5 + 7).keeps(&before).is_ok());
        assert!(of_long_ago(5 + 6).keeps(&before).unwrap_err().is::<Lost>());
    }
}
