//! Who may ask what.
//!
//! Over TCP a request bears a token where one is configured; over the Unix socket the file's mode has decided already.
//! Loading and unloading is for an administrator on this device: over TCP from its own address, a bearer of the other
//! token; over the Unix socket such a bearer, root, and the agent's own user.

use std::path::Path;

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap};
use ring::digest::{SHA256, digest};

use super::refusal::Refusal;

/// Shortest token: 16 characters of base64 are 96 bits, which nobody guesses.
const TOKEN_CHARS_MIN: usize = 16;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// Over TCP: anyone who reaches the address; `local` from this device.
    Tcp { local: bool },
    /// Over the Unix socket; `owner` is root or the agent's own user.
    Unix { owner: bool },
}

/// What a token or a peer allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Right {
    /// Health alone.
    Nothing,
    /// Inference, labels and whatever is only read.
    Use,
    /// Loading and unloading as well.
    Administer,
}

/// A token, held as its SHA-256: comparing digests takes the same time however much of a guess is right.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    fn of(text: &str) -> Self {
        let mut own = [0; 32];
        own.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
        Self(own)
    }

    /// Reads a token from the first line of a file.
    ///
    /// # Errors
    /// If the file can not be read, or its first line is shorter than a token should be.
    pub fn read(file: &Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        let token = text.lines().next().unwrap_or_default().trim();
        if token.len() < TOKEN_CHARS_MIN {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("its first line is no token of at least {TOKEN_CHARS_MIN} characters"),
            ));
        }
        Ok(Self::of(token))
    }
}

/// The tokens in force.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Asked of every request over TCP.
    pub token: Option<Token>,
    /// Asked for loading and unloading over TCP, which is only done from a loopback address.
    pub admin: Option<Token>,
}

impl Access {
    fn right(&self, peer: Peer, headers: &HeaderMap) -> Right {
        let borne = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| Token::of(token.trim()))
        });
        let boss = borne.is_some() && borne == self.admin;
        match peer {
            Peer::Unix { owner } if owner || boss => Right::Administer,
            Peer::Unix { .. } => Right::Use,
            Peer::Tcp { local: true } if boss => Right::Administer,
            // From elsewhere his token allows what the other one does.
            Peer::Tcp { .. } if boss || self.token.is_none() || borne == self.token => Right::Use,
            Peer::Tcp { .. } => Right::Nothing,
        }
    }

    /// Refuses a request that lacks the right it needs.
    pub(super) fn check(&self, peer: Peer, headers: &HeaderMap, needed: Right) -> Result<(), Refusal> {
        let right = self.right(peer, headers);
        if right >= needed {
            return Ok(());
        }
        Err(match right {
            Right::Nothing => Refusal::new(
                StatusCode::UNAUTHORIZED,
                "a token is asked for here: send it as `Authorization: Bearer ...`",
            ),
            Right::Use | Right::Administer => Refusal::new(
                StatusCode::FORBIDDEN,
                "loading and unloading is for the administrator on this device: ask over the Unix socket, or from a loopback address with the token of api.admin_token_file",
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Peer = Peer::Tcp { local: true };

    fn bearing(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())])
    }

    #[test]
    fn tokens_and_peers_allow_what_they_should() {
        let none = HeaderMap::new();
        let open = Access::default();
        assert_eq!(open.right(HERE, &none), Right::Use);
        assert_eq!(open.right(HERE, &bearing("Bearer x")), Right::Use, "no token is the administrator's");
        assert_eq!(open.right(Peer::Unix { owner: true }, &none), Right::Administer);
        assert_eq!(open.right(Peer::Unix { owner: false }, &none), Right::Use);
        let closed = Access { token: Some(Token::of("of everyone")), admin: Some(Token::of("of the boss")) };
        for (value, right) in [
            ("Bearer of everyone", Right::Use),
            ("bearer  of everyone ", Right::Use),
            ("Bearer of the boss", Right::Administer),
            ("Bearer of nobody", Right::Nothing),
            ("Basic of everyone", Right::Nothing),
            ("of everyone", Right::Nothing),
        ] {
            assert_eq!(closed.right(HERE, &bearing(value)), right, "{value}");
        }
        assert_eq!(closed.right(HERE, &none), Right::Nothing);
        let afar = Peer::Tcp { local: false };
        for (value, right) in [
            ("Bearer of everyone", Right::Use),
            ("Bearer of the boss", Right::Use),
            ("Bearer of nobody", Right::Nothing),
        ] {
            assert_eq!(closed.right(afar, &bearing(value)), right, "{value}");
        }
        let boss = bearing("Bearer of the boss");
        assert_eq!(closed.check(afar, &boss, Right::Administer).unwrap_err().status, StatusCode::FORBIDDEN);
        for owner in [true, false] {
            assert_eq!(closed.right(Peer::Unix { owner }, &boss), Right::Administer);
        }
        let refused = |needed| closed.check(HERE, &none, needed).unwrap_err().status;
        assert_eq!(refused(Right::Use), StatusCode::UNAUTHORIZED);
        let plain = Access::default().check(HERE, &none, Right::Administer).unwrap_err();
        assert_eq!(plain.status, StatusCode::FORBIDDEN);
    }

    #[test]
    fn a_short_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "short\n").unwrap();
        assert!(Token::read(&file).is_err());
        std::fs::write(&file, "abcdefghijklmnop\nnot this\n").unwrap();
        assert_eq!(Token::read(&file).unwrap(), Token::of("abcdefghijklmnop"));
    }
}
