//! A TUF client that fetches file by file, with the command line of tuf-conformance's `CLIENT-CLI.md`:
//!
//! ```sh
//! cargo build -p dunlin-trust --example tuf-client
//! pytest tuf_conformance --entrypoint target/debug/examples/tuf-client
//! ```
//!
//! It shows how the single steps of `TrustedRepo` are driven. It keeps no floors record and writes in place, so it is
//! no model for a device.
#![allow(clippy::disallowed_methods, reason = "a client has files, sockets and a clock; the crate has none")]

mod client;
mod http;

use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{env, fs};

use client::{Client, Outcome, Places};
use dunlin_protocol::Now;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let (mut places, mut targets, mut verb) = (Places::default(), Vec::new(), Vec::new());
    let mut rest = env::args().skip(1);
    while let Some(word) = rest.next() {
        let mut value = || rest.next().ok_or("an option lacks its value");
        match word.as_str() {
            "--metadata-dir" => places.metadata_dir = value()?.into(),
            "--metadata-url" => places.metadata_url = value()?.trim_end_matches('/').to_owned(),
            "--target-name" => targets.push(value()?),
            "--target-base-url" => places.target_base_url = value()?.trim_end_matches('/').to_owned(),
            "--target-dir" => places.target_dir = value()?.into(),
            _ => verb.push(word),
        }
    }
    let wall_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
    let open = || Client::open(places.clone(), Now { mono_ms: 0, wall_ms: Some(wall_ms) });
    match verb.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["init", root] => {
            fs::copy(root, places.metadata_dir.join("root.json"))?;
            Ok(())
        }
        ["refresh"] => open()?.refresh(),
        ["download"] => {
            let mut client = open()?;
            client.refresh()?;
            targets.iter().try_for_each(|name| client.download(name))
        }
        _ => Err("usage: [options] init ROOT | refresh | download".into()),
    }
}
