//! ONNX Runtime in a Python of its own, asked line by line: one line of JSON in, one line of JSON out.
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

/// A script that answers until its input ends; ended when dropped.
#[derive(Debug)]
pub struct Runtime {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Runtime {
    /// Starts `python` with these arguments.
    pub fn start(python: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(python)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let to = child.stdin.take().context("standard input was asked for")?;
        let from = BufReader::new(child.stdout.take().context("standard output was asked for")?);
        Ok(Self { child, to, from })
    }

    /// Asks one question.
    pub fn ask(&mut self, question: &Value) -> Result<Value> {
        writeln!(self.to, "{question}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        serde_json::from_str(&line).context("ONNX Runtime in Python ended early; its message is above")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
