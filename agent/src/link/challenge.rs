use std::fmt;
use std::sync::Arc;

use dunlin_protocol::DeviceId;
use dunlin_protocol::auth::{METHOD, signing_bytes};
use dunlin_trust::{Signer, TrustError};
use rumqttc::{AuthAction, AuthContext, AuthError, AuthProperties, Authenticator};

/// Longest challenge that is signed, bytes; the broker's has 56.
const CHALLENGE_BYTES_MAX: usize = 512;

/// The answer to a challenge of the broker that this device dials as `broker`.
pub fn answer(
    signer: &dyn Signer,
    client: &DeviceId,
    broker: &str,
    challenge: &[u8],
) -> Result<Vec<u8>, TrustError> {
    signer.sign(&signing_bytes(client.as_str(), broker, challenge))
}

/// Answers the broker's challenges with the device's key.
pub(super) struct ChallengeAnswer {
    pub(super) signer: Arc<dyn Signer + Send + Sync>,
    pub(super) client: DeviceId,
    pub(super) broker: String,
}

impl fmt::Debug for ChallengeAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChallengeAnswer({} at {})", self.client, self.broker)
    }
}

impl Authenticator for ChallengeAnswer {
    fn start(&mut self, _context: AuthContext<'_>) -> Result<Option<AuthProperties>, AuthError> {
        Ok(None)
    }

    fn continue_auth(
        &mut self,
        context: AuthContext<'_>,
        incoming: Option<AuthProperties>,
    ) -> Result<AuthAction, AuthError> {
        let challenge =
            incoming.and_then(|properties| properties.data).ok_or("the broker sent no challenge")?;
        if context.method != METHOD || challenge.len() > CHALLENGE_BYTES_MAX {
            return Err(AuthError::from("the broker's challenge is not of the agreed form"));
        }
        let signature = answer(self.signer.as_ref(), &self.client, &self.broker, &challenge)
            .map_err(|e| e.to_string())?;
        Ok(AuthAction::Send(AuthProperties {
            method: Some(METHOD.to_owned()),
            data: Some(signature.into()),
            reason: None,
            user_properties: Vec::new(),
        }))
    }

    fn success(
        &mut self,
        _context: AuthContext<'_>,
        _incoming: Option<AuthProperties>,
    ) -> Result<(), AuthError> {
        Ok(())
    }

    fn failure(&mut self, _context: AuthContext<'_>, error: AuthError) {
        tracing::warn!(%error, "the broker did not accept this device's proof");
    }
}

#[cfg(test)]
mod tests {
    use dunlin_trust::EcdsaP256Signer;
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    #[test]
    fn the_answer_is_bound_to_method_client_broker_and_challenge() {
        let signer = EcdsaP256Signer::from_pkcs8(&EcdsaP256Signer::generate_pkcs8().unwrap()).unwrap();
        let client: DeviceId = "pole-17".parse().unwrap();
        let signature = answer(&signer, &client, "broker.example", b"challenge").unwrap();
        // The last 65 bytes of a P-256 SubjectPublicKeyInfo are the uncompressed point.
        let spki = signer.public();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &spki[spki.len() - 65..]);
        let signed = |client: &str, broker: &str, challenge: &str| {
            format!("dunlin-auth-v1\0DUNLIN-P256\0{client}\0{broker}\0{challenge}")
        };
        assert_eq!(signature.len(), 64);
        assert!(key.verify(signed("pole-17", "broker.example", "challenge").as_bytes(), &signature).is_ok());
        for other in [
            signed("pole-18", "broker.example", "challenge"),
            signed("pole-17", "other.example", "challenge"),
            signed("pole-17", "broker.example", "another"),
        ] {
            assert!(key.verify(other.as_bytes(), &signature).is_err());
        }
    }
}
