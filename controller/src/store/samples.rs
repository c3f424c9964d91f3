use dunlin_protocol::{DeviceId, ReleaseId, Sample, SampleKind, Samples, TaskId};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, SqliteConnection};

use super::{Attempt, Result, Store, StoreError, int, uint};

/// A sample as it is stored.
#[derive(Debug, Clone)]
pub struct SampleRow {
    /// Row number; rises with arrival.
    pub id: u64,
    /// The device.
    pub device: DeviceId,
    /// The release that predicted.
    pub release: ReleaseId,
    /// When it arrived, Unix milliseconds.
    pub received_ms: u64,
    /// The input and what the model made of it.
    pub sample: Sample,
}

fn kind_text(kind: SampleKind) -> &'static str {
    match kind {
        SampleKind::Random => "random",
        SampleKind::Uncertain => "uncertain",
        SampleKind::Flagged => "flagged",
    }
}

pub(super) fn sample(row: &SqliteRow) -> Result<SampleRow> {
    let id: i64 = row.try_get("id")?;
    let bad = |what: String| StoreError::Corrupt { table: "samples", row: id.to_string(), what };
    let small = |name: &str, value: i64| u32::try_from(value).map_err(|_| bad(format!("{name} is {value}")));
    let (device, release, kind): (String, String, String) =
        (row.try_get("device")?, row.try_get("release")?, row.try_get("kind")?);
    let kind = [SampleKind::Random, SampleKind::Uncertain, SampleKind::Flagged]
        .into_iter()
        .find(|known| kind_text(*known) == kind);
    let x: Vec<u8> = row.try_get("x")?;
    Ok(SampleRow {
        id: uint(id),
        device: device.parse().map_err(|error| bad(format!("{error}")))?,
        release: release.parse().map_err(|error| bad(format!("{error}")))?,
        received_ms: uint(row.try_get("received_ms")?),
        sample: Sample {
            id: row.try_get("request")?,
            at_ms: row.try_get::<Option<i64>, _>("at_ms")?.map(uint),
            x: x.into(),
            predicted: small("predicted", row.try_get("predicted")?)?,
            label: row.try_get::<Option<i64>, _>("label")?.map(|label| small("label", label)).transpose()?,
            kind: kind.ok_or_else(|| bad("unknown kind".into()))?,
            inclusion_ppm: small("inclusion_ppm", row.try_get("inclusion_ppm")?)?,
        },
    })
}

impl Store {
    pub(super) async fn insert_samples(
        &self,
        tx: &mut SqliteConnection,
        device: &DeviceId,
        samples: &Samples,
        at_ms: u64,
    ) -> Result<()> {
        if samples.samples.is_empty() {
            return Ok(());
        }
        let release = samples.release.to_string();
        // 2,000 rows of 11 parameters fit a statement; a payload of 256 KiB holds fewer samples than that
        // unless they are empty.
        for chunk in samples.samples.chunks(2000) {
            QueryBuilder::new("INSERT INTO samples (task, device, request, release, x, predicted, label, kind, inclusion_ppm, at_ms, received_ms) ")
                .push_values(chunk, |mut row, sample| {
                    row.push_bind(samples.task.as_str())
                        .push_bind(device.as_str())
                        .push_bind(&sample.id)
                        .push_bind(&release)
                        .push_bind(sample.x.as_slice())
                        .push_bind(i64::from(sample.predicted))
                        .push_bind(sample.label.map(i64::from))
                        .push_bind(kind_text(sample.kind))
                        .push_bind(i64::from(sample.inclusion_ppm))
                        .push_bind(sample.at_ms.map(int))
                        .push_bind(int(at_ms));
                })
                // The same request again brings the label that came late.
                .push(" ON CONFLICT (device, task, request) DO UPDATE SET label = coalesce(excluded.label, label)")
                .build()
                .execute(&mut *tx)
                .await
                .attempt("storing samples")?;
        }
        Ok(())
    }

    /// Labelled samples of a task that arrived since `since_ms`, in order of arrival. Damaged rows are logged
    /// and left out.
    pub async fn labelled_samples(&self, task: &TaskId, since_ms: u64, limit: u64) -> Result<Vec<SampleRow>> {
        let rows = sqlx::query("SELECT * FROM samples WHERE task = ? AND received_ms >= ? AND label IS NOT NULL ORDER BY id LIMIT ?")
            .bind(task.as_str())
            .bind(int(since_ms))
            .bind(int(limit))
            .fetch_all(self.readers())
            .await
            .attempt("reading labelled samples")?;
        let mut samples = Vec::with_capacity(rows.len());
        for row in &rows {
            match sample(row) {
                Ok(sample) => samples.push(sample),
                Err(error) => tracing::error!(%error, "a sample is left out"),
            }
        }
        Ok(samples)
    }

    /// Number of labelled samples of a task that arrived since `since_ms`.
    pub async fn labelled_samples_count(&self, task: &TaskId, since_ms: u64) -> Result<u64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM samples WHERE task = ? AND received_ms >= ? AND label IS NOT NULL",
        )
        .bind(task.as_str())
        .bind(int(since_ms))
        .fetch_one(self.readers())
        .await
        .attempt("counting labelled samples")?;
        Ok(uint(count))
    }
}
