//! Who this controller is.

/// Certificates and addresses.
#[derive(Debug)]
pub struct Identity;
