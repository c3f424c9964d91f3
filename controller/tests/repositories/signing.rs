//! Offline signatures, and what a copy of the controller's data folder can not do.
use std::fs;
use std::os::unix::fs::PermissionsExt;

use dunlin_controller::keys::{self, CeremonyOptions, KeyError, Keyring, Passphrase, Request};
use dunlin_controller::repo::{RepoError, Repos};
use dunlin_trust::{Ed25519Signer, RepoKind, Signer, TrustError};

use super::world::{START_MS, World, data, offline};

#[test]
fn too_few_offline_signatures_publish_nothing() {
    let world = World::with(2, 2);
    let before = world.repos.image().unwrap().versions();
    let alone = world.folder.path().join("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(world.safe().join("image-targets-1.pem"), alone.join("image-targets-1.pem")).unwrap();
    let one = keys::sign_targets(&world.current_targets(), &Request::default(), &alone, START_MS).unwrap();
    let refused = world.repos.publish_targets(&one, START_MS).unwrap_err();
    assert!(matches!(refused, RepoError::Trust { source: TrustError::Threshold { .. }, .. }), "{refused}");
    assert_eq!(world.repos.image().unwrap().versions(), before);
    // The second holder signs the same file elsewhere.
    let both = keys::cosign(&one, "image-targets", &world.safe()).unwrap();
    world.repos.publish_targets(&both, START_MS).unwrap();
    // And it can not be published twice.
    assert!(world.repos.publish_targets(&both, START_MS).is_err());
}

/// A key that lives somewhere else and is asked for signatures.
struct Token(Ed25519Signer);

impl Signer for Token {
    fn key_id(&self) -> &str {
        self.0.key_id()
    }

    fn public(&self) -> &[u8] {
        self.0.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        self.0.sign(message)
    }
}

#[test]
fn a_key_that_is_in_no_file_signs_whatever_one_in_a_file_does() {
    let world = World::new();
    let safe = world.safe();
    let tokens = |prefix: &str| -> Vec<Token> {
        Keyring::from(&safe).signers(prefix).unwrap().into_iter().map(Token).collect()
    };
    let (targets, request) = (world.current_targets(), Request::default());
    let owners = tokens("image-targets");
    let owners: Vec<&dyn Signer> = owners.iter().map(|token| token as &dyn Signer).collect();
    let by_files = keys::sign_targets(&targets, &request, &safe, START_MS).unwrap();
    assert_eq!(keys::sign_targets_with(&targets, &request, &owners, START_MS).unwrap(), by_files);
    let one = keys::sign_targets_with(&targets, &request, &owners[..1], START_MS).unwrap();
    let cosigned = keys::cosign(&one, "image-targets", &safe).unwrap();
    assert_eq!(keys::cosign_with(&one, &owners).unwrap(), cosigned);
    for (kind, prefix) in [(RepoKind::Image, "image-root"), (RepoKind::Director, "director-root")] {
        let holders = tokens(prefix);
        let holders: Vec<&dyn Signer> = holders.iter().map(|token| token as &dyn Signer).collect();
        let root = world.root(kind);
        let by_files = keys::renew_root(kind, &root, None, &safe, START_MS).unwrap();
        assert_eq!(keys::renew_root_with(kind, &root, None, &holders, START_MS).unwrap(), by_files);
    }
}

/// A broken-into controller: with every file of the data folder, neither root nor image targets can be signed.
#[test]
fn a_copy_of_the_data_folder_can_approve_nothing() {
    let world = World::new();
    let stolen = data(&world.folder);
    assert!(matches!(
        keys::sign_targets(&world.current_targets(), &Request::default(), &stolen.join("keys"), START_MS),
        Err(KeyError::NoneFound { .. })
    ));
    // Under any name, the online keys are not those that count.
    let forged = world.folder.path().join("forged");
    fs::create_dir(&forged).unwrap();
    for (i, entry) in fs::read_dir(stolen.join("keys")).unwrap().enumerate() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            for role in ["image-targets", "image-root", "director-root"] {
                fs::copy(&path, forged.join(format!("{role}-{i}.pem"))).unwrap();
            }
        }
    }
    let targets =
        keys::sign_targets(&world.current_targets(), &Request::default(), &forged, START_MS).unwrap();
    let refused = world.repos.publish_targets(&targets, START_MS).unwrap_err();
    assert!(
        matches!(refused, RepoError::Trust { source: TrustError::Threshold { have: 0, .. }, .. }),
        "{refused}"
    );
    for kind in [RepoKind::Image, RepoKind::Director] {
        let root = world.repos.first_root(kind).unwrap();
        let root = keys::renew_root(kind, root.as_slice(), None, &forged, START_MS).unwrap();
        let refused = Repos::publish_offline(&stolen, &offline(kind, root), START_MS).unwrap_err();
        assert!(
            matches!(refused, RepoError::Trust { source: TrustError::Threshold { have: 0, .. }, .. }),
            "{refused}"
        );
    }
    keys::guard(&stolen).unwrap();
}

#[test]
fn the_guard_finds_an_offline_key_wherever_it_lies() {
    let world = World::new();
    let data = data(&world.folder);
    for (from, to) in [
        ("image-targets-1.pem", "notes.txt"),
        ("image-root-2.pem", "repo/targets/x"),
        ("director-root-1.pem", "keys/deep/er/backup.pem"),
    ] {
        let to = data.join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let pem = fs::read_to_string(world.safe().join(from)).unwrap();
        fs::write(&to, format!("# kept here for convenience\n{pem}")).unwrap();
        assert!(matches!(keys::guard(&data), Err(KeyError::Guarded { path, .. }) if path == to), "{from}");
        fs::remove_file(&to).unwrap();
        keys::guard(&data).unwrap();
    }
}

#[test]
fn key_files_are_for_their_owner_alone() {
    let world = World::new();
    let key = world.safe().join("image-root-1.pem");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(world.safe()).unwrap().permissions().mode() & 0o777, 0o700);
    keys::load(&key, None).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(keys::load(&key, None), Err(KeyError::Exposed { mode: 0o640, .. })));
    assert!(keys::write_new(&key, None).is_err(), "a key was replaced");
    let other = world.folder.path().join("other.pem");
    fs::write(&other, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(keys::load(&other, None), Err(KeyError::NoKey { .. })));
}

#[test]
fn a_ceremony_for_another_controller_is_refused() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    keys::create_online(&data(&folder)).unwrap();
    let other = Repos::open(&data(&folder)).unwrap();
    assert!(matches!(other.image(), Err(RepoError::NotSetUp)));
    let refused = other.import(&world.folder.path().join("safe/public"), START_MS).unwrap_err();
    assert!(matches!(refused, RepoError::ForeignKey(_)), "{refused}");
    assert!(matches!(
        world.repos.import(&world.folder.path().join("safe/public"), START_MS),
        Err(RepoError::AlreadySetUp)
    ));
}

#[test]
fn thresholds_without_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let online = keys::create_online(folder.path()).unwrap();
    for (threshold, root_threshold, n) in [(0, 1, 1), (1, 0, 1), (3, 1, 2), (1, 3, 2), (1, 1, 17)] {
        let options = CeremonyOptions { threshold, root_threshold, n, now_ms: START_MS };
        assert!(matches!(
            keys::ceremony(&folder.path().join("o"), &online, options),
            Err(KeyError::Threshold { .. })
        ));
    }
}

#[test]
fn signers_are_kept_from_mistakes() {
    let world = World::new();
    world
        .approve(&Request { add: vec![world.release("meter.1.json", b"1")], ..Request::default() }, START_MS)
        .unwrap();
    let floors = |floor| Request { floors: [("meter".parse().unwrap(), floor)].into(), ..Request::default() };
    world.approve(&floors(3), START_MS).unwrap();
    assert!(world.repos.approvals().unwrap().is_empty(), "a release below its floor is no choice");
    let bad = [
        Request { add: vec![world.release("meter.1.json", b"other")], ..Request::default() },
        Request { remove: vec!["meter.9.json".to_owned()], ..Request::default() },
        floors(2),
    ];
    for request in bad {
        let refused = keys::sign_targets(&world.current_targets(), &request, &world.safe(), START_MS);
        assert!(matches!(refused, Err(KeyError::Request(_))));
    }
    world
        .approve(&Request { remove: vec!["meter.1.json".to_owned()], ..Request::default() }, START_MS)
        .unwrap();
    assert!(world.repos.image().unwrap().target("meter.1.json").is_none());
}

#[test]
fn a_sealed_ceremony_leaves_no_key_in_clear() {
    let folder = tempfile::tempdir().unwrap();
    let online = keys::create_online(&data(&folder)).unwrap();
    let (safe, options) = (
        folder.path().join("safe"),
        CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms: START_MS },
    );
    let passphrase = Passphrase::new("correct horse battery\n".to_owned());
    let short = keys::sealed_ceremony(
        &safe,
        &online,
        options,
        &Passphrase::new("eleven chars".to_owned()[..11].to_owned()),
    );
    assert!(matches!(short, Err(KeyError::PassphraseShort)));
    assert!(!safe.exists(), "a refused ceremony left something behind");
    keys::sealed_ceremony(&safe, &online, options, &passphrase).unwrap();

    let private = safe.join("private");
    for entry in fs::read_dir(&private).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(
            text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----") && !text.contains("BEGIN PRIVATE KEY")
        );
    }
    let key = private.join("image-targets-1.pem");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(keys::load(&key, None), Err(KeyError::Sealed { .. })));
    let wrong = Passphrase::new("correct horse batterie".to_owned());
    assert!(matches!(keys::load(&key, Some(&wrong)), Err(KeyError::PassphraseWrong { .. })));

    // Each holder gives a passphrase of his own; a key stays the same key.
    let before = keys::load(&key, Some(&passphrase)).unwrap();
    keys::reseal(&key, Some(&passphrase), &wrong).unwrap();
    assert_eq!(keys::load(&key, Some(&wrong)).unwrap().key(), before.key());
    assert!(matches!(keys::load(&key, Some(&passphrase)), Err(KeyError::PassphraseWrong { .. })));
    // Signing works with it, and the controller takes the ceremony.
    let repos = Repos::open(&data(&folder)).unwrap();
    repos.import(&safe.join("public"), START_MS).unwrap();
    let current = repos.image().unwrap().stored().targets.unwrap().0;
    assert!(keys::sign_targets(&current, &Request::default(), &private, START_MS).is_err());
    let keyring = Keyring::new(&private, Some(&wrong));
    let signed = keys::sign_targets(&current, &Request::default(), keyring, START_MS).unwrap();
    repos.publish_targets(&signed, START_MS).unwrap();
    // Whose an encrypted key is can not be seen, so the controller starts beside none.
    fs::copy(&key, data(&folder).join("spare.txt")).unwrap();
    assert!(matches!(keys::guard(&data(&folder)), Err(KeyError::Guarded { .. })));
}

#[test]
fn a_key_in_clear_can_be_sealed_later() {
    let world = World::new();
    let key = world.safe().join("image-root-1.pem");
    let before = keys::load(&key, None).unwrap();
    let passphrase = Passphrase::new("a sentence nobody says".to_owned());
    keys::reseal(&key, None, &passphrase).unwrap();
    assert!(keys::is_sealed(&key).unwrap());
    assert_eq!(keys::load(&key, Some(&passphrase)).unwrap().key(), before.key());
    // Plain and encrypted keys may lie in one folder.
    let safe = world.safe();
    let keyring = Keyring::new(&safe, Some(&passphrase));
    assert_eq!(keyring.signers("image-root").unwrap().len(), 2);
}

#[test]
fn a_second_ceremony_does_not_mix_with_the_first() {
    let world = World::new();
    let online = keys::OnlineKeys::read(&data(&world.folder).join("keys/online.json")).unwrap();
    let options = CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms: START_MS };
    let before = fs::read(world.folder.path().join("safe/public/image/1.root.json")).unwrap();
    assert!(keys::ceremony(&world.folder.path().join("safe"), &online, options).is_err());
    assert_eq!(fs::read(world.folder.path().join("safe/public/image/1.root.json")).unwrap(), before);
}
