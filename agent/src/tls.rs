//! TLS that trusts one authority, and what speaks against a server that this device tried to connect to.
use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::CertificateError::{Expired, ExpiredContext, NotValidYetContext};
use rustls::Error::InvalidCertificate;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::clock::CertificateTime;

/// TLS that trusts this authority alone and presents nothing.
pub(crate) fn trusting(authority: CertificateDer<'static>) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let builder = ClientConfig::builder_with_details(provider, Arc::new(CertificateTime))
        .with_safe_default_protocol_versions()?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(DatesLast(verifier)))
        .with_no_client_auth())
}

/// Accepts what the verifier within accepts. That looks at the dates of a certificate first, so that anybody could hide
/// behind an expired one that he made himself: of one whose dates do not hold, what is told is what else speaks against it.
#[derive(Debug)]
struct DatesLast(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for DatesLast {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let at = |time| {
            self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time)
        };
        let judged = at(now);
        let then = match &judged {
            Err(InvalidCertificate(ExpiredContext { not_after, .. })) => *not_after,
            Err(InvalidCertificate(NotValidYetContext { not_before, .. })) => *not_before,
            Ok(_) | Err(_) => return judged,
        };
        match at(then) {
            Ok(_) => judged,
            // Certificates whose dates never held together are of no chain that anybody is late with.
            Err(InvalidCertificate(ExpiredContext { .. } | NotValidYetContext { .. })) => {
                Err(InvalidCertificate(Expired))
            }
            Err(other) => Err(other),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What speaks against a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// Its certificate is good, at another time than the one that this device takes for the present.
    Untimely,
    /// It does not prove to be the controller: somebody else answers in its place.
    Untrusted,
}

/// What speaks against the server, where an error goes back to that. That it can not be reached or refuses this device
/// does not.
pub(crate) fn doubt(error: &(dyn Error + 'static)) -> Option<Doubt> {
    let error = tls(error)?;
    // What names its dates was good at one of them, see [`DatesLast`].
    if let InvalidCertificate(ExpiredContext { .. } | NotValidYetContext { .. }) = error {
        return Some(Doubt::Untimely);
    }
    let untrusted = matches!(
        error,
        InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::InappropriateMessage { .. }
            | rustls::Error::InappropriateHandshakeMessage { .. }
            | rustls::Error::DecryptError
            | rustls::Error::PeerMisbehaved(_)
            | rustls::Error::PeerIncompatible(_)
            | rustls::Error::PeerSentOversizedRecord
    );
    untrusted.then_some(Doubt::Untrusted)
}

/// The error of the TLS library that an error goes back to.
fn tls<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error is made of is not its source.
        let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = within.map(|within| within as &(dyn Error + 'static)).or_else(|| error.source());
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
        PKCS_ECDSA_P256_SHA256,
    };
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{AlertDescription, CertificateError, InvalidMessage, ServerConfig};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    #[test]
    fn somebody_elses_certificate_is_told_from_a_wrong_clock_and_from_a_refusal() {
        let (time, not_after) = (UnixTime::since_unix_epoch(Duration::ZERO), UnixTime::now());
        let cases = [
            (InvalidCertificate(CertificateError::UnknownIssuer), Some(Doubt::Untrusted)),
            (InvalidCertificate(CertificateError::NotValidForName), Some(Doubt::Untrusted)),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), Some(Doubt::Untrusted)),
            (InvalidCertificate(Expired), Some(Doubt::Untrusted)),
            (InvalidCertificate(CertificateError::NotValidYet), Some(Doubt::Untrusted)),
            (InvalidCertificate(ExpiredContext { time, not_after }), Some(Doubt::Untimely)),
            (InvalidCertificate(NotValidYetContext { time, not_before: not_after }), Some(Doubt::Untimely)),
            (rustls::Error::AlertReceived(AlertDescription::CertificateRevoked), None),
            (rustls::Error::General("out of luck".to_owned()), None),
        ];
        for (error, expected) in cases {
            assert_eq!(doubt(&error), expected, "{error}");
            // As the HTTP client wraps it.
            let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error));
            assert_eq!(doubt(&wrapped), expected, "{wrapped}");
        }
        assert_eq!(doubt(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }

@@
}
