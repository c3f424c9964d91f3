//! Container images: an image layout of the OCI (image-spec 1.1) as an archive, with a platform for each target.
use anyhow::{Result, ensure};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Package;
use super::tree::Tree;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Not compressed: whatever pushes an image to a registry compresses it, and a digest of such a layer is that of its content.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A user without a name, as images that hold nothing but a program use it.
const USER: u64 = 65532;
/// What the agent writes to; the first one outlives the container if it is made a volume.
const FOLDERS: [(&str, u32); 3] = [("var/lib/dunlin", 0o700), ("run/dunlin", 0o755), ("tmp", 0o700)];

/// Name and bytes of the archive.
pub(super) fn pack(packages: &[Package]) -> Result<(String, Vec<u8>)> {
    let mut layout = Tree::default();
    let mut manifests = Vec::new();
    for package in packages {
        manifests.push(image(&mut layout, package)?);
    }
    let (version, epoch) = packages.first().map_or(("", 0), |first| (first.version.as_str(), first.epoch));
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut named = blob(&mut layout, INDEX, serde_json::to_vec(&index)?);
    named["annotations"] = json!({"org.opencontainers.image.ref.name": version});
    let top = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]});
    layout.file("index.json", 0o644, serde_json::to_vec(&top)?);
    layout.file("oci-layout", 0o644, serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?);
    Ok((format!("dunlin-agent-{version}.oci.tar"), layout.tar("", epoch)?))
}

/// Adds the image of one target and returns its descriptor.
fn image(layout: &mut Tree, package: &Package) -> Result<Value> {
    ensure!(
        !package.is_dynamic,
        "the agent for {} is linked dynamically; in an image there is no C library beside it",
        package.triple
    );
    let mut files = package.common()?;
    for (path, mode) in FOLDERS {
        files.folder(path, mode, USER);
    }
    let layer = blob(layout, LAYER, files.tar("", package.epoch)?);
    let (architecture, variant) = package.machine.oci;
    let mut platform = json!({"architecture": architecture, "os": "linux"});
    if let Some(variant) = variant {
        platform["variant"] = variant.into();
    }
    let mut config = platform.clone();
    config["config"] = json!({
        "User": format!("{USER}:{USER}"),
        "Entrypoint": ["/usr/bin/dunlin-agent"],
        "Cmd": ["run"],
        "Volumes": {"/var/lib/dunlin": {}},
        "StopSignal": "SIGTERM",
        "Labels": {
            "org.opencontainers.image.title": "dunlin-agent",
            "org.opencontainers.image.version": package.version,
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        },
    });
    config["rootfs"] = json!({"type": "layers", "diff_ids": [layer["digest"]]});
    let config = blob(layout, CONFIG, serde_json::to_vec(&config)?);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
    let mut descriptor = blob(layout, MANIFEST, serde_json::to_vec(&manifest)?);
    descriptor["platform"] = platform;
    Ok(descriptor)
}

/// Adds a blob under its digest and returns its descriptor.
fn blob(layout: &mut Tree, media_type: &str, bytes: Vec<u8>) -> Value {
    let digest = HEXLOWER.encode(&Sha256::digest(&bytes));
    let descriptor =
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()});
    layout.file(&format!("blobs/sha256/{digest}"), 0o644, bytes);
    descriptor
}
