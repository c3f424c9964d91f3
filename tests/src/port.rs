//! Ports that stay a server's own while it is down.
use std::net::SocketAddr;

use anyhow::Result;
use tokio::net::TcpSocket;

/// A port of loopback that nobody is given who asks for any free one. Whoever names it can listen there: Linux lets two
/// sockets with `SO_REUSEADDR` have one address while at most one of them listens.
#[derive(Debug)]
pub struct Port {
    /// Where to listen.
    pub address: SocketAddr,
    /// It is the port's owner, and never listens.
    _bound: TcpSocket,
}

impl Port {
    /// Takes a free one, until this is dropped.
    pub fn reserve() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self { address: socket.local_addr()?, _bound: socket })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn it_is_listened_to_again_and_again_and_refuses_in_between() {
        let port = Port::reserve().unwrap();
        for _ in 0..2 {
            let listener = TcpListener::bind(port.address).unwrap();
            let client = TcpStream::connect(port.address).unwrap();
            drop((listener.accept().unwrap(), client, listener));
            assert!(TcpStream::connect(port.address).is_err());
        }
    }
}
