use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;

use dunlin_protocol::auth::{METHOD, signing_bytes};
use mqtt5::broker::events::{BrokerEventHandler, ClientPublishEvent, PublishAction};
use mqtt5::broker::{AuthProvider, AuthResult, EnhancedAuthResult};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::types::ReasonCode;

use super::challenge::{Challenges, verifies};
use super::{BrokerHandle, acl};
use crate::clock;
use crate::identity::CONTROLLER;
use crate::store::Store;

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Proves who connects and holds everyone to their topics.
pub(super) struct Gate {
    store: Store,
    handle: BrokerHandle,
    controller: Vec<u8>,
    name: String,
    challenges: Challenges,
}

impl Gate {
    /// `controller` is the public key of the controller's own client, `name` what clients dial.
    pub(super) fn new(store: Store, handle: BrokerHandle, controller: Vec<u8>, name: String) -> Self {
        Self { store, handle, controller, name, challenges: Challenges::new() }
    }

    async fn key_of(&self, client: &str) -> Option<Vec<u8>> {
        if client == CONTROLLER {
            return Some(self.controller.clone());
        }
        let device = client.parse().ok()?;
        match self.store.device_key(&device).await {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(%error, client, "a device can not be looked up, so it is refused");
                None
            }
        }
    }

    async fn decide(&self, method: &str, data: Option<&[u8]>, client: &str) -> EnhancedAuthResult {
        if method != METHOD {
            return EnhancedAuthResult::fail(method, ReasonCode::BadAuthenticationMethod);
        }
        let now_ms = clock::wall_ms();
        // Unknown clients get a challenge too, so that nobody can ask which devices exist.
        let Some(data) = data.filter(|data| !data.is_empty()) else {
            return EnhancedAuthResult::continue_auth(
                METHOD,
                Some(self.challenges.make(client, now_ms).to_vec()),
            );
        };
        let refuse = |why: &str| {
            tracing::warn!(client, why, "the broker refuses a client");
            EnhancedAuthResult::fail(METHOD, ReasonCode::NotAuthorized)
        };
        let Some(spki) = self.key_of(client).await else {
            return refuse("it is unknown, retired or revoked");
        };
        let answers = |challenge: &[u8]| verifies(&spki, &signing_bytes(client, &self.name, challenge), data);
        if !self.challenges.accept(client, now_ms, answers) {
            return refuse("its answer does not fit the challenge, or comes too late or twice");
        }
        EnhancedAuthResult::success_with_user(METHOD, client)
    }

    fn is_allowed(&self, client: &str, user: Option<&str>) -> bool {
        user == Some(client) && !self.handle.is_shut_out(client)
    }
}

impl AuthProvider for Gate {
    /// A CONNECT without the method, whatever password it brings.
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        address: SocketAddr,
    ) -> Answer<'a, mqtt5::Result<AuthResult>> {
        tracing::warn!(client = connect.client_id, %address, "a CONNECT without the method {METHOD} is refused");
        Box::pin(async { Ok(AuthResult::fail(ReasonCode::BadAuthenticationMethod)) })
    }

    fn authorize_publish<'a>(
        &'a self,
        client: &str,
        user: Option<&'a str>,
        topic: &'a str,
    ) -> Answer<'a, bool> {
        let allowed = self.is_allowed(client, user) && acl::may_publish(client, topic);
        Box::pin(async move { allowed })
    }

    fn authorize_subscribe<'a>(
        &'a self,
        client: &str,
        user: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        let allowed = self.is_allowed(client, user) && acl::may_subscribe(client, filter);
        Box::pin(async move { allowed })
    }

    fn supports_enhanced_auth(&self) -> bool {
        true
    }

    fn authenticate_enhanced<'a>(
        &'a self,
        method: &'a str,
        data: Option<&'a [u8]>,
        client: &'a str,
    ) -> Answer<'a, mqtt5::Result<EnhancedAuthResult>> {
        Box::pin(async move { Ok(self.decide(method, data, client).await) })
    }

    fn reauthenticate<'a>(
        &'a self,
        method: &'a str,
        data: Option<&'a [u8]>,
        client: &'a str,
        _user: Option<&'a str>,
    ) -> Answer<'a, mqtt5::Result<EnhancedAuthResult>> {
        Box::pin(async move { Ok(self.decide(method, data, client).await) })
    }
}

/// Swallows retained messages on any topic but `status`: a retained record would be delivered for ever.
pub(super) struct RetainedOnlyStatus;

impl BrokerEventHandler for RetainedOnlyStatus {
    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        let keep = !event.retain || acl::may_retain(&event.topic);
        if !keep {
            tracing::warn!(client = %event.client_id, topic = %event.topic, "a retained message is dropped; only status is retained");
        }
        Box::pin(async move { if keep { PublishAction::Continue } else { PublishAction::Handled } })
    }
}
