//! What is past its expiry is not believed, nor is anything without a clock.
use dunlin_protocol::{Bytes, Now, ReasonCode, RepoFiles};
use dunlin_trust::{RepoKind, TrustError};

use super::forge::{Forge, NOW_MS};
use super::refused;

#[test]
fn without_a_clock_nothing_is_accepted() {
    let forge = Forge::new(RepoKind::Image);
    let mut repo = forge.pinned();
    let error = repo.update(&forge.files(), Now { mono_ms: 1, wall_ms: None }).unwrap_err();
    assert_eq!(error.reason(), ReasonCode::ClockUnknown);
    assert_eq!(repo.versions().timestamp, 0);
}

#[test]
fn every_expired_role_is_refused() {
    for role in ["root", "timestamp", "snapshot", "targets", "retrained"] {
        let mut forge = Forge::new(RepoKind::Image);
        forge.expires.insert(role, NOW_MS);
        forge.roots[0] = forge.root_file();
        let error = refused(&mut forge.pinned(), &forge.files(), ReasonCode::MetadataExpired);
        assert!(matches!(error, TrustError::Expired { role: named, .. } if named == role));
    }
}

/// A frozen repository is noticed even if each file was good when it came.
#[test]
fn held_files_expire_too() {
    for role in ["timestamp", "snapshot", "targets", "retrained"] {
        let mut forge = Forge::new(RepoKind::Image);
        forge.expires.insert(role, NOW_MS + 10_000);
        let mut repo = forge.trusted();
        let only_timestamp = RepoFiles { timestamp: Bytes(forge.timestamp_file()), ..RepoFiles::default() };
        let later = Now { mono_ms: 0, wall_ms: Some(NOW_MS + 10_000) };
        assert_eq!(
            repo.update(&only_timestamp, later).unwrap_err().reason(),
            ReasonCode::MetadataExpired,
            "{role}"
        );
    }
}
