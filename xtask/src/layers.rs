//! Which crate may depend on which. A new edge is a reviewed change of this table.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::{cargo, output};

/// A package, what it may depend on, and what only its tests and examples may.
struct Layer {
    package: &'static str,
    normal: &'static [&'static str],
    dev: &'static [&'static str],
}

/// The crates that decide: they know no socket, file, thread or clock, and come to the same bits on every target.
const DECIDING: &[Layer] = &[
    Layer { package: "dunlin-protocol", normal: &[], dev: &[] },
    Layer { package: "dunlin-trust", normal: &["protocol"], dev: &[] },
    Layer { package: "dunlin-update", normal: &["protocol", "trust"], dev: &[] },
    Layer { package: "dunlin-monitor", normal: &["protocol"], dev: &[] },
    Layer { package: "dunlin-select", normal: &["protocol", "monitor"], dev: &[] },
    Layer { package: "dunlin-rollout", normal: &["protocol", "trust", "monitor"], dev: &[] },
    Layer { package: "dunlin-pipeline", normal: &["protocol", "monitor"], dev: &[] },
];

/// All others.
const OTHERS: &[Layer] = &[
    Layer { package: "dunlin-kernels", normal: &[], dev: &[] },
    Layer { package: "dunlin-engine", normal: &["protocol", "kernels"], dev: &[] },
    Layer { package: "dunlin-learn", normal: &["protocol", "engine", "monitor"], dev: &[] },
    Layer {
        package: "dunlin-agent",
        normal: &["protocol", "trust", "update", "monitor", "engine"],
        dev: &[],
    },
    Layer {
        package: "dunlin-controller",
        normal: &["protocol", "trust", "monitor", "select", "rollout", "pipeline", "engine", "learn"],
        dev: &[],
    },
    Layer {
        package: "dunlin-tests",
        normal: &["protocol", "trust", "monitor", "rollout", "engine", "learn", "agent", "controller"],
        dev: &["pipeline"],
    },
    Layer { package: "rustfft", normal: &[], dev: &[] },
    Layer { package: "xtask", normal: &["protocol", "trust"], dev: &[] },
];

/// The crates that decide, by their names without `dunlin-`.
pub(crate) fn deciding() -> impl Iterator<Item = &'static str> {
    DECIDING.iter().map(|layer| layer.package.trim_start_matches("dunlin-"))
}

/// Crates that must not appear below these packages: the pure crates have no runtime, and only the engine
/// knows tract.
const FOREIGN: &[(&str, &[&str])] = &[
    ("tokio", &["dunlin-agent", "dunlin-controller", "dunlin-tests"]),
    ("tract-onnx", &["dunlin-engine"]),
    ("candle-core", &["dunlin-learn"]),
    ("rumqttc-v5-next", &["dunlin-agent", "dunlin-controller", "dunlin-tests"]),
    ("sqlx", &["dunlin-controller", "dunlin-tests"]),
    ("tonic", &["dunlin-agent"]),
    ("parquet", &["dunlin-controller"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    source: Option<String>,
    dependencies: Vec<Dependency>,
    #[serde(default)]
    features: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    #[serde(default)]
    features: Vec<String>,
}

/// The feature that builds programs whose defences can be switched off. It is asked for on the command line of a test, and
/// nowhere else: no default and no dependency brings it in.
const WEAKEN: &str = "weaken";

/// Features and dependencies through which a package would be weakened without anybody asking.
fn weakened(package: &Package) -> Vec<String> {
    let brings = |named: &String| named == WEAKEN || named.ends_with(&format!("/{WEAKEN}"));
    let features =
        package.features.iter().filter(|(name, brought)| *name != WEAKEN && brought.iter().any(brings));
    let dependencies =
        package.dependencies.iter().filter(|dependency| dependency.features.iter().any(brings));
    let features = features.map(|(name, _)| format!("{}: feature {name} brings {WEAKEN}", package.name));
    let dependencies =
        dependencies.map(|of| format!("{}: dependency {} brings {WEAKEN}", package.name, of.name));
    features.chain(dependencies).collect()
}

/// Compares `cargo metadata` with the tables; every difference is an error of its own.
pub(crate) fn check() -> Result<()> {
    let text = output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]))
        .or_else(|_| output(&mut cargo(&["metadata", "--format-version", "1", "--no-deps"])))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cargo metadata printed no JSON")?;
    let errors = violations(&metadata);
    if !errors.is_empty() {
        bail!("layering:\n  {}", errors.join("\n  "));
    }
    Ok(())
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let layers: BTreeMap<_, _> = DECIDING.iter().chain(OTHERS).map(|layer| (layer.package, layer)).collect();
    let ours: BTreeSet<_> =
        metadata.packages.iter().filter(|p| p.source.is_none()).map(|p| p.name.as_str()).collect();
    let mut errors = Vec::new();
    for package in metadata.packages.iter().filter(|p| p.source.is_none()) {
        let Some(layer) = layers.get(package.name.as_str()) else {
            errors.push(format!("{} is in no layer: add it to xtask/src/layers.rs", package.name));
            continue;
        };
        errors.extend(weakened(package));
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            let dev = dependency.kind.as_deref() == Some("dev");
            let short = name.strip_prefix("dunlin-").unwrap_or(name);
            if ours.contains(name) && !layer.normal.contains(&short) && !(dev && layer.dev.contains(&short)) {
                errors.push(format!("{} must not depend on {name}", package.name));
            }
            for (foreign, allowed) in FOREIGN {
                if name == *foreign && !dev && !allowed.contains(&package.name.as_str()) {
                    errors.push(format!("{} must not name {foreign}", package.name));
                }
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|(name, kind)| Dependency {
                name: (*name).into(),
                kind: kind.map(Into::into),
                features: Vec::new(),
            })
            .collect();
        Package { name: name.into(), source: None, dependencies, features: BTreeMap::new() }
    }

    #[test]
    fn the_workspace_keeps_its_layers() {
        check().unwrap();
    }

    #[test]
    fn nothing_brings_weakened_programs_in_by_itself() {
        let mut agent = package("dunlin-agent", &[("dunlin-protocol", None)]);
        agent.features.insert(WEAKEN.into(), vec!["dunlin-protocol/weaken".into()]);
        assert_eq!(weakened(&agent), [""; 0]);
        agent.features.insert("default".into(), vec![WEAKEN.into()]);
        agent.dependencies[0].features.push(WEAKEN.into());
        assert_eq!(
            weakened(&agent),
            [
                "dunlin-agent: feature default brings weaken",
                "dunlin-agent: dependency dunlin-protocol brings weaken"
            ]
        );
    }

    #[test]
    fn a_forbidden_edge_is_found() {
        let packages = vec![
            package("dunlin-agent", &[("dunlin-controller", None)]),
            package("dunlin-controller", &[]),
            package("dunlin-select", &[("tokio", None), ("tract-onnx", Some("dev"))]),
            package("dunlin-stray", &[]),
        ];
        let errors = violations(&Metadata { packages });
        assert_eq!(
            errors,
            [
                "dunlin-agent must not depend on dunlin-controller",
                "dunlin-select must not name tokio",
                "dunlin-stray is in no layer: add it to xtask/src/layers.rs",
            ]
        );
    }
}
