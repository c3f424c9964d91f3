//! The MQTT broker.

/// Reaches the running broker.
#[derive(Debug, Clone)]
pub struct BrokerHandle;
