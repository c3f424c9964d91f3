use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use dunlin_protocol::{Bundle, Digest, ModelName, ReleaseId, TaskId, TaskPolicy};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use utoipa::ToSchema;

use super::row::sound;
use super::{Attempt, Result, Store, StoreError, int, uint};

/// Where a release stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReleaseState {
    /// Taken in; no signed targets list it yet.
    Pending,
    /// Listed by signed targets.
    Approved,
    /// Below its line's release floor, or no longer listed: devices refuse it.
    Withdrawn,
}

impl ReleaseState {
    /// The state as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Withdrawn => "withdrawn",
        }
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "pending" => Ok(Self::Pending),
            "approved" => Ok(Self::Approved),
            "withdrawn" => Ok(Self::Withdrawn),
            other => Err(format!("{other:?} is no state of a release")),
        }
    }
}

impl fmt::Display for ReleaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A release with its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseRow {
    /// The manifest, parsed.
    pub bundle: Bundle,
    /// The manifest's exact bytes.
    pub manifest: Vec<u8>,
    /// Digest of `manifest`.
    pub sha256: Digest,
    /// Where it stands.
    pub state: ReleaseState,
    /// Who took it in.
    pub created_by: String,
    /// When, Unix milliseconds.
    pub created_ms: u64,
    /// When signed targets first listed it.
    pub approved_ms: Option<u64>,
    /// When it was withdrawn.
    pub withdrawn_ms: Option<u64>,
}

/// A task policy as it was uploaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRow {
    /// The policy, parsed.
    pub policy: TaskPolicy,
    /// Its exact bytes.
    pub body: Vec<u8>,
    /// Digest of `body`.
    pub sha256: Digest,
    /// Whether signed targets list it.
    pub in_force: bool,
    /// When it was uploaded, Unix milliseconds.
    pub created_ms: u64,
}

/// What signed targets say about releases and policies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Digest of every listed target by name, over all roles.
    pub targets: BTreeMap<String, Digest>,
    /// Release floors.
    pub floors: BTreeMap<ModelName, u32>,
    /// Tasks about which nothing is known: what was listed of them stays as it is.
    pub silent: BTreeSet<String>,
}

/// What changed when signed targets came into force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed {
    /// Releases whose state changed, with the state before and after.
    pub releases: Vec<(ReleaseId, ReleaseState, ReleaseState)>,
    /// Digests of the policies in force before, by task.
    pub policies_before: BTreeMap<String, String>,
    /// The same afterwards.
    pub policies_after: BTreeMap<String, String>,
}

fn corrupt(table: &'static str, row: &str) -> impl FnOnce(String) -> StoreError {
    let row = row.to_owned();
    move |what| StoreError::Corrupt { table, row, what }
}

pub(super) fn release(row: &SqliteRow) -> Result<ReleaseRow> {
    let manifest: Vec<u8> = row.try_get("manifest")?;
    let sha256: String = row.try_get("sha256")?;
    let state: String = row.try_get("state")?;
    Ok(ReleaseRow {
        bundle: serde_json::from_slice(&manifest).map_err(|e| corrupt("releases", &sha256)(e.to_string()))?,
        manifest,
        sha256: sha256.parse().map_err(|_| corrupt("releases", &sha256)("its digest is none".to_owned()))?,
        state: ReleaseState::parse(&state).map_err(corrupt("releases", &sha256))?,
        created_by: row.try_get("created_by")?,
        created_ms: uint(row.try_get("created_ms")?),
        approved_ms: row.try_get::<Option<i64>, _>("approved_ms")?.map(uint),
        withdrawn_ms: row.try_get::<Option<i64>, _>("withdrawn_ms")?.map(uint),
    })
}

pub(super) fn policy(row: &SqliteRow) -> Result<PolicyRow> {
    let body: Vec<u8> = row.try_get("body")?;
    let sha256: String = row.try_get("sha256")?;
    Ok(PolicyRow {
        policy: serde_json::from_slice(&body).map_err(|e| corrupt("policies", &sha256)(e.to_string()))?,
        body,
        sha256: sha256.parse().map_err(|_| corrupt("policies", &sha256)("its digest is none".to_owned()))?,
        in_force: row.try_get("in_force")?,
        created_ms: uint(row.try_get("created_ms")?),
    })
}

impl Store {
    /// Gives a bundle the next version of its line and stores it. `seal` gets the release id and returns the
    /// bundle with its manifest bytes and their digest. The line is made if it is not there; a line belongs to
    /// one task, and the same ONNX file is released once.
    pub async fn release_add(
        tx: &mut SqliteConnection,
        model: &ModelName,
        task: &TaskId,
        onnx: &Digest,
        who: &str,
        now_ms: u64,
        seal: impl FnOnce(ReleaseId) -> (Bundle, Vec<u8>, Digest),
    ) -> Result<ReleaseRow> {
        let line = sqlx::query("SELECT task FROM models WHERE name = ?")
            .bind(model.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        match line {
            Some(row) => {
                let of: String = row.try_get("task")?;
                if of != task.as_str() {
                    return Err(StoreError::Conflict(format!(
                        "the model line {model} belongs to the task {of}, not {task}"
                    )));
                }
            }
            None => {
                sqlx::query("INSERT INTO models (name, task, created_ms) VALUES (?, ?, ?)")
                    .bind(model.as_str())
                    .bind(task.as_str())
                    .bind(int(now_ms))
                    .execute(&mut *tx)
                    .await
                    .attempt("making a model line")?;
            }
        }
        let same = sqlx::query("SELECT version FROM releases WHERE model = ? AND onnx = ?")
            .bind(model.as_str())
            .bind(onnx.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = same {
            let version: i64 = row.try_get("version")?;
            return Err(StoreError::Conflict(format!("this very model is {model}@{version} already")));
        }
        let last: i64 = sqlx::query("SELECT COALESCE(MAX(version), 0) AS last FROM releases WHERE model = ?")
            .bind(model.as_str())
            .fetch_one(&mut *tx)
            .await?
            .try_get("last")?;
        let version = u32::try_from(last + 1)
            .map_err(|_| StoreError::Conflict(format!("the model line {model} is used up")))?;
        let (bundle, manifest, sha256) = seal(ReleaseId { model: model.clone(), version });
        sqlx::query(
            "INSERT INTO releases (model, version, task, family, manifest, sha256, onnx, created_by, created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(model.as_str())
        .bind(i64::from(version))
        .bind(task.as_str())
        .bind(&bundle.family)
        .bind(&manifest)
        .bind(sha256.to_string())
        .bind(onnx.to_string())
        .bind(who)
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .attempt("storing a release")?;
        let (state, created_by) = (ReleaseState::Pending, who.to_owned());
        Ok(ReleaseRow {
            bundle,
            manifest,
            sha256,
            state,
            created_by,
            created_ms: now_ms,
            approved_ms: None,
            withdrawn_ms: None,
        })
    }

    /// One release.
    pub async fn release(&self, id: &ReleaseId) -> Result<Option<ReleaseRow>> {
        let row = sqlx::query("SELECT * FROM releases WHERE model = ? AND version = ?")
            .bind(id.model.as_str())
            .bind(i64::from(id.version))
            .fetch_optional(self.readers())
            .await
            .attempt("reading a release")?;
        row.as_ref().map(release).transpose()
    }

    /// Releases that can be read, in the order of line and version; of one line or task only if named.
    pub async fn releases(
        &self,
        model: Option<&ModelName>,
        task: Option<&TaskId>,
    ) -> Result<Vec<ReleaseRow>> {
        let rows = sqlx::query(
            "SELECT * FROM releases WHERE (?1 IS NULL OR model = ?1) AND (?2 IS NULL OR task = ?2) ORDER BY model, version",
        )
        .bind(model.map(ModelName::as_str))
        .bind(task.map(TaskId::as_str))
        .fetch_all(self.readers())
        .await
        .attempt("listing releases")?;
        Ok(sound(&rows, release))
    }

    /// The release a manifest digest belongs to.
    pub async fn release_by_manifest(&self, sha256: &Digest) -> Result<Option<ReleaseRow>> {
        let row = sqlx::query("SELECT * FROM releases WHERE sha256 = ?")
            .bind(sha256.to_string())
            .fetch_optional(self.readers())
            .await
            .attempt("reading a release")?;
        row.as_ref().map(release).transpose()
    }

    /// Points an alias at a release, or moves it there; returns the version that it pointed at before.
    pub async fn alias_set(
        &self,
        tx: &mut SqliteConnection,
        id: &ReleaseId,
        alias: &str,
        now_ms: u64,
    ) -> Result<Option<u32>> {
        if self.release(id).await?.is_none() {
            return Err(StoreError::NotFound { what: "release", key: id.to_string() });
        }
        let before = self.aliases(&id.model).await?.get(alias).copied();
        sqlx::query("INSERT OR REPLACE INTO aliases (model, alias, version, updated_ms) VALUES (?, ?, ?, ?)")
            .bind(id.model.as_str())
            .bind(alias)
            .bind(i64::from(id.version))
            .bind(int(now_ms))
            .execute(tx)
            .await
            .attempt("setting an alias")?;
        Ok(before)
    }

    /// Aliases of a line.
    pub async fn aliases(&self, model: &ModelName) -> Result<BTreeMap<String, u32>> {
        let rows = sqlx::query("SELECT alias, version FROM aliases WHERE model = ?")
            .bind(model.as_str())
            .fetch_all(self.readers())
            .await
            .attempt("listing aliases")?;
        rows.iter().map(|row| Ok((row.try_get("alias")?, uint(row.try_get("version")?) as u32))).collect()
    }

    /// Stores a policy file; the same bytes twice are one row.
    pub async fn policy_add(tx: &mut SqliteConnection, row: &PolicyRow, who: &str) -> Result<()> {
        sqlx::query("INSERT INTO policies (sha256, task, body, created_by, created_ms) VALUES (?, ?, ?, ?, ?) ON CONFLICT (sha256) DO NOTHING")
            .bind(row.sha256.to_string())
            .bind(row.policy.task.as_str())
            .bind(&row.body)
            .bind(who)
            .bind(int(row.created_ms))
            .execute(tx)
            .await
            .attempt("storing a policy")?;
        Ok(())
    }

    /// A policy by the digest of its bytes.
    pub async fn policy_by_digest(&self, sha256: &Digest) -> Result<Option<PolicyRow>> {
        let row = sqlx::query("SELECT * FROM policies WHERE sha256 = ?")
            .bind(sha256.to_string())
            .fetch_optional(self.readers())
            .await
            .attempt("reading a policy")?;
        row.as_ref().map(policy).transpose()
    }

    /// The policy of a task that signed targets list.
    pub async fn policy_in_force(&self, task: &TaskId) -> Result<Option<PolicyRow>> {
        let row = sqlx::query("SELECT * FROM policies WHERE task = ? AND in_force = 1")
            .bind(task.as_str())
            .fetch_optional(self.readers())
            .await
            .attempt("reading a policy")?;
        row.as_ref().map(policy).transpose()
    }

    /// Every policy in force that can be read.
    pub async fn policies_in_force(&self) -> Result<Vec<PolicyRow>> {
        let rows = sqlx::query("SELECT * FROM policies WHERE in_force = 1 ORDER BY task")
            .fetch_all(self.readers())
            .await
            .attempt("listing policies")?;
        Ok(sound(&rows, policy))
    }

    /// The newest uploaded policy of each task that is not in force and newer than the one that is.
    pub async fn policies_pending(&self) -> Result<Vec<PolicyRow>> {
        let rows = sqlx::query(
            "SELECT * FROM policies AS p WHERE in_force = 0 AND NOT EXISTS \
             (SELECT 1 FROM policies AS q WHERE q.task = p.task AND (q.created_ms > p.created_ms OR (q.created_ms = p.created_ms AND q.rowid > p.rowid))) \
             ORDER BY task",
        )
        .fetch_all(self.readers())
        .await
        .attempt("listing policies")?;
        Ok(sound(&rows, policy))
    }

    /// Brings states in line with what verified, published targets list. Returns what changed.
    pub async fn registry_listed(
        &self,
        tx: &mut SqliteConnection,
        listed: &Listed,
        now_ms: u64,
    ) -> Result<Followed> {
        let mut releases = Vec::new();
        for row in self.releases(None, None).await? {
            let id = &row.bundle.release;
            let is_listed = listed.targets.get(&id.target_name()) == Some(&row.sha256);
            let floored = listed.floors.get(&id.model).is_some_and(|floor| id.version < *floor);
            let next = match row.state {
                ReleaseState::Withdrawn => ReleaseState::Withdrawn,
                ReleaseState::Pending | ReleaseState::Approved if floored => ReleaseState::Withdrawn,
                ReleaseState::Pending | ReleaseState::Approved if is_listed => ReleaseState::Approved,
                ReleaseState::Approved if listed.silent.contains(row.bundle.task.as_str()) => {
                    ReleaseState::Approved
                }
                ReleaseState::Approved => ReleaseState::Withdrawn,
                ReleaseState::Pending => ReleaseState::Pending,
            };
            if next != row.state {
                releases.push((id.clone(), row.state, next));
            }
        }
        for (id, _, state) in &releases {
            let query = match state {
                ReleaseState::Approved => {
                    "UPDATE releases SET state = ?1, approved_ms = ?2 WHERE model = ?3 AND version = ?4"
                }
                ReleaseState::Withdrawn | ReleaseState::Pending => {
                    "UPDATE releases SET state = ?1, withdrawn_ms = ?2 WHERE model = ?3 AND version = ?4"
                }
            };
            sqlx::query(query)
                .bind(state.as_str())
                .bind(int(now_ms))
                .bind(id.model.as_str())
                .bind(i64::from(id.version))
                .execute(&mut *tx)
                .await
                .attempt("changing the state of a release")?;
        }
        let policies_before = in_force(tx).await?;
        for task in policies_before.keys() {
            let is_listed = listed.targets.contains_key(&format!("policy.{task}.json"));
            if is_listed || !listed.silent.contains(task) {
                sqlx::query("UPDATE policies SET in_force = 0 WHERE in_force = 1 AND task = ?")
                    .bind(task)
                    .execute(&mut *tx)
                    .await
                    .attempt("putting policies in force")?;
            }
        }
        for (name, digest) in &listed.targets {
            if name.starts_with("policy.") {
                sqlx::query(
                    "UPDATE policies SET in_force = 1 WHERE sha256 = ? AND 'policy.' || task || '.json' = ?",
                )
                .bind(digest.to_string())
                .bind(name)
                .execute(&mut *tx)
                .await
                .attempt("putting a policy in force")?;
            }
        }
        Ok(Followed { releases, policies_before, policies_after: in_force(tx).await? })
    }
}

/// Digests of the policies in force, by task.
async fn in_force(tx: &mut SqliteConnection) -> Result<BTreeMap<String, String>> {
    let rows = sqlx::query("SELECT task, sha256 FROM policies WHERE in_force = 1").fetch_all(tx).await;
    let rows = rows.attempt("reading which policies are in force")?;
    rows.iter().map(|row| Ok((row.try_get("task")?, row.try_get("sha256")?))).collect()
}
