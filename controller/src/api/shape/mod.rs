//! The forms of what the API sends and takes, as the OpenAPI document shows them, where they are those of crates that know
//! nothing of OpenAPI: a mirror each, never built. `controller/tests/document` holds every one against what is really sent.
#![allow(dead_code, clippy::large_enum_variant, reason = "only their forms count")]

mod device;
mod drift;
mod file;
mod model;
mod retraining;
mod rollout;
mod selection;

pub(crate) use device::*;
pub(crate) use drift::*;
pub(crate) use file::*;
pub(crate) use model::*;
pub(crate) use retraining::*;
pub(crate) use rollout::*;
pub(crate) use selection::*;
