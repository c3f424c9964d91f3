//! The `[api]` section.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::keys::{Api, Key, Sourced};
use super::{require, within};
use crate::api::Limits;
use crate::config::{ApiSettings, ConfigError};

/// Largest body that may be configured: what a small device can hold of one request beside its models.
const BODY_BYTES_LIMIT: u64 = 1 << 30;
/// Most bytes of all bodies that may be configured.
const BODIES_BYTES_LIMIT: u64 = 1 << 34;
/// Most requests at one time that may be configured; each holds its body.
const REQUESTS_LIMIT: u64 = 1024;
/// Most tensors of a request that may be configured.
const TENSORS_LIMIT: u64 = 1024;
/// Longest time that one member may be given, milliseconds; nobody waits longer for an answer.
const RUN_MS_LIMIT: u64 = 600_000;

pub(super) fn validate(api: &Api) -> Result<ApiSettings, ConfigError> {
    let remote = require(&api.allow_remote, "api.allow_remote")?.value;
    let listen = require(&api.listen, "api.listen")?;
    let grpc = require(&api.grpc_listen, "api.grpc_listen")?;
    let socket = require(&api.socket, "api.socket")?;
    let mode = require(&api.socket_mode, "api.socket_mode")?;
    let bound = |value: &Key<u64>, key: &str, max: u64| {
        within(value, key, 1, max).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
    };
    Ok(ApiSettings {
        listen: address(listen, "api.listen", remote)?,
        socket: file(socket, "api.socket")?,
        socket_mode: u32::from_str_radix(&mode.value, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(
            || {
                let problem = format!("{:?} is no file mode", mode.value);
                ConfigError::new(
                    &mode.file,
                    "api.socket_mode",
                    &problem,
                    "write it in octal, such as \"0660\"",
                )
            },
        )?,
        grpc_listen: if grpc.value.is_empty() {
            None
        } else if cfg!(feature = "grpc") {
            Some(address(grpc, "api.grpc_listen", remote)?)
        } else {
            return Err(ConfigError::new(
                &grpc.file,
                "api.grpc_listen",
                "this program was built without gRPC",
                "leave it empty, or install the agent with the feature set `full`",
            ));
        },
        token_file: file(require(&api.token_file, "api.token_file")?, "api.token_file")?,
        admin_token_file: file(
            require(&api.admin_token_file, "api.admin_token_file")?,
            "api.admin_token_file",
        )?,
        limits: Limits {
            body_bytes_max: bound(&api.body_bytes_max, "api.body_bytes_max", BODY_BYTES_LIMIT)?,
            bodies_bytes_max: bound(&api.bodies_bytes_max, "api.bodies_bytes_max", BODIES_BYTES_LIMIT)?,
            requests_max: bound(&api.requests_max, "api.requests_max", REQUESTS_LIMIT)?,
            tensors_max: bound(&api.tensors_max, "api.tensors_max", TENSORS_LIMIT)?,
        },
        run_max: Duration::from_millis(within(&api.run_ms_max, "api.run_ms_max", 1, RUN_MS_LIMIT)?),
    })
}

fn address(listen: &Sourced<String>, key: &str, remote: bool) -> Result<SocketAddr, ConfigError> {
    let address: SocketAddr = listen.value.parse().map_err(|_| {
        let problem = format!("{:?} is no address with a port", listen.value);
        ConfigError::new(&listen.file, key, &problem, "write it as 127.0.0.1:8090 or [::1]:8090")
    })?;
    if !address.ip().is_loopback() && !remote {
        return Err(ConfigError::new(
            &listen.file,
            key,
            "other machines could reach this address",
            "use a loopback address, or set api.allow_remote = true and api.token_file",
        ));
    }
    Ok(address)
}

/// An absolute path, or none where the text is empty.
fn file(path: &Sourced<String>, key: &str) -> Result<Option<PathBuf>, ConfigError> {
    if path.value.is_empty() {
        return Ok(None);
    }
    if !path.value.starts_with('/') {
        let problem = format!("{:?} is not an absolute path", path.value);
        return Err(ConfigError::new(&path.file, key, &problem, "begin it with /"));
    }
    Ok(Some(PathBuf::from(&path.value)))
}
