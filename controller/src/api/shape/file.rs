use serde::Serialize;
use utoipa::ToSchema;

/// Bytes as they are.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub(crate) struct Binary(Vec<u8>);

/// A metadata file of TUF, byte for byte.
#[derive(Serialize, ToSchema)]
pub(crate) struct SignedFile {
    /// Over the canonical form of `signed`.
    signatures: Vec<FileSignature>,
    /// The role's metadata, of the form that the specification of TUF gives to it.
    #[schema(value_type = Object)]
    signed: serde_json::Value,
}

/// A signature of a metadata file.
#[derive(Serialize, ToSchema)]
pub(crate) struct FileSignature {
    /// Id of the key.
    keyid: String,
    /// The signature, hex.
    sig: String,
}

/// The content of a target that is no program.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Target {
    /// The manifest of a release.
    Release(super::Bundle),
    /// The policy of a task.
    Policy(super::TaskPolicy),
}
