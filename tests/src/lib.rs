//! The world that end-to-end tests and the demonstration share: real controller and agent processes on
//! loopback ports they pick themselves, in a folder of their own, ended by their own handles.
//!
//! Nothing here reaches into a process: everything goes through command lines, HTTP, MQTT and, for accounting,
//! the files that the programs leave on disk.

pub mod agent;
pub mod attacker;
pub mod breakage;
pub mod claims;
pub mod client;
pub mod controller;
pub mod cuts;
pub mod digits;
pub mod fuzzed;
pub mod hostile;
pub mod line;
pub mod messages;
pub mod mirror;
pub mod networks;
pub mod operator;
pub mod port;
pub mod proc;
pub mod process;
pub mod runtime;
pub mod served;
pub mod small;
pub mod swaps;
pub mod thief;
pub mod timing;
pub mod traffic;
pub mod wide;
