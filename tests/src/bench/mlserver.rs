//! MLServer from PyPI with one ONNX model behind it.
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use dunlin_tests::client::Client;

/// Longest wait until it serves: its imports take seconds.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Pause between two looks whether it does.
const LOOK: Duration = Duration::from_millis(200);

/// The server; it ends when this is dropped.
pub(crate) struct MlServer {
    child: Child,
    address: SocketAddr,
}

impl Drop for MlServer {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl MlServer {
    /// Serves `folder/model.onnx` as `task` through ONNX Runtime on one thread, in MLServer's own process: with worker
    /// processes a model as small as this is slower.
    pub(crate) fn start(python: &Path, folder: &Path, task: &str) -> Result<Self> {
        let [http, grpc, metrics] = free_ports()?;
        let settings = json!({
            "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics,
            "parallel_workers": 0, "debug": false, "metrics_endpoint": null,
            // One line a request would be most of what it does.
            "logging_settings": {"version": 1, "disable_existing_loggers": true},
        });
        let model = json!({"name": task, "implementation": "mlserver_model.Onnx", "parameters": {"uri": "./model.onnx"}});
        std::fs::write(folder.join("settings.json"), settings.to_string())?;
        std::fs::write(folder.join("model-settings.json"), model.to_string())?;
        std::fs::write(folder.join("mlserver_model.py"), include_str!("mlserver_model.py"))?;
        let log = folder.join("mlserver.log");
        let file = File::create(&log)?;
        let child = Command::new(python)
            .args(["-c", "from mlserver.cli import main; main()", "start", "."])
            .current_dir(folder)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting MLServer with {}", python.display()))?;
        let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], http)) };
        let ready =
            format!("GET /v2/models/{task}/ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let start = Instant::now();
        loop {
            let answer =
                Client::connect(server.address).and_then(|mut client| client.ask(ready.as_bytes()).map(drop));
            let Err(error) = answer else { return Ok(server) };
            if let Some(status) = server.child.try_wait()? {
                bail!("MLServer ended with {status}: {}", std::fs::read_to_string(&log)?);
            }
            if start.elapsed() > START_LIMIT {
                bail!("MLServer does not serve ({error:#}): {}", std::fs::read_to_string(&log)?);
            }
            std::thread::sleep(LOOK);
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Ports that were free a moment ago: MLServer can not be told to find its own.
fn free_ports() -> Result<[u16; 3]> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let all = [bind()?, bind()?, bind()?];
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    Ok([port(&all[0])?, port(&all[1])?, port(&all[2])?])
}
