//! Keys change hands: new online keys, new holders, other thresholds, revocation, and devices that slept through it.
use std::fs;

use dunlin_controller::keys::{self, Keyring, OfflineRole, OnlineKeys, Request, RoleChange};
use dunlin_controller::repo::{Offline, RepoError, Repos};
use dunlin_protocol::Now;
use dunlin_trust::{Ed25519Signer, RepoKind, Signer, TrustError};

use super::world::{DAY_MS, Device, START_MS, World, assignment, data, offline};

/// After a break-in: new online keys, named by both roots and by the targets; devices follow.
#[test]
fn online_keys_can_be_replaced() {
    let (mut world, mut device) = World::with_device();
    device.check(&world, START_MS).unwrap();

    let keys_folder = data(&world.folder).join("keys");
    fs::rename(&keys_folder, world.folder.path().join("old-keys")).unwrap();
    let online = keys::create_online(&data(&world.folder)).unwrap();
    assert_eq!(OnlineKeys::read(&keys_folder.join("online.json")).unwrap(), online);
    assert!(matches!(Repos::open(&data(&world.folder)), Err(RepoError::ForeignKey(_))));
    let next = |kind| {
        let root = world.repos.first_root(kind).unwrap();
        keys::renew_root(kind, root.as_slice(), Some(&online), &world.safe(), START_MS).unwrap()
    };
    let roots = [next(RepoKind::Image), next(RepoKind::Director)];
    let retrained_key = Some(online.of(keys::OnlineRole::Retrained).declared().clone());
    let request = Request { retrained_key, ..Request::default() };
    let targets = keys::sign_targets(&world.current_targets(), &request, &world.safe(), START_MS).unwrap();
    let [image_root, director_root] = roots.map(Some);
    let half = Offline { image_root: image_root.clone(), ..Offline::default() };
    assert!(Repos::publish_offline(&data(&world.folder), &half, START_MS).is_err());
    let whole = Offline { image_root, director_root, targets: Some(targets), ..Offline::default() };
    Repos::publish_offline(&data(&world.folder), &whole, START_MS).unwrap();
    world.reopen();
    assert_eq!(world.repos.approvals().unwrap().len(), 1);
    device.check(&world, START_MS).unwrap();
    assert_eq!((device.image.versions().root, device.director.versions().root), (2, 2));
    world.repos.publish_assignment(&assignment("pole-1", 2, "meter@1"), START_MS).unwrap();
    assert_eq!(device.check(&world, START_MS).unwrap().assignment.generation, 2);
}

#[test]
fn a_root_is_renewed_with_the_same_keys() {
    let mut world = World::new();
    let mut device = Device::enrol(&world, "pole-1");
    device.check(&world, START_MS).unwrap();
    for kind in [RepoKind::Image, RepoKind::Director] {
        let root = world.repos.first_root(kind).unwrap();
        let root = keys::renew_root(kind, root.as_slice(), None, &world.safe(), START_MS + DAY_MS).unwrap();
        Repos::publish_offline(&data(&world.folder), &offline(kind, root), START_MS + DAY_MS).unwrap();
        world.reopen();
        device.check(&world, START_MS + DAY_MS).unwrap();
    }
    assert_eq!((device.image.versions().root, device.director.versions().root), (2, 2));
}

fn refs(signers: &[Ed25519Signer]) -> Vec<&dyn Signer> {
    signers.iter().map(|signer| signer as &dyn Signer).collect()
}

/// The next root with all keys of a role replaced, signed by the present root keys and, for a root, the new ones.
fn rotate(world: &World, role: OfflineRole, new: &[Ed25519Signer], threshold: u32, now_ms: u64) -> Vec<u8> {
    let current = world.root(role.repo());
    let root =
        if role.repo() == RepoKind::Image { OfflineRole::ImageRoot } else { OfflineRole::DirectorRoot };
    let present = Keyring::from(&world.safe()).signers(root.prefix()).unwrap();
    let change = RoleChange {
        add: new.iter().map(|signer| signer.key().clone()).collect(),
        drop: keys::role_key_ids(role, &current).unwrap(),
        threshold: Some(threshold),
    };
    let fresh = if role == root { new } else { &[] };
    keys::change_role(role, &current, &change, &[refs(&present), refs(fresh)].concat(), now_ms).unwrap()
}

/// New holders of both roots' keys, two of three of whom sign; the old holders can sign nothing any more.
#[test]
fn root_keys_rotate_to_another_threshold() {
    let mut world = World::new();
    let mut device = Device::enrol(&world, "pole-1");
    device.check(&world, START_MS).unwrap();
    for (kind, role) in
        [(RepoKind::Image, OfflineRole::ImageRoot), (RepoKind::Director, OfflineRole::DirectorRoot)]
    {
        let fresh = world.folder.path().join("fresh");
        let new = keys::make_keys(&fresh, role.prefix(), 3, None).unwrap();
        let next = rotate(&world, role, &new, 2, START_MS);
        assert!(keys::lacks(kind, &world.root(kind), &next).unwrap().is_none());
        world.publish(&offline(kind, next), START_MS).unwrap();
        device.check(&world, START_MS).unwrap();

        let current = world.root(kind);
        let by_old = keys::renew_root(kind, &current, None, &world.safe(), START_MS).unwrap();
        assert!(matches!(
            keys::lacks(kind, &current, &by_old).unwrap(),
            Some(TrustError::Threshold { have: 0, need: 2, .. })
        ));
        assert!(world.publish(&offline(kind, by_old), START_MS).is_err());
        // One holder signs, the other adds a signature elsewhere.
        let alone = world.folder.path().join(format!("alone-{}", role.prefix()));
        fs::create_dir(&alone).unwrap();
        let name = format!("{}-2.pem", role.prefix());
        fs::rename(fresh.join(&name), alone.join(&name)).unwrap();
        let one = keys::renew_root(kind, &current, None, &alone, START_MS).unwrap();
        assert!(matches!(
            keys::lacks(kind, &current, &one).unwrap(),
            Some(TrustError::Threshold { have: 1, .. })
        ));
        let both = keys::cosign(&one, role.prefix(), &fresh).unwrap();
        world.publish(&offline(kind, both), START_MS).unwrap();
        device.check(&world, START_MS).unwrap();
    }
    assert_eq!((device.image.versions().root, device.director.versions().root), (3, 3));
}

/// After a rotation of the targets' keys only the new holders approve, and what was approved stays approved.
#[test]
fn targets_keys_rotate_together_with_a_targets_file_by_the_new_ones() {
    let (mut world, mut device) = World::with_device();
    device.check(&world, START_MS).unwrap();

    let fresh = world.folder.path().join("fresh");
    let role = OfflineRole::ImageTargets;
    let new = keys::make_keys(&fresh, role.prefix(), 3, None).unwrap();
    let root = rotate(&world, role, &new, 2, START_MS);
    // The root alone would leave a targets file that nobody's keys signed.
    assert!(world.publish(&offline(RepoKind::Image, root.clone()), START_MS).is_err());
    let sign = |keys: &std::path::Path| {
        keys::sign_targets(&world.current_targets(), &Request::default(), keys, START_MS).unwrap()
    };
    let (by_old, by_new) = (sign(&world.safe()), sign(&fresh));
    let with =
        |targets| Offline { image_root: Some(root.clone()), targets: Some(targets), ..Offline::default() };
    let refused = world.publish(&with(by_old), START_MS).unwrap_err();
    assert!(matches!(refused, RepoError::Trust { source: TrustError::Threshold { .. }, .. }), "{refused}");
    world.publish(&with(by_new), START_MS).unwrap();
    assert!(device.check(&world, START_MS).unwrap().tasks[0].1.is_ok());
    let late =
        keys::sign_targets(&world.current_targets(), &Request::default(), &world.safe(), START_MS).unwrap();
    assert!(world.repos.publish_targets(&late, START_MS).is_err());
}

#[test]
fn a_lost_key_is_revoked_and_the_others_go_on() {
    let mut world = World::with(2, 3);
    let (kind, role) = (RepoKind::Image, OfflineRole::ImageTargets);
    let current = world.root(kind);
    let ids = keys::role_key_ids(role, &current).unwrap();
    let root_keys = Keyring::from(&world.safe()).signers(OfflineRole::ImageRoot.prefix()).unwrap();
    let change = |drop: &[String], threshold| RoleChange { add: vec![], drop: drop.to_vec(), threshold };
    for bad in [change(&ids[..2], None), change(&ids, Some(0)), change(&["nobody".to_owned()], None)] {
        assert!(keys::change_role(role, &current, &bad, &refs(&root_keys), START_MS).is_err());
    }
    let root =
        keys::change_role(role, &current, &change(&ids[..1], None), &refs(&root_keys), START_MS).unwrap();
    let left = Keyring::from(&world.safe()).signers(role.prefix()).unwrap();
    let (lost, left): (Vec<_>, Vec<_>) = left.into_iter().partition(|signer| signer.key_id() == ids[0]);
    assert_eq!((lost.len(), left.len()), (1, 2));
    let sign = |signers: &[&dyn Signer]| {
        keys::sign_targets_with(&world.current_targets(), &Request::default(), signers, START_MS).unwrap()
    };
    let with =
        |targets| Offline { image_root: Some(root.clone()), targets: Some(targets), ..Offline::default() };
    let (stolen, good) = (with(sign(&[&lost[0], &left[0]])), with(sign(&refs(&left))));
    assert!(world.publish(&stolen, START_MS).is_err(), "a revoked key still counts");
    world.publish(&good, START_MS).unwrap();
    Device::enrol(&world, "pole-1").check(&world, START_MS).unwrap();
}

/// Fourteen months in a drawer: every file it holds is expired, the root keys have changed hands twice and the online
/// keys once. It comes back with one check, by itself, through the chain of roots.
#[test]
fn a_device_that_was_off_for_more_than_a_year_comes_back_by_itself() {
    let (mut world, mut device) = World::with_device();
    device.check(&world, START_MS).unwrap();

    let mut now_ms = START_MS;
    for step in 0..4 {
        now_ms += 105 * DAY_MS;
        for (kind, role) in
            [(RepoKind::Image, OfflineRole::ImageRoot), (RepoKind::Director, OfflineRole::DirectorRoot)]
        {
            let root = if step % 2 == 0 {
                keys::renew_root(kind, &world.root(kind), None, &world.safe(), now_ms).unwrap()
            } else {
                // The new holders' keys go into the same safe; the old ones stay there and count no more.
                let new = keys::make_keys(&world.safe(), role.prefix(), 1, None).unwrap();
                rotate(&world, role, &new, 1, now_ms)
            };
            let targets =
                keys::sign_targets(&world.current_targets(), &Request::default(), &world.safe(), now_ms)
                    .unwrap();
            let targets = Some(targets).filter(|_| kind == RepoKind::Image);
            world.publish(&Offline { targets, ..offline(kind, root) }, now_ms).unwrap();
        }
    }
    assert!(now_ms > device.image.expires_ms() && now_ms > START_MS + 400 * DAY_MS);
    world.repos.publish_assignment(&assignment("pole-1", 2, "meter@1"), now_ms).unwrap();
    // Without a clock it believes nothing new; with one, one check is enough.
    let ask = device.ask(&world, now_ms);
    let unknown = Now { mono_ms: 0, wall_ms: None };
    assert!(
        dunlin_trust::update_both(&mut device.image.clone(), &mut device.director.clone(), &ask, unknown)
            .is_err()
    );
    let approved = device.check(&world, now_ms).unwrap();
    assert_eq!(approved.assignment.generation, 2);
    assert!(approved.tasks[0].1.is_ok());
    assert_eq!((device.image.versions().root, device.director.versions().root), (5, 5));
}
