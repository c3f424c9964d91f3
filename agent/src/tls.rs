//! TLS that trusts one authority, and what speaks against a server that this device tried to connect to.
use std::error::Error;
use std::io;
use std::sync::Arc;

use rustls::CertificateError::{Expired, ExpiredContext, NotValidYetContext};
use rustls::Error::InvalidCertificate;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::clock::CertificateTime;

/// What judges a server by this authority alone.
pub(crate) fn verifier(
    authority: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))
}

/// TLS that trusts this authority alone and presents nothing.
pub(crate) fn trusting(authority: CertificateDer<'static>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = verifier(authority, provider.clone())?;
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
        let at =
            |time| self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, time);
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
        BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
        PKCS_ECDSA_P256_SHA256, date_time_ymd,
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

    /// First days of which years certificates are valid between.
    type Years = (i32, i32);
    const PAST: Years = (2001, 2002);
    const PRESENT: Years = (2000, 4000);
    const FUTURE: Years = (3000, 4000);
    const NAME: &str = "controller";

    fn params(names: &[&str], (from, until): Years) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        params
    }

    /// An authority is named as any other is.
    fn authority(years: Years) -> CertificateParams {
        let mut params = params(&[], years);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    fn key() -> KeyPair {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
    }

    /// What speaks against a server with this chain, for a device that trusts this authority.
    async fn met(
        trusted: &CertificateDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        key: &KeyPair,
    ) -> Option<Doubt> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        let client = trusting(trusted.clone()).unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let accept = TlsAcceptor::from(Arc::new(server)).accept(far);
        let connect = TlsConnector::from(Arc::new(client)).connect(ServerName::try_from(NAME).unwrap(), near);
        let (_, connected) = tokio::join!(accept, connect);
        connected.err().map(|error| doubt(&error).unwrap_or_else(|| panic!("{error}")))
    }

    #[tokio::test]
    async fn an_expired_certificate_hides_nobody_but_the_controller_is_only_late() {
        let (own_key, server_key) = (key(), key());
        let own = authority(PRESENT).self_signed(&own_key).unwrap().der().clone();
        let own_issuer = Issuer::new(authority(PRESENT), own_key);
        let foreign_issuer = Issuer::new(authority(PRESENT), key());
        let of = |issuer: &Issuer<'static, KeyPair>, name, years| {
            vec![params(&[name], years).signed_by(&server_key, issuer).unwrap().der().clone()]
        };
        let alone = vec![params(&[NAME], PAST).self_signed(&server_key).unwrap().der().clone()];
        // An authority in between that was over before what it signed.
        let mut between = authority((1990, 1991));
        between.distinguished_name.push(DnType::CommonName, "between");
        let between_key = key();
        let signed = between.signed_by(&between_key, &foreign_issuer).unwrap().der().clone();
        let mut behind = of(&Issuer::new(between, between_key), NAME, PAST);
        behind.push(signed);

        let cases = [
            ("the controller", of(&own_issuer, NAME, PRESENT), None),
            ("the controller, expired", of(&own_issuer, NAME, PAST), Some(Doubt::Untimely)),
            ("the controller, early", of(&own_issuer, NAME, FUTURE), Some(Doubt::Untimely)),
            ("a device, expired", of(&own_issuer, "pole-1", PAST), Some(Doubt::Untrusted)),
            ("another authority", of(&foreign_issuer, NAME, PRESENT), Some(Doubt::Untrusted)),
            ("another authority, expired", of(&foreign_issuer, NAME, PAST), Some(Doubt::Untrusted)),
            ("another authority, early", of(&foreign_issuer, NAME, FUTURE), Some(Doubt::Untrusted)),
            ("nobody, expired", alone, Some(Doubt::Untrusted)),
            ("one behind one that was over before it began", behind, Some(Doubt::Untrusted)),
        ];
        for (who, chain, expected) in cases {
            assert_eq!(met(&own, chain, &server_key).await, expected, "{who}");
        }
    }
}
