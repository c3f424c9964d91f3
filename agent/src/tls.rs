//! What speaks against a server that this device tried to connect to.
use std::error::Error;
use std::io;

use rustls::CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};

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
    if let rustls::Error::InvalidCertificate(
        Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
    ) = error
    {
        return Some(Doubt::Untimely);
    }
    let untrusted = matches!(
        error,
        rustls::Error::InvalidCertificate(_)
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
    use rustls::{AlertDescription, CertificateError, InvalidMessage};

    use super::*;

    #[test]
    fn somebody_elses_certificate_is_told_from_a_wrong_clock_and_from_a_refusal() {
        let certificate = rustls::Error::InvalidCertificate;
        let cases = [
            (certificate(CertificateError::UnknownIssuer), Some(Doubt::Untrusted)),
            (certificate(CertificateError::NotValidForName), Some(Doubt::Untrusted)),
            (rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType), Some(Doubt::Untrusted)),
            (certificate(CertificateError::Expired), Some(Doubt::Untimely)),
            (certificate(CertificateError::NotValidYet), Some(Doubt::Untimely)),
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
}
