use std::collections::BTreeMap;

use dunlin_monitor::rate::Rate;
use dunlin_monitor::summary::Summary;
use dunlin_protocol::{Bundle, ClassName, DeviceId, Installed, ReleaseId};
use dunlin_select::{Earlier, Evidence, Measured, Predicted};

use super::{Filter, Ledger};

/// What a manifest says of its release.
pub fn predicted(bundle: &Bundle) -> Predicted {
    let metric = |name: &str| bundle.metrics.get(name).copied();
    Predicted {
        accuracy_ppm: metric("accuracy_ppm").map(|ppm| ppm.clamp(0, 1_000_000) as u32),
        rows: metric("n").and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0),
        latency_us: bundle.latency_us,
    }
}

/// What was measured of the releases of one task, summed once, so that asking for every device of a fleet takes time
/// in proportion to the fleet.
#[derive(Debug, Default)]
pub struct Measures {
    devices: BTreeMap<(DeviceId, ReleaseId), Measured>,
    classes: BTreeMap<(ClassName, ReleaseId), Measured>,
    devices_earlier: BTreeMap<(DeviceId, ReleaseId), Rate>,
    classes_earlier: BTreeMap<(ClassName, ReleaseId), Rate>,
}

impl Measures {
    /// Sums the windows of a ledger from `since_ms` on, as [`Filter::since_ms`] counts it. Devices without a class
    /// count for themselves only.
    pub fn new(ledger: &Ledger, classes: &BTreeMap<&DeviceId, &ClassName>, since_ms: u64) -> Self {
        let sums = ledger.by_device_and_release(Filter { since_ms, ..Filter::default() });
        let mut by_class: BTreeMap<(ClassName, ReleaseId), Summary> = BTreeMap::new();
        for ((device, release), sum) in &sums {
            if let Some(class) = classes.get(device) {
                by_class.entry(((*class).clone(), release.clone())).or_default().merge(sum);
            }
        }
        let devices_earlier = ledger.labels_before(since_ms);
        let mut classes_earlier: BTreeMap<(ClassName, ReleaseId), Rate> = BTreeMap::new();
        for ((device, release), rate) in &devices_earlier {
            if let Some(class) = classes.get(device) {
                let all = classes_earlier.entry(((*class).clone(), release.clone())).or_default();
                *all = all.plus(*rate);
            }
        }
        Self {
            devices_earlier,
            classes_earlier,
            devices: sums.into_iter().map(|(key, sum)| (key, measured(&sum))).collect(),
            classes: by_class.into_iter().map(|(key, sum)| (key, measured(&sum))).collect(),
        }
    }

    /// What is known of `release` on `device`: its own windows and proof, those of the other devices of its class, the
    /// labels of both from before, and the prediction. The median latency of the class is taken over all of it: it counts only where the device has
    /// too few requests of its own to move it.
    pub fn evidence(
        &self,
        device: &DeviceId,
        class: &ClassName,
        release: &ReleaseId,
        installed: Option<&Installed>,
        predicted: Predicted,
    ) -> Evidence {
        let (on_device, on_class) = ((device.clone(), release.clone()), (class.clone(), release.clone()));
        let of_device = self.devices.get(&on_device).copied().unwrap_or_default();
        let of_class = self.classes.get(&on_class).copied().unwrap_or_default();
        let earlier = self.devices_earlier.get(&on_device).copied().unwrap_or_default();
        let class_earlier = self.classes_earlier.get(&on_class).copied().unwrap_or_default();
        let others =
            |all: Rate, own: Rate| Rate::new(all.hits.saturating_sub(own.hits), all.n.saturating_sub(own.n));
        let proof_us = installed
            .filter(|installed| installed.release.as_ref() == Some(release))
            .and_then(|installed| installed.proof_us);
        Evidence {
            device: Measured { proof_us, ..of_device },
            class: Measured {
                labels: others(of_class.labels, of_device.labels),
                failures: others(of_class.failures, of_device.failures),
                ..of_class
            },
            earlier: Earlier { device: earlier, class: others(class_earlier, earlier) },
            predicted,
        }
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
