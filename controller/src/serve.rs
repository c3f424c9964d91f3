//! `dunlin serve`.
use tokio::sync::watch;

/// Tells every loop of the process to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Pulls the lever.
#[derive(Debug)]
pub struct ShutdownTrigger(watch::Sender<bool>);

impl Shutdown {
    /// A lever and what it moves.
    pub fn new() -> (ShutdownTrigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (ShutdownTrigger(sender), Self(receiver))
    }

    /// Returns when the process is to end.
    pub async fn requested(&mut self) {
        // A lost lever means that the process is ending.
        drop(self.0.wait_for(|requested| *requested).await);
    }

    /// Whether the process is to end.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }
}

impl ShutdownTrigger {
    /// Asks every loop to end.
    pub fn pull(&self) {
        self.0.send_replace(true);
    }
}
