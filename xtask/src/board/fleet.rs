//! The controller of the boards, on this machine, and what its operator does.
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::device::{Told, until};
use super::tied;
use super::vm::free_port;
use crate::command::output;
use crate::cross::sha256;

/// What the boards decide.
pub(super) const TASK: &str = "gate";
/// Features of a row.
pub(super) const FEATURES: usize = 4;
/// The one device.
pub(super) const DEVICE: &str = "board";
/// Rows that the model is trained on.
const ROWS: usize = 400;
/// Text in each release of an update that is cut, which nothing reads: more than an agent writes between two syncs, in many chunks.
pub(super) const TEXT_BYTES: usize = 3 << 19;

/// A controller that serves.
pub(crate) struct Fleet {
    folder: PathBuf,
    programs: PathBuf,
    /// Of the API and of the broker.
    pub(super) ports: [u16; 2],
    token: String,
    scores: Value,
    process: Option<Child>,
}

impl Fleet {
    /// Makes keys and a controller, starts it, and trains the model that all releases are of.
    pub(crate) fn start(folder: &Path, programs: &Path) -> Result<Self> {
        let ports = [free_port()?, free_port()?];
        let mut fleet = Self {
            folder: folder.to_owned(),
            programs: programs.to_owned(),
            ports,
            token: String::new(),
            scores: Value::Null,
            process: None,
        };
        let (data, keys) = (fleet.data(), fleet.path("keys"));
        fleet.token = text(&fleet.json(&["init", "--data", &data])?, "token")?;
        let [api, mqtt] = ports;
        // A name that means this machine here, and on the board the way out to it.
        let settings = format!(
            "[api]\nlisten = \"127.0.0.1:{api}\"\npublic_url = \"https://localhost:{api}\"\n\n\
             [mqtt]\nlisten = \"127.0.0.1:{mqtt}\"\npublic_host = \"localhost\"\n\n\
             [planner]\ntick_ms = 500\n\n[training]\ntick_ms = 500\n"
        );
        std::fs::write(folder.join("controller/controller.toml"), settings)?;
        let online = fleet.path("controller/keys/online.json");
        let made = ["--keys", "2", "--threshold", "1"];
        fleet.run(
            &[&["key", "ceremony", "--plain", "--online", &online, "--out", &keys][..], &made].concat(),
        )?;
        fleet.run(&["key", "import", "--data", &data, "--from", &fleet.path("keys/public")])?;
        fleet.serve()?;
        fleet.train()?;
        Ok(fleet)
    }

    fn serve(&mut self) -> Result<()> {
        let log = File::create(self.folder.join("controller.log"))?;
        let mut serve = self.dunlin();
        serve.args(["serve", "--data", &self.data()]).stdin(Stdio::null());
        let mut child =
            serve.stdout(log.try_clone()?).stderr(log).spawn().context("starting the controller")?;
        let listens = ["api", "mqtt"].map(|door| self.folder.join(format!("controller/run/{door}.addr")));
        let served = until("the controller to listen", || {
            let ended = child.try_wait()?;
            ensure!(ended.is_none(), "the controller ended, see {}", self.path("controller.log"));
            Ok(listens.iter().all(|address| address.exists()).then_some(()))
        });
        self.process = Some(child);
        served
    }

    /// Trains a model that tells small rows from large ones.
    fn train(&mut self) -> Result<()> {
        let job = self.folder.join("job");
        std::fs::create_dir_all(&job)?;
        let names: Vec<String> = (0..FEATURES).map(|i| format!("x{i}")).collect();
        let mut data = format!("{},large\n", names.join(","));
        let mut dice = Dice(1);
        for _ in 0..ROWS {
            let row: [f64; FEATURES] = std::array::from_fn(|_| dice.share());
            let cells: Vec<String> = row.iter().map(|value| format!("{value:.3}")).collect();
            let large = u8::from(row.iter().sum::<f64>() > FEATURES as f64 / 2.0);
            data.push_str(&format!("{},{large}\n", cells.join(",")));
        }
        std::fs::write(job.join("data.csv"), data)?;
        let features: Vec<Value> =
            names.iter().map(|name| json!({"name": name, "min": 0.0, "max": 1.0})).collect();
        let schema = json!({"features": features, "label": "large", "labels": ["0", "1"]});
        let order = json!({
            "format": 1, "task": TASK, "task_type": "classification", "seed": 1, "families": ["logistic"],
            "split": {"policy": "stratified", "holdout_percent": 25}, "trials": 3,
            "dataset": {"file": "data.csv", "digest": sha256(&job.join("data.csv"))?},
        });
        std::fs::write(job.join("schema.json"), schema.to_string())?;
        std::fs::write(job.join("job.json"), order.to_string())?;
        self.run(&["train-worker", &self.path("job")])?;
        let result: Value = serde_json::from_slice(&std::fs::read(job.join("result.json"))?)?;
        self.scores = result["candidates"][0].clone();
        Ok(())
    }

    /// Pushes, and signs offline, so many releases with so much text in each; the first call also signs what the task may do.
    pub(super) fn releases(&self, number: usize, text_bytes: usize) -> Result<Vec<String>> {
        let model = std::fs::read(self.folder.join("job/candidates/logistic/model.onnx"))?;
        let (accuracy, rows) = (self.scores["accuracy_ppm"].to_string(), self.scores["n"].to_string());
        let samples = self.path("job/data.csv");
        let keys = self.path("keys/private");
        let policy = json!({
            "format": 1, "task": TASK, "task_type": "classification", "metric": "accuracy",
            "baseline_class": 0, "labels": ["0", "1"],
        });
        std::fs::write(self.folder.join("policy.json"), policy.to_string())?;
        self.run(&["model", "policy", "sign", "--file", &self.path("policy.json"), "--keys", &keys])?;
        let mut releases = Vec::new();
        for n in 0..number {
            let file = self.path(&format!("model-{n}.onnx"));
            std::fs::write(&file, annotated(&model, &words(n), text_bytes))?;
            let what =
                ["model", "push", &file, "--task", TASK, "--name", "gate-model", "--samples", &samples];
            let scores =
                ["--skip", "large", "--labels", "0,1", "--accuracy-ppm", &accuracy, "--accuracy-n", &rows];
            releases.push(text(&self.json(&[&what[..], &scores].concat())?, "release")?);
        }
        self.run(&["model", "approve", "--keys", &keys])?;
        Ok(releases)
    }

    /// Makes a release the only one of the task, proved to be good by a moment on probation: how fast a board answers that is
    /// emulated by a busy machine says nothing.
    pub(super) fn assign(&self, release: &str) -> Result<()> {
        let rules = format!(
            "task = \"{TASK}\"\nlabels = [\"0\", \"1\"]\npool = [{release:?}]\n\n\
             [choice]\njudged_ms = 120000\n[choice.switching]\ndwell_ms = 0\n\n\
             [probation]\nms_min = 200\nrequests_min = 5\nerror_ppm_max = 10000\nlatency_percent_max = 1000000\n\
             rss_bytes_max = 0\ndisagree_ppm_max = 1000000\n"
        );
        std::fs::write(self.folder.join("task.toml"), rules)?;
        self.run(&["task", "apply", &self.path("task.toml")])
    }

    /// Permission for the board to enrol.
    pub(crate) fn claim(&self) -> Result<String> {
        text(&self.json(&["device", "claim", "--device", DEVICE])?, "token")
    }

    /// Waits until every window that the device told of is stored, none twice. Counts of starts that are over agree `exactly`,
    /// unless the disk was put back: then the controller may know of more.
    pub(super) fn stored(&self, told: &Told, exactly: bool) -> Result<()> {
        let query = format!(
            "SELECT lower(hex(b.boot)), count(*), count(DISTINCT w.body) FROM windows w \
             JOIN boots b ON b.no = w.boot_no WHERE b.device = '{DEVICE}' GROUP BY b.no"
        );
        let mut differ = Vec::new();
        until("the reports of the device to be stored", || {
            let rows = self.query(&query)?;
            differ.clear();
            for (boot, windows) in &told.windows {
                let counts = rows.lines().find_map(|row| row.strip_prefix(boot.as_str())?.strip_prefix('|'));
                let (stored, different) = counts.unwrap_or("0|0").split_once('|').context("two counts")?;
                let (stored, different): (u64, u64) = (stored.parse()?, different.parse()?);
                let over = exactly && *boot != told.boot;
                let right = if over { stored == *windows } else { stored >= *windows };
                if !right || stored != different {
                    differ.push(format!(
                        "boot {boot}: {windows} closed, {stored} stored, {different} different"
                    ));
                }
            }
            Ok(differ.is_empty().then_some(()))
        })
        .with_context(|| differ.join("; "))
    }

    /// No cut counts as a failure of a release.
    pub(super) fn not_blamed(&self) -> Result<()> {
        let query = format!(
            "SELECT release, phase, reason FROM outcomes WHERE device = '{DEVICE}' AND phase IN ('failed', 'rolled_back')"
        );
        let blamed = self.query(&query)?;
        ensure!(blamed.is_empty(), "counted as failures: {blamed}");
        Ok(())
    }

    /// An honest board that lost its power looks like no copy, no lie and no state of an older day.
    pub(super) fn no_false_alarm(&self) -> Result<()> {
        let raised = self.query(
            "SELECT kind, detail FROM alerts WHERE kind IN ('telemetry_mismatch', 'state_restored', 'cloned_identity')",
        )?;
        ensure!(raised.is_empty(), "raised: {raised}");
        Ok(())
    }

    fn query(&self, query: &str) -> Result<String> {
        let mut sqlite = Command::new("sqlite3");
        sqlite.args(["-readonly", "-cmd", ".timeout 10000", &self.path("controller/dunlin.db"), query]);
        Ok(output(&mut sqlite)?.trim().to_owned())
    }

    /// The controller's program, as the operator calls it.
    fn dunlin(&self) -> Command {
        let mut command = tied(&self.programs.join("dunlin"));
        command.env("DUNLIN_SERVER", format!("https://127.0.0.1:{}", self.ports[0]));
        command.env("DUNLIN_TOKEN", &self.token).env("DUNLIN_CA", self.path("controller/ca.pem"));
        command
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&output(self.dunlin().args(args).arg("--json"))?)?)
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        output(self.dunlin().args(args)).map(drop)
    }

    fn data(&self) -> String {
        self.path("controller")
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let Some(process) = &mut self.process else { return };
        if let Err(error) = process.kill().and_then(|()| process.wait().map(drop)) {
            eprintln!("the controller could not be ended: {error}");
        }
    }
}

fn text(value: &Value, name: &str) -> Result<String> {
    Ok(value[name].as_str().with_context(|| format!("no {name} in {value}"))?.to_owned())
}

/// What the text of a release is made of.
pub(super) fn words(release: usize) -> String {
    format!("release {release} ")
}

/// The same ONNX model with a text of its own. A message of this kind may be followed by further fields; field 6 is the
/// text that describes it.
fn annotated(onnx: &[u8], words: &str, bytes: usize) -> Vec<u8> {
    const DESCRIPTION: u8 = 6 << 3 | 2;
    let text = words.repeat(bytes / words.len());
    let mut model = onnx.to_owned();
    model.push(DESCRIPTION);
    let mut length = text.len();
    while length >= 0x80 {
        model.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    model.push(length as u8);
    model.extend_from_slice(text.as_bytes());
    model
}

/// A small generator (SplitMix64; Steele, Lea, Flood 2014), so that a run can be repeated.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// Uniform in [0, 1).
    pub(super) fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_follows_the_model_with_its_length_in_groups_of_seven_bits() {
        assert_eq!(annotated(b"m", "ab", 4), b"m\x32\x04abab");
        assert_eq!(annotated(b"m", "a", 300)[..4], [b'm', 0x32, 0xac, 0x02]);
    }

    #[test]
    fn dice_fall_alike_with_the_same_seed_and_within_their_bounds() {
        let throws = |seed| {
            let mut dice = Dice(seed);
            std::array::from_fn::<f64, 9, _>(|_| dice.share())
        };
        assert_eq!(throws(1), throws(1));
        assert_ne!(throws(1), throws(2));
        assert!(throws(3).iter().all(|share| (0.0..1.0).contains(share)));
    }
}
