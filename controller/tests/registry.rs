//! Models on their way in, with real files, real proofs in child processes and real signatures.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_controller::audit::Audit;
use dunlin_controller::clock;
use dunlin_controller::identity::Identity;
use dunlin_controller::keys::{self, CeremonyOptions, Delegation, Keyring, OfflineRole, Request, RoleChange};
use dunlin_controller::registry::{Push, Registry, RegistryError, anchor_set};
use dunlin_controller::repo::{Offline, Repos};
use dunlin_controller::store::{ReleaseState, Store, StoreError};
use dunlin_engine::onnx_pb::{AttributeProto, ModelProto, NodeProto};
use dunlin_learn::data::Table;
use dunlin_learn::job::{DATA_FILE, Dataset, Feature, Job, RESULT_FILE, Schema, Split, SplitPolicy};
use dunlin_learn::result::RunResult;
use dunlin_learn::rng::Rng;
use dunlin_learn::{Config, Family, fit, train_worker};
use dunlin_protocol::{Digest, ReasonCode, ReleaseId, RetrainedBounds, TaskId, TaskPolicy, TaskType, cbor};
use dunlin_trust::Signer;
use prost::Message;
use tempfile::TempDir;

struct World {
    folder: TempDir,
    store: Store,
    repos: Arc<Repos>,
    registry: Registry,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let online = keys::create_online(&data).unwrap();
        let now_ms = clock::wall_ms();
        keys::ceremony(
            &folder.path().join("safe"),
            &online,
            CeremonyOptions { threshold: 1, root_threshold: 1, n: 1, now_ms },
        )
        .unwrap();
        let repos = Arc::new(Repos::open(&data).unwrap());
        repos.import(&folder.path().join("safe/public"), now_ms).unwrap();
        let store = Store::open(&data.join("test.db")).await.unwrap();
        fs::create_dir(data.join("tls")).unwrap();
        Identity::create(&data, &[]).unwrap();
        let registry = open(&data, &store, &repos);
        Self { folder, store, repos, registry }
    }

    /// Publishes what was signed offline, as with a controller that was stopped for it.
    fn publish(&mut self, offline: &Offline, now_ms: u64) {
        let data = self.folder.path().join("data");
        Repos::publish_offline(&data, offline, now_ms).unwrap();
        self.repos = Arc::new(Repos::open(&data).unwrap());
        self.registry = open(&data, &self.store, &self.repos);
    }

    fn safe(&self) -> PathBuf {
        self.folder.path().join("safe/private")
    }

    async fn state(&self, release: &ReleaseId) -> ReleaseState {
        self.store.release(release).await.unwrap().unwrap().state
    }

    async fn sign(&self, request: Request) -> Vec<(ReleaseId, ReleaseState)> {
        let current = self.registry.current_targets().unwrap();
        let signed = keys::sign_targets(&current, &request, &self.safe(), clock::wall_ms()).unwrap();
        self.registry.approve(signed, "ann").await.unwrap()
    }

    fn job(&self) -> (PathBuf, Digest, Digest) {
        let dir = self.folder.path().join("job");
        fs::create_dir_all(&dir).unwrap();
        let data = blobs_csv(400);
        fs::write(dir.join(DATA_FILE), &data).unwrap();
        let dataset = dunlin_trust::sha256(data.as_bytes());
        let job = Job {
            format: 1,
            task: "meter".parse().unwrap(),
            task_type: TaskType::Classification,
            seed: 3,
            families: vec![Family::Logistic, Family::Gbdt],
            split: Split { policy: SplitPolicy::Stratified, holdout_percent: 20 },
            trials: 2,
            targets: vec![],
            dataset: Dataset { file: DATA_FILE.into(), digest: dataset },
        };
        job.write(&schema(), &dir).unwrap();
        let digest = dunlin_trust::sha256(&fs::read(dir.join("job.json")).unwrap());
        (dir, digest, dataset)
    }
}

fn open(data: &Path, store: &Store, repos: &Arc<Repos>) -> Registry {
    let audit = Audit::open(store.clone(), data, &Identity::open(data).unwrap()).unwrap();
    let registry = Registry::open(data, store.clone(), Arc::clone(repos), audit).unwrap();
    registry.with_prover(PathBuf::from(env!("CARGO_BIN_EXE_dunlin")))
}

fn schema() -> Schema {
    let feature = |i| Feature { name: format!("f{i}"), unit: "V".into(), min: None, max: None };
    Schema {
        features: (0..4).map(feature).collect(),
        label: "y".into(),
        labels: vec!["a".into(), "b".into(), "c".into()],
        time: None,
    }
}

/// Three overlapping clouds in four dimensions.
fn blobs_csv(rows: usize) -> String {
    let mut rng = Rng::new(1, "clouds");
    let mut text = "f0,f1,f2,f3,y\n".to_owned();
    for i in 0..rows {
        let class = i % 3;
        for feature in 0..4 {
            let centre = if feature == class { 2.0 } else { 0.0 };
            text += &format!("{},", centre + (0..4).map(|_| rng.unit() - 0.5).sum::<f64>() * 1.5);
        }
        text += &format!("{}\n", ["a", "b", "c"][class]);
    }
    text
}

fn table() -> Table {
    Table::parse(blobs_csv(400).as_bytes(), &schema()).unwrap()
}

fn push(l2: f64) -> Push {
    let table = table();
    Push {
        task: "meter".parse().unwrap(),
        task_type: TaskType::Classification,
        model: "meter.base".parse().unwrap(),
        onnx: fit(&Config::Logistic { l2 }, &table, 1).unwrap().onnx(),
        samples: (0..table.rows()).map(|i| table.row(i).to_vec()).collect(),
        golden: None,
        features: vec![],
        labels: vec!["a".into(), "b".into(), "c".into()],
        metrics: Default::default(),
        licence: "MIT".into(),
        classes: Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_pending_until_signed_and_withdrawn_by_the_floor() {
    let world = World::new().await;
    let row = world.registry.push(push(1e-3), ("ann", "ann")).await.unwrap();
    assert_eq!((row.bundle.release.to_string().as_str(), row.state), ("meter.base@1", ReleaseState::Pending));
    assert!(row.bundle.hard.ops.contains("ai.onnx/Gemm"));
    for blob in row.bundle.blobs() {
        let bytes = world.registry.blobs().get(&blob.digest).await.unwrap().unwrap();
        assert_eq!(bytes.len() as u64, blob.length);
    }
    let served = format!("{}.{}", row.sha256, row.bundle.release.target_name());
    assert_eq!(world.repos.target_file(&served).unwrap().unwrap(), row.manifest);

    let second = world.registry.push(push(1e-1), ("ann", "ann")).await.unwrap();
    assert_eq!(second.bundle.release.version, 2);
    let add = world.registry.pending().await.unwrap();
    assert_eq!(add.len(), 2);
    let changed = world.sign(Request { add, ..Request::default() }).await;
    assert!(changed.len() == 2 && changed.iter().all(|(_, state)| *state == ReleaseState::Approved));
    assert!(world.registry.pending().await.unwrap().is_empty());
    assert_eq!(world.repos.approvals().unwrap().len(), 2);

    let floors = [("meter.base".parse().unwrap(), 2)].into();
    let changed = world.sign(Request { floors, ..Request::default() }).await;
    assert_eq!(changed, [(row.bundle.release.clone(), ReleaseState::Withdrawn)]);
    let kept = world.store.release(&row.bundle.release).await.unwrap().unwrap();
    assert_eq!((kept.manifest, kept.state), (row.manifest, ReleaseState::Withdrawn));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_model_is_released_as_what_it_was_rewritten_to() {
    let world = World::new().await;
    let mut foreign = push(1e-3);
    let mut file = ModelProto::decode(foreign.onnx.as_slice()).unwrap();
    let graph = file.graph.as_mut().unwrap();
    for input in graph.node.iter_mut().flat_map(|node| &mut node.input).filter(|input| *input == "x") {
        *input = "filled".into();
    }
    let values =
        AttributeProto { name: "imputed_value_floats".into(), floats: vec![0.5], ..Default::default() };
    graph.node.insert(
        0,
        NodeProto {
            op_type: "Imputer".into(),
            domain: "ai.onnx.ml".into(),
            input: vec!["x".into()],
            output: vec!["filled".into()],
            attribute: vec![values],
            ..Default::default()
        },
    );
    foreign.onnx = file.encode_to_vec();
    let brought = dunlin_trust::sha256(&foreign.onnx);
    let row = world.registry.push(foreign, ("ann", "ann")).await.unwrap();
    assert_eq!(row.bundle.lineage.code, format!("rewritten from sha256:{brought}"));
    assert!(row.bundle.hard.ops.contains("ai.onnx/Where"), "{:?}", row.bundle.hard.ops);
    let stored = world.registry.blobs().get(&row.bundle.model.digest).await.unwrap().unwrap();
    assert!(dunlin_engine::Model::load(&stored, None).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_by_name() {
    let world = World::new().await;
    let mut garbage = push(1e-3);
    garbage.onnx = b"no model".to_vec();
    let error = world.registry.push(garbage, ("ann", "ann")).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Import(refusal) if refusal.reason() == ReasonCode::ModelMalformed),
        "{error}"
    );

    let mut foreign = push(1e-3);
    let other = fit(&Config::Logistic { l2: 10.0 }, &table(), 1).unwrap();
    let rows = table();
    foreign.golden = Some(dunlin_protocol::GoldenSet {
        outputs: vec![dunlin_protocol::TensorData {
            name: "scores".into(),
            datatype: dunlin_protocol::DType::Fp32,
            shape: vec![rows.rows() as u64, 3],
            data: dunlin_protocol::Bytes(
                other.scores(&rows.x).unwrap().iter().flat_map(|v| v.to_le_bytes()).collect(),
            ),
        }],
        labels: vec![],
        tolerance_ppm: 1000,
        ..anchor_set(&rows)
    });
    let error = world.registry.push(foreign, ("ann", "ann")).await.unwrap_err();
    assert!(
        matches!(&error, RegistryError::Proof(proof) if proof.reason() == ReasonCode::GoldenMismatch),
        "{error}"
    );

    let row = world.registry.push(push(1e-3), ("ann", "ann")).await.unwrap();
    let again = world.registry.push(push(1e-3), ("ann", "ann")).await.unwrap_err();
    assert!(
        matches!(&again, RegistryError::Store(StoreError::Conflict(text)) if text.contains("meter.base@1")),
        "{again}"
    );
    let stolen = Push { task: "door".parse().unwrap(), ..push(1e-2) };
    assert!(matches!(
        world.registry.push(stolen, ("ann", "ann")).await.unwrap_err(),
        RegistryError::Store(StoreError::Conflict(_))
    ));
    let posing = Push { model: "auto.meter.mlp".parse().unwrap(), ..push(1e-2) };
    assert!(matches!(
        world.registry.push(posing, ("ann", "ann")).await.unwrap_err(),
        RegistryError::Refused(_)
    ));
    let narrow = Push { samples: vec![vec![1.0; 3]], ..push(1e-2) };
    assert!(matches!(
        world.registry.push(narrow, ("ann", "ann")).await.unwrap_err(),
        RegistryError::Refused(_)
    ));
    assert_eq!(world.store.releases(None, None).await.unwrap().len(), 1);

    let edit = "UPDATE releases SET manifest = x'00' WHERE version = 1";
    assert!(sqlx::query(edit).execute(world.store.writer()).await.is_err());
    assert_eq!(world.store.release(&row.bundle.release).await.unwrap().unwrap().manifest, row.manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_training_result_is_believed_only_where_it_holds() {
    let world = World::new().await;
    let (dir, job, dataset) = world.job();
    train_worker(&dir).unwrap();
    let examined = world.registry.examine(&dir, &job, &dataset).await.unwrap();
    assert_eq!(examined.candidates.len(), 2);
    assert!(world.registry.examine(&dir, &Digest([1; 32]), &dataset).await.is_err());

    let best = examined.candidates[0].candidate.id.clone();
    let row = world.registry.register(&examined, &best, "r1").await.unwrap();
    let again = world.registry.register(&examined, &best, "r1").await.unwrap();
    assert_eq!(row.bundle.release, again.bundle.release);
    assert!(row.bundle.release.model.is_retrained_for(&"meter".parse::<TaskId>().unwrap()));
    assert_eq!(row.bundle.lineage.dataset, Some(dataset));
    assert!(
        world.registry.pending().await.unwrap().is_empty(),
        "retrained releases are not for the offline keys"
    );
    world
        .registry
        .publish_retrained(std::slice::from_ref(&row.bundle.release), clock::wall_ms())
        .await
        .unwrap();
    let approved = world.repos.approvals().unwrap();
    assert!(approved.len() == 1 && approved[0].retrained && approved[0].manifest == row.sha256);
    assert_eq!(
        world.store.release(&row.bundle.release).await.unwrap().unwrap().state,
        ReleaseState::Approved
    );
    let predictions = world.registry.predictions(&row.bundle.release, &examined.holdout).await.unwrap();
    assert_eq!(predictions, examined.candidates[0].predictions);

    // A lie about the score costs the candidate; a swapped file too; if none is left, the result.
    let path = dir.join(RESULT_FILE);
    let honest: RunResult = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut lying = honest.clone();
    lying.candidates[0].right += 1;
    fs::write(&path, serde_json::to_vec(&lying).unwrap()).unwrap();
    assert_eq!(world.registry.examine(&dir, &job, &dataset).await.unwrap().candidates.len(), 1);
    let swapped = dir.join("candidates").join(&honest.candidates[1].id).join("model.onnx");
    fs::copy(dir.join("candidates").join(&honest.candidates[0].id).join("model.onnx"), &swapped).unwrap();
    assert!(matches!(
        world.registry.examine(&dir, &job, &dataset).await.unwrap_err(),
        RegistryError::Claim(_)
    ));
    let mut elsewhere = honest.clone();
    elsewhere.candidates.truncate(1);
    elsewhere.candidates[0].id = "../../data/keys".into();
    fs::write(&path, serde_json::to_vec(&elsewhere).unwrap()).unwrap();
    assert!(matches!(
        world.registry.examine(&dir, &job, &dataset).await.unwrap_err(),
        RegistryError::Claim(_)
    ));
    let mut easier = honest;
    easier.truth[0] = (easier.truth[0] + 1) % 3;
    fs::write(&path, serde_json::to_vec(&easier).unwrap()).unwrap();
    assert!(matches!(
        world.registry.examine(&dir, &job, &dataset).await.unwrap_err(),
        RegistryError::Claim(_)
    ));
}

fn policy(anchor: dunlin_protocol::Blob) -> TaskPolicy {
    TaskPolicy {
        format: 1,
        task: "meter".parse().unwrap(),
        task_type: TaskType::Classification,
        metric: "accuracy".into(),
        baseline_class: 0,
        baseline_rules: vec![],
        labels: vec!["a".into(), "b".into(), "c".into()],
        retrained: Some(RetrainedBounds {
            inputs: vec![],
            outputs: vec![],
            ops: Default::default(),
            bundle_bytes_max: 1 << 20,
            ram_bytes_max: 1 << 26,
            latency_us_max: 10_000,
            anchor,
            anchor_score_ppm_min: 800_000,
        }),
        samples: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_needs_its_anchor_set_and_a_signature() {
    let world = World::new().await;
    let anchor = cbor::encode(&anchor_set(&table()));
    let blob = dunlin_protocol::Blob { digest: dunlin_trust::sha256(&anchor), length: anchor.len() as u64 };
    let body = serde_json::to_vec(&policy(blob)).unwrap();
    assert!(matches!(
        world.registry.policy(body.clone(), ("ann", "ann")).await.unwrap_err(),
        RegistryError::Refused(_)
    ));
    assert_eq!(world.registry.blobs().put(anchor).await.unwrap(), blob);
    let row = world.registry.policy(body.clone(), ("ann", "ann")).await.unwrap();
    let task: TaskId = "meter".parse().unwrap();
    assert!(world.store.policy_in_force(&task).await.unwrap().is_none());
    assert!(!world.repos.has_policy(&task).unwrap());
    world.sign(Request { add: world.registry.pending().await.unwrap(), ..Request::default() }).await;
    assert_eq!(world.store.policy_in_force(&task).await.unwrap().unwrap().sha256, row.sha256);
    assert_eq!(world.repos.policy(&task).unwrap().unwrap(), policy(blob));
    assert!(
        world.repos.has_policy(&task).unwrap() && !world.repos.has_policy(&"valve".parse().unwrap()).unwrap()
    );
    assert!(world.registry.pending().await.unwrap().is_empty());

    // The next policy takes its place once it is signed, and not before.
    let mut stricter = policy(blob);
    stricter.retrained.as_mut().unwrap().anchor_score_ppm_min = 900_000;
    let next = world.registry.policy(serde_json::to_vec(&stricter).unwrap(), ("ann", "ann")).await.unwrap();
    assert_eq!(world.store.policy_in_force(&task).await.unwrap().unwrap().sha256, row.sha256);
    world.sign(Request { add: world.registry.pending().await.unwrap(), ..Request::default() }).await;
    assert_eq!(world.store.policy_in_force(&task).await.unwrap().unwrap().sha256, next.sha256);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_team_whose_file_expired_finds_its_releases_as_they_were() {
    let mut world = World::new().await;
    let task: TaskId = "meter".parse().unwrap();
    let row = world.registry.push(push(1e-3), ("ann", "ann")).await.unwrap();
    let release = row.bundle.release;
    let anchor = cbor::encode(&anchor_set(&table()));
    let blob = world.registry.blobs().put(anchor).await.unwrap();
    let body = serde_json::to_vec(&policy(blob)).unwrap();
    let rules = world.registry.policy(body, ("ann", "ann")).await.unwrap();
    world.sign(Request { add: world.registry.pending().await.unwrap(), ..Request::default() }).await;

    // A team takes the task over with a file that is at its end by now.
    let then_ms = clock::wall_ms() - keys::TARGETS_LIFE_MS - 1;
    let team = world.folder.path().join("team");
    let made = keys::make_keys(&team, &keys::task_prefix(&task), 1, None).unwrap();
    let safe = world.safe();
    let owners = Keyring::from(&safe).signers(OfflineRole::ImageTargets.prefix()).unwrap();
    let owners: Vec<&dyn Signer> = owners.iter().map(|signer| signer as &dyn Signer).collect();
    let holders: Vec<&dyn Signer> = made.iter().map(|signer| signer as &dyn Signer).collect();
    let add = made.iter().map(|signer| signer.key().clone()).collect();
    let change = RoleChange { add, drop: vec![], threshold: Some(1) };
    let delegation = Delegation { task: task.clone(), lines: vec![], keys: change };
    let current = world.registry.current_targets().unwrap();
    let made = keys::delegate(&current, None, &delegation, &owners, &holders, then_ms).unwrap();
    let tasks = [(task.clone(), made.role.clone())].into();
    world.publish(&Offline { targets: Some(made.targets), tasks, ..Offline::default() }, then_ms);
    assert_eq!(world.registry.current_role(&task).unwrap(), made.role);

    // Somebody else's approval is followed: nothing is known of the task, and nothing is said of it.
    let changed = world.sign(Request::default()).await;
    assert!(world.registry.current_role(&task).is_err() && world.repos.approvals().unwrap().is_empty());
    assert_eq!((changed, world.state(&release).await), (vec![], ReleaseState::Approved));
    assert_eq!(world.store.policy_in_force(&task).await.unwrap().unwrap().sha256, rules.sha256);

    let now_ms = clock::wall_ms();
    let renewed = keys::sign_task(&task, &made.role, &Request::default(), &team, now_ms).unwrap();
    let changed = world.registry.approve_task(task.clone(), renewed.clone(), "team").await.unwrap();
    assert_eq!((changed, world.repos.approvals().unwrap().len()), (vec![], 1));
    assert_eq!(world.state(&release).await, ReleaseState::Approved);
    assert_eq!(world.store.policy_in_force(&task).await.unwrap().unwrap().sha256, rules.sha256);

    // What the team itself takes off its list is withdrawn.
    let remove = vec![release.target_name()];
    let without = Request { remove, ..Request::default() };
    let without = keys::sign_task(&task, &renewed, &without, &team, now_ms).unwrap();
    let changed = world.registry.approve_task(task, without, "team").await.unwrap();
    assert_eq!(changed, [(release, ReleaseState::Withdrawn)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn publications_that_overtake_each_other_withdraw_nothing() {
    let world = World::new().await;
    let mut releases = Vec::new();
    for l2 in [1e-3, 1e-1] {
        releases.push(world.registry.push(push(l2), ("ann", "ann")).await.unwrap().bundle.release);
    }
    let [first, second] = <[_; 2]>::try_from(world.registry.pending().await.unwrap()).unwrap();
    let sign = |addition| {
        let current = world.registry.current_targets().unwrap();
        let request = Request { add: vec![addition], ..Request::default() };
        keys::sign_targets(&current, &request, &world.safe(), clock::wall_ms()).unwrap()
    };
    // Nothing can be followed while another write is under way.
    let busy = world.store.begin().await.unwrap();
    let overtaking = async {
        while world.repos.approvals().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.repos.publish_targets(&sign(second), clock::wall_ms()).unwrap();
        busy.rollback().await.unwrap();
    };
    let (changed, ()) = tokio::join!(world.registry.approve(sign(first), "ann"), overtaking);
    assert_eq!(changed.unwrap().len(), 2, "what is published by then is followed");
    for release in &releases {
        assert_eq!(world.state(release).await, ReleaseState::Approved);
    }
}
