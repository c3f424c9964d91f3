//! The agent's own program: fetched and proved beside the models.
use dunlin_protocol::Blob;
use dunlin_update::{Event, Fault};

use super::super::program;
use super::{Hands, Job, in_turn};

impl Hands {
    /// Fetches the next program; what was being fetched as such before is not wanted any more.
    pub(super) fn fetch_program(&mut self, file: Blob) {
        let (store, fetcher, fetches) = (self.store.clone(), self.fetcher.clone(), self.fetches.clone());
        let writer = self.writer(file.digest);
        let job: Job = Box::pin(async move {
            let writer = writer.lock_owned().await;
            let held = (writer, fetches.acquire_owned().await.ok()?);
            let fetched = match program::admits(&store, &file) {
                Ok(()) => fetcher.blob(&store, &file, held).await.map_err(|error| error.fault()),
                Err(fault) => Err(fault),
            };
            Some(match fetched {
                Ok(()) => Event::ProgramStored { file: file.digest },
                Err(fault) => Event::ProgramFailed { file: file.digest, fault },
            })
        });
        if let Some(before) = self.program.replace(self.jobs.spawn(job)) {
            before.abort();
        }
    }

    /// Has it test itself.
    pub(super) fn prove_program(&mut self, file: Blob) {
        let store = self.store.clone();
        let prove = Box::new(move || match program::prove(&store, &file) {
            Ok(()) => Event::ProgramProved { file: file.digest },
            Err((reason, detail)) => {
                Event::ProgramFailed { file: file.digest, fault: Fault::Wrong { reason, detail } }
            }
        });
        let job: Job = Box::pin(in_turn(self.proofs.clone(), prove));
        self.jobs.spawn(job);
    }
}
