//! Watching models in the field: what a device counts, how counts add up, and when a difference is news.
//!
//! Devices count on bins that the training data fixed ([`profile`]), one [`window`] at a time; the controller
//! adds windows of one release ([`summary`]) and asks whether inputs moved ([`drift`]). Latency goes into a
//! mergeable sketch ([`sketch`]) and shares carry honest intervals ([`rate`]).
//!
//! It deliberately keeps no raw inputs, reads no clock, takes no action, and estimates no accuracy without labels.
//!
//! Invariants:
//! - Adding windows is exact, associative and commutative, so the order of arrival never matters.
//! - Memory is fixed by the profile and the named bounds, not by the number of inferences.
//! - All float arithmetic is IEEE basic operations and `libm`: the same input gives the same bits everywhere.
//! - A hostile wire form is refused with a reason; nothing here panics on it.
//!
//! ```
//! use dunlin_monitor::{profile, window::{Accumulator, Observation}};
//! use dunlin_protocol::{Digest, Now, ResourceUse};
//!
//! let training: Vec<f32> = (0..1000).map(|i| i as f32).collect();
//! let reference = profile::build(&["load".into()], &[training], profile::BINS);
//! let start = Now { mono_ms: 0, wall_ms: None };
//! let profile = Some((&reference, Digest([0; 32])));
//! let mut open = Accumulator::new("meter".parse().unwrap(), None, 1, 2, false, profile, start);
//! open.observe(&Observation { latency_us: 300, failed: false, class: Some(1), confidence: 0.9, features: &[12.5] });
//! let window = open.close(Now { mono_ms: 60_000, wall_ms: None }, ResourceUse::default());
//! assert_eq!((window.n, window.errors), (1, 0));
//! ```
#![no_std]

extern crate alloc;

pub mod drift;
pub mod profile;
pub mod rate;
pub mod scope;
pub mod sketch;
pub mod special;
pub mod summary;
pub mod vote;
pub mod window;
