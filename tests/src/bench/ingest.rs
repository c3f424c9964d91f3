//! Telemetry on its way into the database, and the same messages through the bare broker.
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use dunlin_controller::broker::link::Message;
use dunlin_controller::identity::Issued;
use dunlin_controller::ingest::{Record, store_batch, verify_batch};
use dunlin_controller::store::{Claim, NewDevice, Store};
use dunlin_protocol::{DeviceId, DeviceProfile, Topic, Up, Window};
use dunlin_trust::{EcdsaP256Signer, Signer};
use tokio::sync::mpsc;

use crate::relay;
use crate::report::{Bar, Section};
use crate::timing::median;
use crate::window::{payload, reference, window};

/// Devices that send.
const DEVICES: usize = 100;
/// Windows of one round.
const WINDOWS: usize = 20_000;
/// Records of one transaction, the controller's default.
const BATCH: usize = 1000;
/// Rounds; each measures every way once, each time into a new database.
const ROUNDS: usize = 3;
/// Windows with different content; what a database stores does not depend on how often it was seen.
const DISTINCT: usize = 64;
/// Windows a second into the database.
const STORED_MIN: f64 = 10_000.0;

/// A device with its key.
pub(crate) struct Device {
    pub(crate) id: DeviceId,
    pub(crate) key: Vec<u8>,
    signer: EcdsaP256Signer,
}

impl Device {
    fn new(i: usize) -> Result<Self> {
        let key = EcdsaP256Signer::generate_pkcs8()?;
        Ok(Self { id: format!("pole-{i:03}").parse()?, signer: EcdsaP256Signer::from_pkcs8(&key)?, key })
    }
}

/// A new database that knows the devices.
pub(crate) async fn database(folder: &Path, devices: &[Device]) -> Result<Store> {
    std::fs::create_dir_all(folder)?;
    let store = Store::open(&folder.join("dunlin.db")).await?;
    let profile: DeviceProfile = serde_json::from_value(serde_json::json!({
        "class": "raspberry-pi-4", "arch": "aarch64", "cores": 4, "ram_bytes": 1u64 << 31,
        "budgets": {"model_bytes_max": 1 << 26, "model_ram_bytes_max": 1 << 28, "latency_us_max": 50_000},
    }))?;
    for device in devices {
        let id = device.id.to_string();
        let claim = Claim {
            id: id.clone(),
            device: None,
            groups: BTreeSet::new(),
            created_by: "bench".into(),
            created_ms: 1,
            expires_ms: u64::MAX >> 1,
            used_ms: None,
            used_by: None,
        };
        let mut tx = store.begin().await?;
        Store::claim_add(&mut tx, &claim, &dunlin_trust::sha256(id.as_bytes())).await?;
        let issued = Issued {
            pem: String::new(),
            spki: device.signer.public().to_vec(),
            serial: id,
            from_ms: 2,
            until_ms: u64::MAX >> 1,
        };
        let new = NewDevice { issued: &issued, profile: &profile };
        Store::enrol(&mut tx, &claim, &device.id, &new, 2).await?;
        tx.commit().await?;
    }
    Ok(store)
}

/// Signed messages of all devices in turn.
fn messages(devices: &[Device], windows: &[Window]) -> Result<Vec<Message>> {
    (0..WINDOWS)
        .map(|i| {
            let device = &devices[i % devices.len()];
            let body = payload(
                &device.id,
                &device.signer,
                (i / devices.len()) as u64 + 1,
                &windows[i % windows.len()],
            )?;
            Ok(Message {
                topic: Topic::up(&device.id, Up::Telemetry).to_string().into(),
                payload: Bytes::from(body),
            })
        })
        .collect()
}

pub(crate) fn measure(section: &mut Section, folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let devices = (0..DEVICES).map(Device::new).collect::<Result<Vec<_>>>()?;
    let reference = reference();
    let windows = (0..DISTINCT as u64).map(|seed| window(&reference, seed)).collect::<Result<Vec<_>>>()?;
    let messages = messages(&devices, &windows)?;
    runtime.block_on(rounds(section, folder, &devices, &messages))
}

async fn rounds(
    section: &mut Section,
    folder: &Path,
    devices: &[Device],
    messages: &[Message],
) -> Result<()> {
    let rate = |start: Instant| messages.len() as f64 / start.elapsed().as_secs_f64();
    let (mut both, mut stored, mut verified, mut broker, mut disk) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let here = folder.join(format!("verified-{round}"));
        let store = database(&here, devices).await?;
        let start = Instant::now();
        verify_and_store(&store, messages).await?;
        both.push(rate(start));
        close(store, &here).await?;

        let here = folder.join(format!("stored-{round}"));
        let store = database(&here, devices).await?;
        let start = Instant::now();
        let mut batches = Vec::new();
        for batch in messages.chunks(BATCH) {
            batches.push(verify(&store, batch).await?);
        }
        verified.push(rate(start));
        let start = Instant::now();
        for batch in batches {
            store_batch(&store, batch).await?;
        }
        stored.push(rate(start));
        close(store, &here).await?;

        broker.push(relay::rate(&folder.join(format!("broker-{round}")), devices, messages).await?);
        disk.push(append(&folder.join("plain"), messages)?);
    }
    let cores = std::thread::available_parallelism()?;
    let bytes: usize = messages.iter().map(|message| message.payload.len()).sum();
    section.hold(
        "signatures verified and stored, SQLite synchronous=FULL",
        median(both),
        "windows/s",
        Bar::AtLeast(STORED_MIN),
    );
    section.add("stored alone, verified before", median(stored), "windows/s");
    section.add("verified alone", median(verified), "windows/s");
    section.add(
        "the same messages through the bare embedded broker, TLS, QoS 1",
        median(broker),
        "messages/s",
    );
    section.add("the same bytes appended to a plain file, synced as often", median(disk), "windows/s");
    section.note(format!(
        "{} bytes a message, {BATCH} a transaction, {} windows of {DEVICES} devices a round, {cores} cores",
        bytes / messages.len(),
        messages.len()
    ));
    Ok(())
}

async fn verify(store: &Store, batch: &[Message]) -> Result<Vec<Record>> {
    let (records, refused) = verify_batch(store, batch.to_vec()).await?;
    ensure!(refused.is_empty(), "{} messages were refused: {}", refused.len(), refused[0].1);
    Ok(records)
}

/// As the controller does it: the next batch is verified while one is stored.
async fn verify_and_store(store: &Store, messages: &[Message]) -> Result<()> {
    let (verified, mut batches) = mpsc::channel(1);
    let verifying = async {
        // Dropped at the end of this block, which ends the other.
        let verified = verified;
        for batch in messages.chunks(BATCH) {
            verified.send(verify(store, batch).await?).await.context("the database ended early")?;
        }
        anyhow::Ok(())
    };
    let storing = async {
        while let Some(batch) = batches.recv().await {
            store_batch(store, batch).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(verifying, storing).map(drop)
}

/// Counts what was stored, and gives the space back.
async fn close(store: Store, folder: &Path) -> Result<()> {
    let count = store.windows_count(None).await?;
    ensure!(count == WINDOWS as u64, "{count} of {WINDOWS} windows were stored");
    store.close().await;
    std::fs::remove_dir_all(folder).context("removing a database")
}

/// What the disk alone makes of it: one write and one sync for each batch.
fn append(path: &Path, messages: &[Message]) -> Result<f64> {
    let mut file = std::fs::File::create(path)?;
    let start = Instant::now();
    for batch in messages.chunks(BATCH) {
        let bytes: Vec<u8> = batch.iter().flat_map(|message| message.payload.iter().copied()).collect();
        file.write_all(&bytes)?;
        file.sync_data()?;
    }
    let rate = messages.len() as f64 / start.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(rate)
}
