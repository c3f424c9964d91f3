use super::*;
use crate::store::Store;

async fn insert(store: &Store, row: &Row, seq: i64) {
    sqlx::query(
        "INSERT INTO windows (boot_no, seq, device, task, release, generation, start_ms, end_ms, wall, received_ms, probation, n, errors, \
         labelled, correct, body) VALUES (1, ?, ?, 'meter', 'meter@1', 1, 0, 1, 1, ?, 0, 0, 0, 0, 0, ?)",
    )
    .bind(seq)
    .bind(row.device.as_str())
    .bind(i64::try_from(row.received_ms).unwrap())
    .bind(&row.body)
    .execute(store.writer())
    .await
    .unwrap();
}

async fn open_alerts(store: &Store) -> BTreeSet<(String, String)> {
    let alerts = store.alerts(true, 100).await.unwrap();
    alerts.into_iter().map(|alert| (alert.kind, alert.subject)).collect()
}

#[tokio::test]
async fn alerts_are_raised_and_cleared() {
    let (_dir, store) = crate::store::test_store().await;
    let mut ledger = Ledger::new(task(), EvidenceConfig::default());
    ledger.set_roster(roster(4));
    ledger.set_profile(release(1), PROFILE, reference());
    let mut seq = 0;
    let mut look = async |quarters: std::ops::Range<u64>, shift: fn(usize) -> f32| {
        for quarter in quarters.clone() {
            for i in 0..4 {
                let window = window(1, quarter * QUARTER + 7 * MINUTE, 300, shift(i));
                let received_ms = window.end_ms + 1000;
                let row = Row { id: 0, device: device(i), received_ms, body: cbor::encode(&window) };
                seq += 1;
                insert(&store, &row, seq).await;
            }
        }
        let now_ms = quarters.end * QUARTER + 5 * MINUTE;
        ledger.read(&store, now_ms).await.unwrap();
        alert(&store, &ledger, now_ms).await.unwrap();
        ledger.drift(&release(1)).fact()
    };
    assert_eq!(look(100..105, |i| if i == 0 { 400.0 } else { 0.0 }).await, None);
    let suspect = (SENSOR_SUSPECT.to_string(), "task:meter device:cam-0".to_string());
    assert_eq!(open_alerts(&store).await, BTreeSet::from([suspect]));
    assert_eq!(look(105..110, |_| 400.0).await.unwrap().scope, "fleet");
    let drift = (DRIFT.to_string(), "task:meter release:meter@1".to_string());
    assert_eq!(open_alerts(&store).await, BTreeSet::from([drift]));
    assert_eq!(look(110..115, |_| 0.0).await, None);
    assert_eq!(open_alerts(&store).await, BTreeSet::new());
    let broken = Row { id: 0, device: device(1), received_ms: 115 * QUARTER, body: vec![0xff] };
    insert(&store, &broken, 10_000).await;
    ledger.read(&store, 115 * QUARTER).await.unwrap();
    alert(&store, &ledger, 115 * QUARTER).await.unwrap();
    let skipped = (WINDOW_SKIPPED.to_string(), "task:meter device:cam-1".to_string());
    assert_eq!(open_alerts(&store).await, BTreeSet::from([skipped]));
}
