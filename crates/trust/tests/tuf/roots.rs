//! The chain of roots: rotation, thresholds on both sides, and what a rotation takes back.
use dunlin_protocol::{Bytes, ReasonCode, RepoFiles, RepoVersions};
use dunlin_trust::{RepoKind, TrustedRepo, write};

use super::forge::{Forge, LATER_MS, key, now, sign};
use super::refused;

#[test]
fn a_root_below_its_floor_has_to_be_led_back_up() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.rotate(&[]);
    let repo = forge.trusted();
    let mut stored = repo.stored();
    stored.root = Bytes(forge.roots[0].clone());
    let mut restored = TrustedRepo::restore(RepoKind::Image, &stored, &repo.floors()).unwrap();
    refused(&mut restored, &RepoFiles { roots: vec![], ..forge.files() }, ReasonCode::MetadataRollback);
    restored.update(&forge.files(), now()).unwrap();
    assert_eq!(restored.versions().root, 2);
}

#[test]
fn roots_rotate_through_several_versions() {
    let mut forge = Forge::new(RepoKind::Image);
    let repo = forge.trusted();
    for _ in 0..4 {
        let mut old = vec![key(), key()];
        std::mem::swap(&mut old, &mut forge.root);
        forge.rotate(&old.iter().collect::<Vec<_>>());
    }
    forge.targets = vec![key(), key()];
    forge.rotate(&[]);
    forge.bump();
    let files = forge.files();
    let mut followed = repo.clone();
    followed.update(&files, now()).unwrap();
    assert_eq!(followed.versions().root, 6);
    // A client in the middle is answered with what it holds already, too.
    followed.update(&files, now()).unwrap();
    // A gap, another order, or a link that one side did not sign breaks the chain.
    let mut gap = files.clone();
    gap.roots.remove(2);
    refused(&mut repo.clone(), &gap, ReasonCode::SignatureThreshold);
    let mut swapped = files.clone();
    swapped.roots.swap(0, 1);
    assert!(repo.clone().update(&swapped, now()).is_err());
}

#[test]
fn a_next_root_needs_the_old_threshold_and_its_own() {
    let mut forge = Forge::new(RepoKind::Image);
    let repo = forge.trusted();
    let old = std::mem::replace(&mut forge.root, vec![key(), key()]);
    forge.versions[0] = 2;
    let value = write::root(2, LATER_MS, &forge.root_spec()).unwrap();
    let with = |signers: &[&dunlin_trust::Ed25519Signer]| RepoFiles {
        roots: vec![Bytes(sign(&value, signers))],
        ..forge.files()
    };
    let (a, b, c, d) = (&old[0], &old[1], &forge.root[0], &forge.root[1]);
    for signers in [&[c, d][..], &[a, b], &[a, c, d], &[a, b, c]] {
        refused(&mut repo.clone(), &with(signers), ReasonCode::SignatureThreshold);
    }
    repo.clone().update(&with(&[a, b, c, d]), now()).unwrap();
    // The right keys on a version that is not the next one.
    let value = write::root(3, LATER_MS, &forge.root_spec()).unwrap();
    let files = RepoFiles { roots: vec![Bytes(sign(&value, &[a, b, c, d]))], ..forge.files() };
    refused(&mut repo.clone(), &files, ReasonCode::RootChain);
}

#[test]
fn an_expired_root_on_the_way_is_no_hindrance() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.expires.insert("root", 1);
    forge.roots[0] = forge.root_file();
    forge.rotate(&[]);
    forge.expires.clear();
    forge.rotate(&[]);
    assert_eq!(forge.trusted().versions().root, 3);
}

#[test]
fn rotating_the_stolen_key_recovers_from_a_fast_forward() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.versions = [1, 1 << 60, 1 << 60, 7, 7];
    let repo = forge.trusted();
    forge.versions = [1, 2, 2, 7, 7];
    refused(&mut repo.clone(), &forge.files(), ReasonCode::MetadataRollback);
    forge.timestamp = key();
    forge.rotate(&[]);
    let mut recovered = repo.clone();
    recovered.update(&forge.files(), now()).unwrap();
    assert_eq!(
        recovered.versions(),
        RepoVersions { root: 2, timestamp: 2, snapshot: 2, targets: 7, retrained: 7 }
    );
    assert_eq!(recovered.floors(), recovered.versions());
    // The timestamp's key says nothing about the targets: their floor stays until the snapshot's key goes.
    forge.versions = [2, 3, 3, 6, 6];
    refused(&mut recovered.clone(), &forge.files(), ReasonCode::MetadataRollback);
    forge.snapshot = key();
    forge.rotate(&[]);
    recovered.update(&forge.files(), now()).unwrap();
    assert_eq!(recovered.versions().targets, 6);
}

/// A device whose cached root is torn walks the chain again from its pinned root. The rotations on the way were
/// seen before, so they must not take the floors down a second time.
#[test]
fn an_old_rotation_recovers_nothing_twice() {
    let mut forge = Forge::new(RepoKind::Image);
    (forge.timestamp, forge.snapshot) = (key(), key());
    forge.rotate(&[]);
    let old = forge.files();
    forge.versions = [2, 9, 9, 9, 9];
    let repo = forge.trusted();
    let stored = dunlin_trust::StoredFiles { root: Bytes(forge.roots[0].clone()), ..Default::default() };
    let mut again = TrustedRepo::restore(RepoKind::Image, &stored, &repo.floors()).unwrap();
    refused(&mut again, &old, ReasonCode::MetadataRollback);
    again.update(&forge.files(), now()).unwrap();
    assert_eq!(again.floors(), repo.floors());
}

#[test]
fn adding_a_key_recovers_nothing() {
    let mut forge = Forge::new(RepoKind::Image);
    forge.versions = [1, 9, 9, 1, 1];
    let mut repo = forge.trusted();
    let mut spec = forge.root_spec();
    spec.timestamp.keys.push(key().key().clone());
    let value = write::root(2, LATER_MS, &spec).unwrap();
    forge.roots.push(sign(&value, &forge.root.iter().collect::<Vec<_>>()));
    forge.versions = [2, 2, 2, 1, 1];
    refused(&mut repo, &forge.files(), ReasonCode::MetadataRollback);
}
