use std::collections::BTreeSet;

use dunlin_monitor::drift::Report;
use dunlin_monitor::{scope, vote};
use dunlin_protocol as protocol;
use dunlin_select as select;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::form::Document;

mod retraining;
mod rollout;

/// One form of the document beside the type that is really sent.
struct Mirror<'a> {
    document: &'a Document,
    name: &'a str,
}

impl Mirror<'_> {
    /// The type writes these values in this form, and the form promises nothing that it never writes.
    fn shows<T: Serialize>(&self, values: &[T]) {
        for value in values {
            self.document.assert_is(self.name, &serde_json::to_value(value).unwrap());
        }
        let unmet = self.document.unmet(self.name);
        assert!(unmet.is_empty(), "{} promises what no sample has: {unmet:?}", self.name);
    }

    /// The same of values that the type reads.
    fn reads<T: Serialize + DeserializeOwned>(&self, values: &[Value]) {
        let read = |value: &Value| serde_json::from_value::<T>(value.clone());
        let values: Result<Vec<T>, _> = values.iter().map(read).collect();
        self.shows(&values.unwrap_or_else(|error| panic!("{}: {error}", self.name)));
    }

    /// The same of an enum by each of its variants: none is missing, by what the type itself says it takes. `tag` is where an
    /// inner tag stands; what a variant holds is `content`.
    fn reads_each<T: Serialize + DeserializeOwned>(&self, tag: Option<&str>, values: &[Value]) {
        let odd = tag.map_or(json!("\u{0}"), |tag| json!({ tag: "\u{0}" }));
        let error = serde_json::from_value::<T>(odd).err().expect("no variant is called so").to_string();
        let (_, known) = error.split_once("expected ").unwrap_or_else(|| panic!("{}: {error}", self.name));
        let known: BTreeSet<&str> = known.split('`').skip(1).step_by(2).collect();
        let variant = |value: &Value| match (tag, value) {
            (Some(tag), value) => value[tag].as_str().unwrap().to_owned(),
            (None, Value::Object(object)) => object.keys().next().unwrap().clone(),
            (None, word) => word.as_str().unwrap().to_owned(),
        };
        let shown: BTreeSet<String> = values.iter().map(variant).collect();
        assert_eq!(shown.iter().map(String::as_str).collect::<BTreeSet<_>>(), known, "{}", self.name);
        self.reads::<T>(values);
    }
}

/// Calls `check` with a document that nothing was compared with yet.
fn mirror(name: &str, check: impl FnOnce(Mirror<'_>)) {
    check(Mirror { document: &Document::of_this_build(), name });
}

fn words(all: &[&str]) -> Vec<Value> {
    all.iter().map(|word| json!(word)).collect()
}

#[test]
fn devices_are_shown_as_they_are_sent() {
    mirror("Arch", |arch| {
        arch.reads_each::<protocol::Arch>(None, &words(&["aarch64", "armv7", "x86_64", "riscv64"]));
    });
    let phases = [
        "assigned",
        "fetching",
        "verifying",
        "staged",
        "proving",
        "probation",
        "committed",
        "rolled_back",
        "failed",
        "rejected",
        "deferred",
        "superseded",
    ];
    mirror("Phase", |phase| phase.reads_each::<protocol::Phase>(None, &words(&phases)));
    let installed = json!({ "release": "m@1", "manifest": "00".repeat(32), "phase": "committed", "proof_us": 1, "proof_bytes": 1 });
    let of_phase = |phase: &&str| {
        let mut installed = installed.clone();
        installed["phase"] = json!(phase);
        installed
    };
    let each: Vec<Value> = phases.iter().map(of_phase).collect();
    mirror("Installed", |one| one.reads::<protocol::Installed>(&each));
    let profile = |arch: &str| {
        json!({ "class": "pi4", "arch": arch, "cores": 4, "ram_bytes": 1, "ops": ["ai.onnx/Gemm"], "agent": "1",
            "budgets": { "model_bytes_max": 1, "model_ram_bytes_max": 1, "latency_us_max": 1 } })
    };
    let enrol = |arch: &str| json!({ "secret": "s", "device": "d", "serial": "1", "csr_pem": "p", "profile": profile(arch) });
    let each = ["aarch64", "armv7", "x86_64", "riscv64"].map(enrol);
    mirror("EnrolRequest", |one| one.reads::<protocol::EnrolRequest>(&each));
    let valid = json!({ "from_ms": 1, "until_ms": 2 });
    let given = json!({ "device": "d", "certificate_pem": "p", "ca_pem": "p", "mqtt_host": "h", "mqtt_port": 1,
        "image_root": "{}", "director_root": "{}", "valid": valid });
    mirror("EnrolResponse", |one| one.reads::<protocol::EnrolResponse>(&[given]));
    let waiting = json!({ "id": "i", "key_id": "k", "ask_again_s": 1 });
    mirror("EnrolWaiting", |one| one.reads::<protocol::EnrolWaiting>(&[waiting]));
    let asks = json!({ "device": "d", "csr_pem": "p" });
    mirror("RenewRequest", |one| one.reads::<protocol::RenewRequest>(&[asks]));
    let next = json!({ "certificate_pem": "p", "valid": valid });
    mirror("RenewResponse", |one| one.reads::<protocol::RenewResponse>(&[next]));
}

#[test]
fn models_are_shown_as_they_are_sent() {
    let kinds = ["classification", "regression", "clustering", "recommendation"];
    mirror("TaskType", |kind| kind.reads_each::<protocol::TaskType>(None, &words(&kinds)));
    let types = [
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32",
        "FP64", "BYTES",
    ];
    mirror("DType", |datatype| datatype.reads_each::<protocol::DType>(None, &words(&types)));
    let specs: Vec<Value> =
        types.iter().map(|datatype| json!({ "name": "x", "datatype": datatype, "shape": [-1, 4] })).collect();
    let blob = json!({ "digest": "00".repeat(32), "length": 1 });
    let arches = ["aarch64", "armv7", "x86_64", "riscv64"];
    let hard = json!({ "arch": arches, "classes": ["pi4"], "ops": ["ai.onnx/Gemm"], "bundle_bytes": 1, "ram_bytes": 1,
        "min_agent": "1" });
    let custom = json!({ "task": "t", "hard": hard });
    mirror("TargetCustom", |one| one.reads::<protocol::TargetCustom>(&[custom]));
    let bundle = |kind: &str| {
        json!({ "format": 1, "release": "m@1", "task": "t", "task_type": kind, "family": "mlp", "model": blob,
            "golden": blob, "profile": blob, "hard": hard, "latency_us": 1, "metrics": { "n": 1 }, "licence": "MIT",
            "signature": { "inputs": specs, "outputs": specs, "features": [{ "name": "f", "unit": "V" }], "labels": ["a"] },
            "lineage": { "run": "r", "dataset": "00".repeat(32), "code": "c", "seed": 1 } })
    };
    mirror("Bundle", |one| one.reads::<protocol::Bundle>(&kinds.map(bundle)));
    let policy = |kind: &str| {
        json!({ "format": 1, "task": "t", "task_type": kind, "metric": "accuracy", "baseline_class": 0, "labels": ["a"],
            "baseline_rules": [{ "feature": 0, "from_micro": 1, "below_micro": 2, "class": 1 }],
            "retrained": { "inputs": specs, "outputs": specs, "ops": ["o"], "bundle_bytes_max": 1, "ram_bytes_max": 1,
                "latency_us_max": 1, "anchor": blob, "anchor_score_ppm_min": 1 },
            "samples": { "bytes_per_day_max": 1, "random_ppm_min": 1 } })
    };
    mirror("TaskPolicy", |one| one.reads::<protocol::TaskPolicy>(&kinds.map(policy)));
    let tensors: Vec<Value> = types
        .iter()
        .map(|datatype| json!({ "name": "x", "datatype": datatype, "shape": [1], "data": "AA==" }))
        .collect();
    let golden =
        json!({ "format": 1, "inputs": tensors, "outputs": tensors, "tolerance_ppm": 1, "labels": [1] });
    mirror("GoldenSet", |one| one.reads::<protocol::GoldenSet>(&[golden]));
    let custom =
        |arch: &str| json!({ "triple": "t", "arch": arch, "classes": ["pi4"], "agent": "1", "schemas": [1] });
    mirror("ProgramCustom", |one| one.reads::<protocol::ProgramCustom>(&arches.map(custom)));
}

#[test]
fn line_ups_are_shown_as_they_are_sent() {
    let roles = [
        json!("fallback"),
        json!({ "challenger": { "share_ppm": 1 } }),
        json!({ "shadow": { "cpu_ppm": 1, "ram_bytes": 1, "battery_ppm_min": 1 } }),
        json!({ "voter": { "weight_ppm": 1 } }),
        json!("bigger"),
        json!("smaller"),
        json!("meta"),
    ];
    mirror("Role", |role| role.reads_each::<protocol::Role>(None, &roles));
    let rules = [
        json!("first"),
        json!({ "cascade": { "margin_ppm": 1 } }),
        json!("hard_vote"),
        json!("soft_vote"),
        json!("weighted_vote"),
        json!("stack"),
    ];
    mirror("Rule", |rule| rule.reads_each::<protocol::Rule>(None, &rules));
    let signals = ["battery_ppm", "temperature_mc", "available_bytes", "load_ppm", "link"];
    mirror("Signal", |signal| signal.reads_each::<protocol::Signal>(None, &words(&signals)));
    let rule = |signal: &str| json!({ "signal": signal, "enter": 1, "leave": 2, "dwell_ms": 1 });
    mirror("ContextRule", |one| one.reads::<protocol::ContextRule>(&signals.map(rule)));
}

#[test]
fn drift_is_shown_as_it_is_sent() {
    let scopes = [
        json!({ "scope": "nowhere" }),
        json!({ "scope": "devices", "suspects": ["a"] }),
        json!({ "scope": "groups", "groups": ["g"], "suspects": ["a"] }),
        json!({ "scope": "fleet" }),
        json!({ "scope": "unclear", "devices": ["a"] }),
    ];
    mirror("DriftScope", |scope| scope.reads_each::<scope::Scope>(Some("scope"), &scopes));
    let verdicts = words(&["learning", "stable", "drifted"]);
    mirror("DriftVerdict", |verdict| verdict.reads_each::<vote::Verdict>(None, &verdicts));
    let test = json!({ "value": 0.5, "p": 0.5 });
    let feature = json!({ "name": "f", "ks": test, "ks_p_adjusted": 0.5, "js": test, "psi": test, "chi_square": test,
        "outside": 0.5, "drifted": true });
    let report = json!({ "n": 1, "n_effective": 0.5, "features": [feature], "share": 0.5, "drifted": true });
    mirror("DriftReport", |one| one.reads::<Report>(&[report]));
}

#[test]
fn choices_are_shown_as_they_are_sent() {
    use select::{Constraint, LatencySource, Score, Selection, Verdict, Why};

    mirror("Weights", |one| one.reads::<select::Weights>(&[json!({})]));
    mirror("Switching", |one| one.reads::<select::Switching>(&[json!({})]));
    let release: protocol::ReleaseId = "m@1".parse().unwrap();
    let kinds = [
        protocol::TaskType::Classification,
        protocol::TaskType::Regression,
        protocol::TaskType::Clustering,
        protocol::TaskType::Recommendation,
    ];
    let arches =
        [protocol::Arch::Aarch64, protocol::Arch::Armv7, protocol::Arch::X86_64, protocol::Arch::Riscv64];
    let sources =
        [LatencySource::Device, LatencySource::Proof, LatencySource::Class, LatencySource::Predicted];
    // Where a variant is added, these do not compile: it belongs into the lists below and into the form.
    let of = |constraint: &Constraint| match constraint {
        Constraint::TaskType { .. }
        | Constraint::Arch { .. }
        | Constraint::Class { .. }
        | Constraint::Ops { .. } => {}
        Constraint::Agent { .. }
        | Constraint::Ram { .. }
        | Constraint::Size { .. }
        | Constraint::Latency { .. } => {}
        Constraint::Accuracy { .. } | Constraint::KnownBad | Constraint::NotPinned | Constraint::Excluded => {
        }
        Constraint::Withdrawn | Constraint::Quarantined | Constraint::NotReached => {}
    };
    let why = |why: &Why| match why {
        Why::NoneEligible | Why::First | Why::CurrentIneligible | Why::Trial | Why::Best => {}
        Why::Dwell { .. } | Why::NotSure { .. } | Why::Better { .. } => {}
    };
    let mut constraints = vec![
        Constraint::Class { device: "pi4".parse().unwrap() },
        Constraint::Ops { missing: BTreeSet::from(["o".to_owned()]) },
        Constraint::Agent { needs: "2".into(), has: "1".into() },
        Constraint::Ram { bytes: 2, budget: 1 },
        Constraint::Size { bytes: 2, budget: 1 },
        Constraint::Accuracy { upper_ppm: 1, minimum_ppm: 2, labels: 3 },
        Constraint::KnownBad,
        Constraint::NotPinned,
        Constraint::Excluded,
        Constraint::Withdrawn,
        Constraint::Quarantined,
        Constraint::NotReached,
    ];
    constraints.extend(kinds.map(|kind| Constraint::TaskType { needs: kind, has: kind }));
    constraints.extend(arches.map(|device| Constraint::Arch { device }));
    constraints.extend(sources.map(|source| Constraint::Latency { us: 2, limit: 1, source }));
    constraints.iter().for_each(of);
    let score = |latency_source| Score {
        cautious: 0.5,
        utility: 0.5,
        deviation: 0.5,
        accuracy: 0.5,
        labels: (1, 2),
        labels_earlier: 1,
        accuracy_part: 0.5,
        latency_us: 1,
        latency_source,
        latency_part: 0.5,
        bytes_part: 0.5,
        energy_part: 0.5,
    };
    let eligible = sources.map(|source| Verdict::Eligible(score(source)));
    let verdicts = eligible.into_iter().chain([Verdict::Excluded(constraints)]);
    let rows: Vec<_> = verdicts.map(|verdict| select::Row { release: release.clone(), verdict }).collect();
    let whys = [
        Why::NoneEligible,
        Why::First,
        Why::CurrentIneligible,
        Why::Trial,
        Why::Best,
        Why::Dwell { challenger: release.clone(), served_ms: 1, dwell_ms: 2 },
        Why::NotSure { challenger: release.clone(), probability: 0.5, needed: 0.9 },
        Why::Better { probability: 0.5 },
    ];
    whys.iter().for_each(why);
    let selection = |why| Selection { chosen: Some(release.clone()), why, rows: rows.clone() };
    mirror("Selection", |one| one.shows(&whys.map(selection)));
}
