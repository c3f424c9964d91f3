use std::pin::Pin;

use rumqttc::{PersistedAckMode, PersistedSession, SessionStore, SessionStoreError, SessionStoreKey};

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

/// The client's half of a session that the broker kept: nothing on its way. Everything unacknowledged is sent again
/// from the spool, so nothing is remembered; but without a half of its own the client would only listen in a session
/// that the broker resumes, and drop what it is given to send.
#[derive(Debug)]
pub(super) struct Forgetful {
    nothing: PersistedSession,
}

impl Forgetful {
    /// For a client with these settings; they must be those of its options.
    pub(super) fn new(client: &str, expiry_s: u32, inflight_max: u16) -> Self {
        Self {
            nothing: PersistedSession {
                format_version: 1,
                client_id: client.to_owned(),
                clean_start: false,
                session_expiry_interval: Some(expiry_s),
                outgoing_inflight_upper_limit: Some(inflight_max),
                ack_mode: PersistedAckMode::Automatic,
                last_pkid: 0,
                last_puback: 0,
                replay: Vec::new(),
                incoming_qos2: Vec::new(),
            },
        }
    }
}

impl SessionStore for Forgetful {
    fn load<'a>(&'a self, _: &'a SessionStoreKey) -> Answer<'a, Option<PersistedSession>> {
        Box::pin(async { Ok(Some(self.nothing.clone())) })
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a PersistedSession) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}
