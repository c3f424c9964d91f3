//! The shell of Dunlin's control plane: one binary that is both the daemon (`dunlin serve`) and its command
//! line.
//!
//! It moves bytes between sockets, files, the database and the pure crates, which do the thinking: nothing
//! here decides which model a device runs, whether a roll-out goes on, or whether a signature counts.
//!
//! Invariants:
//! - A device's record is acknowledged only after the transaction that holds it is durable.
//! - No key that can approve a model lies in the data folder; [`serve`] refuses to start beside one.
//! - Every queue, body, batch and connection count has a named bound.
//! - Every change an operator makes is a row in the hash-chained audit log.
//!
//! ```
//! let config: dunlin_controller::config::Config = toml::from_str("[api]\nlisten = \"127.0.0.1:0\"").unwrap();
//! assert!(config.api.listen.ip().is_loopback());
//! ```

pub mod api;
pub mod audit;
pub mod batch;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod damage;
pub mod downlink;
pub mod evidence;
pub mod identity;
pub mod ingest;
pub mod init;
pub mod keys;
pub mod metrics;
pub mod planner;
pub mod registry;
pub mod repo;
pub mod retention;
pub mod serve;
pub mod store;
pub mod tls;
pub mod training;
