use std::collections::BTreeSet;

use dunlin_monitor::summary::Summary;
use dunlin_protocol::{Bundle, DeviceId, Installed, ReleaseId};
use dunlin_select::{Evidence, Measured, Predicted};

use super::{Filter, Ledger, Roster};

/// What a manifest says of its release.
pub fn predicted(bundle: &Bundle) -> Predicted {
    let metric = |name: &str| bundle.metrics.get(name).copied();
    Predicted {
        accuracy_ppm: metric("accuracy_ppm").map(|ppm| ppm.clamp(0, 1_000_000) as u32),
        rows: metric("n").and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0),
        latency_us: bundle.latency_us,
    }
}

/// What is known of `release` on `device`: its own windows and proof, those of the other devices of its class, and
/// the prediction.
pub fn candidate_evidence(
    ledger: &Ledger,
    roster: &Roster,
    device: &DeviceId,
    release: &ReleaseId,
    installed: Option<&Installed>,
    predicted: Predicted,
) -> Evidence {
    let class = roster.get(device).map(|place| &place.class);
    let peers: BTreeSet<DeviceId> = roster
        .iter()
        .filter(|(id, place)| *id != device && Some(&place.class) == class)
        .map(|(id, _)| id.clone())
        .collect();
    let of = |devices: &BTreeSet<DeviceId>| {
        measured(&ledger.summary(Filter { release: Some(release), devices: Some(devices), since_ms: 0 }))
    };
    let proof_us = installed
        .filter(|installed| installed.release.as_ref() == Some(release))
        .and_then(|installed| installed.proof_us);
    Evidence {
        device: Measured { proof_us, ..of(&BTreeSet::from([device.clone()])) },
        class: of(&peers),
        predicted,
    }
}

fn measured(sum: &Summary) -> Measured {
    Measured {
        labels: sum.accuracy(),
        failures: sum.error_rate(),
        latency_us: sum.latency_us.quantile(0.5).map(|us| us.round() as u64),
        proof_us: None,
    }
}
