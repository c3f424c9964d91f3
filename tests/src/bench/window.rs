//! The telemetry window that the bars speak of: 64 features of 64 bins each, 600 inferences.
use anyhow::Result;
use dunlin_monitor::profile;
use dunlin_monitor::window::{Accumulator, Observation};
use dunlin_protocol::{
    BootId, Bytes, DeviceId, Digest, Header, Kind, Now, ReferenceProfile, ResourceUse, SCHEMA, Window, cbor,
};
use dunlin_tests::digits::Rng;
use dunlin_trust::{EcdsaP256Signer, envelope};

/// Features of a row.
const FEATURES: usize = 64;
/// Bins between the quantiles of a feature; three more count what lies outside and what is missing.
const BINS: usize = 64;
/// Rows that the bins are made of.
const REFERENCE_ROWS: usize = 2000;
/// Inferences of a window.
const INFERENCES: usize = 600;
/// Classes of the task.
const CLASSES: usize = 10;
/// Most bytes of a window, signed and in its envelope.
pub(crate) const BYTES_MAX: usize = 8192;
/// Length of a window, milliseconds.
const LENGTH_MS: u64 = 60_000;

/// The reference that windows are counted against.
pub(crate) fn reference() -> ReferenceProfile {
    let mut rng = Rng(1);
    let names: Vec<String> = (0..FEATURES).map(|i| format!("f{i}")).collect();
    let columns: Vec<Vec<f32>> =
        (0..FEATURES).map(|_| (0..REFERENCE_ROWS).map(|_| rng.uniform()).collect()).collect();
    profile::build(&names, &columns, BINS)
}

/// A window as an agent closes it.
pub(crate) fn window(reference: &ReferenceProfile, seed: u64) -> Result<Window> {
    let mut rng = Rng(seed);
    let at = |ms| Now { mono_ms: ms, wall_ms: Some(1_780_000_000_000 + ms) };
    let digest = Digest([7; 32]);
    let release = Some("meter-perceptron@3".parse()?);
    let mut open =
        Accumulator::new("meter".parse()?, release, 12, CLASSES, false, Some((reference, digest)), at(0));
    for _ in 0..INFERENCES {
        let features: Vec<f32> = (0..FEATURES).map(|_| rng.uniform()).collect();
        let class = u32::try_from(rng.below(CLASSES))?;
        let latency_us = 200 + rng.below(400) as u64;
        open.observe(&Observation {
            latency_us,
            failed: false,
            class: Some(class),
            confidence: rng.uniform(),
            features: &features,
        });
        if rng.uniform() < 0.2 {
            open.label(class, class);
        }
    }
    let resources = ResourceUse {
        cpu_ppm: 31_000,
        rss_bytes: 14 << 20,
        available_bytes: 900 << 20,
        temperature_mc: Some(48_200),
        disk_free_bytes: 5 << 30,
        net_rx_bytes: 81_000,
        net_tx_bytes: 432_000,
    };
    Ok(open.close(at(LENGTH_MS), resources))
}

/// The MQTT payload of a window: signed, in its envelope.
pub(crate) fn payload(
    device: &DeviceId,
    signer: &EcdsaP256Signer,
    seq: u64,
    window: &Window,
) -> Result<Vec<u8>> {
    let header = Header {
        v: SCHEMA,
        kind: Kind::Window,
        device: device.clone(),
        boot: BootId([1; 16]),
        seq,
        exp: None,
        body: Bytes(cbor::encode(window)),
    };
    Ok(envelope::seal_up(&header, signer)?.encode())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_the_one_of_the_bars() {
        let reference = reference();
        assert!(
            reference.features.len() == FEATURES
                && reference.features.iter().all(|feature| feature.bins() == BINS + 3)
        );
        let window = window(&reference, 1).unwrap();
        let counts = window.features.unpack(FEATURES * (BINS + 3)).unwrap();
        assert_eq!((window.n, counts.iter().sum::<u64>()), (600, 600 * 64));
        let signer = EcdsaP256Signer::from_pkcs8(&EcdsaP256Signer::generate_pkcs8().unwrap()).unwrap();
        let sent = payload(&"pole-017".parse().unwrap(), &signer, u64::MAX, &window).unwrap();
        assert!(sent.len() <= BYTES_MAX, "{} bytes", sent.len());
    }
}
