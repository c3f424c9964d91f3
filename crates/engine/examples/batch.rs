//! A batch in a process of its own, which tests kill and measure: manifest, model, rows (CSV), answers (CSV). It
//! ends with what the kernel says of it, the most memory it took among that.

use std::error::Error;
use std::path::PathBuf;

use dunlin_engine::Model;
use dunlin_engine::batch::{Columns, Csv, Fingerprint, Format, Job, Progress, Source, Watch, run};
use dunlin_protocol::Bundle;

struct Always;

impl Watch for Always {
    fn is_due(&mut self) -> bool {
        true
    }

    fn saved(&mut self, _: &Progress) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [bundle, model, input, output] = args.as_slice() else {
        return Err("usage: batch MANIFEST MODEL INPUT OUTPUT".into());
    };
    let bundle: Bundle = serde_json::from_slice(&std::fs::read(bundle)?)?;
    let model = Model::load(&std::fs::read(model)?, None)?;
    let columns = Columns::of(&bundle)?;
    let job = Job {
        task: bundle.task.clone(),
        release: bundle.release.clone(),
        input: Fingerprint::of(input)?,
        output: output.clone(),
        format: Format::Csv,
        resume: true,
        skip_bad: false,
    };
    let open = |from| Ok(Box::new(Csv::open(input, &columns, from)?) as Box<dyn Source>);
    run(&job, &columns, open, &mut &model, &mut Always)?;
    std::io::copy(&mut std::fs::File::open("/proc/self/status")?, &mut std::io::stdout())?;
    Ok(())
}
