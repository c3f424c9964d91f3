//! What `dunlin-agent status` and `/dunlin/status` show.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dunlin_protocol::{BootId, DeviceId, Installed, TaskId};
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::identity::Enrolment;
use crate::spool::{Counters, Spool};

/// The link as last seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkView {
    /// Whether a session is open.
    pub up: bool,
    /// Number of the last session.
    pub epoch: u64,
    /// Why there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Everything worth knowing about this agent at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Release of the agent.
    pub agent: String,
    /// Whether the agent answered itself; false if its files were read.
    pub running: bool,
    /// The device's id, once enrolled.
    pub device: Option<DeviceId>,
    /// The controller.
    pub controller: Option<String>,
    /// This start of the agent.
    pub boot: Option<BootId>,
    /// The link.
    pub link: LinkView,
    /// Generation of the last verified assignment.
    pub generation: u64,
    /// What is installed, by task; known to a running agent only.
    pub installed: BTreeMap<TaskId, Installed>,
    /// Whether the inhibit file holds updates back.
    pub inhibited: bool,
    /// The spool's books.
    pub spool: Counters,
}

impl AgentStatus {
    /// What the files tell while no agent runs, of a device that is enrolled as `enrolment` says.
    pub(crate) fn offline(settings: &Settings, enrolment: Option<Enrolment>) -> Self {
        let spool = Spool::read_counters(&settings.spool_dir()).unwrap_or_default();
        Self {
            agent: crate::VERSION.to_owned(),
            running: false,
            boot: spool.boots.last().map(|boot| boot.boot),
            device: enrolment.as_ref().map(|enrolment| enrolment.device.clone()),
            controller: enrolment.map(|enrolment| enrolment.url),
            link: LinkView { up: false, epoch: spool.epoch, detail: "the agent is not running".to_owned() },
            generation: 0,
            installed: BTreeMap::new(),
            inhibited: inhibited(settings.update.inhibit_file.as_deref()),
            spool,
        }
    }
}

fn inhibited(file: Option<&Path>) -> bool {
    file.is_some_and(Path::exists)
}

/// The running agent's status: the main loop writes, the local API reads.
#[derive(Debug, Clone)]
pub struct StatusBoard {
    state: Arc<Mutex<AgentStatus>>,
    spool: Arc<Spool>,
    inhibit_file: Option<std::path::PathBuf>,
}

impl StatusBoard {
    /// A board of an agent that has just started.
    pub fn new(settings: &Settings, spool: Arc<Spool>) -> Self {
        let enrolment = Enrolment::read(&settings.identity_dir()).ok().flatten();
        let mut state = AgentStatus::offline(settings, enrolment);
        state.running = true;
        state.boot = Some(spool.boot());
        state.link.detail = "no session yet".to_owned();
        Self { state: Arc::new(Mutex::new(state)), spool, inhibit_file: settings.update.inhibit_file.clone() }
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut AgentStatus)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What is shown at this moment.
    pub fn status(&self) -> AgentStatus {
        let mut status = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status.spool = self.spool.counters();
        status.inhibited = inhibited(self.inhibit_file.as_deref());
        status
    }

    /// The same as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(self.status()).unwrap_or_default()
    }
}
