//! What is old enough to go.
use super::{Attempt, Result, Store, int, uint};

/// Rows taken out in one statement: some milliseconds of the one writer, so that records do not wait.
const ROWS_MAX: i64 = 1_000;

/// What goes by age: a statement that takes the time before which rows go, and how many at most. Row numbers rise
/// with arrival. The newest row stays: SQLite would give its number out again, and readers remember how far they read.
const WINDOWS: &str = "DELETE FROM windows WHERE id IN (SELECT id FROM windows ORDER BY id LIMIT ?2)
     AND received_ms < ?1 AND id < (SELECT max(id) FROM windows)";
const EVENTS: [&str; 4] = [
    // The last end of each release on each device is what the planner goes by.
    "DELETE FROM outcomes WHERE id IN (
         SELECT id FROM (
             SELECT id, received_ms, ends, row_number() OVER (PARTITION BY device, release, ends ORDER BY id DESC) AS age
             FROM (SELECT *, phase IN ('committed', 'rolled_back', 'failed', 'rejected') AND reason <> 'superseded' AS ends
                   FROM outcomes))
         WHERE received_ms < ?1 AND NOT (ends AND age = 1) LIMIT ?2)",
    "DELETE FROM indicators WHERE id IN (SELECT id FROM indicators ORDER BY id LIMIT ?2)
         AND received_ms < ?1 AND id < (SELECT max(id) FROM indicators)",
    "DELETE FROM gaps WHERE id IN (SELECT id FROM gaps ORDER BY id LIMIT ?2)
         AND received_ms < ?1 AND id < (SELECT max(id) FROM gaps)",
    "DELETE FROM replies WHERE (device, id) IN (SELECT device, id FROM replies WHERE received_ms < ?1 LIMIT ?2)",
];

impl Store {
    /// When the newest window arrived, Unix milliseconds; 0 if there is none.
    pub async fn newest_window_ms(&self) -> Result<u64> {
        // Row numbers rise with arrival.
        let newest: Option<i64> =
            sqlx::query_scalar("SELECT received_ms FROM windows ORDER BY id DESC LIMIT 1")
                .fetch_optional(self.readers())
                .await
                .attempt("looking for the newest window")?;
        Ok(newest.map_or(0, uint))
    }

    /// Takes windows out that arrived before a time, Unix milliseconds; returns how many.
    pub async fn forget_windows(&self, before_ms: u64) -> Result<u64> {
        self.forget(WINDOWS, before_ms).await
    }

    /// Takes outcomes, indicators, gaps and replies out that arrived before a time, Unix milliseconds; returns how
    /// many. How each release last ended on each device stays.
    pub async fn forget_events(&self, before_ms: u64) -> Result<u64> {
        let mut gone = 0;
        for statement in EVENTS {
            gone += self.forget(statement, before_ms).await?;
        }
        Ok(gone)
    }

    async fn forget(&self, statement: &'static str, before_ms: u64) -> Result<u64> {
        let mut gone = 0;
        loop {
            let done = sqlx::query(statement)
                .bind(int(before_ms))
                .bind(ROWS_MAX)
                .execute(self.writer())
                .await
                .attempt("taking old rows out")?
                .rows_affected();
            gone += done;
            // Fewer than asked for: the next ones are young, or there are none.
            if done < ROWS_MAX.unsigned_abs() {
                return Ok(gone);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::store::test_store;

    #[tokio::test]
    async fn old_rows_go_and_what_the_planner_goes_by_stays() {
        let (_dir, store) = test_store().await;
        let run = async |sql: &'static str| sqlx::query(sql).execute(store.writer()).await.unwrap();
        run("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
             INSERT INTO windows (boot_no, seq, device, task, generation, start_ms, end_ms, wall, received_ms, probation, n, errors, labelled, correct, body)
             SELECT 1, i, 'a', 't', 1, 0, 0, 1, i, 0, 0, 0, 0, 0, x'' FROM n")
        .await;
        assert_eq!(store.forget_windows(2101).await.unwrap(), 2100);
        assert_eq!(store.forget_windows(u64::MAX).await.unwrap(), 399);
        assert_eq!(store.windows_count(None).await.unwrap(), 1, "the newest keeps its number");

        for (release, phase, at_ms) in [
            ("m@1", "committed", 1),
            ("m@1", "committed", 2),
            ("m@1", "fetching", 3),
            ("m@2", "rolled_back", 4),
            ("m@2", "committed", 90),
            ("m@2", "fetching", 91),
        ] {
            sqlx::query("INSERT INTO outcomes (device, generation, task, release, correlation, phase, reason, detail, received_ms)
                         VALUES ('a', 1, 't', ?, '', ?, 'ok', '', ?)")
                .bind(release)
                .bind(phase)
                .bind(at_ms)
                .execute(store.writer())
                .await
                .unwrap();
        }
        run("INSERT INTO replies (id, device, reason, detail, received_ms) VALUES ('r', 'a', 'ok', '', 5)")
            .await;
        run("INSERT INTO gaps (device, boot, first_seq, last_seq, received_ms) VALUES ('a', x'', 1, 2, 5), ('a', x'', 3, 3, 60)")
            .await;
        assert_eq!(store.forget_events(50).await.unwrap(), 5);
        let left: Vec<i64> = sqlx::query_scalar("SELECT received_ms FROM outcomes ORDER BY id")
            .fetch_all(store.readers())
            .await
            .unwrap();
        assert_eq!(left, [2, 90, 91]);
        assert_eq!(store.forget_events(50).await.unwrap(), 0);
    }
}
