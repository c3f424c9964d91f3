//! `dunlin key` as people use it: a ceremony under a passphrase, a second person's signature, rotation, revocation.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dunlin_controller::store::Store;
use dunlin_controller::{init, keys};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Desk {
    folder: TempDir,
}

impl Desk {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `dunlin key ARGS`; paths in the arguments are relative to the desk. What it printed, or its complaint.
    fn key(&self, args: &str) -> Result<Value, String> {
        self.key_under(None, args)
    }

    /// The same with a passphrase in the environment.
    fn key_under(&self, passphrase: Option<&str>, args: &str) -> Result<Value, String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin"));
        command.current_dir(self.folder.path()).env_remove("DUNLIN_KEY_PASSPHRASE");
        if let Some(passphrase) = passphrase {
            command.env("DUNLIN_KEY_PASSPHRASE", passphrase);
        }
        let output = command.args(["--json", "key"]).args(args.split_whitespace()).output().unwrap();
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy(from, to).unwrap();
}

#[test]
fn two_people_with_passphrases_approve_rotate_and_revoke() {
    let desk = Desk { folder: tempfile::tempdir().unwrap() };
    keys::create_online(&desk.path("data")).unwrap();
    for (name, text) in
        [("pass", "first sentence of a story\n"), ("other", "another passphrase"), ("short", "short\n")]
    {
        fs::write(desk.path(name), text).unwrap();
    }
    let ceremony = "ceremony --online data/keys/online.json --out kit --keys 2 --threshold 2";
    assert!(
        desk.key(&format!("{ceremony} --passphrase-file short")).unwrap_err().contains("guessed too easily")
    );
    desk.key(&format!("{ceremony} --passphrase-file pass")).unwrap();
    desk.key("import --data data --from kit/public").unwrap();

    // Each holder carries one key away; the second chooses a passphrase of her own.
    for role in ["image-targets", "image-root", "director-root"] {
        for n in ["1", "2"] {
            copy(
                &desk.path(&format!("kit/private/{role}-{n}.pem")),
                &desk.path(&format!("holder-{n}/{role}-{n}.pem")),
            );
        }
    }
    desk.key("seal holder-2/image-targets-2.pem --passphrase-file pass --new-passphrase-file other").unwrap();
    let wrong = desk.key("show holder-2/image-targets-2.pem --passphrase-file pass").unwrap_err();
    assert!(wrong.contains("does not open with this passphrase"), "{wrong}");
    let second = desk.key("show holder-2/image-targets-2.pem --passphrase-file other").unwrap()["id"].clone();

    // One signature publishes nothing; the second person's does.
    let floors = json!({ "floors": { "meter": 3 } });
    fs::write(desk.path("request.json"), floors.to_string()).unwrap();
    let current = "--current kit/public/image/1.targets.json";
    desk.key(&format!(
        "sign {current} --request request.json --keys holder-1 --passphrase-file pass --out next.json"
    ))
    .unwrap();
    assert!(desk.key("publish --data data --targets next.json").is_err());
    let both = desk
        .key("cosign --file next.json --role image-targets --keys holder-2 --passphrase-file other")
        .unwrap();
    assert!(both["signed_by"].as_array().unwrap().contains(&second));
    assert_eq!(desk.key("publish --data data --targets next.json").unwrap()["targets"], 2);

    // New holders of the image root: one of the old ones is not enough, both are.
    let rotate = "rotate --role image-root --current data/repo/image/1.root.json --new 2 --threshold 1 --passphrase-file pass";
    let half = desk.key(&format!("{rotate} --keys holder-1 --new-keys new-a --out root.json")).unwrap();
    assert!(half["lacks"].as_str().unwrap().contains("1 good signatures"), "{half}");
    assert!(desk.key("publish --data data --image-root root.json").is_err());
    let whole =
        desk.key("cosign --file root.json --role image-root --keys holder-2 --passphrase-file pass").unwrap();
    assert_eq!(whole["signed_by"].as_array().unwrap().len(), 4);
    assert_eq!(desk.key("publish --data data --image-root root.json").unwrap()["root"], 2);

    // A stolen targets key is revoked by the new root holders, and the threshold goes down with it.
    let id = second.as_str().unwrap();
    let revoke = "revoke --role image-targets --current data/repo/image/2.root.json --keys new-a --passphrase-file pass";
    let refused = desk.key(&format!("{revoke} --key {id} --out root.json")).unwrap_err();
    assert!(refused.contains("threshold of 2 of 1"), "{refused}");
    desk.key(&format!("{revoke} --key {id} --threshold 1 --out root.json")).unwrap();
    desk.key("sign --current next.json --keys holder-1 --passphrase-file pass --out last.json").unwrap();
    let published = desk.key("publish --data data --image-root root.json --targets last.json").unwrap();
    assert_eq!((&published["root"], &published["targets"]), (&json!(3), &json!(3)));

    // Without a terminal there is nobody to ask.
    let alone = desk.key("sign --current last.json --keys holder-1 --out never.json").unwrap_err();
    assert!(alone.contains("passphrase"), "{alone}");
    assert!(!desk.path("never.json").exists());
}

/// Ids of the keys that a root names for the image targets, sorted, and how many of them must sign.
fn targets_role(root: &Path) -> (Vec<String>, u64) {
    let root: Value = serde_json::from_slice(&fs::read(root).unwrap()).unwrap();
    let role = &root["signed"]["roles"]["targets"];
    let mut ids: Vec<String> = serde_json::from_value(role["keyids"].clone()).unwrap();
    ids.sort();
    (ids, role["threshold"].as_u64().unwrap())
}

#[test]
fn a_script_gives_the_passphrase_and_a_rotation_only_counts_or_keeps() {
    let desk = Desk { folder: tempfile::tempdir().unwrap() };
    keys::create_online(&desk.path("data")).unwrap();
    let key = |args: &str| desk.key_under(Some("first sentence of a story"), args);
    let short = desk.key_under(Some("short"), "ceremony --online data/keys/online.json --out kit");
    assert!(short.unwrap_err().contains("guessed too easily"));
    key("ceremony --online data/keys/online.json --out kit --keys 2 --threshold 1").unwrap();
    assert!(keys::is_sealed(&desk.path("kit/private/image-targets-1.pem")).unwrap());
    desk.key("import --data data --from kit/public").unwrap();
    let sign = "sign --current kit/public/image/1.targets.json --keys kit/private";
    let wrong = desk.key_under(Some("another passphrase"), &format!("{sign} --out never.json"));
    assert!(wrong.unwrap_err().contains("does not open with this passphrase"));
    // A file that is named goes before the environment.
    fs::write(desk.path("other"), "another passphrase").unwrap();
    assert!(key(&format!("{sign} --passphrase-file other --out never.json")).is_err());
    assert!(!desk.path("never.json").exists());

    // The threshold alone: the same keys, of which both must sign.
    let rotate = "rotate --role image-targets --keys kit/private";
    assert!(key(&format!("{rotate} --current data/repo/image/1.root.json --out never.json")).is_err());
    let (before, _) = targets_role(&desk.path("data/repo/image/1.root.json"));
    key(&format!("{rotate} --current data/repo/image/1.root.json --threshold 2 --out root-2.json")).unwrap();
    assert_eq!(targets_role(&desk.path("root-2.json")), (before.clone(), 2));
    copy(&desk.path("kit/private/image-targets-1.pem"), &desk.path("alone/image-targets-1.pem"));
    key("sign --current kit/public/image/1.targets.json --keys alone --out half.json").unwrap();
    assert!(desk.key("publish --data data --image-root root-2.json --targets half.json").is_err());
    key(&format!("{sign} --out targets-2.json")).unwrap();
    let published =
        desk.key("publish --data data --image-root root-2.json --targets targets-2.json").unwrap();
    assert_eq!((&published["root"], &published["targets"]), (&json!(2), &json!(2)));

    // A third holder beside the two; without --keep the new one would have been alone.
    let rotate = format!("{rotate} --current root-2.json --new 1");
    let one = key(&format!("{rotate} --new-keys alone-new --out never.json"));
    assert!(one.unwrap_err().contains("threshold of 2 of 1"));
    key(&format!("{rotate} --new-keys more --keep --out root-3.json")).unwrap();
    let (after, threshold) = targets_role(&desk.path("root-3.json"));
    assert_eq!((after.len(), threshold), (3, 2));
    assert!(before.iter().all(|id| after.contains(id)), "{before:?} {after:?}");
    copy(&desk.path("more/image-targets-1.pem"), &desk.path("alone/image-targets-3.pem"));
    key("sign --current targets-2.json --keys alone --out targets-3.json").unwrap();
    let published =
        desk.key("publish --data data --image-root root-3.json --targets targets-3.json").unwrap();
    assert_eq!((&published["root"], &published["targets"]), (&json!(3), &json!(3)));
}

#[test]
fn a_task_gets_signers_of_its_own() {
    let desk = Desk { folder: tempfile::tempdir().unwrap() };
    keys::create_online(&desk.path("data")).unwrap();
    desk.key("ceremony --plain --online data/keys/online.json --out kit").unwrap();
    let made = fs::read_dir(desk.path("kit/private")).unwrap().count();
    assert_eq!(made, 9, "three keys each of both roots and the targets");
    desk.key("import --data data --from kit/public").unwrap();
    let delegate = "delegate --task meter --keys kit/private --task-keys team";
    let first = format!(
        "{delegate} --current data/repo/image/1.targets.json --new 2 --plain --line dial --out t.json --task-out m.json"
    );
    let made = desk.key(&first).unwrap();
    assert_eq!((&made["targets"]["version"], &made["task"]["version"]), (&json!(2), &json!(1)));
    let alone = desk.key("publish --data data --targets t.json").unwrap_err();
    assert!(alone.contains("together"), "{alone}");
    desk.key("publish --data data --targets t.json --task meter=m.json").unwrap();

    // The team raises a floor; another person of it signs the same file.
    fs::write(desk.path("request.json"), json!({ "floors": { "dial": 2 } }).to_string()).unwrap();
    let current = "--current data/repo/image/1.task-meter.json";
    desk.key(&format!("sign --task meter {current} --request request.json --keys team --out m.json"))
        .unwrap();
    let signed = desk.key("cosign --file m.json --task meter --keys team").unwrap();
    assert_eq!(signed["signed_by"].as_array().unwrap().len(), 2);
    desk.key("publish --data data --task meter=m.json").unwrap();
    assert!(desk.key(&format!("sign --task gate {current} --keys team --out never.json")).is_err());

    // One of its keys is taken away, and two must sign from then on: there is one left.
    let id = desk.key("show team/task-meter.key-1.pem").unwrap()["id"].as_str().unwrap().to_owned();
    let next = format!(
        "{delegate} --current t.json --current-task m.json --revoke {id} --out t2.json --task-out m2.json"
    );
    assert!(desk.key(&format!("{next} --threshold 2")).unwrap_err().contains("threshold of 2 of 1"));
    desk.key(&next).unwrap();
    let published = desk.key("publish --data data --targets t2.json --task meter=m2.json").unwrap();
    assert_eq!(published["targets"], 3);
}

#[tokio::test]
async fn what_is_done_beside_a_controller_is_in_its_audit_log() {
    let desk = Desk { folder: tempfile::tempdir().unwrap() };
    let any = "127.0.0.1:0".parse().ok();
    let options = init::Options { listen: any, mqtt_listen: any, ..init::Options::default() };
    init::init(&desk.path("data"), &options).await.unwrap();
    desk.key("ceremony --plain --online data/keys/online.json --out kit --keys 1 --threshold 1").unwrap();
    desk.key("import --data data --from kit/public").unwrap();
    desk.key("sign --current kit/public/image/1.targets.json --keys kit/private --out t.json").unwrap();
    desk.key("publish --data data --targets t.json").unwrap();
    let store = Store::open(&desk.path("data").join(init::DATABASE)).await.unwrap();
    let rows = store.audit_entries(0, 10).await.unwrap();
    let rows: Vec<_> = rows.iter().map(|row| (row.who.as_str(), row.what.as_str())).collect();
    let expected = [("init", "controller.init"), ("dunlin key", "key.import"), ("dunlin key", "key.publish")];
    assert_eq!(rows, expected);
    assert!(store.audit_verify().await.unwrap().is_ok());
    let last = store.audit_last().await.unwrap().unwrap();
    let digest = dunlin_trust::pin(&fs::read(desk.path("t.json")).unwrap()).to_string();
    assert!(last.after.contains(&digest), "{last:?}");
}
