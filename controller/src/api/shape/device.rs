use serde::Serialize;
use utoipa::ToSchema;

use super::Arch;

/// What a device is and can do.
#[derive(Serialize, ToSchema)]
pub(crate) struct DeviceProfile {
    /// Hardware class.
    class: String,
    /// Architecture the agent was built for.
    arch: Arch,
    /// Processor cores.
    cores: u32,
    /// Physical memory, bytes.
    ram_bytes: u64,
    /// Limits for one model.
    budgets: Budgets,
    /// ONNX operators this agent runs right, as `domain/Name`.
    #[serde(default)]
    ops: Vec<String>,
    /// Release of the agent.
    #[serde(default)]
    agent: String,
}

/// What a device may spend on one model.
#[derive(Serialize, ToSchema)]
pub(crate) struct Budgets {
    /// Largest bundle, bytes.
    model_bytes_max: u64,
    /// Memory for one loaded model, bytes.
    model_ram_bytes_max: u64,
    /// Median latency of one request, microseconds.
    latency_us_max: u64,
}

/// What one task runs on a device.
#[derive(Serialize, ToSchema)]
pub(crate) struct Installed {
    /// The serving release; absent while the constant baseline answers.
    release: Option<String>,
    /// Digest of its manifest.
    manifest: Option<String>,
    /// Where it stands.
    phase: Phase,
    /// Latency measured while proving, median in microseconds.
    proof_us: Option<u64>,
    /// Memory the proof needed, bytes.
    proof_bytes: Option<u64>,
}

/// Where an update of one task stands.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    Assigned,
    Fetching,
    Verifying,
    Staged,
    Proving,
    Probation,
    Committed,
    RolledBack,
    Failed,
    Rejected,
    Deferred,
    Superseded,
}

/// A device that asks to join.
#[derive(Serialize, ToSchema)]
pub(crate) struct EnrolRequest {
    /// Secret of the claim token.
    secret: String,
    /// The id the device asks for; the claim may fix another one.
    device: Option<String>,
    /// Serial number of its board, if it knows one.
    serial: Option<String>,
    /// PKCS#10 certificate request (RFC 2986), PEM, signed by the device's own key.
    csr_pem: String,
    /// What the device is.
    profile: DeviceProfile,
}

/// What a device that joined is given.
#[derive(Serialize, ToSchema)]
pub(crate) struct EnrolResponse {
    /// The id the device has from now on.
    device: String,
    /// Its certificate, PEM.
    certificate_pem: String,
    /// The certificate authority, PEM; must match the claim's pin.
    ca_pem: String,
    /// Host of the broker.
    mqtt_host: String,
    /// Port of the broker (TLS).
    mqtt_port: u16,
    /// The image repository's first root, as its file reads; must match the claim's pin.
    image_root: String,
    /// The director repository's first root, as its file reads; must match the claim's pin.
    director_root: String,
    /// When the certificate is valid.
    valid: Option<Validity>,
}

/// What a device is told that waits for an operator.
#[derive(Serialize, ToSchema)]
pub(crate) struct EnrolWaiting {
    /// What the operator knows it by.
    id: String,
    /// Lower-case hex SHA-256 of the public key in the request, for people to compare.
    key_id: String,
    /// Seconds after which to ask again.
    ask_again_s: u64,
}

/// When a certificate is valid.
#[derive(Serialize, ToSchema)]
pub(crate) struct Validity {
    /// When it was issued, Unix milliseconds.
    from_ms: u64,
    /// When it ends, Unix milliseconds.
    until_ms: u64,
}

/// A device that asks for its next certificate.
#[derive(Serialize, ToSchema)]
pub(crate) struct RenewRequest {
    /// The device.
    device: String,
    /// PKCS#10 certificate request (RFC 2986), PEM, signed by the key the device enrolled with.
    csr_pem: String,
}

/// A device's next certificate.
#[derive(Serialize, ToSchema)]
pub(crate) struct RenewResponse {
    /// The next certificate, or the present one while that is young; PEM.
    certificate_pem: String,
    /// When it is valid.
    valid: Validity,
}
