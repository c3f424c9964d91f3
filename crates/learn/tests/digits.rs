//! Whole jobs on UCI digits.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dunlin_learn::job::{
    DATA_FILE, Dataset, ERROR_FILE, Feature, Job, PROGRESS_FILE, RESULT_FILE, Schema, Split, SplitPolicy,
    Target,
};
use dunlin_learn::result::{MODEL_FILE, PROFILE_FILE, Progress};
use dunlin_learn::{Family, train_worker};
use dunlin_protocol::{Digest, ReferenceProfile, TaskType, cbor};

fn sha256(bytes: &[u8]) -> Digest {
    Digest(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().try_into().unwrap())
}

fn schema() -> Schema {
    let feature = |i| Feature { name: format!("p{i}"), unit: String::new(), min: Some(0.0), max: Some(16.0) };
    Schema {
        features: (0..64).map(feature).collect(),
        label: "digit".into(),
        labels: (0..10).map(|digit| digit.to_string()).collect(),
        time: None,
    }
}

fn digits(rows: usize) -> String {
    let data = smartcore::dataset::digits::load_dataset();
    let mut text = (0..64).map(|i| format!("p{i},")).collect::<String>() + "digit\n";
    for (row, label) in data.data.chunks_exact(64).zip(&data.target).take(rows) {
        row.iter().for_each(|value| text += &format!("{value},"));
        text += &format!("{label}\n");
    }
    text
}

fn job(dir: &Path, data: &str, families: &[Family], trials: u32) -> Job {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join(DATA_FILE), data).unwrap();
    let job = Job {
        format: 1,
        task: "meter".parse().unwrap(),
        task_type: TaskType::Classification,
        seed: 7,
        families: families.to_vec(),
        split: Split { policy: SplitPolicy::Stratified, holdout_percent: 20 },
        trials,
        targets: vec![],
        dataset: Dataset { file: DATA_FILE.into(), digest: sha256(data.as_bytes()) },
    };
    job.write(&schema(), dir).unwrap();
    job
}

#[test]
fn every_family_reads_digits_and_exports_what_the_engine_runs() {
    let dir = tempfile::tempdir().unwrap();
    job(dir.path(), &digits(usize::MAX), &Family::ALL, 3);
    let result = train_worker(dir.path()).unwrap();
    assert_eq!((result.rows, result.candidates.len()), (1797, 3));
    for candidate in &result.candidates {
        let least = if candidate.family == Family::Gbdt { 900_000 } else { 930_000 };
        assert!(candidate.accuracy_ppm > least, "{} {}", candidate.id, candidate.accuracy_ppm);
        assert_eq!(candidate.predictions.len(), result.truth.len());
        let folder = dir.path().join("candidates").join(&candidate.id);
        for (name, blob) in &candidate.files {
            let bytes = fs::read(folder.join(name)).unwrap();
            assert_eq!((sha256(&bytes), bytes.len() as u64), (blob.digest, blob.length));
        }
        let profile: ReferenceProfile =
            cbor::decode(&fs::read(folder.join(PROFILE_FILE)).unwrap(), 1 << 20).unwrap();
        assert_eq!(profile.features.len(), 64);
        let known = dunlin_engine::supported_ops();
        assert!(candidate.ops.iter().all(|op| known.contains(op)), "{:?}", candidate.ops);
    }
}

#[test]
fn the_same_job_gives_the_same_bytes_wherever_it_is_cut() {
    let root = tempfile::tempdir().unwrap();
    let (whole, cut) = (root.path().join("whole"), root.path().join("cut"));
    let data = digits(500);
    for dir in [&whole, &cut] {
        job(dir, &data, &Family::ALL, 4);
    }
    let first = train_worker(&whole).unwrap();
    train_worker(&cut).unwrap();
    // A cut after the second trial, in the middle of writing the third.
    fs::remove_file(cut.join(RESULT_FILE)).unwrap();
    fs::remove_dir_all(cut.join("candidates")).unwrap();
    fs::remove_file(cut.join("trials/0003.json")).unwrap();
    fs::write(cut.join("trials/0002.json"), "{\"job\":").unwrap();
    fs::remove_file(cut.join(PROGRESS_FILE)).unwrap();
    let second = train_worker(&cut).unwrap();
    let kept: Vec<bool> = fs::read_to_string(cut.join(PROGRESS_FILE))
        .unwrap()
        .lines()
        .filter_map(|line| match serde_json::from_str(line).unwrap() {
            Progress::Trial { kept, .. } => Some(kept),
            Progress::Validated { .. } | Progress::Candidate { .. } | Progress::Done => None,
        })
        .collect();
    assert_eq!(kept, [true, true, false, false]);
    assert_eq!(first.trials, second.trials);
    assert_eq!(first.candidates.len(), 3);
    for candidate in &first.candidates {
        let read =
            |dir: &Path| fs::read(dir.join("candidates").join(&candidate.id).join(MODEL_FILE)).unwrap();
        assert!(read(&whole) == read(&cut), "{} differs", candidate.id);
    }
    // A finished job is not run again.
    let before = fs::read(cut.join(PROGRESS_FILE)).unwrap();
    assert_eq!(train_worker(&cut).unwrap(), second);
    assert_eq!(fs::read(cut.join(PROGRESS_FILE)).unwrap(), before);
}

#[test]
fn a_small_target_gets_a_small_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut job = job(dir.path(), &digits(500), &[Family::Logistic, Family::Gbdt], 3);
    let small = Target {
        class: Some("small".parse().unwrap()),
        ops: Some(BTreeSet::from(
            ["ai.onnx/Sub", "ai.onnx/Mul", "ai.onnx/Gemm", "ai.onnx/Softmax"].map(String::from),
        )),
        ..Target::default()
    };
    job.targets = vec![small, Target::default()];
    job.write(&schema(), dir.path()).unwrap();
    let result = train_worker(dir.path()).unwrap();
    for candidate in &result.candidates {
        let expected: &[&str] =
            if candidate.family == Family::Logistic { &["small", "any"] } else { &["any"] };
        assert_eq!(candidate.targets, expected, "{}", candidate.id);
    }
    job.targets = vec![Target { bundle_bytes_max: Some(1000), ..Target::default() }];
    job.write(&schema(), dir.path()).unwrap();
    assert_eq!(train_worker(dir.path()).unwrap_err().code(), "nothing_fits");
}

#[test]
fn two_classes_share_one_ensemble() {
    let dir = tempfile::tempdir().unwrap();
    let data: String = digits(usize::MAX)
        .lines()
        .filter(|line| line.ends_with("digit") || line.ends_with(",0") || line.ends_with(",8"))
        .map(|line| format!("{line}\n"))
        .collect();
    let job = job(dir.path(), &data, &Family::ALL, 3);
    let schema = Schema { labels: vec!["0".into(), "8".into()], ..schema() };
    job.write(&schema, dir.path()).unwrap();
    let result = train_worker(dir.path()).unwrap();
    assert!(result.candidates.iter().all(|candidate| candidate.accuracy_ppm > 950_000));
}

#[test]
fn damaged_data_ends_the_job_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    job(dir.path(), &digits(300), &[Family::Logistic], 1);
    let path = dir.path().join(DATA_FILE);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let failure = |dir: &Path| -> dunlin_learn::result::Failure {
        serde_json::from_slice(&fs::read(dir.join(ERROR_FILE)).unwrap()).unwrap()
    };
    assert!(train_worker(dir.path()).unwrap_err().is_data());
    assert_eq!(failure(dir.path()).code, "dataset_digest");
    let text = digits(300).replacen("p0,", "p99,", 1);
    job(dir.path(), &text, &[Family::Logistic], 1);
    assert!(train_worker(dir.path()).unwrap_err().to_string().contains("\"p0\""));
    assert_eq!(failure(dir.path()).code, "columns");
    job(dir.path(), &digits(300), &[Family::Logistic], 1);
    train_worker(dir.path()).unwrap();
    assert!(!dir.path().join(ERROR_FILE).exists());
}
