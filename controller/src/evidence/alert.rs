use std::collections::BTreeSet;

use dunlin_monitor::scope::Scope;
use dunlin_protocol::{DeviceId, GroupId};
use serde_json::json;

use super::Ledger;
use crate::store::{Result, Store};

/// Alert: the inputs of a task drifted in a group, in the fleet, or where too few devices tell a sensor from it.
pub const DRIFT: &str = "drift";
/// Alert: one device's inputs drifted while its peers' did not.
pub const SENSOR_SUSPECT: &str = "sensor_suspect";
/// Alert: stored windows of a device were skipped. It stays open: rows do not heal.
pub const WINDOW_SKIPPED: &str = "window_skipped";

/// Open alerts looked through for those that are over.
const ALERTS_MAX: u64 = 10_000;

/// Raises the alerts that follow from a ledger and clears those of its task that are over. To be called after
/// [`Ledger::read`]; saying the same again changes nothing.
pub async fn alert(store: &Store, ledger: &Ledger, now_ms: u64) -> Result<()> {
    let task = ledger.task();
    let about = format!("task:{task} ");
    let mut due: BTreeSet<(&str, String)> = BTreeSet::new();
    for drift in ledger.watched().iter().map(|release| ledger.drift(release)) {
        let (whole, suspects) = parts(&drift.scope);
        let facts =
            json!({ "scope": &drift.scope, "share_ppm": drift.share_ppm, "features": &drift.features });
        let what = format!(
            "{:.0} % of the features, {}",
            f64::from(drift.share_ppm) / 1e4,
            drift.features.join(", ")
        );
        if let Some(place) = whole {
            let subject = format!("{about}release:{}", drift.release);
            let detail = format!("inputs of {} drifted in {place}: {what}", drift.release);
            store.alert_raise(DRIFT, &subject, &detail, &facts, now_ms).await?;
            due.insert((DRIFT, subject));
        }
        for device in suspects {
            let subject = format!("{about}device:{device}");
            let detail = format!("its inputs drifted while its peers' did not ({what}): check the sensor");
            store.alert_raise(SENSOR_SUSPECT, &subject, &detail, &facts, now_ms).await?;
            due.insert((SENSOR_SUSPECT, subject));
        }
    }
    for (device, skipped) in ledger.skipped() {
        let detail =
            format!("{} stored windows were skipped, the last one for: {}", skipped.rows, skipped.last_cause);
        let subject = format!("{about}device:{device}");
        store.alert_raise(WINDOW_SKIPPED, &subject, &detail, &json!(skipped), now_ms).await?;
    }
    for open in store.alerts(true, ALERTS_MAX).await? {
        let kind = [DRIFT, SENSOR_SUSPECT].into_iter().find(|kind| *kind == open.kind);
        if let Some(kind) = kind.filter(|_| open.subject.starts_with(&about))
            && !due.contains(&(kind, open.subject.clone()))
        {
            store.alert_clear(kind, &open.subject, now_ms).await?;
        }
    }
    Ok(())
}

/// Where drift is, in words, if it is more than single devices; and those devices.
fn parts(scope: &Scope) -> (Option<String>, BTreeSet<DeviceId>) {
    match scope {
        Scope::Nowhere => (None, BTreeSet::new()),
        Scope::Devices { suspects } => (None, suspects.clone()),
        Scope::Groups { groups, suspects } => {
            let names: Vec<&str> = groups.iter().map(GroupId::as_str).collect();
            (Some(format!("group {}", names.join(", "))), suspects.clone())
        }
        Scope::Fleet => (Some("the fleet".into()), BTreeSet::new()),
        Scope::Unclear { devices } => {
            (Some(format!("{} devices, too few to tell where", devices.len())), BTreeSet::new())
        }
    }
}
