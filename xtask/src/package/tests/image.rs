//! Container images.
use std::io::Read;

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::Digest as _;

use super::*;
use crate::command::run;

/// The rules of image-spec 1.1 that a layout can break: `oci-layout`, descriptors, digests, sizes, media types, platforms.
#[test]
fn an_image_layout_keeps_to_the_specification() {
    let packages = TRIPLES.map(|triple| package(triple, Some("raspberry-pi-4")));
    let (_, archive) = oci::pack(&packages).unwrap();
    let mut files = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(path, bytes);
    }
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
    let mut seen = std::collections::BTreeSet::new();
    let mut follow = |descriptor: &Value, media_type: &str| {
        assert_eq!(descriptor["mediaType"], media_type);
        let digest = descriptor["digest"].as_str().unwrap();
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = format!("blobs/sha256/{hex}");
        let bytes = files[&path].clone();
        assert_eq!(descriptor["size"], bytes.len());
        assert_eq!(HEXLOWER.encode(&sha2::Sha256::digest(&bytes)), hex);
        seen.insert(path);
        bytes
    };
    let index = "application/vnd.oci.image.index.v1+json";
    let top = json(&files["index.json"]);
    assert_eq!((&top["schemaVersion"], &top["mediaType"]), (&2.into(), &index.into()));
    let named = &top["manifests"][0];
    assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
    let inner = json(&follow(named, index));
    assert_eq!((&inner["schemaVersion"], &inner["mediaType"]), (&2.into(), &index.into()));
    let mut platforms = Vec::new();
    for descriptor in inner["manifests"].as_array().unwrap() {
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json(&follow(descriptor, manifest_type));
        assert_eq!((&manifest["schemaVersion"], &manifest["mediaType"]), (&2.into(), &manifest_type.into()));
        let config = json(&follow(&manifest["config"], "application/vnd.oci.image.config.v1+json"));
        let layers = manifest["layers"].as_array().unwrap();
        let diffs = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!((layers.len(), diffs.len(), &config["rootfs"]["type"]), (1, 1, &"layers".into()));
        follow(&layers[0], "application/vnd.oci.image.layer.v1.tar");
        // Not compressed, so the digest of the layer is that of what it holds.
        assert_eq!(diffs[0], layers[0]["digest"]);
        for field in ["architecture", "os", "variant"] {
            assert_eq!(config[field], descriptor["platform"][field]);
        }
        platforms.push(descriptor["platform"].clone());
    }
    assert_eq!(
        serde_json::to_string(&platforms).unwrap(),
        r#"[{"architecture":"amd64","os":"linux"},{"architecture":"arm64","os":"linux","variant":"v8"},{"architecture":"arm","os":"linux","variant":"v7"}]"#
    );
    let blobs = files.iter().filter(|(path, bytes)| path.starts_with("blobs/sha256/") && !bytes.is_empty());
    assert_eq!(blobs.map(|(path, _)| path.clone()).collect::<Vec<_>>(), seen.into_iter().collect::<Vec<_>>());
}

#[test]
fn an_image_is_read_by_a_program_that_others_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (name, bytes) = oci::pack(&TRIPLES.map(|triple| package(triple, None))).unwrap();
    let archive = folder.path().join(name);
    std::fs::write(&archive, bytes).unwrap();
    let image = format!("oci-archive:{}:1.2.3", archive.display());
    for (arch, variant) in [("amd64", ""), ("arm64", "v8"), ("arm", "v7")] {
        let choice = ["--override-os", "linux", "--override-arch", arch, "--override-variant", variant];
        let told = output(Command::new("skopeo").args(choice).args(["inspect", &image])).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["Architecture"], arch);
        assert_eq!(told["Labels"]["org.opencontainers.image.version"], "1.2.3");
    }
    // Copying reads every blob and compares its digest.
    let copy = format!("oci:{}:copy", folder.path().join("copy").display());
    run(Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet", "--all", &image, &copy]))
        .unwrap();
}
