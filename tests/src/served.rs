//! Models as the agent keeps them, for servers that run without an assignment.
use std::sync::Arc;

use anyhow::Result;
use dunlin_agent::serve::Resident;
use dunlin_engine::Model;
use dunlin_protocol::{Blob, Bundle, Digest, Hard, Lineage, ModelSignature, TaskType};

use crate::digits::CLASSES;

/// Bins of a feature, as the registry makes them.
const BINS: usize = 64;

/// A release of `task` around a model of the digits, with drift bins of `rows` if it has few enough features.
///
/// # Errors
/// The file is no model that the engine runs, or a name is none.
pub fn resident(release: &str, task: &str, onnx: &[u8], rows: &[f32], width: usize) -> Result<Resident> {
    let model = Model::load(onnx, None)?;
    let none = Blob { digest: Digest([0; 32]), length: 0 };
    let profile = (width <= dunlin_monitor::profile::FEATURES_MAX).then(|| {
        let names: Vec<String> = (0..width).map(|i| format!("x{i}")).collect();
        let columns: Vec<Vec<f32>> =
            (0..width).map(|i| rows.iter().skip(i).step_by(width).copied().collect()).collect();
        Arc::new((dunlin_monitor::profile::build(&names, &columns, BINS), none.digest))
    });
    let bundle = Bundle {
        format: 1,
        release: release.parse()?,
        task: task.parse()?,
        task_type: TaskType::Classification,
        family: "bench".into(),
        model: none,
        golden: none,
        profile: None,
        signature: ModelSignature {
            inputs: model.inputs().to_vec(),
            outputs: model.outputs().to_vec(),
            features: vec![],
            labels: (0..CLASSES).map(|digit| digit.to_string()).collect(),
        },
        hard: Hard {
            arch: Default::default(),
            classes: Default::default(),
            ops: model.ops(),
            bundle_bytes: 0,
            ram_bytes: 0,
            min_agent: String::new(),
        },
        latency_us: 10,
        metrics: Default::default(),
        lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
        licence: String::new(),
    };
    Ok(Resident {
        release: bundle.release.clone(),
        bundle: Arc::new(bundle),
        manifest: none.digest,
        model: Arc::new(model),
        profile,
        background: Arc::default(),
        known: Arc::default(),
    })
}
