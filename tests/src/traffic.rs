//! Cameras that look at meters: each device gets images at a steady rate, and the true digit of a share of them
//! some seconds later.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dunlin_monitor::rate::Rate;

use tokio::task::JoinSet;

use crate::agent::Application;
use crate::digits::{Ageing, Image, Rng};

/// Share of images whose digit is read by a person later.
const LABELLED_SHARE: f32 = 0.6;
/// How late labels are, in milliseconds.
pub const LABEL_DELAY_MS: std::ops::Range<usize> = 1000..4000;

/// What ids of requests begin with that accuracy is measured with; nobody ever labels them.
pub const MEASURED: &str = "m";

/// Counts the streams of this process, so that no request id is used twice.
static STREAMS: AtomicU64 = AtomicU64::new(0);

/// One device as the application beside it sees it.
#[derive(Debug)]
pub struct Camera {
    /// Device id.
    pub id: String,
    /// Hardware class.
    pub class: String,
    /// Whether it is in the group that is never retrained.
    pub held: bool,
    /// Where its agent listens; changes when the agent is restarted.
    pub api: Mutex<SocketAddr>,
}

/// The state of the world outside the devices.
#[derive(Debug)]
pub struct Scene {
    /// The devices.
    pub cameras: Vec<Camera>,
    /// What the cameras make of what they see.
    pub ageing: Mutex<Ageing>,
    /// When it began.
    pub begin: Instant,
    tally: Mutex<Vec<Seen>>,
    failures: Mutex<BTreeMap<String, u64>>,
}

/// One answer, for the plots.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Seconds since the beginning.
    pub at: f64,
    /// Index of the camera.
    pub camera: usize,
    /// Whether it was right.
    pub right: bool,
}

impl Scene {
    /// A scene with new cameras.
    pub fn new(cameras: Vec<Camera>, ageing: Ageing) -> Arc<Self> {
        let (tally, failures) = (Mutex::default(), Mutex::default());
        Arc::new(Self { cameras, ageing: Mutex::new(ageing), begin: Instant::now(), tally, failures })
    }

    /// Seconds since the beginning.
    pub fn now(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Every answer so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.tally.lock().expect("no holder panics").clone()
    }

    /// Requests that got no answer, by device.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        self.failures.lock().expect("no holder panics").clone()
    }

    fn ageing(&self) -> Ageing {
        *self.ageing.lock().expect("no holder panics")
    }
}

impl Camera {
    /// Where its agent listens.
    pub fn api(&self) -> SocketAddr {
        *self.api.lock().expect("no holder panics")
    }
}

/// Streams `images` through every device, `per_second` each, until the set is dropped.
pub fn stream(
    scene: &Arc<Scene>,
    images: &Arc<Vec<Image>>,
    task: &str,
    per_second: f64,
) -> Result<JoinSet<()>> {
    let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
    let mut tasks = JoinSet::new();
    for index in 0..scene.cameras.len() {
        let (scene, images, application) = (Arc::clone(scene), Arc::clone(images), Application::new(task)?);
        let ids = format!("{stream}-{index}");
        tasks.spawn(async move { feed(scene, index, ids, images, application, per_second).await });
    }
    Ok(tasks)
}

async fn feed(
    scene: Arc<Scene>,
    index: usize,
    ids: String,
    images: Arc<Vec<Image>>,
    application: Application,
    per_second: f64,
) {
    let mut rng = Rng(0x5eed_0000 + index as u64);
    let mut tick = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut labels = JoinSet::new();
    for number in 0u64.. {
        tick.tick().await;
        // Answers to labels that were told are of no further interest.
        while labels.try_join_next().is_some() {}
        let image = scene.ageing().see(&images[rng.below(images.len())], &mut rng);
        let (camera, id) = (&scene.cameras[index], format!("{ids}-{number}"));
        let api = camera.api();
        let Ok(answer) = application.infer(api, &id, &image.pixels).await else {
            *scene.failures.lock().expect("no holder panics").entry(camera.id.clone()).or_default() += 1;
            continue;
        };
        let seen = Seen { at: scene.now(), camera: index, right: answer.class == image.digit };
        scene.tally.lock().expect("no holder panics").push(seen);
        if rng.uniform() < LABELLED_SHARE {
            let delay = LABEL_DELAY_MS.start + rng.below(LABEL_DELAY_MS.len());
            let application = application.clone();
            labels.spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay as u64)).await;
                // An agent that was killed in between has forgotten the question; so would the person's tool.
                drop(application.feedback(api, &id, image.digit).await);
            });
        }
    }
}

/// Accuracy by hardware class and group on `images`, each class seeing all of them.
pub async fn measure(
    scene: &Arc<Scene>,
    images: &[Image],
    task: &str,
) -> Result<BTreeMap<(String, bool), Rate>> {
    let mut strata: BTreeMap<(String, bool), Vec<usize>> = BTreeMap::new();
    for (index, camera) in scene.cameras.iter().enumerate() {
        strata.entry((camera.class.clone(), camera.held)).or_default().push(index);
    }
    let mut tasks = JoinSet::new();
    for (stratum, devices) in strata {
        for (place, index) in devices.iter().copied().enumerate() {
            let share: Vec<Image> = images.iter().skip(place).step_by(devices.len()).cloned().collect();
            let (scene, stratum, application) = (Arc::clone(scene), stratum.clone(), Application::new(task)?);
            tasks.spawn(async move {
                let mut rng = Rng(0xfeed_0000 + index as u64);
                let mut rate = Rate { hits: 0, n: 0 };
                for (number, image) in share.iter().enumerate() {
                    let image = scene.ageing().see(image, &mut rng);
                    let api = scene.cameras[index].api();
                    let id = format!("{MEASURED}{:.0}-{index}-{number}", scene.now() * 1000.0);
                    let answer = application.infer(api, &id, &image.pixels).await?;
                    rate.n += 1;
                    rate.hits += u64::from(answer.class == image.digit);
                }
                anyhow::Ok((stratum, rate))
            });
        }
    }
    let mut rates: BTreeMap<(String, bool), Rate> = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        let (stratum, rate) = done.context("a measurement panicked")??;
        let sum = rates.entry(stratum).or_insert(Rate { hits: 0, n: 0 });
        sum.hits += rate.hits;
        sum.n += rate.n;
    }
    Ok(rates)
}
