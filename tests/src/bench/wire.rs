//! Bytes on the wire: a telemetry window, a check that finds nothing new, a deployment.
use std::path::Path;

use anyhow::{Context, Result};
use dunlin_protocol::{Bundle, cbor};
use dunlin_tests::digits::PIXELS;
use dunlin_tests::line::{Line, Versions};
use dunlin_trust::{EcdsaP256Signer, write};

use crate::digits_model;
use crate::report::{Bar, Section};
use crate::window::{BYTES_MAX, payload, reference, window};
use crate::world::World;

/// Most bytes of a check that finds nothing new.
const CHECK_BYTES_MAX: f64 = 1024.0;

pub(crate) fn measure(section: &mut Section, folder: &Path) -> Result<()> {
    windows(section)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(deployment(section, folder))
}

fn windows(section: &mut Section) -> Result<()> {
    let signer = EcdsaP256Signer::from_pkcs8(&EcdsaP256Signer::generate_pkcs8()?)?;
    let window = window(&reference(), 1)?;
    let body = cbor::encode(&window).len();
    let whole = payload(&"pole-017".parse()?, &signer, 123_456, &window)?.len();
    section.add("window of 64 features × 64 bins with 600 inferences, CBOR", body as f64, "bytes");
    section.hold(
        "  signed and in its envelope: the MQTT payload",
        whole as f64,
        "bytes",
        Bar::AtMost(BYTES_MAX as f64),
    );
    Ok(())
}

async fn deployment(section: &mut Section, folder: &Path) -> Result<()> {
    let mut world = World::start(folder).await?;
    let mut agent = world.device("pole-017").await?;
    let release = world.publish("digits", &digits_model::perceptron()?, true).await?;
    let mut line = Line::open(world.controller.api, &agent)?;
    // What the device holds before: roots and empty metadata of its enrolment.
    let (before, _) = line.check(&agent.id, Versions::default())?;
    world.assign("digits", &agent.id, &release).await?;
    world.commit(&agent, "digits", &[1, PIXELS], &digits_model::rows()[..PIXELS]).await?;

    let (after, metadata) = line.check(&agent.id, before)?;
    let (held, unchanged) = line.check(&agent.id, after)?;
    let check = |section: &mut Section, what: &str, bytes: usize| {
        section.hold(
            format!("check that finds nothing new, {what}"),
            bytes as f64,
            "bytes",
            Bar::AtMost(CHECK_BYTES_MAX),
        );
    };
    check(section, "request and answer without TLS", unchanged);
    section.add("deployment: new metadata of both repositories", metadata as f64, "bytes");
    let (image, _) = line.metadata(&agent.id)?;
    let targets = write::signed_value(image.targets.context("image targets")?.as_slice())?;
    let name = format!("{}.json", release.replace('@', "."));
    let target = &targets["targets"][&name];
    let digest = target["hashes"]["sha256"].as_str().with_context(|| format!("no {name} in {targets}"))?;
    let (manifest, bytes) = line.get(&format!("/v1/targets/{digest}.{name}"))?;
    section.add("deployment: manifest", bytes as f64, "bytes");
    let bundle: Bundle = serde_json::from_slice(&manifest)?;
    let mut whole = metadata + bytes;
    for (what, blob) in [
        ("model", Some(bundle.model)),
        ("golden vectors", Some(bundle.golden)),
        ("drift bins", bundle.profile),
    ] {
        let Some(blob) = blob else { continue };
        let (_, bytes) = line.get(&format!("/v1/blobs/{}", blob.digest))?;
        section.add(format!("deployment: {what} (file of {} bytes)", blob.length), bytes as f64, "bytes");
        whole += bytes;
    }
    section.add("deployment of the small model, all requests and answers", whole as f64, "bytes");
    // The last one, because the release goes over to another file.
    world.delegate("digits").await?;
    let mut line = Line::open(world.controller.api, &agent)?;
    let (held, _) = line.check(&agent.id, held)?;
    anyhow::ensure!(held.roles.len() == 1, "the device holds {:?}", held.roles);
    let (_, unchanged) = line.check(&agent.id, held)?;
    check(section, "where the task has signers of its own", unchanged);
    section.note("HTTP as the agent's client writes it, without TLS and TCP; the retained broker message that announces it is not counted");
    agent.stop().await?;
    world.controller.stop().await
}
