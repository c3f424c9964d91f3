use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use dunlin_agent::api::{self, Api, Door};
use dunlin_agent::serve::{Crew, Limits, Serving};
use dunlin_protocol::{Member, ResourceUse, Role, Rule, TaskId};

use super::{Models, TASK, unix_us};
use crate::digits::PIXELS;
use crate::served;

/// Says something to the driver, in one line.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Serves and swaps, with a pause of `every` between two swaps, until standard input ends: the driver is gone.
///
/// # Errors
/// A port can not be had, or a model not be loaded.
pub fn serve(every: Duration) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let serving = Serving::new(Limits::default());
    let models = Arc::new(Models::new());
    swap(&runtime, &serving, &models, 1)?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let address: SocketAddr = listener.local_addr()?;
    let api = Api::new(Arc::clone(&serving), Arc::new(dunlin_agent::clock::now), api::Limits::default());
    runtime.spawn(api.serve(Door::Tcp(listener), std::future::pending()));
    say(&address.to_string())?;
    std::thread::spawn(|| {
        // Whatever comes: the end of it is what counts.
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        std::process::exit(0);
    });
    for generation in 2.. {
        std::thread::sleep(every);
        let from = unix_us()?;
        swap(&runtime, &serving, &models, generation)?;
        say(&format!("{generation} {from} {}", unix_us()?))?;
        // As the agent does it, or those of forty line-ups would be kept.
        drop(serving.close_windows(dunlin_agent::clock::now(), &ResourceUse::default()));
    }
    Ok(())
}

/// Loads the line-up of a generation anew and has it serve: with a fallback every second time; every third time with the
/// champion before it beside it, and the time after with a second voter.
fn swap(
    runtime: &tokio::runtime::Runtime,
    serving: &Serving,
    models: &Arc<Models>,
    generation: u64,
) -> Result<()> {
    let task: TaskId = TASK.parse()?;
    let models = Arc::clone(models);
    let load = move || -> Result<Crew> {
        let resident = |line: &str, of: u64| {
            served::resident(&format!("{line}@{generation}"), TASK, models.onnx(of), &models.rows, PIXELS)
        };
        let fallback = generation.is_multiple_of(2).then(|| resident("spare", generation + 1)).transpose()?;
        let mut crew = Crew::new(resident("soak", generation)?, fallback);
        if generation % 3 == 1 {
            let voter = resident("voter", generation)?;
            let role = Role::Voter { weight_ppm: 1_000_000 };
            crew.members.push((Member { release: voter.release.clone(), role, limit_us: None }, voter));
            crew.conduct.rule = Rule::SoftVote;
        }
        Ok(crew)
    };
    // On a thread for waiting, as the agent loads models.
    let crew = runtime.block_on(async { tokio::task::spawn_blocking(load).await })??;
    serving.line_up(&task, crew, generation, generation.is_multiple_of(3));
    Ok(())
}
