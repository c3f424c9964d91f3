//! The device side of Dunlin: a small process that serves models, keeps them up to date and tells the
//! controller how they do.
//!
//! This package is the shell around pure crates: `dunlin-update` decides what to install, `dunlin-trust` what
//! to believe, `dunlin-monitor` how to summarise. Here live the sockets, files, threads and clocks. It
//! deliberately holds no policy of a fleet: which model a device runs is decided elsewhere and checked here.
//!
//! Invariants:
//! - Serving never waits for the network: what was committed last is served before the first connection.
//! - A telemetry record is kept on disk until the controller itself says that its database holds it.
//! - Nothing that came over the network acts before its signature was checked against pinned roots.
//!
//! ```
//! use dunlin_agent::config::Settings;
//! let settings = Settings::from_texts(&[("site.toml", "[telemetry]\nwindow_s = 30\n")]).unwrap();
//! assert_eq!(settings.telemetry.window.as_secs(), 30);
//! assert!(Settings::from_texts(&[("site.toml", "[telemetry]\nwindow = 30\n")]).is_err());
//! ```

pub mod api;
pub mod batch;
pub mod cli;
pub mod clock;
pub mod config;
mod damage;
pub mod device;
pub mod enrol;
mod exchange;
pub mod identity;
pub mod link;
pub mod local;
pub mod renew;
pub mod run;
pub mod sampler;
pub mod serve;
pub mod spool;
pub mod status;
pub mod supervisor;
pub mod surroundings;
mod tls;
pub mod update;

/// Release of this agent, as it reports itself.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
