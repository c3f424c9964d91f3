//! Signed messages to devices.
use dunlin_protocol::{AckBody, CmdBody, Desired, DeviceId};

/// Why a message did not go out.
#[derive(Debug, thiserror::Error)]
pub enum DownlinkError {
    /// The link to the broker is gone.
    #[error("the link to the broker is closed; the message to {0} was not sent")]
    Closed(DeviceId),
}

/// Sends signed messages. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Downlink;

impl Downlink {
    /// Tells a device which generation waits for it.
    pub async fn desired(&self, _device: &DeviceId, _desired: &Desired) -> Result<(), DownlinkError> {
        Ok(())
    }

    /// Gives a device a command; returns its id, which the reply echoes.
    pub async fn cmd(&self, _device: &DeviceId, _cmd: CmdBody) -> Result<String, DownlinkError> {
        Ok(String::new())
    }

    /// Tells a device what is committed.
    pub async fn ack(&self, _device: &DeviceId, _ack: &AckBody) -> Result<(), DownlinkError> {
        Ok(())
    }

    /// Tells every device that metadata changed.
    pub async fn notice(&self) -> Result<(), DownlinkError> {
        Ok(())
    }
}
