//! `dunlin key` as people use it: a ceremony under a passphrase, a second person's signature, rotation, revocation.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dunlin_controller::keys;
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
        let output = Command::new(env!("CARGO_BIN_EXE_dunlin"))
            .current_dir(self.folder.path())
            .env_remove("DUNLIN_KEY_PASSPHRASE")
            .args(["--json", "key"])
            .args(args.split_whitespace())
            .output()
            .unwrap();
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
