//! What is fetched for a task.
use std::sync::Arc;

use dunlin_protocol::{Blob, Bundle, Digest, TaskId, TaskPolicy};
use dunlin_update::{Event, FileRef};
use tokio::sync::Mutex;

use super::super::load;
use super::super::store::Store;
use super::Hands;

/// What is fetched.
pub(super) enum Item {
    Policy(FileRef),
    Manifest(FileRef),
    Blob(Blob),
}

impl Item {
    fn blob(&self) -> Blob {
        match self {
            Self::Policy(file) | Self::Manifest(file) => Blob { digest: file.sha256, length: file.length },
            Self::Blob(blob) => *blob,
        }
    }

    /// The fact that it is in the store.
    fn stored(self, task: TaskId, store: &Store) -> Event {
        let blob = self.blob();
        let malformed = |task, detail| Event::FileMalformed { task, file: blob.digest, detail };
        match self {
            Self::Policy(_) => match load::json::<TaskPolicy>(store, &blob) {
                Ok(policy) => Event::PolicyFetched { task, file: blob.digest, policy: Box::new(policy) },
                Err(detail) => malformed(task, detail),
            },
            Self::Manifest(_) => match load::json::<Bundle>(store, &blob) {
                Ok(bundle) => Event::ManifestFetched { task, file: blob.digest, bundle: Box::new(bundle) },
                Err(detail) => malformed(task, detail),
            },
            Self::Blob(_) => Event::BlobStored { task, digest: blob.digest },
        }
    }
}

impl Hands {
    /// What keeps others from writing a blob.
    pub(super) fn writer(&mut self, digest: Digest) -> Arc<Mutex<()>> {
        self.writers.retain(|_, writer| Arc::strong_count(writer) > 1);
        self.writers.entry(digest).or_default().clone()
    }

    pub(super) fn fetch(&mut self, task: TaskId, item: Item) {
        let (store, fetcher, fetches) = (self.store.clone(), self.fetcher.clone(), self.fetches.clone());
        let writer = self.writer(item.blob().digest);
        let of = task.clone();
        let job = async move {
            let writer = writer.lock_owned().await;
            let held = (writer, fetches.acquire_owned().await.ok()?);
            let blob = item.blob();
            let fetched = match &item {
                Item::Policy(file) | Item::Manifest(file) => {
                    fetcher.target(&store, &file.name, &blob, held).await
                }
                Item::Blob(blob) => fetcher.blob(&store, blob, held).await,
            };
            Some(match fetched {
                Ok(()) => item.stored(task, &store),
                Err(error) => Event::FetchFailed { task, digest: blob.digest, fault: error.fault() },
            })
        };
        self.keep_track(of, Box::pin(job));
    }
}
