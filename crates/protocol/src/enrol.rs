use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::{DeviceId, DeviceProfile, Digest};

/// Everything a bare device needs to trust one controller:
/// `dunlin1.<url>.<sha256 of CA>.<sha256 of image root.json>.<sha256 of director root.json>.<secret>`, the url
/// in base64url without padding (RFC 4648 §5), the digests in hex. The CA's digest is over its DER form.
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimToken {
    /// Base URL of the controller's API, `https://host:port`.
    pub url: String,
    /// Pin of the certificate authority.
    pub ca: Digest,
    /// Pin of the image repository's root.
    pub image_root: Digest,
    /// Pin of the director repository's root.
    pub director_root: Digest,
    /// Admits one device, once.
    pub secret: String,
}

/// Why a text is not a claim token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a claim token ({0}); ask the operator for the output of `dunlin device claim`, whole and on one line"
)]
pub struct ClaimTokenError(&'static str);

impl FromStr for ClaimToken {
    type Err = ClaimTokenError;

    fn from_str(text: &str) -> Result<Self, ClaimTokenError> {
        let mut parts = text.trim().split('.');
        let mut next = || parts.next().ok_or(ClaimTokenError("it has too few parts"));
        if next()? != "dunlin1" {
            return Err(ClaimTokenError("it does not begin with dunlin1"));
        }
        let url = URL_SAFE_NO_PAD.decode(next()?).ok().and_then(|url| String::from_utf8(url).ok());
        let url = url.ok_or(ClaimTokenError("its url is not base64url"))?;
        if !url.starts_with("https://") {
            return Err(ClaimTokenError("its url is not https"));
        }
        let mut pin = || next()?.parse().map_err(|_| ClaimTokenError("a pin is not a SHA-256 digest"));
        let (ca, image_root, director_root) = (pin()?, pin()?, pin()?);
        let secret = next()?.to_string();
        if secret.len() < 16 || parts.next().is_some() {
            return Err(ClaimTokenError("its secret is cut or followed by more"));
        }
        Ok(Self { url, ca, image_root, director_root, secret })
    }
}

impl fmt::Display for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = URL_SAFE_NO_PAD.encode(&self.url);
        write!(f, "dunlin1.{url}.{}.{}.{}.{}", self.ca, self.image_root, self.director_root, self.secret)
    }
}

impl fmt::Debug for ClaimToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClaimToken({})", self.url)
    }
}

/// Body of `POST /v1/enrol`, JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// Secret of the claim token.
    pub secret: String,
    /// The id the device asks for; the claim may fix another one.
    #[serde(default)]
    pub device: Option<DeviceId>,
    /// Serial number of its board, if it knows one.
    #[serde(default)]
    pub serial: Option<String>,
    /// PKCS#10 certificate request (RFC 2986) in PEM, signed by the device's own key.
    pub csr_pem: String,
    /// What the device is.
    pub profile: DeviceProfile,
}

/// Answer to [`EnrolRequest`], JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolResponse {
    /// The id the device has from now on.
    pub device: DeviceId,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// The certificate authority, PEM; must match the claim's pin.
    pub ca_pem: String,
    /// Host of the broker.
    pub mqtt_host: String,
    /// Port of the broker (TLS).
    pub mqtt_port: u16,
    /// The image repository's first root, as its file reads; must match the claim's pin.
    pub image_root: String,
    /// The director repository's first root, as its file reads; must match the claim's pin.
    pub director_root: String,
    /// When the certificate is valid; absent from controllers that do not tell.
    #[serde(default)]
    pub valid: Option<Validity>,
}

/// Answer to an [`EnrolRequest`] that waits for an operator, JSON with status 202. The same request asks again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnrolWaiting {
    /// What the operator knows it by.
    pub id: String,
    /// Lower-case hex SHA-256 of the public key in the request, for people to compare.
    pub key_id: String,
    /// Seconds after which to ask again.
    pub ask_again_s: u64,
}

/// When a certificate is valid, by the controller's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// When it was issued, Unix milliseconds.
    pub from_ms: u64,
    /// When it ends, Unix milliseconds.
    pub until_ms: u64,
}

/// Body of `POST /v1/renew`, JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The device.
    pub device: DeviceId,
    /// PKCS#10 certificate request (RFC 2986) in PEM, signed by the key the device enrolled with.
    pub csr_pem: String,
}

/// Answer to [`RenewRequest`], JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RenewResponse {
    /// The next certificate, or the present one while that is young; PEM.
    pub certificate_pem: String,
    /// When it is valid.
    pub valid: Validity,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_token_round_trips_and_a_cut_one_is_refused() {
        let token = ClaimToken {
            url: "https://127.0.0.1:8443".into(),
            ca: Digest([1; 32]),
            image_root: Digest([2; 32]),
            director_root: Digest([3; 32]),
            secret: "0123456789abcdef0123".into(),
        };
        let text = token.to_string();
        assert_eq!(text.parse::<ClaimToken>().unwrap(), token);
        for cut in 0..text.len() - 4 {
            assert!(text[..cut].parse::<ClaimToken>().is_err(), "{cut}");
        }
    }
}
