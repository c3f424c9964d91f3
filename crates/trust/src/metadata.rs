//! The five kinds of TUF metadata (specification §4.3–4.6), as far as a client acts on them. Members that are
//! not named here are ignored when reading; nothing is ever re-encoded, so they stay under the signature.
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Key;
use crate::key::{sha256, sha512_hex};

/// The members that every kind of metadata has.
#[derive(Debug, Clone)]
pub struct Head {
    /// Counts up with each release of the file, from 1.
    pub version: u64,
    /// When it ends to be believed, Unix milliseconds.
    pub expires_ms: u64,
}

#[derive(Deserialize)]
struct RawHead {
    #[serde(rename = "_type")]
    kind: String,
    spec_version: String,
    version: u64,
    expires: String,
}

impl Head {
    pub(crate) fn read(signed: &Value, kind: &str) -> Result<Self, HeadError> {
        let raw = RawHead::deserialize(signed).map_err(HeadError::Json)?;
        if raw.kind != kind {
            return Err(HeadError::Form("it is of another type"));
        }
        if raw.spec_version != "1" && !raw.spec_version.starts_with("1.") {
            return Err(HeadError::Form("it follows another major version of the specification"));
        }
        if raw.version == 0 {
            return Err(HeadError::Form("versions count from 1"));
        }
        let expires_ms = parse_time(&raw.expires).ok_or(HeadError::Form("its expiry is no time"))?;
        Ok(Self { version: raw.version, expires_ms })
    }
}

pub(crate) enum HeadError {
    Json(serde_json::Error),
    Form(&'static str),
}

/// Unix milliseconds of an RFC 3339 time; a time before 1970 reads as 0, which is always past.
pub(crate) fn parse_time(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(u64::try_from(time.unix_timestamp()).unwrap_or(0).saturating_mul(1000))
}

/// RFC 3339 in whole seconds, UTC; `None` beyond the year 9999.
pub(crate) fn format_time(unix_ms: u64) -> Option<String> {
    let seconds = i64::try_from(unix_ms / 1000).ok()?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}

/// A kind of metadata.
pub trait Kind: DeserializeOwned {
    /// `_type` of its files.
    const TYPE: &'static str;
    /// Largest file that is read, bytes.
    const BYTES_MAX: usize;
    /// What serde can not say about its form.
    fn check(&self) -> Result<(), &'static str>;
}

/// Who may sign for a role, and how many must.
#[derive(Debug, Clone, Deserialize)]
pub struct RoleKeys {
    /// Ids of the keys, as the delegating file declares them.
    pub keyids: Vec<String>,
    /// Distinct keys needed.
    pub threshold: u32,
}

impl RoleKeys {
    fn check(&self) -> Result<(), &'static str> {
        if self.threshold == 0 { Err("a threshold is at least 1") } else { Ok(()) }
    }
}

/// The root of trust (§4.3).
#[derive(Debug, Clone, Deserialize)]
pub struct Root {
    /// Keys by declared id.
    pub keys: BTreeMap<String, Key>,
    /// The four top-level roles.
    pub roles: RootRoles,
    /// Whether file names carry versions and digests.
    #[serde(default)]
    pub consistent_snapshot: bool,
}

/// The roles that a root names.
#[derive(Debug, Clone, Deserialize)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub struct RootRoles {
    pub root: RoleKeys,
    pub timestamp: RoleKeys,
    pub snapshot: RoleKeys,
    pub targets: RoleKeys,
}

impl Kind for Root {
    const TYPE: &'static str = "root";
    // A root of ten RSA keys is 12 KiB; the rest is room for what others put into theirs. It is the largest file that is
    // parsed before anything vouches for it.
    const BYTES_MAX: usize = 128 * 1024;

    fn check(&self) -> Result<(), &'static str> {
        let roles = &self.roles;
        [&roles.root, &roles.timestamp, &roles.snapshot, &roles.targets]
            .into_iter()
            .try_for_each(RoleKeys::check)
    }
}

/// What one metadata file says about another (METAFILES, §4.4).
#[derive(Debug, Clone, Deserialize)]
pub struct MetaFile {
    /// Its version.
    pub version: u64,
    /// Its length in bytes, if pinned.
    #[serde(default)]
    pub length: Option<u64>,
    /// Its digests, if pinned.
    #[serde(default)]
    pub hashes: Option<BTreeMap<String, String>>,
}

impl MetaFile {
    /// Length and digests, before the file is even parsed (§5.5.2, §5.6.2).
    pub(crate) fn matches(&self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.length.is_some_and(|length| length != bytes.len() as u64) {
            return Err("its length differs");
        }
        self.hashes.as_ref().map_or(Ok(()), |hashes| hashes_match(hashes, bytes))
    }
}

/// Whether bytes have all the digests of the kinds we know; one at least must be of a kind we know.
fn hashes_match(hashes: &BTreeMap<String, String>, bytes: &[u8]) -> Result<(), &'static str> {
    let mut known = 0;
    for (kind, expected) in hashes {
        let actual = match kind.as_str() {
            "sha256" => sha256(bytes).to_string(),
            "sha512" => sha512_hex(bytes),
            _ => continue,
        };
        known += 1;
        if !actual.eq_ignore_ascii_case(expected) {
            return Err("its digest differs");
        }
    }
    if known == 0 { Err("none of its digests is SHA-256 or SHA-512") } else { Ok(()) }
}

/// What is current (§4.6).
#[derive(Debug, Clone, Deserialize)]
pub struct Timestamp {
    /// One entry: `snapshot.json`.
    pub meta: BTreeMap<String, MetaFile>,
}

impl Timestamp {
    /// The snapshot it names.
    pub(crate) fn snapshot(&self) -> &MetaFile {
        &self.meta["snapshot.json"]
    }
}

impl Kind for Timestamp {
    const TYPE: &'static str = "timestamp";
    // One entry and a few signatures; 16 KiB holds twenty RSA signatures.
    const BYTES_MAX: usize = 16 * 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.meta.contains_key("snapshot.json") { Ok(()) } else { Err("it does not name snapshot.json") }
    }
}

/// Which versions of the targets roles belong together (§4.4).
#[derive(Debug, Clone, Deserialize)]
pub struct Snapshot {
    /// By file name, `targets.json` among them.
    pub meta: BTreeMap<String, MetaFile>,
}

impl Kind for Snapshot {
    const TYPE: &'static str = "snapshot";
    // 100 bytes for each delegated role: room for ten thousand.
    const BYTES_MAX: usize = 1024 * 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.meta.contains_key("targets.json") { Ok(()) } else { Err("it does not name targets.json") }
    }
}

/// What exists (§4.5); also the form of every delegated role.
#[derive(Debug, Clone, Deserialize)]
pub struct Targets {
    /// By name.
    pub targets: BTreeMap<String, TargetFile>,
    /// Who else may say what exists.
    #[serde(default)]
    pub delegations: Option<Delegations>,
    /// What the signers say about the whole.
    #[serde(default)]
    pub custom: Value,
}

impl Kind for Targets {
    const TYPE: &'static str = "targets";
    // 400 bytes a release: room for five thousand in one role.
    const BYTES_MAX: usize = 2 * 1024 * 1024;

    fn check(&self) -> Result<(), &'static str> {
        let Some(delegations) = &self.delegations else { return Ok(()) };
        for role in &delegations.roles {
            if role.threshold == 0 {
                return Err("a threshold is at least 1");
            }
            if ["", "root", "timestamp", "snapshot", "targets"].contains(&role.name.as_str()) {
                return Err("a delegated role has the name of a top-level one");
            }
            if role.paths.is_some() == role.path_hash_prefixes.is_some() {
                return Err("a delegation needs either paths or path_hash_prefixes");
            }
        }
        Ok(())
    }
}

/// One target (§4.5).
#[derive(Debug, Clone, Deserialize)]
pub struct TargetFile {
    /// Length in bytes.
    pub length: u64,
    /// Digests by kind.
    pub hashes: BTreeMap<String, String>,
    /// What the signers say about it.
    #[serde(default)]
    pub custom: Value,
}

impl TargetFile {
    /// Whether these bytes are the target.
    ///
    /// # Errors
    /// What differs.
    pub fn matches(&self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.length != bytes.len() as u64 {
            return Err("its length differs");
        }
        hashes_match(&self.hashes, bytes)
    }
}

/// Delegations of a targets role.
#[derive(Debug, Clone, Deserialize)]
pub struct Delegations {
    /// Keys by declared id.
    pub keys: BTreeMap<String, Key>,
    /// Roles in order of precedence.
    #[serde(default)]
    pub roles: Vec<DelegatedRole>,
}

/// One delegation.
#[derive(Debug, Clone, Deserialize)]
pub struct DelegatedRole {
    /// Name of the role and, with `.json`, of its file.
    pub name: String,
    /// Ids of the keys.
    pub keyids: Vec<String>,
    /// Distinct keys needed.
    pub threshold: u32,
    /// Whether the search ends here for targets in its paths.
    pub terminating: bool,
    /// Patterns of target names.
    #[serde(default)]
    pub paths: Option<Vec<String>>,
    /// Prefixes of the SHA-256 of target names, hex.
    #[serde(default)]
    pub path_hash_prefixes: Option<Vec<String>>,
}

impl DelegatedRole {
    /// Whether the delegation covers a target.
    pub fn covers(&self, target: &str) -> bool {
        let by_path = self.paths.iter().flatten().any(|pattern| glob(pattern, target));
        by_path
            || self.path_hash_prefixes.as_ref().is_some_and(|prefixes| {
                let digest = sha256(target.as_bytes()).to_string();
                prefixes.iter().any(|prefix| digest.starts_with(prefix.as_str()))
            })
    }

    pub(crate) fn role_keys(&self) -> RoleKeys {
        RoleKeys { keyids: self.keyids.clone(), threshold: self.threshold }
    }
}

/// Whether a name matches a shell pattern in which `*` and `?` do not cross a `/` (§4.5, PATHPATTERN).
pub fn glob(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut parts) = (pattern.split('/'), name.split('/'));
    loop {
        match (patterns.next(), parts.next()) {
            (Some(pattern), Some(part)) if glob_part(pattern, part) => {}
            (None, None) => return true,
            (None | Some(_), None | Some(_)) => return false,
        }
    }
}

/// Greedy matching that returns to the last star only: quadratic at worst, never exponential.
fn glob_part(pattern: &str, part: &str) -> bool {
    let (pattern, part): (Vec<char>, Vec<char>) = (pattern.chars().collect(), part.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < part.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == part[n] => {
                p += 1;
                n += 1;
            }
            Some(_) | None => match star {
                Some((at, matched)) => {
                    star = Some((at, matched + 1));
                    p = at + 1;
                    n = matched + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_the_specification_says() {
        let cases = [
            ("auto.*", "auto.meter.gbdt.7.json", true),
            ("auto.*", "meter.7.json", false),
            ("auto.*", "auto", false),
            ("auto.*", "auto./x", false),
            ("targets/*.tgz", "targets/foo.tgz", true),
            ("targets/*.tgz", "targets/foo.txt", false),
            ("targets/*.tgz", "targets/a/foo.tgz", false),
            ("foo-version-?.tgz", "foo-version-2.tgz", true),
            ("foo-version-?.tgz", "foo-version-alpha.tgz", false),
            ("foo?bar", "foo/bar", false),
            ("*", "foo.tgz", true),
            ("*", "a/b", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("", "", true),
            ("", "a", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn times_round_trip_to_the_second() {
        assert_eq!(format_time(1_795_225_383_999).as_deref(), Some("2026-11-21T01:43:03Z"));
        assert_eq!(parse_time("2026-11-21T01:43:03Z"), Some(1_795_225_383_000));
        assert_eq!(parse_time("1969-12-31T23:59:59Z"), Some(0));
        assert_eq!(parse_time("tomorrow"), None);
        assert_eq!(format_time(u64::MAX), None);
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_a_star(name in "[a-z.]{0,20}", tail in "[a-z.]{0,20}") {
            let whole = format!("{name}{tail}");
            let starred = format!("{name}*");
            prop_assert!(glob(&name, &name));
            prop_assert!(glob(&starred, &whole));
        }
    }
}
